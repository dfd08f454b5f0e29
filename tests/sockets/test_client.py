"""The client for single requests: it says which step failed, and it keeps its deadlines."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from dissectors.constants import Arch, MessageType
from dissectors.messages import (
    CpuReplyArm,
    CpuReplyX86,
    Reply,
    Request,
    cpu_request,
    hello,
    mmio_request,
)
from tests.vmm import descriptors_as_before
from upcall_trace.errors import Unreachable
from upcall_trace.kernel.faults import parse_fault
from upcall_trace.kernel.world import kata_pod
from upcall_trace.simulated.machine import Backend, Habits
from upcall_trace.simulated.on_socket import SimulatedGuest
from upcall_trace.sockets.addresses import UnixAddress, VsockAddress
from upcall_trace.sockets.client import UpcallClient

PLUG = mmio_request(MessageType.ADD_MMIO, 0xE0006000, 0x2000, 5)


@contextmanager
def talking(guest: SimulatedGuest, arch: Arch = Arch.X86_64) -> Iterator[UpcallClient]:
    """A client of a guest that lives as long."""
    with guest, UpcallClient(UnixAddress(guest.path), arch=arch) as client:
        yield client


@pytest.mark.parametrize("backend", Backend)
def test_a_request_and_its_answer(backend: Backend) -> None:
    with talking(SimulatedGuest(habits=Habits(backend))) as client:
        answer = client.ask(PLUG.encode(), 5)
        assert answer is not None
        assert answer.raw == PLUG.reply().encode()
        assert answer.reply == PLUG.reply()
        assert 0 < answer.latency_ns < 5_000_000_000
        again = client.ask(PLUG.encode(), 5)
        assert again is not None
        assert again.reply.ret == -17


@pytest.mark.parametrize(
    ("arch", "request_", "kind"),
    [
        (Arch.X86_64, cpu_request(MessageType.ADD_CPU, [1]), CpuReplyX86),
        (Arch.AARCH64, cpu_request(MessageType.ADD_CPU, 1), CpuReplyArm),
    ],
)
def test_cpu_replies_are_read_for_the_clients_architecture(
    arch: Arch, request_: Request, kind: type[Reply]
) -> None:
    with talking(SimulatedGuest(kata_pod(arch)), arch) as client:
        answer = client.ask(request_.encode(), 5)
        assert answer is not None
        assert isinstance(answer.reply, kind)


def test_another_port() -> None:
    with SimulatedGuest(habits=Habits(port=7)) as guest:
        UpcallClient(UnixAddress(guest.path), port=7).close()
        with pytest.raises(Unreachable, match="closed instead of its OK for port 219"):
            UpcallClient(UnixAddress(guest.path))


@pytest.mark.parametrize("fault", ["any:drop", "any:close", "any:delay=2s"])
def test_no_answer_in_time_is_none(fault: str) -> None:
    with talking(SimulatedGuest(faults=[parse_fault(fault)])) as client:
        begun = time.monotonic()
        assert client.ask(PLUG.encode(), 0.2) is None
        assert time.monotonic() - begun < 1.5


def test_a_reply_in_pieces_is_waited_for() -> None:
    with talking(SimulatedGuest(faults=[parse_fault("any:split=1")])) as client:
        answer = client.ask(PLUG.encode(), 5)
        assert answer is not None
        assert answer.raw == PLUG.reply().encode()


# Servers that are none.


@contextmanager
def server(path: Path, behave: Callable[[socket.socket], None]) -> Iterator[UnixAddress]:
    """Treats one client as `behave` says, then holds on to it until the block ends."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()
    done = threading.Event()

    def serve() -> None:
        stream, _ = listener.accept()
        with stream:
            try:
                behave(stream)
                done.wait(20)
            except OSError:
                pass  # the client had enough

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield UnixAddress(path)
    finally:
        done.set()
        thread.join()
        listener.close()


def says(*texts: bytes) -> Callable[[socket.socket], None]:
    """Answers each receive with the next text."""

    def behave(stream: socket.socket) -> None:
        for text in texts:
            stream.recv(4096)
            stream.sendall(text)

    return behave


def hangs_up_after(*texts: bytes) -> Callable[[socket.socket], None]:
    def behave(stream: socket.socket) -> None:
        says(*texts)(stream)
        stream.recv(4096)
        stream.shutdown(socket.SHUT_RDWR)

    return behave


OK = b"OK 1\n"


@pytest.mark.parametrize(
    ("behave", "why"),
    [
        (says(), "gave no OK for port 219 in time"),
        (says(b"OK 1"), "gave no OK for port 219 in time"),
        (says(OK), "gave no CONNECT message in time"),
        (says(OK, hello().encode()[:1023]), "gave no CONNECT message in time"),
        (hangs_up_after(), "closed instead of its OK for port 219"),
        (hangs_up_after(OK), "closed instead of its CONNECT message"),
        (says(b"ERR 111\n"), "gave no OK for port 219: "),
        (says(OK, replace(hello(), msg_type=3).encode()), "gave no CONNECT message: "),
        (says(OK, b"x" * 1024), "gave no CONNECT message: "),
    ],
)
def test_the_step_that_failed_is_named(
    tmp_path: Path, behave: Callable[[socket.socket], None], why: str
) -> None:
    with descriptors_as_before(), server(tmp_path / "s", behave) as address:
        with pytest.raises(Unreachable) as raised:
            UpcallClient(address, connect_s=0.3)
        assert str(raised.value).startswith(f"{tmp_path}/s {why}")
        assert "\n" not in str(raised.value)


def test_drops_of_an_answer_do_not_stretch_the_deadline(tmp_path: Path) -> None:
    def drip(stream: socket.socket) -> None:
        says(OK, hello().encode())(stream)
        stream.recv(4096)
        for _ in range(40):
            stream.sendall(b"\0")
            time.sleep(0.05)

    with server(tmp_path / "s", drip) as address, UpcallClient(address) as client:
        begun = time.monotonic()
        assert client.ask(PLUG.encode(), 0.3) is None
        assert 0.3 <= time.monotonic() - begun < 1.5


def test_where_nobody_listens(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(tmp_path / "stale"))
    for name, why in (
        ("gone", "No such file or directory"),
        ("file", "Connection refused"),
        ("stale", "Connection refused"),
    ):
        with pytest.raises(Unreachable, match=f"{name} cannot be reached: {why}"):
            UpcallClient(UnixAddress(tmp_path / name))


def test_where_no_guest_has_this_cid() -> None:
    """With and without vsock in this kernel."""
    with pytest.raises(Unreachable, match=r"^vsock://4294967294 cannot be reached: "):
        UpcallClient(VsockAddress(4294967294))
