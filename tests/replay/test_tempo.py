"""When each step is due, and that it leaves then."""

from __future__ import annotations

from pathlib import Path

import pytest

from dissectors.constants import MessageType
from dissectors.messages import mmio_request
from tests.replay.playing import guest_like, played, recording_of
from tests.support import DISK, answer, ask, connect
from upcall_trace.capture.records import Chunk, Close, Record
from upcall_trace.errors import WrongUsage
from upcall_trace.kernel.world import kata_pod
from upcall_trace.replay.run import Terms
from upcall_trace.replay.tempo import Tempo, parse_speed
from upcall_trace.trace.script import Act

MS = 1_000_000
STEPS = [Act(at * MS, "") for at in (100, 110, 310, 312)]


@pytest.mark.parametrize(
    ("pace", "due_ms"),
    [
        (Tempo(), [0, 0, 0, 0]),
        (Tempo(1.0), [0, 10, 210, 212]),
        (Tempo(2.0), [0, 5, 105, 106]),
        (Tempo(0.5), [0, 20, 420, 424]),
        (Tempo(1.0, max_gap_ns=50 * MS), [0, 10, 60, 62]),
        (Tempo(None, max_gap_ns=50 * MS), [0, 0, 0, 0]),
    ],
)
def test_when_each_step_is_due(pace: Tempo, due_ms: list[int]) -> None:
    assert [due // MS for due in pace.due(STEPS)] == due_ms


@pytest.mark.parametrize(
    ("text", "speed"), [("max", None), ("recorded", 1.0), ("2x", 2.0), ("0.25x", 0.25)]
)
def test_a_speed(text: str, speed: float | None) -> None:
    assert parse_speed(text) == speed


@pytest.mark.parametrize("text", ["", "fast", "0x", "-1x", "x", "2", "1e3x"])
def test_no_speed(text: str) -> None:
    with pytest.raises(WrongUsage, match="is no speed"):
        parse_speed(text)


def spaced(requests: int, gap_ns: int) -> list[Record]:
    """Adds and removals of a device, `gap_ns` apart."""
    records = connect(1)
    for number in range(requests):
        kind = MessageType.DEL_MMIO if number % 2 else MessageType.ADD_MMIO
        request = mmio_request(kind, 0xF0000000, 0x1000, 5)
        at = (number + 1) * gap_ns
        records += [ask(request, at), answer(request, at + 1000)]
    return [*records, Close((requests + 1) * gap_ns, 1, by_guest=False)]


def test_no_request_leaves_before_its_moment(tmp_path: Path) -> None:
    recording = recording_of(tmp_path / "a.upcap", spaced(30, 10 * MS))
    with guest_like(kata_pod(), tmp_path) as guest:
        replay = played(recording, guest, Terms(Tempo(2.0)))
    assert replay.verdict.exit_code == 0
    assert len(replay.late_ns) == 30
    assert min(replay.late_ns) >= 0
    sent = [r.t_ns for r in replay.happened if isinstance(r, Chunk) and len(r.data) == 1024]
    for place, left in enumerate(sent[1::2]):  # the CONNECT message is the first
        assert left >= (place + 1) * 5 * MS


@pytest.mark.parametrize(("keep", "least_ms", "most_ms"), [(False, 0, 90), (True, 150, 1000)])
def test_pieces_keep_their_gap_when_asked_to(
    keep: bool, least_ms: int, most_ms: int, tmp_path: Path
) -> None:
    raw = DISK.encode()
    late_answers = [answer(DISK, 151 * MS), answer(DISK, 152 * MS, ret=-17)]
    records = [*connect(1), ask(raw[:500], 0), ask(raw[500:], 150 * MS), *late_answers]
    recording = recording_of(tmp_path / "a.upcap", records)
    with guest_like(kata_pod(), tmp_path) as guest:
        replay = played(recording, guest, Terms(Tempo(keep_splits=keep)))
    sent = [r.t_ns for r in replay.happened if isinstance(r, Chunk) and len(r.data) in (500, 524)]
    assert least_ms * MS <= sent[1] - sent[0] < most_ms * MS
