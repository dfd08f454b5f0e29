"""Dragonball's client as it is, against the simulated guest and a clock that stands still.

docs/protocol.md section 5.
"""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from dissectors.constants import MessageType
from dissectors.messages import (
    Request,
    cpu_request,
    decode_reply,
    hello,
    mmio_request,
)
from tests.support import records_of
from upcall_trace.capture.records import Chunk, Close, Open, Record
from upcall_trace.diagnose.verdict import verdict
from upcall_trace.kernel.faults import parse_fault
from upcall_trace.kernel.world import World, kata_pod
from upcall_trace.simulated.dragonball import (
    RESET,
    WOULD_BLOCK,
    Action,
    CalledBack,
    ClientState,
    Dial,
    DragonballClient,
    Logged,
    Reset,
    UpcallBusyError,
    UpcallNotReadyError,
    UpcallSendError,
    Write,
)
from upcall_trace.simulated.in_process import MemoryGuest, MemoryStream
from upcall_trace.simulated.machine import Backend, Habits, Pace

SCENES = Path(__file__).parents[1] / "scenes"
FLOOD = "we should get message from event handler when connection state is `ServiceConnected`"
MS = 1_000_000
SECOND = 1000 * MS
POD = kata_pod(cpus=2)
ADD_2 = cpu_request(MessageType.ADD_CPU, [2])
DEL_9 = cpu_request(MessageType.DEL_CPU, [9])
PLUG = mmio_request(MessageType.ADD_MMIO, 0xE0006000, 0x2000, 5)


class Vm:
    """The client and a guest on one clock; `called` is what the callbacks were called with."""

    def __init__(self, *faults: str, world: World = POD, habits: Habits | None = None) -> None:
        self.guest = MemoryGuest(world, habits, [parse_fault(text) for text in faults])
        self.client = DragonballClient()
        self.called: list[Action] = []
        self.log: list[str] = []
        self.connects: list[int] = []
        self._stream: MemoryStream | None = None
        self._told_end = False
        self._connect_at: int | None = None
        self._do(self.client.start(0))
        self.run(0)

    def send(self, request: Request) -> None:
        self._do(self.client.send(request.encode(), self.guest.now_ns))
        self.run(0)

    def run(self, nanoseconds: int) -> None:
        """Let time pass; what is due happens at its own moment."""
        guest = self.guest
        end = guest.now_ns + nanoseconds
        while True:
            self._pump()
            due = [self._connect_at, self._stream.due_ns() if self._stream else None]
            nearest = min((at for at in due if at is not None), default=end + 1)
            if nearest > end:
                break
            guest.advance(max(0, nearest - guest.now_ns))
        guest.advance(end - guest.now_ns)

    @property
    def rets(self) -> list[int]:
        return [decode_reply(one.reply).ret for one in self.called if isinstance(one, CalledBack)]

    def _pump(self) -> None:
        """Hand over whatever has happened by now, until nothing more does."""
        while True:
            now = self.guest.now_ns
            if self._connect_at is not None and self._connect_at <= now:
                self._connect_at = None
                self.connects.append(now)
                self._stream, self._told_end = self.guest.connect(), False
                self._stream.send(self._line)
            elif self._stream and (received := self._stream.receive()):
                self._do(self.client.received(received, now))
            elif self._stream and self._stream.closed and not self._told_end:
                self._told_end = True
                self._do(self.client.ended(now))
            else:
                return

    def _do(self, actions: list[Action]) -> None:
        for action in actions:
            match action:
                case Dial():
                    self._connect_at, self._line = action.at_ns, action.line
                case Logged():
                    self.log.append(action.text)
                case Write():
                    assert self._stream is not None
                    self._stream.send(action.sent)
                case _:
                    self.called.append(action)


def connected_client() -> DragonballClient:
    client = DragonballClient()
    client.received(b"OK 1\n", 0)
    client.received(hello().encode(), 0)
    assert client.is_ready
    return client


