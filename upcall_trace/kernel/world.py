"""What a guest looks like when it boots: the state that its answers depend on.

Worlds are tables of a TOML file. Keys that are left out take the values of a guest without devices
and with one CPU. docs/worlds.md.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from dissectors.constants import Arch

from ..capture.toml_files import BadToml, read_toml
from ..errors import UnreadableInput, UpcallError, WrongUsage

SERIES: Final = ("5.10", "6.1", "6.12", "6.18")
"""Kernel series with upcall patches; 6.18 behaves as 6.12 (by reading: it is the same source)."""
OLD_SERIES: Final = frozenset({"5.10", "6.1"})
MAX_CPUS: Final = 8192
MAX_PHYS_BITS: Final = 52
"""Address bits of the widest x86-64 CPU there can be: what is beyond them is refused everywhere."""
_U64: Final = 1 << 64
_U32: Final = 1 << 32
_DAY_MS: Final = 86_400_000
_QEMU_BASE, _QEMU_SIZE, _QEMU_IRQ, _QEMU_COUNT = 0xFEB00000, 0x200, 5, 8


@dataclass(frozen=True, slots=True)
class Window:
    """A virtio-mmio device's registers: first byte, bytes, interrupt (an SPI number on arm).

    `role` says what is behind it: `"vsock"` for the device that the channel itself runs on,
    `"blk"` for a disk. `probe_ms` is how long a disk's driver takes to start, because its first
    read is slow.
    """

    base: int
    size: int
    irq: int
    role: str = ""
    probe_ms: int = field(default=0, compare=False)

    @property
    def end(self) -> int:
        """The last byte by the kernel's own arithmetic, which counts round at 2^64.

        For an empty window it is the byte before the first.
        """
        return (self.base + self.size - 1) % _U64


@dataclass(frozen=True, slots=True, order=True)
class PciDevice:
    """A PCI function that answers."""

    bus: int
    slot: int
    function: int = 0
    role: str = field(default="", compare=False)
    probe_ms: int = field(default=0, compare=False)

    @property
    def devfn(self) -> int:
        return self.slot << 3 | self.function


@dataclass(frozen=True, slots=True)
class World:
    """A guest at boot. CPUs are named by APIC id on x86-64 and by number on aarch64.

    `vcpus_running` are those that the VMM really runs: only they can come up. `boot_table` lists
    the APIC ids of the firmware's table, the only ones that new kernels ever accept. `iomem` are
    ranges (first, last) that something other than an upcall device has claimed. `mmio_hidden` are
    disks that work and that the guest does not know at boot. `phys_bits` are the address bits of
    an x86-64 CPU. `needs_boot_mmio` is true for kernels whose patches crash on every MMIO request
    when no device was given on the command line.
    """

    kernel: str = "6.1"
    arch: Arch = Arch.X86_64
    nr_cpu_ids: int = 1
    cpus_online: tuple[int, ...] = (0,)
    boot_table: tuple[int, ...] = ()
    vcpus_running: tuple[int, ...] = (0,)
    mmio: tuple[Window, ...] = ()
    mmio_hidden: tuple[Window, ...] = ()
    pci: tuple[PciDevice, ...] = ()
    pci_buses: tuple[int, ...] = ()
    iomem: tuple[tuple[int, int], ...] = ()
    phys_bits: int = MAX_PHYS_BITS
    max_irq: int = 987
    needs_boot_mmio: bool = False

    @property
    def is_old(self) -> bool:
        """True for the kernel series that look CPUs up in a shrinking table."""
        return self.kernel in OLD_SERIES

    @property
    def starts_once(self) -> bool:
        """True for the series in which a CPU that failed to start once never starts again."""
        return self.kernel == "5.10"

    @property
    def last_address(self) -> int:
        """The end of the kernel's tree of claimed ranges; on aarch64 that of 64 bits."""
        return _U64 - 1 if self.arch is Arch.AARCH64 else (1 << self.phys_bits) - 1


def kata_pod(arch: Arch = Arch.X86_64, kernel: str = "6.1", cpus: int = 1) -> World:
    """A default Kata pod with `cpus` of 32 vCPUs running; docs/protocol.md section 5.

    On x86-64 the boot devices are block, fs and vsock (0xE0000000 on, 0x2000 each, IRQ 5 for
    all), so the first hot-plugged one comes at 0xE0006000; on aarch64 they begin at 0x60103000
    and share SPI 32. Something answers in PCI slots 0 to 8; the root file system is slot 1. The
    VMM runs every vCPU, as Dragonball does before it asks for one.
    """
    arm = arch is Arch.AARCH64
    base, irq = (0x60103000, 32) if arm else (0xE0000000, 5)
    roles = ("blk", "fs", "vsock")
    return World(
        kernel=kernel,
        arch=arch,
        nr_cpu_ids=32,
        cpus_online=tuple(range(cpus)),
        boot_table=tuple(range(32)),
        vcpus_running=tuple(range(32)),
        mmio=tuple(Window(base + n * 0x2000, 0x2000, irq, role) for n, role in enumerate(roles)),
        pci=tuple(PciDevice(0, slot) for slot in range(9)),
    )


