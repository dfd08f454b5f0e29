"""Playing to guests that do not do what they should: always an end, a verdict, a whole capture."""

from __future__ import annotations

import random
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from tests.replay.playing import QUICK, differing, guest_like, played, recording_of, target_of
from tests.support import ADD_MEM, DISK, HELLO, answer, ask, connect
from upcall_trace.capture.records import Begins, Chunk, Close, GaveUp, Open, Record, Vmm
from upcall_trace.compare.matchers import Matchers
from upcall_trace.errors import ExitCode, Unreachable
from upcall_trace.kernel.world import kata_pod
from upcall_trace.replay.happening import Answered, Parted
from upcall_trace.replay.plan import DANGERS
from upcall_trace.replay.run import Recording, Replay, Terms
from upcall_trace.replay.target import look_at
from upcall_trace.replay.tempo import Patience, Tempo
from upcall_trace.sockets.addresses import UnixAddress
from upcall_trace.sockets.serving import StreamServer
from upcall_trace.trace.opening import load

ANY_PACE = Tempo()
IMPATIENT = replace(QUICK, reply_s=0.2)


def conversation(*replies: int, conn: int = 1, begin: int = 0) -> list[Record]:
    """ADD_MEM as often as there are replies, each answered -1."""
    records = connect(conn, begin)
    for place, ret in enumerate(replies):
        at = begin + (place + 1) * 1_000_000
        records += [ask(ADD_MEM, at, conn), answer(ADD_MEM, at + 1000, conn, ret)]
    return [*records, Close(begin + 10**9, conn, by_guest=False)]


@contextmanager
def odd_guest(
    directory: Path, behave: Callable[[socket.socket], None], greet: bytes = b"OK 1\n" + HELLO
) -> Iterator[Path]:
    """A guest that greets, reads one request, and then behaves as it is told to."""

    def serve(stream: socket.socket) -> None:
        stream.recv(64)
        stream.sendall(greet[:5])
        stream.recv(1)
        stream.sendall(greet[5:])
        stream.recv(1024, socket.MSG_WAITALL)
        behave(stream)

    path = directory / "odd"
    with StreamServer(path, serve):
        yield path


def play_to(path: Path, recording: Recording, output: Path, pace: Tempo = ANY_PACE) -> Replay:
    terms = Terms(pace, IMPATIENT, output=output, allow=DANGERS, keep_going=True)
    with Replay(recording, look_at(UnixAddress(path)), terms=terms) as replay:
        for _ in replay.play():
            pass
    return replay


def closes(stream: socket.socket) -> None:
    stream.close()


def says_nothing(stream: socket.socket) -> None:
    stream.recv(1)


def says_half(stream: socket.socket) -> None:
    stream.sendall(ADD_MEM.reply(-1).encode()[:500])
    stream.recv(1)


def babbles(stream: socket.socket) -> None:
    stream.sendall(random.Random(1).randbytes(1024))
    stream.recv(1)


def floods(stream: socket.socket) -> None:
    while True:
        stream.sendall(bytes(64 << 10))


@pytest.mark.parametrize(
    ("behave", "answered", "not_sent"),
    [
        (closes, [(1, 0)], [(1, 1)]),
        (says_nothing, [(1, 0)], [(1, 1)]),
        (says_half, [(1, 0)], [(1, 1)]),
        (babbles, [(1, 0), (1, 1)], []),
        (floods, [(1, 0), (1, 1)], []),
    ],
)
def test_a_guest_that_goes_wrong_ends_in_a_verdict_and_a_readable_capture(
    behave: Callable[[socket.socket], None],
    answered: list[tuple[int, int]],
    not_sent: list[tuple[int, int]],
    tmp_path: Path,
) -> None:
    recording = recording_of(tmp_path / "a.upcap", conversation(-1, -1))
    with odd_guest(tmp_path, behave) as path:
        replay = play_to(path, recording, tmp_path / "happened.upcap")
    assert differing(replay) == answered
    assert [each.asked.key for each in replay.verdict.not_sent] == not_sent
    assert replay.verdict.exit_code == ExitCode.DIFFERENT
    capture = load(tmp_path / "happened.upcap")
    assert capture.complete
    assert capture.header.source == "replay"
    assert capture.header.notes == {"replay-of": "a.upcap"}
    assert len(capture.operations) == 2 - len(not_sent)


