"""Why a request got its answer, or none: the kernel model, the wire, and the console decide."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dissectors.constants import CALLER_TIMEOUT_NS, EBUSY, MAGIC_VERSION

from .. import codes
from ..kernel.vmm_actions import order_of
from ..kernel.world import World
from .causes import ModelGuest, learn, of_reply, of_silence, softened
from .finding import Cause, Ref
from .history import History
from .lasting import PlainSuccess
from .lock import RESTS_ON_IT, LockWatch, started_late
from .log_decisions import decide
from .situation import LONG_NS, REMOVALS, Situation, WaitEnd, added_here

if TYPE_CHECKING:
    from .log_matching import ConsoleMatcher


class Judging:
    """One guest, as far as the recording has come. `causes` of a situation are set here."""

    def __init__(self, world: World | None, console: ConsoleMatcher | None) -> None:
        self.model = ModelGuest(world) if world else None
        self.history = History.of_world(world) if world else History()
        self.lock = LockWatch()
        self.console = console
        self.plugged: dict[object, Situation | PlainSuccess] = {}
        """Requests that added devices, for what is left of them at the end."""
        self.open_pci: dict[Ref, Situation] = {}
        self.removals: dict[Ref, Situation] = {}
        """Removals without an answer, which may have hit the device that the channel runs on."""
        self.answered_ns = -1
        """When the last request was sent that has an answer: the channel was there then."""

    def vmm(self, action: str) -> None:
        """The VMM did something that the guest cannot see on the channel."""
        match order_of(action):
            case {"start_vcpu": int(cpu)}:
                self.history.running.add(cpu)
        if self.model:
            self.model.vmm(action)

    def part(self) -> None:
        """The recording lacks something: the model's testimony ends, the history is unsure."""
        self.history.unsure = True
        if self.model:
            self.model.part()

    def asked(self, at: Situation) -> None:
        """A request was sent."""
        if self.model:
            self.model.request(at.ref, at.event.raw[: at.event.size], at.request)
        self.lock.asked(at)
        if at.is_pci:
            self.open_pci[at.ref] = at
        if at.request.msg_type in REMOVALS and _executed(at):
            self.removals[at.ref] = at
        if self.console and (at.is_cpu or at.is_pci) and _executed(at):
            at.console = self.console.find(at)

    def lost(self, at: Situation) -> None:
        """Its answer is not in the recording."""
        self.open_pci.pop(at.ref, None)
        self.removals.pop(at.ref, None)
        self.lock.forget(at.ref)

    def answered(self, at: Situation, now_ns: int, complete: bool) -> None:
        """Its answer came; `complete` says that no connection is known to be missing."""
        if self.removals:
            self.channel_was_there(at.sent_ns)
        elif at.sent_ns > self.answered_ns:
            self.answered_ns = at.sent_ns
        predicted = self.model.reply(at.ref, at.reply_raw) if self.model else None
        at.predicted = predicted is not None
        if at.latency_ns is not None and at.latency_ns > CALLER_TIMEOUT_NS:
            at.held_up_by = self.lock.held_up(at, now_ns)
        self.open_pci.pop(at.ref, None)
        if self.open_pci:
            at.meanwhile = tuple(ref for ref in self.open_pci if ref.conn != at.ref.conn)
        causes = of_reply(at) if predicted is None else predicted
        if predicted is None:
            if causes and (at.misfit or at.doubtful):
                causes = softened(causes, [])
        elif predicted and not complete:
            causes = softened(causes, of_reply(at))
        if self.console and at.is_mmio and at.ret in (0, EBUSY) and _executed(at):
            at.console = self.console.find(at)
        at.causes = decide(causes, at, at.console) if at.console is not None else causes

    def channel_was_there(self, asked_ns: int) -> None:
        """Something that was asked then came through, so no removal before that cut it off."""
        self.answered_ns = max(self.answered_ns, asked_ns)
        self.removals = {
            ref: each for ref, each in self.removals.items() if each.sent_ns > asked_ns
        }

    @property
    def cut_off_by(self) -> Ref | None:
        """The removal that may have hit the device that the channel runs on."""
        return next((ref for ref, each in self.removals.items() if not added_here(each)), None)

    def learnt(self, at: Situation, now_ns: int) -> list[Situation]:
        """Take in what the answer shows; returns vCPUs that it shows not to have started.

        An answer that comes just as such a vCPU gives up, to what had to wait for it, shows that.
        """
        over = self.lock.answered(at, now_ns)
        learn(self.history, at, at.causes, self.plugged)
        return over and [other for other in over if _did_not_start(other, at, now_ns)]

    def silent(self, at: Situation, complete: bool, now_ns: int) -> None:
        """No answer came, and none will; `at.ended` and `at.waited_ns` say how that is known."""
        at.held_up_by = self.lock.held_up(at, now_ns)
        predicted = self.model.silence(at) if self.model else None
        at.predicted = predicted is not None
        at.cut_off_by = self.cut_off_by
        stuck_by = self.model.stuck_by if self.model and predicted else None
        at.holder = stuck_by if stuck_by != at.ref else None
        if at.holder is None:
            at.holder, at.holder_keeps_it = self.lock.holder(at, now_ns)
        causes = of_silence(at) if predicted is None else predicted
        if not complete:
            causes = softened(causes, [])
        if self.console and at.is_mmio and at.console is None and _executed(at):
            at.console = self.console.find(at)
        if at.console is not None:
            causes = decide(causes, at, at.console)
        refuted = RESTS_ON_IT if self.lock.free_ns > at.sent_ns else frozenset()
        if self.answered_ns > at.sent_ns:
            refuted |= {codes.CHANNEL_REMOVED}
        at.causes = [cause for cause in causes if cause.code not in refuted]

    def if_never_answered(self, at: Situation, now_ns: int) -> list[Cause]:
        """What the wire says of a request that is still open, if no answer ever comes."""
        at.waited_ns = max(LONG_NS, now_ns - at.sent_ns)
        at.holder, at.holder_keeps_it = self.lock.holder(at, now_ns)
        free = self.lock.free_ns > at.sent_ns
        return [c for c in of_silence(at) if not (free and c.code in RESTS_ON_IT)]

    def over(self, at: Situation) -> None:
        """Take in that it was not answered."""
        self.history.died.setdefault(at.ref.conn, at.ref)
        if at.ended is WaitEnd.GUEST:
            self.lock.forget(at.ref)
        self.open_pci.pop(at.ref, None)


def _did_not_start(other: Situation, at: Situation, now_ns: int) -> bool:
    told = any(cause.code == codes.VCPU_NOT_STARTED for cause in other.causes)
    return other.waited_ns > 0 and not told and started_late(other, at, now_ns)


def _executed(at: Situation) -> bool:
    return at.request.magic_version == MAGIC_VERSION
