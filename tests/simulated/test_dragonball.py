"""Dragonball's client as it is, against the simulated guest and a clock that stands still.

docs/protocol.md section 5.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from dissectors.constants import MessageType
from dissectors.messages import (
    Request,
    cpu_request,
    decode_reply,
    hello,
    mmio_request,
)
from upcall_trace.diagnose.verdict import verdict
from upcall_trace.kernel.faults import parse_fault
from upcall_trace.kernel.world import World, kata_pod
from upcall_trace.simulated.dragonball import (
    Action,
    CalledBack,
    ClientState,
    Dial,
    DragonballClient,
    Reset,
    UpcallBusyError,
    UpcallNotReadyError,
    Write,
)
from upcall_trace.simulated.in_process import MemoryGuest, MemoryStream
from upcall_trace.simulated.machine import Backend, Habits, Pace

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
        self.connects: list[int] = []
        self._stream: MemoryStream | None = None
        self._told_end = False
        self._connect_at: int | None = None
        self._do(self.client.start(0))
        self.run(0)

    def send(self, request: Request) -> None:
        self._do(self.client.send(request.encode()))
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
                self._do(self.client.received(b"", now))
            else:
                return

    def _do(self, actions: list[Action]) -> None:
        for action in actions:
            match action:
                case Dial():
                    self._connect_at, self._line = action.at_ns, action.line
                case Write():
                    assert self._stream is not None
                    self._stream.send(action.sent)
                case _:
                    self.called.append(action)


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
    for received in (b"", b"OK 1\n"):
        client.received(received, 0)
        with pytest.raises(UpcallNotReadyError):
            client.send(PLUG.encode())
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
    with pytest.raises(BrokenPipeError):
        vm.send(PLUG)
    assert vm.client.state is ClientState.SERVICE_BUSY


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


def test_a_reply_in_two_pieces() -> None:
    vm = Vm("any:split=1000")
    vm.send(PLUG)
    assert vm.called == []
    vm.run(SECOND)
    assert vm.rets == [0]


# What the simulated guest never says.


@pytest.mark.parametrize(
    "text", [b"NO\n", b"ERR 111\n", b"ok 1\n", b"O!", b"OK ".ljust(50, b"1"), b""]
)
def test_anything_but_ok_within_50_bytes_is_a_failure(text: bytes) -> None:
    client = DragonballClient()
    assert client.start(7) == [Dial(7, b"CONNECT 219\n")]
    assert client.received(text, 20) == [Dial(20 + 10 * MS, b"CONNECT 219\n")]
    assert client.state is ClientState.WAITING_SERVER


def test_an_ok_line_in_pieces() -> None:
    client = DragonballClient()
    assert client.received(b"O", 0) == []
    assert client.received(b"K 12", 0) == []
    assert client.received(b"19\n", 0) == [Write(b"d")]


@pytest.mark.parametrize(
    ("field", "value"),
    [("magic_version", 0x444D0200), ("msg_type", 1), ("msg_size", 4), ("msg_flags", 1)],
)
def test_a_connect_message_is_checked(field: str, value: int) -> None:
    client = DragonballClient()
    client.received(b"OK 1\n", 0)
    wrong = replace(hello(), **{field: value}).encode()  # type: ignore[arg-type]
    assert client.received(wrong[:500], 5) == []
    assert client.received(wrong[500:], 5) == [Dial(5 + 10 * MS, b"CONNECT 219\n")]
    client.received(b"OK 1\n", 0)
    assert client.received(replace(hello(), ret=-5).encode(), 0) == []
    assert client.is_ready


def test_an_end_instead_of_the_connect_message() -> None:
    client = DragonballClient()
    client.received(b"OK 1\n", 0)
    client.received(hello().encode()[:1000], 0)
    assert client.received(b"", 3) == [Dial(3 + 10 * MS, b"CONNECT 219\n")]
    client.received(b"OK 1\n", 4)
    assert client.received(hello().encode(), 4) == []  # what came before is forgotten
    assert client.is_ready


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