def load_worlds(path: Path) -> dict[str, World]:
    """Every world of a TOML file by its table's name.

    Raises UnreadableInput, which names the table and key, for a file that is missing or wrong.
    """
    try:
        tables = read_toml(path)
    except OSError as error:
        raise UnreadableInput(f"{path}: {error.strerror}") from None
    except BadToml as error:
        raise UnreadableInput(f"{path} is not a TOML file: {error}") from None
    try:
        return {name: parse_world(name, table) for name, table in tables.items()}
    except BadWorld as error:
        raise UnreadableInput(f"{path}: {error}") from None


def find_world(file: Path | None, machine: str | None) -> World | None:
    """What `--world FILE --machine NAME` mean, None without them.

    Raises UnreadableInput and WrongUsage.
    """
    if file is None:
        if machine is not None:
            raise WrongUsage("--machine needs a file: give --world too")
        return None
    return choose_world(load_worlds(file), machine)


def choose_world(worlds: dict[str, World], name: str | None) -> World:
    """The world called `name`, or the only one; raises WrongUsage."""
    if name is None and len(worlds) == 1:
        return next(iter(worlds.values()))
    known = ", ".join(worlds)
    if not worlds:
        raise WrongUsage("the file has no machine: a table such as [pod] describes one")
    if name is None:
        raise WrongUsage(f"the file has several machines; choose one with --machine: {known}")
    if name not in worlds:
        raise WrongUsage(f"no machine {name!r} in the file; there are: {known}")
    return worlds[name]


class BadWorld(UpcallError, ValueError):
    """A key of a world that is unknown, missing or of the wrong kind; the text names it."""


def parse_world(name: str, table: object) -> World:
    """The world that a TOML table describes; raises BadWorld."""
    at = _Place(name)
    values = at.table(table)
    known = {
        "kernel": lambda p, v: p.one_of(v, SERIES),
        "arch": lambda p, v: Arch(p.one_of(v, [arch.value for arch in Arch])),
        "nr_cpu_ids": lambda p, v: p.number(v, 1, MAX_CPUS),
        "cpus_online": lambda p, v: p.array(v, _Place.cpu),
        "boot_table": lambda p, v: p.array(v, _Place.cpu),
        "vcpus_running": lambda p, v: p.array(v, _Place.cpu),
        "mmio": lambda p, v: p.array(v, _window),
        "mmio_hidden": lambda p, v: p.array(v, _window),
        "pci": lambda p, v: p.array(v, _pci),
        "pci_buses": lambda p, v: p.array(v, lambda q, bus: q.number(bus, 0, 255)),
        "iomem": lambda p, v: p.array(v, _range),
        "phys_bits": lambda p, v: p.number(v, 32, MAX_PHYS_BITS),
        "max_irq": lambda p, v: p.number(v, 0, _U32 - 1),
        "needs_boot_mmio": lambda p, v: p.boolean(v),
    }  # fmt: skip
    parsed = at.fields(values, known)
    world = World(**parsed)
    if "cpus_online" in parsed and "vcpus_running" not in parsed:
        world = replace(world, vcpus_running=world.cpus_online)
    if not world.is_old and not world.boot_table:
        world = replace(world, boot_table=world.cpus_online)
    if "mmio_hidden" not in parsed:
        world = replace(world, mmio_hidden=_qemu_transports(world.mmio))
    _check_cpus(name, world)
    return world


def world_table(world: World) -> dict[str, Any]:
    """The table that `parse_world` makes this world of, as JSON values."""
    table: dict[str, Any] = {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in asdict(world).items()
    }
    table["iomem"] = [{"base": base, "size": end - base + 1} for base, end in world.iomem]
    return table | {"arch": world.arch.value}


def _qemu_transports(mmio: tuple[Window, ...]) -> tuple[Window, ...]:
    """What else QEMU's machine `microvm` has where the guest knows only `mmio` at boot.

    Its windows stand in a row and each has an interrupt of its own. Whether a disk is behind them
    cannot be told from the boot; it is assumed.
    """
    row = tuple(
        Window(_QEMU_BASE + n * _QEMU_SIZE, _QEMU_SIZE, _QEMU_IRQ + n) for n in range(_QEMU_COUNT)
    )
    known = {(window.base, window.size, window.irq) for window in mmio}
    if not known or not known <= {(one.base, one.size, one.irq) for one in row}:
        return ()
    return tuple(one for one in row if (one.base, one.size, one.irq) not in known)


