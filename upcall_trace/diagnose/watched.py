"""What is remembered of one connection while a recording is walked."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, Protocol

from dissectors.constants import (
    CPU_REPLY_MSG_SIZE,
    HEADER_SIZE,
    MAGIC_VERSION,
    MMIO_MSG_SIZE,
    PCI_MSG_SIZE,
    REPLY_LOAD_OFFSET,
)
from dissectors.messages import CpuRequestArm, CpuRequestX86, MmioRequest, PciRequest, Reply
from dissectors.services import DEVICE_MANAGER

from .finding import Cause, Ref
from .situation import ConnectionSituation, Situation

REPLY_SIZE: Final = DEVICE_MANAGER.reply_size


class Witness(Protocol):
    """Whoever wants to know of each request as the diagnosis comes to it."""

    def asked(self, at: Situation) -> None:
        """It was sent, and the model has not executed it yet."""

    def judged(self, at: Situation, causes: list[Cause]) -> None:
        """It was answered, or never will be; the history knows of it."""

    def lost(self, at: Situation) -> None:
        """Its answer is not in the recording."""


@dataclass(slots=True)
class Watched:
    """One connection: its open requests, and what the guest's two buffers hold."""

    situation: ConnectionSituation
    open: dict[int, Situation] = field(default_factory=dict)
    last_ret: int | None = 0
    last_load: int | None = 0
    last_ref: Ref | None = None
    load_ref: Ref | None = None
    ok_ns: int | None = None
    line_ns: int | None = None
    """When the client's line was whole."""
    torn: bool = False
    """What the guest's request buffer holds is not known."""
    short: Situation | None = None
    """The last request, when it was short and its rest may still come."""
    received: int = 0
    """Bytes of a message from the guest that is not whole yet."""
    piece_ns: int | None = None
    """When the first of them came."""
    piece: int = 0
    """Bytes that came first."""

    def take_piece(self, due: list[tuple[int, int]], now_ns: int) -> None:
        """How much of the next message from the guest has come; `due` is what is awaited."""
        begun = REPLY_SIZE - due[0][1] if due and due[0][0] >= 0 else 0
        if begun <= 0:
            self.piece_ns, self.received = None, 0
            return
        if self.piece_ns is None:
            self.piece_ns, self.piece = now_ns, begun
        self.received = begun

    def forget(self) -> None:
        """What the guest's buffers hold is not known any more."""
        self.torn = True
        self.last_ret = self.last_load = self.last_ref = self.load_ref = None

    def give_buffers(self, at: Situation) -> None:
        """What the reply buffer held before the reply to this request."""
        at.last_ret, at.last_load = self.last_ret, self.last_load
        at.last_ref, at.load_ref = self.last_ref, self.load_ref

    def remember(self, at: Situation, reply: Reply) -> None:
        """What the reply buffer holds after this reply, and who wrote it."""
        if at.doubtful:  # it may be put together from two
            self.last_ret = self.last_load = self.last_ref = self.load_ref = None
            return
        load = int.from_bytes(
            at.reply_raw[REPLY_LOAD_OFFSET : REPLY_LOAD_OFFSET + CPU_REPLY_MSG_SIZE], "little"
        )
        reads_ret = at.request.magic_version != MAGIC_VERSION
        self.hold(at.ref, at.is_pci, reply.ret, load, reply.msg_size > 0, reads_ret)

    def hold(
        self, ref: Ref, pci: bool, ret: int, load: int, has_load: bool, reads_ret: bool = False
    ) -> None:
        """The buffer holds this now; `reads_ret` where a reply only shows what `ret` was before."""
        wrote_ret = not reads_ret and not (pci and ret == self.last_ret)
        if wrote_ret or self.last_ret is None:
            self.last_ref = ref
        self.last_ret = ret
        if has_load or load != self.last_load:
            self.load_ref = ref
        self.last_load = load

    def remember_unasked(self, reply: Reply) -> None:
        """The same for a reply that no request is known of."""
        # After a gap it may be no message at all, but parts of two.
        self.last_ret = None if self.torn else reply.ret
        self.last_load = None
        self.last_ref = self.load_ref = None


def is_whole(at: Situation) -> bool:
    """True when the last receive held everything that the request's meaning hangs on."""
    meant = HEADER_SIZE
    match at.request:
        case MmioRequest():
            meant += MMIO_MSG_SIZE
        case PciRequest():
            meant += PCI_MSG_SIZE
        case CpuRequestX86(count=count):
            meant += 2 + count
        case CpuRequestArm(count=count):
            meant += 2 + count
    return at.event.size >= meant
