"""A recording and logs together: which guest of the logs it is, and what they add to each other.

A console is joined with a recording when their contents agree; one that contradicts it is refused
as evidence, and says nothing about it. A VMM's log adds what the wire does not show, and repeats
nothing of what it does.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Final

from dissectors.constants import Arch

from .. import codes
from ..codes import Code
from ..logs.console_operations import evidence_of
from ..logs.evidence import Evidence
from ..trace.opening import Capture, load
from ..views.text import duration
from .finding import Finding
from .log_guests import LoggedGuest
from .log_matching import ConsoleMatcher, Slip
from .log_story import of_guest, of_incidents
from .rules.registry import rules
from .told_by_logs import Logs

_OF_THE_WIRE: Final = frozenset(
    {codes.NO_LISTENER, codes.CONNECT_REFUSED_LOOP, codes.NO_HELLO, codes.BAD_HELLO,
     codes.NOT_OK, codes.UNKNOWN_SERVICE, codes.LATE_REPLY, codes.UNANSWERED,
     codes.RESET_WHILE_BUSY, codes.RESIZE_WEDGED, codes.IDLE_CHANNEL_LOST, codes.DEVICE_LEAKED,
     codes.VCPU_NOT_STARTED, codes.CONNECT_UNANSWERED}
)  # fmt: skip
"""Codes that a recording tells by itself: where it does, the log's account is the same again."""
_LINES: Final = 2
"""Of a log, that a recorded finding shows at most."""
_DEATHS: Final = frozenset(
    {codes.REMOVE_UNFINDABLE_CPU, codes.REMOVAL_ORDER, codes.ADD_BEYOND_POSSIBLE,
     codes.MMIO_WITHOUT_BOOT_DEVICE, codes.CHANNEL_REMOVED, codes.DRIVER_HANGS,
     codes.HOTPLUG_LOCK_STUCK, codes.GUEST_THREAD_DIED}
)  # fmt: skip
"""Why a request may stay without an answer, for as long as the guest has not rebooted."""


class Joining:
    """One recording with the logs that were given beside it."""

    def __init__(self, path: Path, logs: Logs) -> None:
        self._path = path
        self._logs = logs
        self.sentences: list[str] = []
        """What there is to say of the joining itself."""
        self.guest: LoggedGuest | None = None
        self.refused: list[LoggedGuest] = []
        self.matcher: ConsoleMatcher | None = None
        if logs.consoles:
            self._choose()
        named = [guest for guest in logs.guests if guest.concerns_upcall]
        if self.guest is None and len(named) == 1 and named[0] not in self.refused:
            self.guest = named[0]

    @cached_property
    def _capture(self) -> Capture:
        return load(self._path)

    def _choose(self) -> None:
        """The guest whose console fits best, unless it contradicts the recording."""
        operations = list(self._capture.operations)
        fits = []
        for guest in self._logs.consoles:
            matcher = ConsoleMatcher(guest.console.operations, operations, self._capture.first_ns)
            wrong_arch = _arch(operations) is not None and _arch(operations) != _arch_of(guest)
            if matcher.fit.refused or (wrong_arch and matcher.fit.said):
                self.refused.append(guest)
                self.sentences.append(_refusal(guest, matcher))
            else:
                fits.append((len(matcher.fit.pairs), matcher.fit.share, guest, matcher))
        if not fits:
            return
        _, _, self.guest, self.matcher = max(fits, key=lambda each: each[:2])
        if self.matcher.fit.said or self.matcher.fit.asked:
            self.sentences.append(self.matcher.account)
        if len(self._logs.consoles) > 1:
            name = self.guest.sandbox or "the lines that name no guest"
            self.sentences[-1] = f"joined with {name}: {self.sentences[-1]}"

    def completed(self, found: list[Finding]) -> list[Finding]:
        """The recording's findings with what the logs add."""
        guest = self.guest
        if guest is None:
            return [*found, *self._others()]
        found = [replace(f, sandbox=guest.sandbox) for f in found]
        if self.matcher is not None:
            found = self._after_reboot(found, guest)
        return [*_with_lines(found, guest.vmm.finish()), *self.added(found)]

    def added(self, found: Sequence[Finding]) -> Iterator[Finding]:
        """What the logs add to the recording's findings; of these codes and places matter."""
        guest = self.guest
        if guest is None:
            yield from self._others()
            return
        theirs: list[Finding] = []
        if self.matcher is not None:
            theirs += [self._of_slip(slip) for slip in self.matcher.fit.slips()]
            theirs += [
                f for f in of_incidents(guest.console, guest.console_keyed, 0)
                if f.code in (codes.VM_DIED, codes.NO_UPCALL)
            ]  # fmt: skip
        told = {f.code for f in (*found, *theirs)}
        for finding in guest.vmm.finish():
            once_more = finding.code in _OF_THE_WIRE or finding.code == codes.VM_DIED
            if not (once_more and finding.code in told):
                theirs.append(_pointed(finding, found))
        for finding in theirs:
            yield replace(finding, sandbox=guest.sandbox)
        yield from self._others()

    def _others(self) -> Iterator[Finding]:
        """Other guests of the node, which have stories of their own."""
        for number, guest in enumerate(self._logs.guests):
            if guest is self.guest or (guest in self.refused and guest.sandbox is None):
                continue
            yield from of_guest(guest, number + 1)

    def _after_reboot(self, found: list[Finding], guest: LoggedGuest) -> list[Finding]:
        """Requests that a new boot of the guest knows nothing of: they are not a dead thread's."""
        assert self.matcher is not None  # the caller has asked
        boots = guest.console.boots
        pairs = self.matcher.fit.pairs
        last = max((said.boot for _, said in pairs), default=0)
        if last >= len(boots) - 1 or not pairs:
            return found
        after = max(asked.t_ns for asked, _ in pairs) - self._capture.first_ns
        lost = [
            (op.conn, op.request)
            for op in self._capture.operations
            if op.t_ns > after and op.ret is None
        ]
        if not lost:
            return found
        kept = [
            f for f in found
            if not (f.inferred and f.code in _DEATHS and (f.conn, f.request) in lost)
        ]  # fmt: skip
        line = evidence_of(boots[last + 1])
        code = codes.GUEST_REBOOTED
        if any(f.code == code for f in kept):
            return [replace(f, evidence=(*f.evidence, line)) if f.code == code else f for f in kept]
        conn, request = lost[0]
        kept.append(
            Finding(
                code, code.name, code.severity, conn, request, False,
                "The guest rebooted: its console shows another boot, and this request was sent "
                "into a connection of the boot before.",
                "What was plugged into the guest by then is gone, unless it is there at boot. "
                "Nobody reads the old connection.",
                "The VMM believes in devices and CPUs that the guest does not have any more.",
                "Look why the guest rebooted; the VM's devices have to be plugged again.",
                (line,), code.side, boots[last + 1].wall_ns,
            )
        )  # fmt: skip
        return kept

    def _of_slip(self, slip: Slip) -> Finding:
        code = codes.GUEST_STOOD_STILL
        before, after = slip.before, slip.after
        told = rules()[code].tell(duration(slip.guest_ns), duration(slip.host_ns))
        return Finding(
            code, code.name, code.severity, after.conn, after.request, False,
            told.what, told.why, told.so, told.next,
            (Evidence("request", "the last one before it", before.conn, before.request),),
            code.side,
        )  # fmt: skip


