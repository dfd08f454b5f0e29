"""The guest kernel's side of upcall as a pure model: requests in, replies or silence out.

No IO, no clock, no threads. `Guest` is one booted kernel: its CPU table, windows, PCI functions and
hotplug lock. `Guest.connect` gives a connection with the request and reply buffer that the kernel
allocates for it and never clears. docs/protocol.md sections 4 and 7; what was not seen on a real
kernel says "by reading" where it is decided.
"""

from __future__ import annotations

from collections.abc import Callable
from struct import Struct
from typing import Any, Final

from dissectors.constants import (
    ADDING_TYPES,
    CPU_REPLY_MSG_SIZE,
    EBUSY,
    EEXIST,
    EINVAL,
    ENODEV,
    EPERM,
    MAGIC_VERSION,
    MESSAGE_SIZE,
    MMIO_MSG_SIZE,
    REPLY_LOAD_OFFSET,
    RESERVED_TYPES,
    RET_OFFSET,
    SHAREABLE_IRQ,
    Arch,
)
from dissectors.messages import (
    CpuRequestArm,
    CpuRequestX86,
    MmioRequest,
    PciRequest,
    Request,
    decode_request,
    hello,
)
from dissectors.services import DEVICE_MANAGER
from dissectors.slots import maker, positional

from .. import codes
from ..codes import Code
from ..durations import UNITS_NS
from .cpus import ArmCpus, X86Cpus
from .outcome import (
    Changes,
    Cpus,
    CutOffError,
    Done,
    FailedError,
    Fate,
    HangError,
    HotplugLock,
    OopsError,
    Outcome,
    make_outcome,
)
from .world import PciDevice, Window, World

_HEADER: Final = Struct("<4I")
_I32: Final = Struct("<i")
_U32: Final = Struct("<I")
_RESULT: Final = Struct("<iI")
_MSG_SIZE_OFFSET: Final = 4
_MSG_TYPE_OFFSET: Final = 8
_TYPE_END: Final = 12
_ZEROS: Final = bytes(MESSAGE_SIZE)
_LEGACY_IRQS: Final = 16
"""Interrupts that an x86 kernel has when nothing tells it of others."""
_DISK_ROLES: Final = ("blk", "disk")
_PLAIN: Final = Done()
_SCANNED: Final = Done(ret=None, cpus=Cpus.FORBID)
_REMOVED: Final = Done(ret=None, cpus=Cpus.WAIT)
_cpus_done = maker(
    Done, {"ret": "0", "load": "load", "delay_ns": "0", "cpus": "none"}, "load",
    none=Cpus.INDIFFERENT,
)  # fmt: skip
_window = positional(Window)
_pci_device = positional(PciDevice)