@pytest.mark.parametrize("backend", Backend)
def test_it_connects(backend: Backend) -> None:
    vm = Vm(habits=Habits(backend))
    assert vm.client.state is ClientState.SERVICE_CONNECTED
    assert vm.client.is_ready
    assert vm.connects == [0]
    vm.send(PLUG)
    vm.send(PLUG)
    assert vm.rets == [0, -17]
    assert vm.called[0] == CalledBack(PLUG.reply().encode())


def test_before_it_is_connected_nothing_can_be_sent() -> None:
    client = DragonballClient()
    with pytest.raises(UpcallNotReadyError):
        client.send(PLUG.encode(), 0)
    client.received(b"OK 1\n", 0)
    with pytest.raises(UpcallNotReadyError):
        client.send(PLUG.encode(), 0)
    assert client.state is ClientState.WAITING_SERVICE


def test_one_request_at_a_time() -> None:
    vm = Vm("any:delay=300ms")
    vm.send(PLUG)
    assert vm.client.state is ClientState.SERVICE_BUSY
    assert not vm.client.is_ready
    with pytest.raises(UpcallBusyError):
        vm.send(ADD_2)
    vm.run(300 * MS)
    assert vm.client.is_ready
    vm.send(ADD_2)
    vm.run(300 * MS)
    assert vm.rets == [0, 0]


def test_a_reset_while_busy_calls_back_and_connects_anew_ten_milliseconds_later() -> None:
    vm = Vm("add_cpu:close:when=1")
    vm.run(5 * MS)
    vm.send(ADD_2)
    assert vm.called == [Reset()]
    assert vm.client.state is ClientState.WAITING_SERVER
    vm.run(10 * MS - 1)
    assert vm.connects == [0]
    vm.run(1)
    assert vm.connects == [0, 15 * MS]
    assert vm.client.is_ready
    vm.send(ADD_2)
    assert vm.rets == [-22]  # the first one was executed
    assert vm.client.reconnects == 1


def test_an_idle_client_does_not_notice_that_the_guest_closed() -> None:
    vm = Vm()
    vm.guest.control({"reset": True})
    vm.run(1000 * SECOND)
    assert vm.connects == [0]
    assert vm.client.is_ready
    assert vm.called == []
    for _ in range(3):
        with pytest.raises(UpcallSendError, match="connection reset"):
            vm.send(PLUG)
    assert vm.client.state is ClientState.SERVICE_CONNECTED
    assert vm.client.lost
    assert vm.log[2:] == [FLOOD]
    assert vm.client.ended(0) == []


def test_when_nobody_listens_it_gives_up_after_501_reconnects_for_good() -> None:
    vm = Vm(habits=Habits(port=1))
    vm.run(1000 * SECOND)
    assert vm.connects == [n * 10 * MS for n in range(502)]
    assert vm.client.gave_up
    assert vm.client.reconnects == 501
    assert vm.client.state is ClientState.WAITING_SERVER
    with pytest.raises(UpcallNotReadyError):
        vm.send(PLUG)


def test_a_success_does_not_reset_the_count() -> None:
    vm = Vm("any:close")
    for count in range(1, 502):
        vm.send(PLUG)
        assert vm.client.reconnects == count
        vm.run(10 * MS)
        assert vm.client.is_ready
    vm.send(PLUG)
    vm.run(SECOND)
    assert vm.client.gave_up
    assert len(vm.connects) == 502
    assert vm.called == [Reset()] * 502


@pytest.mark.parametrize("request_", [PLUG, DEL_9], ids=["dropped", "oops"])
def test_without_a_reply_it_stays_busy_for_ever(request_: Request) -> None:
    vm = Vm("add_mmio:drop")
    vm.send(request_)
    vm.run(1_000_000 * SECOND)
    assert vm.client.state is ClientState.SERVICE_BUSY
    assert (vm.called, vm.connects) == ([], [0])
    with pytest.raises(UpcallBusyError):
        vm.send(PLUG)