def _check_cpus(name: str, world: World) -> None:
    online = world.cpus_online
    if not online:
        raise BadWorld(f"[{name}] cpus_online is empty: a guest has a boot CPU")
    if len(online) > world.nr_cpu_ids:
        raise BadWorld(f"[{name}] cpus_online has more CPUs than nr_cpu_ids")
    for key, cpus in (("cpus_online", online), ("boot_table", world.boot_table)):
        if len(set(cpus)) < len(cpus):
            raise BadWorld(f"[{name}] {key} names a CPU twice")
    if world.arch is Arch.AARCH64 and (0 not in online or max(online) >= world.nr_cpu_ids):
        raise BadWorld(f"[{name}] cpus_online must have 0 and numbers below nr_cpu_ids on aarch64")


def _window(at: _Place, value: object) -> Window:
    known: dict[str, Callable[[_Place, Any], Any]] = {
        "base": lambda p, v: p.number(v, 0, _U64 - 1),
        "size": lambda p, v: p.number(v, 1, _U64 - 1),
        "irq": lambda p, v: p.number(v, 0, _U32 - 1),
        "role": lambda p, v: p.text(v),
        "probe_ms": lambda p, v: p.number(v, 0, _DAY_MS),
    }
    return Window(**at.fields(at.table(value), known, ("base", "size", "irq")))


def parse_pci(name: str, value: object) -> PciDevice:
    """The PCI function that a table describes; `name` is for errors. Raises BadWorld."""
    return _pci(_Place(name), value)


def _pci(at: _Place, value: object) -> PciDevice:
    known: dict[str, Callable[[_Place, Any], Any]] = {
        "bus": lambda p, v: p.number(v, 0, 255),
        "slot": lambda p, v: p.number(v, 0, 31),
        "function": lambda p, v: p.number(v, 0, 7),
        "role": lambda p, v: p.text(v),
        "probe_ms": lambda p, v: p.number(v, 0, _DAY_MS),
    }
    return PciDevice(**at.fields(at.table(value), known, ("bus", "slot")))


def _range(at: _Place, value: object) -> tuple[int, int]:
    known: dict[str, Callable[[_Place, Any], Any]] = {
        "base": lambda p, v: p.number(v, 0, _U64 - 1),
        "size": lambda p, v: p.number(v, 1, _U64 - 1),
    }
    fields = at.fields(at.table(value), known, ("base", "size"))
    return fields["base"], fields["base"] + fields["size"] - 1


class _Place:
    """Where in a file a value stands, for errors that say so."""

    def __init__(self, table: str, path: str = "") -> None:
        self._table = table
        self._path = path

    def bad(self, why: str) -> BadWorld:
        return BadWorld(f"[{self._table}] {self._path} {why}".replace("  ", " "))

    def below(self, step: str) -> _Place:
        return _Place(self._table, f"{self._path}{step}")

    def table(self, value: object) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise self.bad("is not a table")
        return value

    def fields(
        self,
        values: dict[str, Any],
        known: dict[str, Callable[[_Place, Any], Any]],
        needed: tuple[str, ...] = (),
    ) -> dict[str, Any]:
        for key in values:
            if key not in known:
                raise self.bad(f"has an unknown key {key!r}; known are {', '.join(known)}")
        for key in needed:
            if key not in values:
                raise self.bad(f"has no {key!r}")
        dot = "." if self._path else ""
        return {key: known[key](self.below(dot + key), value) for key, value in values.items()}

    def number(self, value: object, low: int, high: int) -> int:
        if type(value) is not int or not low <= value <= high:
            raise self.bad(f"must be a number from {low} to {high:#x}, not {value!r}")
        return value

    def cpu(self, value: object) -> int:
        return self.number(value, 0, 255)

    def one_of(self, value: object, allowed: Any) -> str:
        if not isinstance(value, str) or value not in allowed:
            raise self.bad(f"must be one of {', '.join(allowed)}, not {value!r}")
        return value

    def text(self, value: object) -> str:
        if not isinstance(value, str):
            raise self.bad(f"must be a text, not {value!r}")
        return value

    def boolean(self, value: object) -> bool:
        if not isinstance(value, bool):
            raise self.bad(f"must be true or false, not {value!r}")
        return value

    def array(self, value: object, each: Callable[[_Place, Any], Any]) -> tuple[Any, ...]:
        if not isinstance(value, list):
            raise self.bad("is not an array")
        return tuple(each(self.below(f"[{n}]"), element) for n, element in enumerate(value))
