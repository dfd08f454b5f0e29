"""What a rule may look at: one operation with what was known of the guest when it was sent."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum, auto
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from dissectors.constants import (
    CPU_TYPES,
    MAGIC_VERSION,
    MMIO_TYPES,
    PCI_TYPES,
    Arch,
    MessageType,
    errno_name,
    op_name,
)
from dissectors.events import RequestReceived
from dissectors.messages import (
    CpuRequestArm,
    CpuRequestX86,
    MmioRequest,
    PciRequest,
    Reply,
    Request,
)

from ..codes import Code
from ..logs.evidence import Evidence
from ..trace.decoding import Connection
from ..views.text import fields_text
from .finding import Cause, Ref
from .history import History

if TYPE_CHECKING:  # logs are matched with situations, so they know these and not the reverse
    from ..logs.console_operations import ConsoleOperation


LONG_NS: Final = 1_000_000_000
"""A guest that works answers sooner, a vCPU that does not start aside."""


class WaitEnd(Enum):
    """How the wait for an answer ended."""

    RECORDING = auto()
    """The recording was over first."""
    CLIENT = auto()
    """The client closed the connection, or is gone."""
    GAVE_UP = auto()
    """The client stopped waiting, and closed later."""
    GUEST = auto()
    """The guest's side closed or reset the connection."""


@dataclass(slots=True)
class Situation:
    """A request, its reply or its silence, and the guest's history before it.

    `last_ret` and `last_load` are what the guest's reply buffer held before, None when the
    recording does not tell; `arch` is a guess until something tells it. Times are the capture's
    clock in nanoseconds.
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
    holder: Ref | None = None
    """The request that holds the hotplug lock for ever, and that this one waits for."""
    cut_off_by: Ref | None = None
    """The removal that may have hit the device that the channel runs on."""
    holder_keeps_it: bool = False
    """Nothing else is known that would keep the holder from an answer."""
    ended: WaitEnd = WaitEnd.RECORDING
    waited_ns: int = 0
    """Between the request and the end of the wait, for one that has no answer."""
    received: int = 0
    """Bytes of its reply that came, for one whose reply is not whole."""
    piece_ns: int | None = None
    """When the first piece of its reply came, None for a reply that came whole."""
    piece: int = 0
    """Bytes of that piece."""
    replied_ns: int | None = None
    seen_by_client: bool = True
    """The recording was made where the client's receives are seen."""
    causes: list[Cause] = field(default_factory=list)
    """What explains its reply or its silence; empty before that, and for success."""
    predicted: bool = False
    """The kernel model expected what was recorded, so the causes are the model's."""
    meanwhile: tuple[Ref, ...] = ()
    """PCI requests of other connections that were open at some time while this one was."""
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
        return _op_text(self.request)

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
    def misfit(self) -> bool:
        """The reply is not of the kind that the request calls for."""
        reply = self.reply
        return reply is not None and (
            reply.magic_version != MAGIC_VERSION or reply.msg_type != self.request.msg_type
        )

    @property
    def waited_long(self) -> bool:
        """Silence that means something: nobody ended it at once, and no guest closed."""
        if self.ref.conn == 0:
            return True  # a console's operation that has no end there
        return self.ended is not WaitEnd.GUEST and self.waited_ns >= LONG_NS

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


@lru_cache(4096)
def _op_text(request: Request) -> str:
    """Many findings tell of a few requests."""
    return f"{op_name(request.msg_type)} {fields_text(request.fields())}".strip()


REMOVALS: Final = frozenset({MessageType.DEL_MMIO, MessageType.DEL_PCI})


def added_here(at: Situation) -> bool:
    """The device of a request was added over the channel, so the channel does not run on it."""
    history = at.history
    if at.pci is not None:
        return history.pci.get((at.pci.busno, at.pci.devfn)) is not None
    mmio = at.mmio
    assert mmio is not None  # nothing else is a device
    return history.windows.get((mmio.mmio_base, mmio.mmio_size, mmio.mmio_irq)) is not None


@dataclass(slots=True)
class ConnectionSituation:
    """A whole connection, for what concerns how it began and ended, and what came before it.

    `refusals` are the connections to the upcall port that were closed without OK, one after the
    other, up to this one; `waited_ns` is what passed between OK and the end of the connection, or
    between its first line and its end when there was no OK.
    """

    connection: Connection
    refusals: int = 0
    interval_ns: int | None = None
    """Between the last two refusals."""
    waited_ns: int | None = None
    worked_before: int | None = None
    """The last connection before this one on which the guest said that it is ready."""
    broke_before: int | None = None
    """The last one of these that the guest's side ended."""
    in_guest: bool = False
    """It was recorded inside the guest, where no line crosses."""
    half_closed: bool = False
    """The client closed its sending half before anything came back."""
    to_upcall: bool = True
    """It asked for upcall's port, or for none that can be read."""
    unfinished: bytes = b""
    """What the client's first line had when it ended, if the line has no end."""
    received: bytes = b""
    """What came back instead of an OK line."""
    unanswered: int = 0
    """Requests that were open when it ended."""
    early: bool = False
    """The client sent its service byte before OK."""
    told: set[Code] = field(default_factory=set)
    """What was told of it already: each code once."""
    at_end: bool = False
    """It was still open when the recording ended."""
    cut_off_by: Ref | None = None
    """The request that removed the channel's own device before, as far as that is known."""
