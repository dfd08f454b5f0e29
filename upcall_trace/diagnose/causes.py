"""Which codes explain a reply or a silence: decided by the guest's model, or by the wire alone.

With the guest's world the kernel model runs in step with the recording; while it predicts what was
recorded its causes are certain. Without a world, or once prediction and recording part, only what
the reply itself proves is certain; everything that rests on what happened before is inferred, since
a recording may lack connections. What the wire says is each family's own: `rules/`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, MutableMapping
from typing import Any, Final

from dissectors.constants import (
    ADDING_TYPES,
    EINVAL,
    EIO,
    HANDLED_TYPES,
    MAGIC_VERSION,
    MESSAGE_SIZE,
    MessageType,
)
from dissectors.messages import MmioRequest, PciRequest, Request

from .. import codes
from ..kernel.model import Guest, ServiceThread
from ..kernel.outcome import Done, Fate, Outcome
from ..kernel.vmm_actions import carry_out
from ..kernel.world import World
from .finding import Cause, Ref, maybe, sure
from .history import History
from .lasting import PlainSuccess
from .lock import START_LIMIT_NS
from .rules.registry import Cue, explain
from .situation import Situation, WaitEnd

_KEPT_REMOVED: Final = 4096
"""Removed devices of a kind that are remembered, for saying of a device that it is gone already."""
_PATIENCE_NS: Final = 1_000_000_000
"""How much longer than the protocol says a guest may take before its silence means something."""


def softened(causes: list[Cause], certain: list[Cause]) -> list[Cause]:
    """The same causes, certain only as far as `certain` has them so."""
    known = {cause.code for cause in certain if not cause.inferred}
    return [Cause(code, inferred or code not in known) for code, inferred in causes]


def of_reply(at: Situation) -> list[Cause]:
    """What the wire says about the reply to a request; empty for plain success."""
    request = at.request
    handled = request.msg_type in HANDLED_TYPES
    if handled and at.ret == 0 and request.magic_version == MAGIC_VERSION:
        return []  # the guest did it, so there is nothing to explain
    causes = explain(Cue.REPLY, request.msg_type, at)
    if causes is not None:
        return causes
    return [] if handled and at.ret == 0 else sure(codes.UNEXPLAINED_RESULT)


def of_silence(at: Situation) -> list[Cause]:
    """What may have killed or held up the guest's thread; all of it is inferred."""
    gone = at.ref.conn in at.history.died or at.request.magic_version != MAGIC_VERSION
    return [] if gone else explain(Cue.SILENCE, at.request.msg_type, at) or []


class ModelGuest:
    """The kernel model, kept in step with a recording for as long as it predicts it."""

    def __init__(self, world: World) -> None:
        self._guest: Guest | None = Guest(world)
        self._connections: dict[int, ServiceThread] = {}
        self._outcomes: dict[Ref, Outcome] = {}
        self.stuck_by: Ref | None = None
        """The request that took the hotplug lock for ever, as far as the model knows."""

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

    def vmm(self, action: str) -> None:
        """The VMM did something that the guest cannot see on the channel."""
        if self._guest is not None:
            carry_out(self._guest, action)

    def request(self, ref: Ref, piece: bytes, meant: Request) -> None:
        """The guest received this; with what its buffer held before, it means `meant`."""
        connection = self._connections.get(ref.conn)
        if self._guest is None or connection is None:
            self.part()
            return
        self._outcomes[ref] = connection.receive(
            piece, meant if len(piece) == MESSAGE_SIZE else None
        )
        if self._guest.lock.stuck and self.stuck_by is None:
            self.stuck_by = ref

    def agrees(
        self, conn: int, load: int | None, command: Callable[..., Done], *about: object
    ) -> bool:
        """It executes a request that the recording shows to have succeeded at once, with this load
        in the reply; from where it expects anything else on, it does not testify.

        `command` is what of the guest does what the request says, for `about`.
        """
        connection = self._connections.get(conn)
        if (
            self._guest is None
            or connection is None
            or not connection.succeeds(load, command, *about)
        ):
            self.part()
        return self._guest is not None

    def received(self, conn: int, raw: bytes) -> None:
        """What the last of these requests left in the guest's buffer."""
        if (connection := self._connections.get(conn)) is not None:
            connection.hold(raw)

    def reply(self, ref: Ref, raw: bytes) -> list[Cause] | None:
        """Causes of a recorded reply; None when the model did not predict it."""
        outcome = self._outcomes.pop(ref, None)
        if self._guest is None or outcome is None:
            return None
        if outcome.reply != raw:
            self.part()
            return None
        return sure(*(code for code in outcome.causes if code != codes.STALE_LOAD))

    def overdue(self, at: Situation) -> bool:
        """It expected an answer long before the end of the wait, and none came."""
        outcome = self._outcomes.get(at.ref)
        expected = outcome is not None and outcome.fate is Fate.ANSWERED
        return expected and outcome is not None and at.waited_ns > _longest(at, outcome.delay_ns)

    def silence(self, at: Situation) -> list[Cause] | None:
        """Causes of a recorded silence; None when the model expected a reply by then.

        An answer that was still to come when the wait ended has causes that nobody saw.
        """
        outcome = self._outcomes.pop(at.ref, None)
        if self._guest is None or outcome is None:
            return None
        if outcome.fate is not Fate.ANSWERED:
            return sure(*outcome.causes)
        if at.ended is WaitEnd.GUEST or at.waited_ns > _longest(at, outcome.delay_ns):
            self.part()  # a guest that answers is another than one that does not
            return None
        seen = [code for code in outcome.causes if code != codes.STALE_LOAD]
        return maybe(*seen) if outcome.delay_ns > at.waited_ns else []