def _with_lines(found: list[Finding], of_log: Sequence[Finding]) -> list[Finding]:
    """What the recording tells, with the log's lines about the same; they may make it certain."""
    for theirs in of_log:
        if theirs.code not in _OF_THE_WIRE:
            continue
        for at, ours in enumerate(found):
            if ours.code == theirs.code:
                evidence = (*ours.evidence, *theirs.evidence[:_LINES])
                found[at] = replace(
                    ours, evidence=evidence, inferred=ours.inferred and theirs.inferred
                )
                break
    return found


def _refusal(guest: LoggedGuest, matcher: ConsoleMatcher) -> str:
    fit = matcher.fit
    whose = f"the console of {guest.sandbox}" if guest.sandbox else "the console"
    return (
        f"{whose} does not fit this recording and is not used as evidence: {fit.said} operations "
        f"are in it, {fit.asked} in the recording, and {len(fit.pairs)} of them agree. It is "
        "of another guest or another boot"
    )


def _arch(operations: Sequence[object]) -> Arch | None:
    """The recording's architecture, as far as a CPU request tells."""
    for operation in operations:
        fields = getattr(operation, "fields", {})
        if "apic_ids" in fields:
            return Arch.X86_64
        if "count" in fields:
            return Arch.AARCH64
    return None


def _arch_of(guest: LoggedGuest) -> Arch | None:
    said = guest.console.operations
    if not any(each.count or each.ids for each in said):
        return None
    return Arch.AARCH64 if any(each.arm for each in said) else Arch.X86_64


def _pointed(finding: Finding, found: Sequence[Finding]) -> Finding:
    """A refusal of a busy channel names the recorded request that kept it."""
    if finding.code != codes.NOT_READY or "busy" not in finding.why:
        return finding
    keeps: tuple[Code, ...] = (codes.UNANSWERED, codes.LATE_REPLY)
    busy = next((f for f in found if f.code in keeps and f.request is not None), None)
    if busy is None:
        return finding
    seen = Evidence("request", "had no answer in time", busy.conn, busy.request)
    return replace(finding, evidence=(*finding.evidence, seen))