def test_an_answer_that_does_not_come_is_waited_for_so_long(tmp_path: Path) -> None:
    recording = recording_of(tmp_path / "a.upcap", conversation(-1))
    with odd_guest(tmp_path, says_nothing) as path:
        replay = play_to(path, recording, tmp_path / "happened.upcap")
    (gave_up,) = [record for record in replay.happened if isinstance(record, GaveUp)]
    assert gave_up.after_ns >= 200_000_000


def test_one_connection_that_is_lost_does_not_take_the_others_along(tmp_path: Path) -> None:
    two = [*conversation(-1, -1), *conversation(-1, conn=2, begin=2 * 10**9)]
    recording = recording_of(tmp_path / "a.upcap", two)
    lost: list[socket.socket] = []

    def closes_once(stream: socket.socket) -> None:
        if not lost:
            lost.append(stream)
            stream.close()
            return
        stream.sendall(ADD_MEM.reply(-1).encode())
        stream.recv(1)

    with odd_guest(tmp_path, closes_once) as path:
        replay = play_to(path, recording, tmp_path / "happened.upcap")
    assert differing(replay) == [(1, 0)]
    assert [each.asked.key for each in replay.verdict.not_sent] == [(1, 1)]
    assert replay.verdict.same == 1


@pytest.mark.parametrize(
    ("greet", "parted"),
    [
        (b"OK 1\n" + HELLO[:8] + b"\x07" + HELLO[9:],
         Parted(1, "greeted by the service", "greeted with another message")),
        (b"NO 1\n", Parted(1, "accepted", "no OK line")),
        (b"OK 1\n", Parted(1, "greeted by the service", "no CONNECT message")),
    ],
)  # fmt: skip
def test_a_greeting_that_is_none_is_told(greet: bytes, parted: Parted, tmp_path: Path) -> None:
    recording = recording_of(tmp_path / "a.upcap", conversation(-1))
    with odd_guest(tmp_path, says_nothing, greet) as path:
        replay = play_to(path, recording, tmp_path / "happened.upcap")
    assert replay.verdict.parted == [parted]
    assert replay.verdict.exit_code == ExitCode.DIFFERENT
    assert [each.asked.key for each in replay.verdict.not_sent] == [(1, 0)]


def test_a_guest_that_closes_though_it_had_not_is_told(tmp_path: Path) -> None:
    recording = recording_of(tmp_path / "a.upcap", conversation(-1))

    def answers_and_closes(stream: socket.socket) -> None:
        stream.sendall(ADD_MEM.reply(-1).encode())
        stream.close()

    with odd_guest(tmp_path, answers_and_closes) as path:
        replay = play_to(path, recording, tmp_path / "happened.upcap", Tempo(10.0))
    assert replay.verdict.same == 1
    assert replay.verdict.parted == [
        Parted(1, "open until the client closed", "closed by the guest")
    ]


def test_a_port_that_was_refused_and_is_open_now_is_told(tmp_path: Path) -> None:
    refused: list[Record] = [
        Open(0, 1), Chunk(1, 1, True, b"CONNECT 219\n"), Close(2, 1, by_guest=True),
    ]  # fmt: skip
    recording = recording_of(tmp_path / "a.upcap", refused)
    with guest_like(kata_pod(), tmp_path) as guest:
        replay = played(recording, guest, Terms(patience=IMPATIENT))
    assert replay.verdict.parted == [Parted(1, "closed, not accepted", "accepted")]


