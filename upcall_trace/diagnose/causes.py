"""Which codes explain a reply or a silence: decided by the guest's model, or by the wire alone.

With the guest's world the kernel model runs in step with the recording; while it predicts what was
recorded its causes are certain. Without a world, or once prediction and recording part, only what
the reply itself proves is certain; everything that rests on what happened before is inferred, since
a recording may lack connections.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from typing import Final, NamedTuple

from dissectors.constants import (
    EBUSY,
    EEXIST,
    EINVAL,
    EIO,
    ENODEV,
    EPERM,
    MAGIC_VERSION,
    MMIO_MSG_SIZE,
    RESERVED_TYPES,
    SHAREABLE_IRQ,
    Arch,
    MessageType,
)

from .. import codes
from ..codes import Code
from ..kernel.model import Guest, ServiceThread
from ..kernel.outcome import Fate, Outcome
from ..kernel.world import World
from .finding import Ref
from .history import History
from .situation import Situation

_KEPT_REMOVED = 4096
"""Removed windows that are remembered, for saying of a device that it is gone already."""


class Cause(NamedTuple):
    """A code, and whether it is one of several or rests on earlier requests."""

    code: Code
    inferred: bool = False


def _sure(*told: Code) -> list[Cause]:
    return [Cause(code) for code in told]


def _maybe(*told: Code) -> list[Cause]:
    return [Cause(code, inferred=True) for code in told]


def softened(causes: list[Cause], sure: list[Cause]) -> list[Cause]:
    """The same causes, certain only as far as `sure` has them as certain."""
    certain = {cause.code for cause in sure if not cause.inferred}
    return [Cause(code, inferred or code not in certain) for code, inferred in causes]


_NEAREST: Final = {
    codes.CPU_NEVER_AGAIN: codes.VCPU_NOT_STARTED,
    codes.CPU_LOST_ITS_ID: codes.UNEXPLAINED_RESULT,
    codes.CPU_ALREADY_OFFLINE: codes.UNEXPLAINED_RESULT,
    codes.DRIVER_HANGS: codes.HOTPLUG_LOCK_STUCK,
}
"""Codes of the model that have no rule yet, and what is told for them."""


def nearest(causes: Iterable[Code]) -> tuple[Code, ...]:
    """The same causes in codes that have a rule."""
    return tuple(_NEAREST.get(code, code) for code in causes)


class ModelGuest:
    """The kernel model, kept in step with a recording for as long as it predicts it."""

    def __init__(self, world: World) -> None:
        self._guest: Guest | None = Guest(world)
        self._connections: dict[int, ServiceThread] = {}
        self._outcomes: dict[Ref, Outcome] = {}

    @property
    def guest(self) -> Guest | None:
        """The guest as the model has it, None once it parted from the recording."""
        return self._guest

    def fate(self, conn: int) -> Fate:
        """What became of a connection's thread in the guest, as far as the model knows."""
        connection = self._connections.get(conn)
        return connection.fate if connection else Fate.ANSWERED

    def connect(self, conn: int, from_start: bool) -> None:
        """A connection began; one that is seen from the middle is not to be predicted."""
        if self._guest is not None and from_start:
            self._connections[conn] = self._guest.connect()
        else:
            self.part()

    def disconnect(self, conn: int) -> None:
        """A connection is over; one whose thread is gone is remembered."""
        if self.fate(conn) is Fate.ANSWERED:
            self._connections.pop(conn, None)

    def part(self) -> None:
        """The recording lacks something: nothing can be predicted any more."""
        self._guest = None

    def start_vcpu(self, cpu: int) -> None:
        """The VMM created a vCPU."""
        if self._guest is not None:
            self._guest.start_vcpu(cpu)

    def request(self, ref: Ref, piece: bytes) -> None:
        """The guest received this."""
        connection = self._connections.get(ref.conn)
        if self._guest is None or connection is None:
            self.part()
            return
        self._outcomes[ref] = connection.receive(piece)

    def reply(self, ref: Ref, raw: bytes) -> list[Cause] | None:
        """Causes of a recorded reply; None when the model did not predict it."""
        outcome = self._outcomes.pop(ref, None)
        if self._guest is None or outcome is None:
            return None
        if outcome.reply != raw:
            self.part()
            return None
        return _sure(*(code for code in nearest(outcome.causes) if code != codes.STALE_LOAD))

    def silence(self, ref: Ref) -> list[Cause] | None:
        """Causes of a recorded silence; None when the model expected a reply."""
        outcome = self._outcomes.pop(ref, None)
        if self._guest is None or outcome is None or outcome.fate is Fate.ANSWERED:
            return None
        return _sure(*nearest(outcome.causes))


