"""A lab while it runs: QEMU and its vsock backend, the VMM's side, and what stands in front.

From a client to the guest: the gate (with `auto`), the capture proxy (with `capture`), then the
backend's hybrid-vsock socket. Everything of a lab is in its `Place`.
"""

from __future__ import annotations

import os
import shutil
import socket
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

from dissectors.constants import Arch

from ..capture.records import Vmm
from ..control.order_socket import serve_orders
from ..control.orders import BadOrder, name_and_value
from ..control.target_note import PostedNote, TargetNote
from ..errors import Interrupted, PeerDied, SomethingLost, Unreachable
from ..kernel.noted_world import world_notes
from ..kernel.world import World
from ..simulated.machine import Backend
from ..sockets.addresses import UnixAddress, answers
from ..sockets.client import UpcallClient
from ..sockets.listening import Listener
from ..sockets.serving import StreamServer
from ..vantage.proxy import Proxy
from ..vantage.recorder import Recorder, live_header
from ..vantage.store import OnStoreError
from .console import Console, has_begun, is_ready, last_words, release_of, trouble
from .gate import Gate
from .machines import DUMP_PORT, GUEST_CID, PC, Boot, booted_world, hidden_disks, qemu_arguments
from .monitor import Monitor
from .parts import Parts
from .pieces import find_vhost
from .place import Place
from .vmm import VmmSide

_POLL_S: Final = 0.02
_PART_S: Final = 5.0
_QUIET_S: Final = 0.15
_DUMP_S: Final = 1.0
_BULK: Final = 64 << 10


PROXY_FILE: Final = "proxy.upcap"
DUMP_FILE: Final = "vsockmon.pcap"
CONSOLE_FILE: Final = "console.log"
"""What a recording leaves in its directory."""


@dataclass(frozen=True, slots=True)
class Wishes:
    """How a lab is run: `capture` is a directory for what is recorded, `boot_s` the patience."""

    capture: Path | None = None
    auto: bool = False
    boot_s: float = 60.0