def _longest(at: Situation, delay_ns: int) -> int:
    """How long the guest may take for an answer after `delay_ns`, with whatever holds it up."""
    held_up = START_LIMIT_NS if at.held_up_by else 0
    return _PATIENCE_NS + delay_ns + held_up + (delay_ns + held_up) // 2


def learn(
    history: History,
    at: Situation,
    causes: list[Cause],
    plugged: dict[object, Situation | PlainSuccess] | None = None,
) -> None:
    """Take into the history what the reply shows to have happened.

    `plugged` are the requests that added devices which nothing has removed since.
    """
    request, reply = at.request, at.reply
    if request.magic_version != MAGIC_VERSION or reply is None:
        return
    worked = reply.ret == 0 or causes == sure(codes.STALE_ERROR)
    added, key = plugged if plugged is not None else {}, _place(request)
    adding = request.msg_type in ADDING_TYPES
    if isinstance(request, MmioRequest):
        if at.ret != EINVAL and not at.doubtful:
            history.mmio_works = True
        if worked:
            learn_device(history.windows, history.removed_windows, at.ref, key, adding)
    elif isinstance(request, PciRequest):
        if worked:
            learn_device(history.pci, history.removed_pci, at.ref, key, adding)
    else:
        if at.is_cpu and worked:
            learn_cpus(history, at.ref, at.apic_ids, adding)
        elif at.is_cpu:
            _learn_failed_cpus(history, at)
        return
    if worked and adding:
        added[key] = at
    elif worked:
        added.pop(key, None)


def _place(request: Request) -> Any:
    """What a device is known by: (base, size, irq), or (bus, devfn)."""
    if isinstance(request, MmioRequest):
        return request.mmio_base, request.mmio_size, request.mmio_irq
    return (request.busno, request.devfn) if isinstance(request, PciRequest) else None


def learn_device(
    there: MutableMapping[Any, Ref | None], gone: dict[Any, Ref], ref: Ref, key: Any, added: bool
) -> None:
    """A device came by this request, or went."""
    if added:
        there[key] = ref
        gone.pop(key, None)
        return
    there.pop(key, None)
    gone[key] = ref
    if len(gone) > _KEPT_REMOVED:
        del gone[next(iter(gone))]


def learn_cpus(history: History, ref: Ref, cpus: Iterable[int], added: bool) -> None:
    """All of these CPUs came by this request, or went."""
    for cpu in cpus:
        if added:
            history.cpus[cpu] = ref
            history.removed_cpus.pop(cpu, None)
            history.failed_cpus.pop(cpu, None)
        else:
            history.cpus.pop(cpu, None)
            history.removed_cpus[cpu] = ref
            history.unplugged_numbers = True


def _learn_failed_cpus(history: History, at: Situation) -> None:
    """Some ids of the list may have come or gone before it failed: they are unknown then."""
    ids = at.apic_ids
    adding = at.request.msg_type == MessageType.ADD_CPU
    doubtful = ids
    if at.ret == EINVAL and adding:
        doubtful = [] if any(cpu in history.cpus for cpu in ids) else ids[:-1]
    elif at.ret == EINVAL:
        doubtful = ids[: ids.index(0)] if 0 in ids else []
        history.unplugged_numbers |= bool(doubtful)
    elif at.ret == EIO and adding:
        history.failed_cpus |= {cpu: (at.ref, at.latency_ns) for cpu in ids
                                if cpu not in history.failed_cpus}  # fmt: skip
    elif not adding and at.ret == 1 and len(ids) == 1:
        doubtful = []  # it stays in the kernel's table
    for cpu in doubtful:
        history.cpus.pop(cpu, None)
        history.removed_cpus.pop(cpu, None)