def of_reply(at: Situation) -> list[Cause]:
    """What the wire says about the reply to a request, plain success included."""
    ret = at.ret
    assert ret is not None  # silence is of_silence's
    if at.request.magic_version != MAGIC_VERSION:
        return _sure(codes.BAD_MAGIC, codes.STALE_ERROR if ret else codes.STALE_SUCCESS)
    if ret == EPERM and not (at.is_pci and at.last_ret in (ret, None)):
        # Also what a kernel without one of the hotplug options answers to a type it knows.
        return _sure(
            codes.RESERVED_MEMORY_OP
            if at.request.msg_type in RESERVED_TYPES
            else codes.UNKNOWN_TYPE
        )
    match at.request.msg_type:
        case MessageType.ADD_CPU:
            return _add_cpu(at, ret)
        case MessageType.DEL_CPU:
            return _del_cpu(at, ret)
        case MessageType.ADD_MMIO | MessageType.DEL_MMIO:
            return _mmio(at, ret)
        case MessageType.ADD_PCI | MessageType.DEL_PCI:
            return _pci(at, ret)
    return _sure(codes.UNEXPLAINED_RESULT)


def _add_cpu(at: Situation, ret: int) -> list[Cause]:
    partly = _maybe(codes.PARTIAL_CPU_ADD) if at.cpu is not None and at.cpu.count > 1 else []
    match ret:
        case 0:
            return []
        case _ if ret == EINVAL and at.arch is Arch.X86_64:
            if at.history.unsure:
                return _maybe(codes.CPU_ALREADY_KNOWN, codes.NO_CPU_NUMBER) + partly
            if any(cpu in at.history.cpus for cpu in at.apic_ids):
                maybe_hidden = at.history.unplugged_numbers
                return (
                    _maybe(codes.CPU_ALREADY_KNOWN, codes.NO_CPU_NUMBER) + partly
                    if maybe_hidden
                    else _maybe(codes.CPU_ALREADY_KNOWN)
                )
            if at.apic_ids and all(cpu in at.history.removed_cpus for cpu in at.apic_ids):
                return _maybe(codes.NO_CPU_NUMBER) + partly
            return _maybe(codes.CPU_ALREADY_KNOWN, codes.NO_CPU_NUMBER) + partly
        case _ if ret == EIO:
            return _sure(codes.VCPU_NOT_STARTED) + partly
    return _sure(codes.UNEXPLAINED_RESULT)


def _del_cpu(at: Situation, ret: int) -> list[Cause]:
    match ret:
        case 0:
            return []
        case _ if ret == EBUSY:
            return _sure(codes.CPU_BUSY)
        case _ if ret != EINVAL:
            return _sure(codes.UNEXPLAINED_RESULT)
    load = next(iter(at.reply.fields().values()), 0) if at.reply else 0
    if at.arch is Arch.AARCH64:
        return _sure(codes.REMOVE_ALL_CPUS)
    if load:  # the refusal to remove all would have written a zero there
        return _sure(codes.REMOVE_BOOT_CPU if 0 in at.apic_ids else codes.UNEXPLAINED_RESULT)
    return (
        _sure(codes.REMOVE_ALL_CPUS)
        if at.last_load or 0 not in at.apic_ids
        else _maybe(codes.REMOVE_ALL_CPUS, codes.REMOVE_BOOT_CPU)
    )


def _mmio(at: Situation, ret: int) -> list[Cause]:
    mmio = at.mmio
    assert mmio is not None  # the type says so
    if ret == 0:
        return []
    if ret == EINVAL:
        if mmio.msg_size != MMIO_MSG_SIZE:
            return _sure(codes.MMIO_BAD_SIZE_FIELD)
        if mmio.mmio_irq and not at.arch_told:
            at.arch = Arch.AARCH64  # x86-64 refuses no other number than 0
            return _maybe(codes.MMIO_BAD_IRQ)
        refusable = mmio.mmio_irq == 0 or at.arch is Arch.AARCH64
        return _sure(codes.MMIO_BAD_IRQ if refusable else codes.UNEXPLAINED_RESULT)
    if at.request.msg_type == MessageType.DEL_MMIO:
        return _sure(codes.MMIO_NO_SUCH_DEVICE if ret == ENODEV else codes.UNEXPLAINED_RESULT)
    if ret == EBUSY:
        return _sure(codes.MMIO_RESOURCE_BUSY)
    if ret != EEXIST:
        return _sure(codes.UNEXPLAINED_RESULT)
    if mmio.mmio_irq == SHAREABLE_IRQ:
        return _sure(codes.MMIO_OVERLAP)
    if at.history.overlapping(mmio.mmio_base, mmio.mmio_size):
        return (
            _maybe(codes.MMIO_OVERLAP, codes.IRQ_CONFLICT)
            if at.history.unsure
            else _maybe(codes.MMIO_OVERLAP)
        )
    return (
        _maybe(codes.IRQ_CONFLICT, codes.MMIO_OVERLAP)
        if at.history.on_irq(mmio.mmio_irq)
        else _maybe(codes.MMIO_OVERLAP, codes.IRQ_CONFLICT)
    )


