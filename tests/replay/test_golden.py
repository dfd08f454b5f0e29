"""Recordings of a real guest replayed to the simulated one: the verdict is right each time."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.replay.playing import QUICK, differing, guest_of, played, target_of
from tests.support import TRANSCRIPTS, golden
from upcall_trace.replay.plan import DANGERS
from upcall_trace.replay.run import Recording, Replay, Terms, patience_with, read_recording
from upcall_trace.trace.script import Key

# Their sixth connection sends no service byte, and the guest waits 10 s for one.
SLOW = [golden("handshake"), golden("handshake_5_10")]
QUICK_ONES = [path for path in TRANSCRIPTS if path not in SLOW]
SLOW_ONES = [pytest.param(path, marks=pytest.mark.torture) for path in SLOW]
EVERY_BYTE = Terms(patience=QUICK, whole_bytes=True, allow=DANGERS)


@pytest.mark.parametrize("recording", TRANSCRIPTS, ids=lambda path: path.stem)
def test_a_recording_is_answered_as_recorded_to_the_last_byte(
    recording: Path, tmp_path: Path
) -> None:
    with guest_of(recording, tmp_path) as guest:
        replay = played(read_recording(recording), guest, EVERY_BYTE)
    verdict = replay.verdict
    assert (verdict.asked, verdict.parted, verdict.not_sent) == (len(replay.script.asked), [], [])
    assert differing(replay) == []
    assert verdict.exit_code == 0
    lost = [text for text in verdict.remarks if "virtio-mem" not in text]  # it has no memory
    assert lost == []


@pytest.mark.parametrize(
    "recording",
    [*QUICK_ONES, *SLOW_ONES],
    ids=lambda path: path.stem,
)
def test_twice_in_a_row_with_a_reset_between(recording: Path, tmp_path: Path) -> None:
    terms = replace(EVERY_BYTE, reset=True)
    with (
        guest_of(recording, tmp_path) as guest,
        Replay(read_recording(recording), target_of(guest), terms=terms) as replay,
    ):
        for _ in range(2):
            assert list(replay.play())
            assert replay.verdict.exit_code == 0


def silent(recording: Path) -> bool:
    """Whether something in it was never answered."""
    asked = read_recording(recording).script.asked.values()
    return any(each.reply is None for each in asked)


@pytest.mark.torture
@pytest.mark.parametrize(
    "recording", [path for path in TRANSCRIPTS if silent(path)], ids=lambda path: path.stem
)
def test_a_recording_with_silence_comes_out_right_twenty_times(
    recording: Path, tmp_path: Path
) -> None:
    read = read_recording(recording)
    with (
        guest_of(recording, tmp_path) as guest,
        Replay(
            read, target := target_of(guest),
            terms=Terms(patience=patience_with(target, 15.0, None), reset=True, allow=DANGERS),
        ) as replay,
    ):  # fmt: skip
        for _ in range(20):
            assert list(replay.play())
            assert replay.verdict.exit_code == 0


def test_without_a_reset_the_second_time_differs(tmp_path: Path) -> None:
    recording = golden("mmio_lifecycle")
    with (
        guest_of(recording, tmp_path) as guest,
        Replay(read_recording(recording), target_of(guest)) as replay,
    ):
        assert list(replay.play())
        assert replay.verdict.exit_code == 0
        assert list(replay.play())
    # What was added and not removed is there already.
    assert differing(replay) == [(1, 1), (1, 5), (1, 6)]


@pytest.mark.parametrize(
    "recording",
    [*QUICK_ONES, *SLOW_ONES],
    ids=lambda path: path.stem,
)
def test_an_altered_reply_is_named_whichever_it_is(recording: Path, tmp_path: Path) -> None:
    original = read_recording(recording)
    answered = [key for key, asked in original.script.asked.items() if asked.reply is not None]
    terms = replace(EVERY_BYTE, reset=True)
    with guest_of(recording, tmp_path) as guest:
        # Each one takes a replay of its own; of the slow recording one has to do, and of those
        # in which a silence is waited for a few.
        few = len(answered) < len(original.script.asked)
        for key in answered[-1:] if recording in SLOW else answered[:: 5 if few else 1]:
            replay = played(altered(original, key), guest, terms)
            assert differing(replay) == [key]
            (divergence,) = replay.verdict.divergences
            assert [difference.field for difference in divergence.differences] == ["ret"]
            assert replay.verdict.exit_code == 1


def altered(recording: Recording, key: Key) -> Recording:
    """The recording with another result in one reply."""
    asked = recording.script.asked[key]
    assert asked.reply is not None
    reply = replace(asked.reply, ret=asked.reply.ret - 7)  # type: ignore[type-var]
    changed = {**recording.script.asked, key: replace(asked, reply=reply)}
    return replace(recording, script=replace(recording.script, asked=changed))


@pytest.mark.parametrize(
    ("fault", "key", "field"),
    [
        ("add_mmio:ret=-5:when=2", (1, 1), "ret"),
        ("del_mmio:drop:when=1", (1, 10), "answer"),
        ("del_mmio:close:when=1", (1, 10), "answer"),
        ("add_mmio:garbage:when=1", (1, 0), "ret"),
    ],
)
def test_a_guest_that_behaves_otherwise_is_found_out(
    fault: str, key: Key, field: str, tmp_path: Path
) -> None:
    recording = golden("mmio_lifecycle")
    terms = Terms(patience=replace(QUICK, reply_s=0.3))
    with guest_of(recording, tmp_path, fault) as guest:
        replay = played(read_recording(recording), guest, terms)
    first = replay.verdict.divergences[0]
    assert first.asked.key == key
    assert field in [difference.field for difference in first.differences]
    assert replay.verdict.exit_code == 1