def test_a_greeting_is_compared_with_the_recorded_one(tmp_path: Path) -> None:
    odd = HELLO[:8] + b"\x07" + HELLO[9:]
    records = conversation(-1)
    records[4] = Chunk(0, 1, False, odd)
    recording = recording_of(tmp_path / "a.upcap", records)

    def answers(stream: socket.socket) -> None:
        stream.sendall(ADD_MEM.reply(-1).encode())
        stream.recv(1)

    with odd_guest(tmp_path, answers, b"OK 1\n" + odd) as path:
        assert play_to(path, recording, tmp_path / "1.upcap").verdict.exit_code == 0
    with odd_guest(tmp_path, answers) as path:
        assert len(play_to(path, recording, tmp_path / "2.upcap").verdict.parted) == 1


@pytest.mark.parametrize("more", [b"\x01" * 400, ADD_MEM.reply(-1).encode()])
def test_bytes_that_nobody_asked_for_are_told(more: bytes, tmp_path: Path) -> None:
    recording = recording_of(tmp_path / "a.upcap", conversation(-1))

    def says_more(stream: socket.socket) -> None:
        stream.sendall(ADD_MEM.reply(-1).encode() + more)
        stream.recv(1)

    with odd_guest(tmp_path, says_more) as path:
        replay = play_to(path, recording, tmp_path / "happened.upcap")
    assert replay.verdict.parted == [Parted(1, "nothing but answers", f"{len(more)} bytes more")]


def test_another_guest_at_the_same_address_gets_nothing(tmp_path: Path) -> None:
    records = [*conversation(-1), *conversation(-1, conn=2, begin=2 * 10**9)]
    recording = recording_of(tmp_path / "a.upcap", records)
    heard: list[bytes] = []
    with guest_like(kata_pod(), tmp_path) as guest:
        target = target_of(guest)
        with Replay(recording, target, terms=Terms(patience=IMPATIENT)) as replay:
            happening = replay.play()
            next(happening)
            guest.close()
            with StreamServer(guest.path, lambda stream: heard.append(stream.recv(64))):
                assert not any(isinstance(each, Answered) for each in happening)
    assert "is not the guest any more that the plan was made for" in replay.verdict.ended
    assert b"".join(heard) == b""


def test_a_silence_is_watched_for_as_long_as_the_recording_did(tmp_path: Path) -> None:
    silent = [*connect(1), ask(DISK, 1), GaveUp(1_300_000_001, 1, 0),
              Close(1_300_000_002, 1, by_guest=False)]  # fmt: skip
    recording = recording_of(tmp_path / "a.upcap", silent)
    with guest_like(kata_pod(), tmp_path, "add_mmio:delay=1100ms") as guest:
        assert differing(played(recording, guest, Terms())) == [(1, 0)]


def test_a_slow_answer_has_twice_the_recorded_time(tmp_path: Path) -> None:
    slow = [*connect(1), ask(DISK, 1), answer(DISK, 300_000_000), Close(10**9, 1, by_guest=False)]
    recording = recording_of(tmp_path / "a.upcap", slow)
    hasty = Terms(patience=Patience(reply_s=0.1, silence_s=0.1))
    with guest_like(kata_pod(), tmp_path, "add_mmio:delay=400ms") as guest:
        assert differing(played(recording, guest, hasty)) == []


def test_silence_that_was_recorded_is_checked(tmp_path: Path) -> None:
    silent = [*connect(1), ask(DISK, 1), GaveUp(2, 1, 250), Close(3, 1, by_guest=False)]
    recording = recording_of(tmp_path / "a.upcap", silent)
    with guest_like(kata_pod(), tmp_path) as guest:
        assert differing(played(recording, guest)) == [(1, 0)]
    with guest_like(kata_pod(), tmp_path, "add_mmio:drop") as guest:
        assert differing(played(recording, guest)) == []


def test_nobody_there(tmp_path: Path) -> None:
    recording = recording_of(tmp_path / "a.upcap", conversation(-1))
    with pytest.raises(Unreachable, match="cannot be reached: No such file"):
        play_to(tmp_path / "nobody", recording, tmp_path / "happened.upcap")
    assert load(tmp_path / "happened.upcap").complete