def test_it_waits_for_a_vcpu_longer_than_anybody_else() -> None:
    vm = Vm(world=replace(POD, vcpus_running=(0, 1)), habits=Habits(pace=Pace.REAL))
    vm.send(ADD_2)
    vm.run(10 * SECOND - 1)
    assert vm.called == []
    vm.run(1)
    assert vm.rets == [-5]


def test_garbage_is_accepted_unchecked() -> None:
    vm = Vm("any:garbage:when=1")
    vm.send(PLUG)
    (answered,) = vm.called
    assert isinstance(answered, CalledBack)
    assert len(answered.reply) == 1024
    assert decode_reply(answered.reply).msg_type != MessageType.ADD_MMIO
    vm.send(PLUG)
    assert vm.rets[1:] == [-17]


@pytest.mark.parametrize("size", [1, 20, 1000, 1023])
def test_a_reply_in_two_pieces_is_a_failed_read_and_a_reset(size: int) -> None:
    """The second piece belongs to a stream that is gone by then. The request was executed."""
    vm = Vm(f"any:split={size}:when=1")
    vm.send(PLUG)
    assert vm.called == [Reset()]
    assert vm.log[-1].endswith("upcall get response error: operation would block")
    vm.run(SECOND)
    assert (vm.rets, vm.client.reconnects, vm.client.is_ready) == ([], 1, True)
    vm.send(PLUG)
    assert vm.rets == [-17]


def test_bytes_that_come_while_it_is_idle_are_taken_for_the_next_reply() -> None:
    client = connected_client()
    stray = PLUG.reply(-5).encode()
    assert client.received(stray, 0) == [Logged("ERROR", FLOOD, endless=True)]
    assert client.is_ready
    assert client.send(PLUG.encode(), 0) == [Write(PLUG.encode()), CalledBack(stray)]
    assert client.is_ready
    client.received(b"some", 0)
    sent, logged, reset, dial = client.send(PLUG.encode(), 7)
    assert (sent, reset) == (Write(PLUG.encode()), Reset())
    assert isinstance(logged, Logged)
    assert logged.text.endswith("operation would block")
    assert isinstance(dial, Dial)
    assert dial.at_ns == 7 + 10 * MS


def test_two_replies_at_once() -> None:
    client = connected_client()
    client.send(PLUG.encode(), 0)
    first, second = PLUG.reply(0).encode(), PLUG.reply(-17).encode()
    assert client.received(first + second, 0) == [
        CalledBack(first), Logged("ERROR", FLOOD, endless=True),
    ]  # fmt: skip
    assert client.send(PLUG.encode(), 0)[1] == CalledBack(second)


# What the simulated guest never says.


AGAIN = Dial(20 + 10 * MS, b"CONNECT 219\n", Logged("DEBUG", "upcall reconnect server..."))


@pytest.mark.parametrize("text", [b"NO\n", b"ERR 111\n", b"ok 1\n", b"O", b""])
def test_anything_that_does_not_begin_with_ok_is_a_failure(text: bytes) -> None:
    client = DragonballClient()
    assert client.start(7) == [Dial(7, b"CONNECT 219\n")]
    logged, again = client.received(text, 20) if text else client.ended(20)
    assert isinstance(logged, Logged)
    assert logged.text.startswith("upcall connect server check failed, ")
    assert again == AGAIN
    assert client.state is ClientState.WAITING_SERVER


@pytest.mark.parametrize("text", [b"OK", b"OK 1\n", b"OK ".ljust(50, b"1")])
def test_two_letters_are_enough(text: bytes) -> None:
    """It reads once, 50 bytes at most; a line that comes in pieces is none."""
    client = DragonballClient()
    assert client.received(text, 0)[1:] == [Write(b"d")]
    assert client.received(hello().encode(), 0) == [
        Logged("INFO", "upcall connect service success")
    ]
    assert client.is_ready


