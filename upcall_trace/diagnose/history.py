"""What a recording has shown of a guest so far, and which request showed it.

It knows what was seen to happen and nothing else: a capture may begin in the middle, and other
connections may not be in it. `None` as a reference means: there at boot, by the world.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ..kernel.world import Window, World
from .finding import Ref
from .windows import PlacedWindows, WindowKey


@dataclass(slots=True)
class History:
    """Devices and CPUs by the request that added or removed them last."""

    windows: PlacedWindows = field(default_factory=PlacedWindows)
    """Registered windows as (base, size, irq)."""
    removed_windows: dict[tuple[int, int, int], Ref] = field(default_factory=dict)
    cpus: dict[int, Ref | None] = field(default_factory=dict)
    """APIC ids that are up."""
    removed_cpus: dict[int, Ref] = field(default_factory=dict)
    pci: dict[tuple[int, int], Ref | None] = field(default_factory=dict)
    """(bus, devfn) of registered functions."""
    removed_pci: dict[tuple[int, int], Ref] = field(default_factory=dict)
    unplugged_numbers: bool = False
    """A CPU was removed: on old kernels some may be out of the lookup's reach since."""
    unsure: bool = False
    """The guest may have taken requests in another order than their replies tell, or executed
    some whose replies are missing: what is listed here may be gone."""
    failed_cpus: dict[int, tuple[Ref, int | None]] = field(default_factory=dict)
    """APIC ids that failed to start, by which request, and how long that took."""
    running: set[int] = field(default_factory=set)
    """vCPUs that the VMM was seen to create."""
    mmio_works: bool = False
    """An MMIO request got further than the first checks, so the guest can be asked for it."""
    died: dict[int, Ref] = field(default_factory=dict)
    """Connections whose thread in the guest is gone, with the request it died on."""

    @classmethod
    def of_world(cls, world: World) -> History:
        """What is there at boot."""
        return cls(
            windows=PlacedWindows({(w.base, w.size, w.irq): None for w in world.mmio}),
            cpus=dict.fromkeys(world.cpus_online),
            pci={(d.bus, d.devfn): None for d in world.pci},
            running=set(world.vcpus_running),
            mmio_works=bool(world.mmio) or not world.needs_boot_mmio,
        )

    def overlapping(self, base: int, size: int) -> tuple[Window, Ref | None] | None:
        """A registered window that the kernel's overlap check finds, with its request."""
        return self._told(self.windows.overlapping(base, size))

    def at_edge(self, base: int, end: int) -> tuple[Window, Ref | None] | None:
        """A registered window that has its first or last byte in common with this one."""
        return self._told(self.windows.at_edge(base, end))

    def on_irq(self, irq: int) -> tuple[Window, Ref | None] | None:
        """A registered window with this interrupt, with its request."""
        return self._told(self.windows.on_irq(irq))

    def at_base(self, base: int) -> tuple[Window, Ref | None] | None:
        """A registered window that begins here."""
        return self._told(self.windows.at_base(base))

    def _told(self, key: WindowKey | None) -> tuple[Window, Ref | None] | None:
        return None if key is None else (Window(*key), self.windows[key])