def test_a_guest_that_dies_on_the_way(tmp_path: Path) -> None:
    records = [*conversation(-1), *conversation(-1, conn=2, begin=2 * 10**9)]
    recording = recording_of(tmp_path / "a.upcap", records)
    with guest_like(kata_pod(), tmp_path) as guest:
        terms = Terms(patience=IMPATIENT, output=tmp_path / "happened.upcap", allow=DANGERS)
        with Replay(recording, target_of(guest), terms=terms) as replay:
            for _ in replay.play():
                guest.close()  # after the first reply
    assert replay.verdict.same == 1
    assert "cannot be reached" in replay.verdict.ended
    assert replay.verdict.exit_code == ExitCode.DIFFERENT
    assert load(tmp_path / "happened.upcap").complete


def test_it_can_be_stopped_at_any_time(tmp_path: Path) -> None:
    recording = recording_of(tmp_path / "a.upcap", conversation(*[-1] * 50))
    stop = threading.Event()
    with guest_like(kata_pod(), tmp_path) as guest:
        terms = Terms(patience=IMPATIENT, output=tmp_path / "happened.upcap", allow=DANGERS)
        with Replay(recording, target_of(guest), terms=terms) as replay:
            for count, _ in enumerate(replay.play(stopped=stop.is_set), 1):
                if count == 7:
                    stop.set()
    verdict = replay.verdict
    assert (verdict.same, verdict.interrupted) == (7, True)
    assert (verdict.not_sent, verdict.divergences, verdict.parted) == ([], [], [])
    assert verdict.exit_code == ExitCode.INTERRUPTED
    assert len(load(tmp_path / "happened.upcap").operations) == 7


def test_stopping_does_not_wait_for_an_answer(tmp_path: Path) -> None:
    recording = recording_of(tmp_path / "a.upcap", conversation(-1))
    stop = threading.Event()
    with odd_guest(tmp_path, says_nothing) as path:
        target = look_at(UnixAddress(path))
        with Replay(recording, target, terms=Terms(allow=DANGERS)) as replay:  # 15 s of patience
            threading.Timer(0.2, stop.set).start()
            assert list(replay.play(stopped=stop.is_set)) == []
    assert replay.verdict.interrupted


def test_what_the_vmm_did_is_ordered_and_recorded(tmp_path: Path) -> None:
    records = [*connect(1), Vmm(1, "vCPU 3 created"), Vmm(2, "a cat walked by")]
    recording = recording_of(tmp_path / "a.upcap", records)
    with guest_like(replace(kata_pod(), vcpus_running=(0,)), tmp_path) as guest:
        replay = played(recording, guest)
        assert guest.state()["vcpus_running"] == [0, 3]
    assert [record.action for record in replay.happened if isinstance(record, Vmm)] == [
        "vCPU 3 created"
    ]
    assert replay.verdict.remarks == [
        "not done on the VMM's side: a cat walked by: there is no order for it"
    ]


def test_a_second_round_is_a_part_of_the_same_capture(tmp_path: Path) -> None:
    recording = recording_of(tmp_path / "a.upcap", conversation(-1, -1))
    with guest_like(kata_pod(), tmp_path) as guest:
        terms = Terms(output=tmp_path / "happened.upcap")
        with Replay(recording, target_of(guest), terms=terms) as replay:
            for _ in range(3):
                assert len(list(replay.play())) == 2
    capture = load(tmp_path / "happened.upcap")
    assert [connection.number for connection in capture.connections] == [1, 3, 5]
    assert capture.operations.t_ns().tolist() == sorted(capture.operations.t_ns().tolist())
    assert len(capture.operations) == 6