@pytest.mark.parametrize(
    ("field", "value"),
    [("magic_version", 0x444D0200), ("msg_type", 1), ("msg_size", 4), ("msg_flags", 1)],
)
def test_a_connect_message_is_checked(field: str, value: int) -> None:
    client = DragonballClient()
    client.received(b"OK 1\n", 0)
    wrong = replace(hello(), **{field: value}).encode()  # type: ignore[arg-type]
    logged, again = client.received(wrong, 20)
    assert isinstance(logged, Logged)
    assert logged.text.startswith("upcall connect service check failed, ")
    assert again == AGAIN
    client.received(b"OK 1\n", 0)
    client.received(replace(hello(), ret=-5).encode(), 0)
    assert client.is_ready


def test_a_piece_of_the_connect_message_or_its_stream_s_end() -> None:
    client = DragonballClient()
    client.received(b"OK 1\n", 0)
    assert client.received(hello().encode()[:1000], 20)[-1] == AGAIN
    client.received(b"OK 1\n", 0)
    assert client.ended(20)[-1] == AGAIN
    client.received(b"OK 1\n" + bytes(45) + hello().encode(), 4)  # what came before is forgotten
    assert client.is_ready


# What the real client did: tests/scenes.


def told_by(scene: str, log: str = "vmm.log") -> list[tuple[str, str]]:
    """The real client's log: levels and texts."""
    lines = map(json.loads, (SCENES / f"{scene}.{log}").read_text().splitlines())
    return [(line["level"], line["msg"]) for line in lines]


class Played:
    """Ours, fed with what the real client's streams did, connection by connection."""

    def __init__(self, scene: str) -> None:
        _, records = records_of(SCENES / f"{scene}.jsonl")
        self.client = DragonballClient()
        self.log: list[tuple[str, str]] = []
        self.written = b""
        self.recorded = b""
        self.waits: list[tuple[int, int]] = []
        """When a stream broke, and when the real client dialled again."""
        self.called: list[Action] = []
        self._dial: Dial | None = None
        self._do(self.client.start(0))
        for record in records:
            self._take(record)

    def _take(self, record: Record) -> None:
        match record:
            case Open():
                assert self._dial is not None
                if self._dial.logged:
                    self.log.append((self._dial.logged.level, self._dial.logged.text))
                    self.waits.append((self._dial.at_ns - 10 * MS, record.t_ns))
                self.written += self._dial.line
                self._dial = None
            case Chunk(to_guest=True):
                self.recorded += record.data
                if self.client.is_ready:
                    self._do(self.client.send(record.data, record.t_ns))
            case Chunk():
                self._do(self.client.received(record.data, record.t_ns))
            case Close(by_guest=True):
                self._do(self.client.ended(record.t_ns))

    def _do(self, actions: list[Action]) -> None:
        for action in actions:
            match action:
                case Dial():
                    assert self._dial is None
                    self._dial = action
                case Write():
                    self.written += action.sent
                case Logged():
                    self.log.append((action.level, action.text))
                case _:
                    self.called.append(action)


def test_it_gives_up_as_the_real_one_did_when_its_guest_was_killed() -> None:
    """A log line for each of 501 tries; the two words for a dead backend come as they please."""
    played = Played("guest_killed")
    real = [(level, text.replace(WOULD_BLOCK, RESET)) for level, text in told_by("guest_killed")]
    assert played.log == real
    assert len(played.log) == 2 + 1 + 2 * 501 + 1
    assert played.written == played.recorded
    assert played.called == [Reset()]
    assert (played.client.gave_up, played.client.reconnects) == (True, 501)
    assert played._dial is None


def test_the_real_ones_tries_are_ten_milliseconds_and_a_little_apart() -> None:
    played = Played("guest_killed")
    waits = [dialled - broke for broke, dialled in played.waits]
    assert len(waits) == 501
    assert min(waits) >= 10 * MS
    assert 10 * MS < sorted(waits)[250] < 12 * MS
    dials = [dialled for _, dialled in played.waits]
    apart = sorted(after - before for before, after in pairwise(dials))
    assert round(apart[250] / MS, 1) == 11.2
    assert 5 * SECOND < dials[-1] - dials[0] < 8 * SECOND