class Guest:
    """One booted kernel, in the state that a `World` describes."""

    def __init__(self, world: World) -> None:
        self.world = world
        self._is_arm = world.arch is Arch.AARCH64
        self._last_address = world.last_address
        self.lock = HotplugLock()
        self.changes = Changes()
        self.running = set(world.vcpus_running)
        """vCPUs that the VMM runs: no other can come up."""
        cpus = ArmCpus if world.arch is Arch.AARCH64 else X86Cpus
        self.cpus: X86Cpus | ArmCpus = cpus(world, self.lock, self.changes, self.running)
        self.windows: list[Window] = list(world.mmio)
        disks = [window for window in world.mmio if window.role in _DISK_ROLES]
        self._disks = {window.base: window for window in (*disks, *world.mmio_hidden)}
        self.plugged: set[PciDevice] = set(world.pci)
        """PCI functions that the VMM offers."""
        self.pci: dict[PciDevice, PciDevice] = {device: device for device in world.pci}
        """PCI functions that the kernel has registered, each by what is equal to it."""
        self.buses = {device.bus for device in world.pci} | set(world.pci_buses)
        self.hanging: Window | None = None
        """The device whose driver waits for an interrupt that never comes."""
        self.cut_off = False

    def connect(self) -> ServiceThread:
        """A connection that the guest accepted, before its service byte."""
        return ServiceThread(self)

    def start_vcpu(self, cpu: int) -> None:
        """The VMM's side: from now on it runs this vCPU."""
        self.running.add(cpu)

    def plug_pci(self, device: PciDevice) -> None:
        """The VMM's side: something answers at this slot."""
        self.plugged.add(device)
        self.buses.add(device.bus)

    def unplug_pci(self, device: PciDevice) -> None:
        """The VMM's side: nothing answers at this slot any more."""
        self.plugged.discard(device)

    def switch_cpu(self, number: int, on: bool) -> None:
        """The guest's own doing: one of its CPUs is set on or off; raises NoSuchCpu."""
        self.cpus.switch(number, on)

    def state(self) -> dict[str, Any]:
        """The guest's state as JSON values; `cpus_online` are the kernel's CPU numbers."""
        return {
            "kernel": self.world.kernel,
            "arch": self.world.arch.value,
            "cpus_online": sorted(self.cpus.online),
            "apic_ids": self.cpus.online_ids(),
            "vcpus_running": sorted(self.running),
            "mmio": [
                {"base": window.base, "size": window.size, "irq": window.irq, "role": window.role}
                for window in self.windows
            ],
            "pci": [
                {"bus": device.bus, "slot": device.slot, "function": device.function,
                 "role": device.role}
                for device in sorted(self.pci)
            ],
            "hotplug_lock": "stuck" if self.lock.stuck else "free",
            "channel": "removed" if self.cut_off else "present",
        }  # fmt: skip

    def begin(self) -> None:
        """A request is worked on: nothing is known of it yet."""
        self.lock.taken = False
        changes = self.changes
        if changes.came or changes.went:
            changes.forget()

    def execute(self, request: Request) -> Done:
        """Do what a request with a right magic asks for; raises one of this module's errors."""
        adds = request.msg_type in ADDING_TYPES
        match request:
            case CpuRequestX86() | CpuRequestArm():
                done: Done = _cpus_done((self.cpus.add if adds else self.cpus.remove)(request))
                return done
            case MmioRequest():
                if request.msg_size != MMIO_MSG_SIZE:
                    raise FailedError(EINVAL, codes.MMIO_BAD_SIZE_FIELD)
                return self.mmio(adds, request.mmio_base, request.mmio_size, request.mmio_irq)
            case PciRequest():
                return self.pci_function(adds, request.busno, request.devfn)
        reserved = request.msg_type in RESERVED_TYPES
        raise FailedError(EPERM, codes.RESERVED_MEMORY_OP if reserved else codes.UNKNOWN_TYPE)

    def mmio(self, adds: bool, base: int, size: int, irq: int) -> Done:
        """An MMIO request with the right size field; raises as `execute` does."""
        if irq > self.world.max_irq if self._is_arm else irq == 0:
            raise FailedError(EINVAL, codes.MMIO_BAD_IRQ)
        if self.world.needs_boot_mmio and not self.world.mmio:
            # The parent's list of children, which both commands walk, does not exist yet.
            raise OopsError(codes.MMIO_WITHOUT_BOOT_DEVICE, lock_held=False)
        return self._add_mmio(base, size, irq) if adds else self._del_mmio(base, size, irq)

    def _add_mmio(self, base: int, size: int, irq: int) -> Done:
        window = _window(base, size, irq, "", 0)
        end = window.end
        same_irq, near = False, []
        for other in self.windows:
            other_end = other.end
            # The kernel compares inclusive ends strictly: one shared byte at an edge is no overlap.
            if base < other_end and end > other.base:
                raise FailedError(EEXIST, codes.MMIO_OVERLAP)
            same_irq |= other.irq == irq
            if base <= other_end and end >= other.base:
                near.append((other.base, other_end))
        if same_irq and irq != SHAREABLE_IRQ:
            raise FailedError(EEXIST, codes.IRQ_CONFLICT)
        self.lock.take()
        if not base <= end <= self._last_address or any(
            _cross(base, end, *other) for other in (*near, *self.world.iomem)
        ):
            raise FailedError(EBUSY, codes.MMIO_RESOURCE_BUSY)
        device = self._disks.get(base)
        if device is not None and self._waits_for_ever(device, irq):
            self.lock.stuck = True
            self.hanging = window
            raise HangError(codes.DRIVER_HANGS)
        self.windows.append(window)
        self.changes.came.append(window)
        return Done(delay_ns=device.probe_ms * UNITS_NS["ms"]) if device else _PLAIN

    def _waits_for_ever(self, device: Window, irq: int) -> bool:
        """Whether a disk's driver, given this interrupt, waits for one that never comes.

        On IRQ 5, which is shared, it is woken by the next interrupt of another device; with a
        channel on it that is the next packet, so that the answer comes. An interrupt that the
        kernel does not have fails the probe instead (by reading: x86 without ACPI has 16).
        """
        if irq == device.irq:
            return False
        if irq == SHAREABLE_IRQ:
            return all(window.irq != irq for window in self.windows)
        return self._is_arm or irq < _LEGACY_IRQS

    def _del_mmio(self, base: int, size: int, irq: int) -> Done:
        for place, window in enumerate(self.windows):
            if window.base == base and window.size == size and window.irq == irq:
                self.lock.take()
                del self.windows[place]
                self.changes.went.append(window)
                if window.role == "vsock":
                    raise CutOffError
                return _PLAIN
        raise FailedError(ENODEV, codes.MMIO_NO_SUCH_DEVICE)

    def pci_function(self, adds: bool, bus: int, devfn: int) -> Done:
        """A PCI request; raises as `execute` does."""
        device = _pci_device(bus, devfn >> 3, devfn & 7, "", 0)
        return self._add_pci(device) if adds else self._del_pci(device)

    def _add_pci(self, device: PciDevice) -> Done:
        bus, slot, function = device.bus, device.slot, device.function
        if bus not in self.buses:
            raise FailedError(ENODEV, codes.PCI_NO_SUCH_BUS)
        # One that is registered is found in the kernel's list, whatever the VMM has unplugged; seen
        # on a stock kernel with the same calls.
        if device not in self.plugged and device not in self.pci:
            raise FailedError(ENODEV, codes.PCI_NOTHING_THERE)
        # The kernel scans a slot, not a function: what was removed of it comes back as well. By
        # reading, only a scan that begins with function 0 goes on to the others.
        found = [
            other for other in self.plugged
            if other.slot == slot and other.bus == bus and function in (0, other.function)
            and other not in self.pci
        ]  # fmt: skip
        if not found:
            return _SCANNED
        self.pci |= zip(found, found, strict=True)
        self.changes.came += found
        delay_ns = sum(other.probe_ms for other in found) * UNITS_NS["ms"]
        return Done(None, None, delay_ns, Cpus.FORBID)

    def _del_pci(self, wanted: PciDevice) -> Done:
        device = self.pci.pop(wanted, None)
        if device is None:
            raise FailedError(ENODEV, codes.PCI_NO_SUCH_DEVICE)
        self.changes.went.append(device)
        if device.role == "vsock":
            raise CutOffError
        return _REMOVED


