"""What a rule may look at: one operation with what was known of the guest when it was sent."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from dissectors.constants import CPU_TYPES, MMIO_TYPES, PCI_TYPES, Arch, errno_name, op_name
from dissectors.events import RequestReceived
from dissectors.messages import (
    CpuRequestArm,
    CpuRequestX86,
    MmioRequest,
    PciRequest,
    Reply,
    Request,
)

from ..logs.evidence import Evidence
from ..trace.decoding import Connection
from ..views.text import fields_text
from .finding import Ref
from .history import History

if TYPE_CHECKING:  # logs are matched with situations, so they know these and not the reverse
    from ..logs.guest_console import ConsoleOperation


@dataclass(slots=True)
class Situation:
    """A request, its reply or its silence, and the guest's history before it.

    `last_ret` and `last_load` are what the guest's reply buffer held before, None when the
    recording does not tell; `arch` is a guess until something tells it.
    """

    ref: Ref
    event: RequestReceived
    request: Request
    sent_ns: int
    history: History
    arch: Arch
    last_ret: int | None = 0
    last_load: int | None = 0
    last_ref: Ref | None = None
    """The request whose reply last wrote `ret` on this connection."""
    load_ref: Ref | None = None
    """The request whose reply last wrote a load on this connection."""
    reply: Reply | None = None
    reply_raw: bytes = b""
    latency_ns: int | None = None
    arch_told: bool = True
    doubtful: bool = False
    """The recording lacks bytes: the request may have held others, or the reply be another's."""
    held_up_by: Ref | None = None
    """A request of another connection that held the hotplug lock meanwhile."""
    evidence: list[Evidence] = field(default_factory=list)
    console: ConsoleOperation | None = None
    """What the guest's console says of it."""

    @property
    def op(self) -> str:
        """The operation with its key fields, as people read it."""
        said = self.console if self.ref.conn == 0 else None
        if said is not None and said.count and not said.ids:
            cpus = "CPU" if said.count == 1 else "CPUs"
            return f"{op_name(self.request.msg_type)} of {said.count} {cpus}"
        return f"{op_name(self.request.msg_type)} {fields_text(self.request.fields())}".strip()

    @property
    def ret(self) -> int | None:
        return self.reply.ret if self.reply else None

    @property
    def result(self) -> str:
        """The number on the wire by its name: `-17 (EEXIST)`."""
        if self.ret is None:
            return "no answer"
        name = errno_name(self.ret)
        return f"{self.ret} ({name})" if name else str(self.ret)

    @property
    def cpu(self) -> CpuRequestX86 | CpuRequestArm | None:
        return self.request if isinstance(self.request, (CpuRequestX86, CpuRequestArm)) else None

    @property
    def mmio(self) -> MmioRequest | None:
        return self.request if isinstance(self.request, MmioRequest) else None

    @property
    def pci(self) -> PciRequest | None:
        return self.request if isinstance(self.request, PciRequest) else None

    @property
    def apic_ids(self) -> list[int]:
        """The ids that a CPU request names to an x86-64 guest; empty on aarch64."""
        cpu = self.cpu
        if cpu is None or self.arch is Arch.AARCH64:
            return []
        if isinstance(cpu, CpuRequestArm):  # its layout is aarch64's, and the guest reads its own
            return list(cpu.padding[1 : 1 + cpu.count])
        return list(cpu.apic_ids[: cpu.count])

    @property
    def is_cpu(self) -> bool:
        return self.request.msg_type in CPU_TYPES

    @property
    def is_mmio(self) -> bool:
        return self.request.msg_type in MMIO_TYPES

    @property
    def is_pci(self) -> bool:
        return self.request.msg_type in PCI_TYPES


@dataclass(slots=True)
class ConnectionSituation:
    """A whole connection, for what concerns how it began and ended.

    `refusals` are the connections to the upcall port that were closed without OK, one after the
    other, up to this one; `waited_ns` is what passed between OK and the end of the connection.
    """

    connection: Connection
    refusals: int = 0
    interval_ns: int | None = None
    """Between the last two refusals."""
    waited_ns: int | None = None