class Lab:
    """A booted machine; a context manager that leaves nothing behind but `capture`.

    Raises Unreachable when the guest does not come up, with the reason as far as it can be told.
    """

    def __init__(
        self,
        boot: Boot,
        place: Place,
        wishes: Wishes,
        talk: Callable[[str], None],
        stop: threading.Event,
    ) -> None:
        self.boot = boot
        self.place = place
        self._wishes = wishes
        self._talk = talk
        self._stopping = stop
        self._lock = threading.Lock()
        """Held while an order is followed."""
        self._reset_asked = threading.Event()
        self._was_reset = threading.Event()
        self._parts = Parts(place.path)
        self._monitor: Monitor | None = None
        self._front = ExitStack()
        """What clients meet; it is closed first, so that nothing more comes."""
        self._back = ExitStack()
        self._recorder: Recorder | None = None
        self._dumps = 0
        self._dump_due = False
        self._dumped_at = 0.0
        self._booted_at = 0.0
        self._dump_failure: OSError | None = None
        in_front = wishes.auto or wishes.capture is not None
        self.vsock = place / ("vsock" if in_front else "upcall")
        """The backend's socket."""
        self.address = place / "upcall"
        """Where clients connect."""
        self.control = place / "control"
        self._beside: PostedNote | None = None
        self.console = Console(place / "console.log")
        try:
            place.publish(self._status("booting"))
            if wishes.capture is not None:
                dump = Path(f"{self.vsock}_{DUMP_PORT}")
                self._back.enter_context(StreamServer(dump, self._receive_dump))
            self._boot()
            if wishes.capture is not None:
                self._open_capture(wishes.capture)
            self._put_in_front()
            self._front.enter_context(StreamServer(self.control, self._serve_orders))
            self._beside = self._back.enter_context(PostedNote(self.address, self._told()))
        except BaseException:
            self._end()
            for path in self._dump_files():  # of a lab that never was
                path.unlink(missing_ok=True)
            raise
        place.publish(self._status("ready"))

    def wait(self) -> None:
        """Until told to stop; raises PeerDied when a part of the lab ends by itself."""
        while not self._stopping.wait(_POLL_S):
            ended = self._parts.ended()
            if ended:
                why = trouble(self.console.text()) or ended
                raise PeerDied(f"the lab {self.place.name} is over: {why}")
            if self._reset_asked.is_set():
                self._reset()
            self._check_recording()

    def follow(self, order: dict[str, Any]) -> dict[str, Any]:
        """Follow an order of the control socket; raises BadOrder."""
        name, value = name_and_value(order)
        if name in ("reset", "state") and value is not True:
            raise BadOrder(f"{name} needs true, not {value!r}")
        try:
            with self._lock:
                if name == "reset":
                    return self._await_reset()
                if name == "state":
                    return {"ok": True, "state": self.state()}
                return self._vmm.follow(order)
        except (Unreachable, OSError) as error:
            raise BadOrder(str(error)) from None

    def state(self) -> dict[str, Any]:
        """What the guest's init saw last, and what the VMM has plugged, as JSON values."""
        seen = self.console.state()
        return (seen.as_json() if seen else {}) | self._vmm.state()

    def hints(self) -> list[str]:
        """Commands that plug something into this guest."""
        to = f"send --to {self.address}"
        if self.boot.machine is not PC:
            free = hidden_disks(self.boot.transports)[:1]
            return [f"{to} add-mmio {w.base:#x} {w.size:#x} {w.irq}" for w in free]
        cpu = next(
            (cpu for cpu in range(self.boot.cpus) if cpu not in self.world().cpus_online), None
        )
        if cpu is None:
            return [f"lab vmm plug-disk 9 --name {self.place.name}", f"{to} add-pci 0 9"]
        return [f"lab vmm start-vcpu {cpu} --name {self.place.name}", f"{to} add-cpu {cpu}"]

    def world(self) -> World:
        """What the guest looked like when it had booted."""
        seen, release = self.console.first_state(), release_of(self.console.text())
        return booted_world(self.boot, release, seen.cpus_online if seen else ())

    def close(self) -> None:
        """End everything. With `capture`, its files are complete afterwards, or SomethingLost."""
        self._end()
        capture = self._wishes.capture
        if capture is not None:
            try:
                shutil.copyfile(self.console.path, capture / CONSOLE_FILE)
            except OSError as error:
                raise SomethingLost(f"the console cannot be kept: {error.strerror}") from None
            self._check_recording()

    def _end(self) -> None:
        self._stopping.set()
        try:
            self._front.close()
            self._await_dump()
        finally:
            self._stop()
            self._back.close()

    def _check_recording(self) -> None:
        dump = self._dump_failure and (self._dump_failure.strerror or str(self._dump_failure))
        failure = dump or (self._recorder and self._recorder.failure)
        if failure:
            raise SomethingLost(f"the recording cannot be written: {failure}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _told(self) -> TargetNote:
        return TargetNote(
            "lab", Backend.VHOST.value, self.boot.machine.name, self.world(), str(self.control)
        )

    def _status(self, phase: str) -> dict[str, Any]:
        files = ("address", "control", "vsock")
        return {
            "v": 1,
            "name": self.place.name,
            "machine": self.boot.machine.name,
            "cpus": self.boot.cpus,
            "phase": phase,
            "pid": os.getpid(),
            "console": str(self.console.path),
            "terminal": str(self.place / "terminal"),
            "capture": str(self._wishes.capture) if self._wishes.capture else None,
            "pids": self._parts.pids,
        } | {name: str(getattr(self, name)) for name in files}

    def _boot(self) -> None:
        """Start backend and machine, and wait until the guest's upcall server listens."""
        vhost, monitor = self.place / "vhost", self.place / "monitor"
        backend = find_vhost()
        if backend is None:
            raise Unreachable("vhost-device-vsock is missing: upcall-trace lab setup --install")
        for path in (vhost, monitor, self.vsock, self.place / "terminal"):
            path.unlink(missing_ok=True)
        self._parts.start("vhost-device-vsock", [str(backend), "--guest-cid", str(GUEST_CID),
                    "--socket", str(vhost), "--uds-path", str(self.vsock)])  # fmt: skip
        deadline = time.monotonic() + _PART_S
        while not answers(vhost):
            self._still_starting(deadline, "vhost-device-vsock does not listen")
        self._dump_due = self.boot.dump
        self.console.mark()
        self._parts.start("qemu", ["qemu-system-x86_64", *qemu_arguments(
            self.boot, vhost, self.place / "terminal", self.console.path, monitor)])  # fmt: skip
        deadline = time.monotonic() + _PART_S
        while (opened := _open_monitor(monitor)) is None:
            self._still_starting(deadline, "QEMU does not start")
        self._monitor = opened
        self._vmm = VmmSide(self.boot, opened, self._note)
        self._booted_at = time.monotonic()
        deadline = self._booted_at + self._wishes.boot_s
        while not self._answers():
            self._still_starting(deadline, "the guest does not come up")

    def _answers(self) -> bool:
        """True when the guest says so, or else when a service answers.

        A recording has to see the first request, so the guest's agent must be at it by then; a
        user's kernel may be without vsockmon, and is not waited for.
        """
        if self._dump_due and not self.boot.own_kernel:
            return False
        if is_ready(self.console.text()):
            return True
        if not self.boot.own_initramfs:
            return False
        late = time.monotonic() > self._booted_at + self._wishes.boot_s / 2
        if not (late or has_begun(self.console.text())):
            return False  # the backend may hang when it is asked before the guest is up
        try:
            UpcallClient(UnixAddress(self.vsock), connect_s=1.0).close()
        except Unreachable:
            return False
        return True

    def _still_starting(self, deadline: float, what: str) -> None:
        ended = self._parts.ended()
        why = trouble(self.console.text()) or (ended and f"{what}: {ended}")
        if why:
            raise Unreachable(why)
        if self._stopping.is_set():
            raise Interrupted("interrupted while the guest was starting")
        if time.monotonic() > deadline:
            raise Unreachable(f"{what}; {last_words(self.console.text())}")
        time.sleep(_POLL_S)

    def _stop(self) -> None:
        monitor, self._monitor = self._monitor, None
        if monitor is not None:
            monitor.close()
        self._parts.stop()

    def _await_reset(self) -> dict[str, Any]:
        """Have the thread in `wait` do it: what another one starts would die with it."""
        self._was_reset.clear()
        self._reset_asked.set()
        while not self._was_reset.wait(_POLL_S):
            if self._stopping.is_set():
                raise BadOrder("the lab is ending")
        return {"ok": True}

    def _reset(self) -> None:
        self._talk("booting anew")
        self._await_dump()
        self._stop()
        self._boot()
        self._note("the guest was booted anew")
        if self._beside is not None:  # the backend's socket may be a new one
            self._beside.write(self.address, self._told())
        self.place.publish(self._status("ready"))
        if self._wishes.capture is not None and self._dumps:
            self._talk(f"what the guest sees from now on is in {self._dump_files()[-1].name}")
        self._reset_asked.clear()
        self._was_reset.set()

    def _put_in_front(self) -> None:
        behind = self.vsock
        if self._recorder is not None:
            path = self.place / "proxy" if self._wishes.auto else self.address
            listener = self._front.enter_context(closing(Listener(path)))
            proxy = Proxy(UnixAddress(behind), self._recorder, self._talk)
            proxy.listen(listener.socket)
            self._front.callback(proxy.stop)
            behind = path
        if self._wishes.auto:
            gate = Gate(behind, self.follow, self._talk)
            self._front.enter_context(StreamServer(self.address, gate.serve))

    def _open_capture(self, directory: Path) -> None:
        notes = world_notes(self.world(), self.boot.machine.name) | {"guest": "lab"}
        header = live_header("proxy", Arch.X86_64.value, notes=notes)
        recorder = Recorder(directory / PROXY_FILE, header, OnStoreError.PASS, threading.Event())
        self._recorder = recorder
        self._back.callback(recorder.close)

    def _receive_dump(self, stream: socket.socket) -> None:
        """What the guest's agent saw on vsockmon; the first stream of each boot gets a file."""
        if not self._dump_due:
            return  # anybody in the guest could ask for files without end
        self._dump_due = False
        self._dumps += 1
        try:
            with self._dump_files()[-1].open("xb", 0) as file:
                while received := _received(stream):
                    file.write(received)
                    self._dumped_at = time.monotonic()
        except OSError as error:
            self._dump_failure = error

    def _dump_files(self) -> list[Path]:
        directory = self._wishes.capture or Path()
        return [
            directory / (f"vsockmon-{number}.pcap" if number > 1 else DUMP_FILE)
            for number in range(1, self._dumps + 1)
        ]

    def _await_dump(self) -> None:
        """Give what the guest saw last the time to arrive."""
        if self._dumps and self._parts.pids:
            began = now = time.monotonic()
            while now - max(self._dumped_at, began) < _QUIET_S and now - began < _DUMP_S:
                time.sleep(_POLL_S)
                now = time.monotonic()

    def _note(self, action: str) -> None:
        if self._recorder is not None:
            self._recorder.record(Vmm(self._recorder.now(), action))

    def _serve_orders(self, stream: socket.socket) -> None:
        serve_orders(stream, self.follow)


def _received(stream: socket.socket) -> bytes:
    try:
        return stream.recv(_BULK)
    except OSError:
        return b""  # the guest is gone


def _open_monitor(path: Path) -> Monitor | None:
    try:
        return Monitor(path) if answers(path) else None
    except Unreachable:
        return None