def test_it_takes_no_notice_of_an_idle_end_but_in_its_log_as_the_real_one() -> None:
    played = Played("idle_close")
    real = told_by("idle_close")
    assert played.log == real[:3]
    assert set(real[3:]) == {real[2]} == {("ERROR", FLOOD)}
    assert played.written == played.recorded
    assert played.called == [CalledBack(PLUG.reply().encode())]
    assert (played.client.is_ready, played.client.lost) == (True, True)
    with pytest.raises(UpcallSendError, match="connection reset"):
        played.client.send(PLUG.encode(), 0)


@pytest.mark.parametrize(
    ("scene", "log"),
    [
        ("guest_reboots", "vmm.log"),
        ("client_killed_then_reconnects", "client_a.vmm.log"),
        ("client_killed_then_reconnects", "client_b.vmm.log"),
        ("wrong_interrupt_hangs", "client_a.vmm.log"),
        ("wrong_interrupt_hangs", "client_b.vmm.log"),
    ],
)
def test_of_silence_the_real_one_says_nothing_either(scene: str, log: str) -> None:
    """It waits without a limit; the log ends where it connected."""
    vm = Vm("any:drop")
    vm.send(PLUG)
    vm.run(1000 * SECOND)
    assert vm.log == [text for _, text in told_by(scene, log)]


# What becomes of the answer: docs/protocol.md section 5, row by row.

ON_TIME, LATE = 250 * MS, 250 * MS + 1
RESIZES = (MessageType.ADD_CPU, MessageType.DEL_CPU)
ADDS = (MessageType.ADD_MMIO, MessageType.ADD_PCI)
REMOVES = (MessageType.DEL_MMIO, MessageType.DEL_PCI)
NEVER_SENT = (MessageType.CONNECT, MessageType.ADD_MEM, MessageType.DEL_MEM, 77)
WEDGED = (
    "nothing is reported; the caller times out after 250 ms and every later resize is refused "
    "with VcpuIsHotplugging"
)
TOO_LATE = "the resize is done, but the caller has timed out after 250 ms before"
EXISTS = (
    "a block device: the caller times out, the device stays in the VMM's list, and a retry says "
    "that it already exists; others: nobody waits for the answer"
)
LEAKED = "a block device: the caller times out and the VMM never removes the device"
LOST = "counted as done, the error is dropped: the device is silently lost"
IGNORED = "the error is dropped, and the VMM removes the device all the same"
VERDICTS: list[tuple[tuple[int, ...], int | None, int | None, str]] = [
    (RESIZES, -5, ON_TIME, WEDGED),
    (RESIZES, -22, LATE, WEDGED),
    (RESIZES, 1, ON_TIME, WEDGED),
    (RESIZES, 0, LATE, TOO_LATE),
    (RESIZES, None, None, f"the channel stays busy, {WEDGED}"),
    (RESIZES[:1], 0, ON_TIME, "done"),
    (RESIZES[1:], 0, ON_TIME, "done: it stops the vCPU threads"),
    (ADDS, 0, ON_TIME, "done"),
    (ADDS, -17, ON_TIME, LOST),
    (ADDS, 0, LATE, EXISTS),
    (ADDS, -17, LATE, EXISTS),
    (ADDS, None, None, EXISTS),
    (REMOVES, 0, ON_TIME, "done"),
    (REMOVES, -19, ON_TIME, IGNORED),
    (REMOVES, 0, LATE, LEAKED),
    (REMOVES, -19, LATE, LEAKED),
    (REMOVES, None, None, LEAKED),
    (NEVER_SENT, -1, ON_TIME, "it never sends this"),
    (NEVER_SENT, None, None, "it never sends this"),
]


@pytest.mark.parametrize(("msg_types", "ret", "latency_ns", "expected"), VERDICTS)
def test_what_becomes_of_an_answer(
    msg_types: tuple[int, ...], ret: int | None, latency_ns: int | None, expected: str
) -> None:
    assert {verdict(msg_type, ret, latency_ns) for msg_type in msg_types} == {expected}