def _pci(at: Situation, ret: int) -> list[Cause]:
    adding = at.request.msg_type == MessageType.ADD_PCI
    if ret == 0:
        return []
    if ret != ENODEV:
        if ret == EPERM:
            return _maybe(codes.STALE_ERROR, codes.UNKNOWN_TYPE)
        # The kernel itself gives no other: what is there was left over, if something was.
        return (
            _sure(codes.STALE_ERROR)
            if at.last_ret in (ret, None)
            else _sure(codes.UNEXPLAINED_RESULT)
        )
    pci = at.pci
    assert pci is not None  # the type says so
    real = (
        [codes.PCI_NOTHING_THERE, codes.PCI_NO_SUCH_BUS] if adding else [codes.PCI_NO_SUCH_DEVICE]
    )
    if at.last_ret is not None and at.last_ret != ret:
        return _sure(codes.PCI_NO_SUCH_DEVICE) if not adding else _maybe(*real)
    present = (pci.busno, pci.devfn) in at.history.pci
    gone = (pci.busno, pci.devfn) in at.history.removed_pci
    if not adding and gone and not present:
        return _maybe(codes.PCI_NO_SUCH_DEVICE, codes.STALE_ERROR)
    return _maybe(codes.STALE_ERROR, *real)


def of_silence(at: Situation) -> list[Cause]:
    """What may have killed or held up the guest's thread; all of it is inferred."""
    if at.ref.conn in at.history.died:
        return []
    arm = at.arch is Arch.AARCH64
    likely: list[Code] = []
    match at.request.msg_type:
        case MessageType.DEL_CPU if not arm and at.apic_ids:
            falling = all(a > b for a, b in pairwise(at.apic_ids))
            likely = (
                [codes.REMOVE_UNFINDABLE_CPU, codes.REMOVAL_ORDER]
                if falling
                else [codes.REMOVAL_ORDER, codes.REMOVE_UNFINDABLE_CPU]
            )
            likely = likely if len(at.apic_ids) > 1 else [codes.REMOVE_UNFINDABLE_CPU]
        case MessageType.ADD_CPU if arm:
            likely = [codes.ADD_BEYOND_POSSIBLE]
        case MessageType.ADD_MMIO if not at.history.windows and not at.history.removed_windows:
            likely = [codes.MMIO_WITHOUT_BOOT_DEVICE]
        case MessageType.DEL_MMIO | MessageType.DEL_PCI:
            likely = [codes.CHANNEL_REMOVED]
    if at.is_cpu or at.is_mmio:
        likely = (
            [codes.HOTPLUG_LOCK_STUCK, *likely]
            if at.history.stuck_by
            else [*likely, codes.HOTPLUG_LOCK_STUCK]
        )
    if at.request.magic_version != MAGIC_VERSION:
        return []
    return _maybe(*likely)


def learn(history: History, at: Situation, causes: list[Cause]) -> None:
    """Take into the history what the reply shows to have happened."""
    if at.request.magic_version != MAGIC_VERSION or at.reply is None:
        return
    worked = at.ret == 0 or causes == _sure(codes.STALE_ERROR)
    if at.is_cpu:
        (_learn_cpus if worked else _learn_failed_cpus)(history, at)
    elif not worked:
        return
    elif at.mmio is not None:
        key = (at.mmio.mmio_base, at.mmio.mmio_size, at.mmio.mmio_irq)
        if at.request.msg_type == MessageType.ADD_MMIO:
            history.windows[key] = at.ref
            history.removed_windows.pop(key, None)
        else:
            history.windows.pop(key, None)
            history.removed_windows[key] = at.ref
            if len(history.removed_windows) > _KEPT_REMOVED:
                del history.removed_windows[next(iter(history.removed_windows))]
    elif at.pci is not None:
        place = (at.pci.busno, at.pci.devfn)
        if at.request.msg_type == MessageType.ADD_PCI:
            history.pci[place] = at.ref
            history.removed_pci.pop(place, None)
        else:
            history.pci.pop(place, None)
            history.removed_pci[place] = at.ref


def _learn_cpus(history: History, at: Situation) -> None:
    for cpu in at.apic_ids:
        if at.request.msg_type == MessageType.ADD_CPU:
            history.cpus[cpu] = at.ref
            history.removed_cpus.pop(cpu, None)
        else:
            history.cpus.pop(cpu, None)
            history.removed_cpus[cpu] = at.ref
            history.unplugged_numbers = True


def _learn_failed_cpus(history: History, at: Situation) -> None:
    """Some ids of the list may have come or gone before it failed: they are unknown then."""
    ids = at.apic_ids
    doubtful = ids
    if at.ret == EINVAL and at.request.msg_type == MessageType.ADD_CPU:
        doubtful = [] if any(cpu in history.cpus for cpu in ids) else ids[:-1]
    elif at.ret == EINVAL:
        doubtful = ids[: ids.index(0)] if 0 in ids else []
        history.unplugged_numbers |= bool(doubtful)
    for cpu in doubtful:
        history.cpus.pop(cpu, None)
        history.removed_cpus.pop(cpu, None)