class ServiceThread:
    """One accepted connection with its own thread and buffers in the guest."""

    def __init__(self, guest: Guest) -> None:
        self._guest = guest
        self._request = bytes(MESSAGE_SIZE)
        self._reply = bytearray(MESSAGE_SIZE)
        self.fate = Fate.ANSWERED

    def service(self, byte: int) -> bytes | None:
        """The CONNECT message, or None when the guest closes: no such service."""
        return hello().encode() if byte == DEVICE_MANAGER.byte else None

    def receive(self, piece: bytes, meant: Request | None = None) -> Outcome:
        """What one receive of at most 1024 bytes leads to; longer sends are the caller's to cut.

        The bytes are laid over those of the request before. `meant` is what a whole one means to
        this guest, where the caller has decoded it. Never raises.
        """
        if not self._take(piece):
            return Outcome(self.fate, None, ())
        guest = self._guest
        try:
            causes, delay_ns, cpus = self._process(
                meant or decode_request(self._request, guest.world.arch)
            )
        except OopsError as oops:
            guest.lock.stuck |= oops.lock_held
            return self._silent(Fate.THREAD_DIED, oops.code)
        except HangError as hang:
            return self._silent(Fate.HANGS, hang.code)
        except CutOffError:
            guest.cut_off = True
            return self._silent(Fate.CUT_OFF, codes.CHANNEL_REMOVED)
        reply = bytes(self._reply)
        (msg_size,) = _U32.unpack_from(reply, _MSG_SIZE_OFFSET)
        if not _ZEROS.startswith(reply[REPLY_LOAD_OFFSET + msg_size :]):
            causes = (*causes, codes.STALE_LOAD)
        outcome: Outcome = make_outcome(
            Fate.ANSWERED, reply, causes, delay_ns, guest.lock.taken, cpus
        )
        return outcome

    def succeeds(self, load: int | None, command: Callable[..., Done], *about: object) -> bool:
        """Whether a whole request with a right magic gets 0 and `load`, None for a reply without
        one; it is then executed. `command` is what of the guest does that, for `about`.

        `hold` has to follow before anything is received in pieces.
        """
        guest = self._guest
        if guest.cut_off or self.fate is not Fate.ANSWERED:
            return False
        guest.begin()
        try:
            done = command(guest, *about)
        except (FailedError, OopsError, HangError, CutOffError):
            return False
        # The header is written anew for each reply; the rest is as it was where nothing writes it.
        held = _RESULT.unpack_from(self._reply, RET_OFFSET)
        after = (held[0] if done.ret is None else done.ret,
                 held[1] if done.load is None else done.load)  # fmt: skip
        if after != held:
            _RESULT.pack_into(self._reply, RET_OFFSET, *after)
        return done.load == load and after == (0, load or 0)

    def hold(self, raw: bytes) -> None:
        """The request buffer holds this."""
        self._request = raw

    def peek_type(self, piece: bytes) -> int:
        """The `msg_type` that the guest would see if it received `piece` now."""
        laid_over = piece[:_TYPE_END] + self._request[len(piece) : _TYPE_END]
        (msg_type,) = _U32.unpack_from(laid_over, _MSG_TYPE_OFFSET)
        return int(msg_type)

    def refuse(self, piece: bytes, ret: int) -> Outcome:
        """Answer `ret` as a failed command does, without executing the request: a fault."""
        if not self._take(piece):
            return Outcome(self.fate, None, ())
        self._write_header(decode_request(self._request, self._guest.world.arch), 0)
        self._write(ret, None)
        return Outcome(Fate.ANSWERED, bytes(self._reply), (codes.UNEXPLAINED_RESULT,))

    def _take(self, piece: bytes) -> bool:
        """Lay a receive over the request buffer; False when nobody is there to look at it."""
        self._guest.begin()
        piece = piece[:MESSAGE_SIZE]
        self._request = piece + self._request[len(piece) :]
        if self._guest.cut_off:
            self.fate = Fate.CUT_OFF
        return self.fate is Fate.ANSWERED

    def _silent(self, fate: Fate, code: Code) -> Outcome:
        self.fate = fate
        return Outcome(fate, None, (code,), takes_lock=self._guest.lock.taken)

    def _process(self, request: Request) -> tuple[tuple[Code, ...], int, Cpus]:
        """Rewrite the reply buffer as far as the kernel does.

        Returns the causes, the delay in nanoseconds, and what it has to do with CPUs.
        """
        (stale_ret,) = _I32.unpack_from(self._reply, RET_OFFSET)
        if request.magic_version != MAGIC_VERSION:
            self._write_header(request, 0)
            stale = codes.STALE_ERROR if stale_ret else codes.STALE_SUCCESS
            return (codes.BAD_MAGIC, stale), 0, Cpus.INDIFFERENT
        try:
            done = self._guest.execute(request)
        except FailedError as failed:
            self._write_header(request, 0)
            self._write(failed.ret, failed.load)
            cpus = Cpus.START if failed.delay_ns else Cpus.INDIFFERENT
            return failed.causes, failed.delay_ns, cpus
        self._write_header(request, 0 if done.load is None else CPU_REPLY_MSG_SIZE)
        self._write(done.ret, done.load)
        causes = (codes.STALE_ERROR,) if done.ret is None and stale_ret else ()
        return causes, done.delay_ns, done.cpus

    def _write_header(self, request: Request, msg_size: int) -> None:
        _HEADER.pack_into(self._reply, 0, MAGIC_VERSION, msg_size, request.msg_type, 0)

    def _write(self, ret: int | None, load: int | None) -> None:
        if ret is not None:
            _I32.pack_into(self._reply, RET_OFFSET, ret)
        if load is not None:
            _U32.pack_into(self._reply, REPLY_LOAD_OFFSET, load)


def _cross(base: int, end: int, other_base: int, other_end: int) -> bool:
    """True when two ranges overlap and neither lies inside the other: the kernel refuses that."""
    apart = end < other_base or base > other_end
    inside = (base >= other_base and end <= other_end) or (base <= other_base and end >= other_end)
    return not apart and not inside