def test_a_recording_from_inside_a_guest_is_replayed_through_its_socket(tmp_path: Path) -> None:
    records: list[Record] = [
        Open(0, 1, Begins.SERVICE, 219, True), Chunk(1, 1, True, b"d"), Chunk(2, 1, False, HELLO),
        ask(ADD_MEM, 3), answer(ADD_MEM, 4, ret=-1),
    ]  # fmt: skip
    recording = recording_of(tmp_path / "a.upcap", records)
    with guest_like(kata_pod(), tmp_path) as guest:
        replay = played(recording, guest)
    assert (replay.verdict.same, replay.verdict.exit_code) == (1, ExitCode.EXPECTED)
    assert not recording.matchers
    assert str(Matchers()) == "[match]\n"


def sent_at(path: Path) -> list[int]:
    """When each request left, in nanoseconds from the first."""
    operations = load(path).operations
    return [operation.t_ns - operations.operation(0).t_ns for operation in operations]


@pytest.mark.parametrize(
    ("patience", "max_gap_ns", "least_ms", "most_ms"),
    [
        (replace(QUICK, reply_s=2.0, simulated=False), None, 400, 900),  # as long as recorded
        (
            replace(QUICK, reply_s=0.3, simulated=False),
            None,
            290,
            390,
        ),  # as a reply would be waited for
        (replace(QUICK, reply_s=2.0), None, 240, 390),
        (replace(QUICK, reply_s=2.0, simulated=False), 50_000_000, 49, 200),
    ],
)
def test_a_request_that_is_not_answered_gets_the_time_that_it_had(
    tmp_path: Path, patience: Patience, max_gap_ns: int | None, least_ms: int, most_ms: int
) -> None:
    silent = [*connect(1), ask(DISK, 10**6)]
    other = [*connect(2, 10**7), ask(ADD_MEM, 401 * 10**6, 2), answer(ADD_MEM, 402 * 10**6, 2, -1)]
    ends = [Close(10**9, conn, by_guest=False) for conn in (1, 2)]
    recording = recording_of(tmp_path / "a.upcap", [*silent, *other, *ends])
    terms = Terms(Tempo(max_gap_ns=max_gap_ns), patience, output=tmp_path / "out.upcap")
    with guest_like(kata_pod(), tmp_path, "add_mmio:drop") as guest:
        assert played(recording, guest, terms).verdict.exit_code == 0
    first, second = sent_at(tmp_path / "out.upcap")
    assert (first, least_ms <= second / 1e6 <= most_ms) == (0, True)


def test_a_request_that_is_answered_sooner_is_waited_for_no_longer(tmp_path: Path) -> None:
    slow = [*connect(1), ask(DISK, 10**6)]
    other = [*connect(2, 10**7), ask(ADD_MEM, 901 * 10**6, 2), answer(ADD_MEM, 902 * 10**6, 2, -1)]
    late: list[Record] = [answer(DISK, 950 * 10**6), Close(10**9, 1, by_guest=False)]
    recording = recording_of(tmp_path / "a.upcap", [*slow, *other, *late])
    terms = Terms(
        patience=replace(QUICK, reply_s=2.0, simulated=False), output=tmp_path / "out.upcap"
    )
    with guest_like(kata_pod(), tmp_path) as guest:
        assert played(recording, guest, terms).verdict.exit_code == 0
    assert sent_at(tmp_path / "out.upcap")[1] < 300_000_000


def test_what_follows_on_the_same_connection_does_not_wait(tmp_path: Path) -> None:
    both: list[Record] = [*connect(1), ask(DISK, 10**6), ask(ADD_MEM, 800 * 10**6),
            answer(DISK, 801 * 10**6), answer(ADD_MEM, 802 * 10**6, 1, -1)]  # fmt: skip
    recording = recording_of(tmp_path / "a.upcap", [*both, Close(10**9, 1, by_guest=False)])
    terms = Terms(
        patience=replace(QUICK, reply_s=2.0, simulated=False), output=tmp_path / "out.upcap"
    )
    with guest_like(kata_pod(), tmp_path) as guest:
        assert played(recording, guest, terms).verdict.exit_code == 0
    assert sent_at(tmp_path / "out.upcap")[1] < 300_000_000
