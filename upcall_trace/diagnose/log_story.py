"""Findings from logs alone: of each guest its VMM's log and its console together.

From a console every operation is rebuilt and judged as if its request had been recorded. What a
line names is certain where the lines say whose they are; the rest is possible.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Final

from dissectors.constants import (
    EBUSY,
    EEXIST,
    EINVAL,
    ENODEV,
    EPERM,
    MESSAGE_SIZE,
    Arch,
    MessageType,
    errno_name,
)
from dissectors.events import RequestReceived
from dissectors.messages import (
    Request,
    bare_request,
    cpu_request,
    mmio_request,
    pci_request,
)

from .. import codes
from ..codes import Code, Severity
from ..logs import guest_lines
from ..logs.console_operations import ConsoleOperation, Incident, arch_of, evidence_of, waiting
from ..logs.evidence import Evidence
from ..logs.guest_console import ConsoleReader
from ..logs.lines import LogLine
from . import log_console_words as words
from .causes import learn, of_reply, of_silence
from .finding import Finding, Ref, Told
from .history import History
from .log_decisions import decide
from .log_guests import LoggedGuest
from .log_requests import evidence_of as of_log
from .log_words import other_vmm
from .rules.registry import rules
from .situation import Situation

_LOCK_HELD: Final = (codes.REMOVAL_ORDER, codes.ADD_BEYOND_POSSIBLE)
_SETTLED_NS: Final = 10_000_000_000
"""A client that only looks leaves a closed connection early in a boot; a service byte that never
came leaves one after 10 s at the earliest."""


def of_guest(guest: LoggedGuest, number: int) -> list[Finding]:
    """Every finding about one guest, in the order of time; `number` keeps its groups apart."""
    if guest.is_other:
        name, line = next(iter(guest.vmm.vmms.items()))
        return [*_of_other(guest, name, line), *_dead(guest)]
    found = [*of_console(guest.console, guest.console_keyed, number)]
    found = _joined(found, guest.vmm.finish())
    found = [replace(each, sandbox=guest.sandbox) for each in sorted(found, key=_by_time)]
    return [*_once(found)]


def _once(found: Sequence[Finding]) -> Iterator[Finding]:
    """Without those that lines without a time tell again in the same words: it may be one text
    that somebody copied twice."""
    told: set[object] = set()
    for finding in found:
        key = (finding.code, finding.what, tuple(e.text for e in finding.evidence))
        if finding.time_ns is None and key in told:
            continue
        told.add(key)
        yield finding


def told_so_far(guest: LoggedGuest) -> list[Finding]:
    """What is certain to be told of a guest whose log goes on: nothing of what is still open."""
    if guest.is_other:
        return []
    found = [*of_console(guest.console, guest.console_keyed, 0), *guest.vmm.findings.values()]
    return [replace(each, sandbox=guest.sandbox) for each in found]


def _of_other(guest: LoggedGuest, name: str, line: LogLine) -> Iterator[Finding]:
    code = codes.OTHER_VMM
    told = other_vmm(name)
    yield Finding(
        code, code.name, code.severity, None, None, False,
        told.what, told.why, told.so, told.next, (of_log(line),), code.side,
        line.wall_ns, None, guest.sandbox,
    )  # fmt: skip


def _dead(guest: LoggedGuest) -> Iterator[Finding]:
    for finding in of_console(guest.console, guest.console_keyed, 0):
        if finding.code == codes.VM_DIED:
            yield replace(finding, sandbox=guest.sandbox)


def _by_time(finding: Finding) -> tuple[int, int]:
    """What has a time by its time; the rest stays where it is, in front."""
    return (finding.time_ns or 0, finding.code[2] == "7")


def _joined(console: list[Finding], vmm: list[Finding]) -> list[Finding]:
    """Two accounts of one failure are one finding with the evidence of both."""
    found = list(console)
    for theirs in vmm:
        for at, ours in enumerate(found):
            if ours.code == theirs.code and ours.code in (codes.VM_DIED, codes.VCPU_NOT_STARTED):
                evidence = ours.evidence + theirs.evidence
                inferred = ours.inferred and theirs.inferred
                time_ns = ours.time_ns or theirs.time_ns
                found[at] = replace(ours, evidence=evidence, inferred=inferred, time_ns=time_ns)
                break
        else:
            found.append(theirs)
    return found


def of_console(console: ConsoleReader, keyed: bool, number: int) -> Iterator[Finding]:
    """What a console tells without a capture: every operation is rebuilt."""
    yield from of_incidents(console, keyed, number)
    for _, boot in groupby(console.operations, key=lambda operation: operation.boot):
        yield from _of_boot(list(boot), keyed, number)
    yield from _of_hung(console)


def _of_boot(operations: Sequence[ConsoleOperation], keyed: bool, number: int) -> Iterator[Finding]:
    arch = arch_of(operations)
    history = History()
    table = rules()
    for at_number, said in enumerate(operations):
        if said.msg_type is None and not said.oops:
            yield from _of_nameless(said, number, at_number)
            continue
        at = _situation(at_number, said, arch, history)
        if said.oops:
            causes = decide(of_silence(at), at, said)
        elif at.reply is None and said.probe_failed is None:
            continue  # how it ended is not in the log, or its last line is missing
        elif at.reply is None:
            causes = decide([], replace(at, reply=at.request.reply(0)), said)
        else:
            causes = decide(of_reply(at) if at.ret else [], at, said)
            learn(history, at, causes)
        named = said.code is not None or said.oops or said.probe_failed is not None
        decisive = said.decided_by or said.probe_failed or said.lines[0]
        for cause in causes:
            code = cause.code
            if code.severity <= Severity.NOTE:
                continue
            told = table[code].tell(at)
            yield Finding(
                code, code.name, code.severity, None, None,
                not (keyed and named and not cause.inferred),
                told.what, told.why, told.so, told.next, tuple(_evidence(said)),
                told.side or code.side, decisive.wall_ns,
            )  # fmt: skip


def _evidence(said: ConsoleOperation) -> Iterator[Evidence]:
    shown = said.evidence
    if said.probe_failed is not None:
        failed = evidence_of(said.probe_failed)
        shown = [*(e for e in shown[:5] if e != failed), failed]
    yield from shown


def _situation(number: int, said: ConsoleOperation, arch: Arch, history: History) -> Situation:
    request = _request(said)
    raw = request.encode()
    event = RequestReceived(number, MESSAGE_SIZE, request, raw, 0)
    reply = None if said.ret is None else request.reply(said.ret)
    return Situation(
        Ref(0, number), event, request, 0, history, arch,
        last_ret=0, last_load=0, reply=reply, console=said,
    )  # fmt: skip


def _request(said: ConsoleOperation) -> Request:
    """The request that a console's operation must have been, as far as its lines tell."""
    match said.msg_type:
        case MessageType.ADD_CPU | MessageType.DEL_CPU:
            # A log may repeat a line for ever, and a request counts its ids in one byte.
            ids = [each for each in said.ids if each >= 0][:0xFF]
            return cpu_request(said.msg_type, said.count if said.arm else ids)
        case MessageType.ADD_MMIO if said.window is not None:
            base, size, irq = said.window
            return mmio_request(said.msg_type, base, size, max(irq, 0))
        case MessageType.ADD_PCI | MessageType.DEL_PCI if said.pci is not None:
            bus, devfn = said.pci
            return pci_request(said.msg_type, bus, devfn >> 3, devfn & 7)
    return bare_request(said.msg_type or 0)


_NAMELESS: Final = {
    EEXIST: (codes.MMIO_OVERLAP, codes.IRQ_CONFLICT),
    EBUSY: (codes.MMIO_RESOURCE_BUSY,),
    EINVAL: (codes.MMIO_BAD_SIZE_FIELD, codes.MMIO_BAD_IRQ),
    ENODEV: (codes.MMIO_NO_SUCH_DEVICE,),
    EPERM: (codes.UNKNOWN_TYPE, codes.RESERVED_MEMORY_OP),
}
"""What fails without a line of its own: MMIO requests that are refused at once, unknown types."""


def _of_nameless(said: ConsoleOperation, number: int, at: int) -> Iterator[Finding]:
    ret = said.ret or 0
    told = words.nameless(ret, errno_name(ret) or "")
    possible = (said.code,) if said.code else _NAMELESS.get(ret, (codes.UNEXPLAINED_RESULT,))
    yield from _alternatives(possible, told, said.lines, number << 20 | at)


def _alternatives(
    possible: Sequence[Code],
    told: Told,
    lines: Sequence[LogLine],
    group: int,
    severity: Severity | None = None,
) -> Iterator[Finding]:
    """One failure that has several explanations."""
    for code in possible:
        yield Finding(
            code, code.name, severity or code.severity, None, None, True,
            told.what, told.why, told.so, told.next,
            tuple(evidence_of(line) for line in lines[:6]), told.side or code.side,
            lines[-1].wall_ns, group if len(possible) > 1 else None,
        )  # fmt: skip


def of_incidents(console: ConsoleReader, keyed: bool, number: int) -> Iterator[Finding]:
    """What a console tells of no operation."""
    closed = [i for i in console.incidents if i.said is guest_lines.NO_SERVICE]
    for at, incident in enumerate(console.incidents):
        row, lines, ready = incident.said, incident.lines, incident.ready
        if row is guest_lines.NO_SERVER:
            yield from _one(codes.NO_UPCALL, words.no_server(lines[-1]), lines, keyed)
        elif row is guest_lines.NO_THREAD:
            yield from _one(codes.NO_HELLO, words.no_thread(), lines, keyed)
        elif row is guest_lines.NOT_SENT:
            yield from _one(codes.RESET_WHILE_BUSY, words.not_sent(), lines, False)
        elif row is guest_lines.PANIC:
            yield from _one(codes.VM_DIED, words.panicked(lines, ready), lines, keyed)
        elif incident is closed[-1]:
            looked = _only_looked(incident, console)
            possible = (codes.UNKNOWN_SERVICE, codes.SERVICE_BYTE_TIMEOUT, codes.NO_HELLO)
            severity = Severity.NOTE if looked else None
            told = words.no_service(len(closed))
            group = number << 20 | 1 << 19 | at
            yield from _alternatives(possible, told, lines, group, severity)


def _only_looked(incident: Incident, console: ConsoleReader) -> bool:
    """Whether the closed connection did no harm: it is early, or requests were served after it."""
    early = (incident.lines[-1].guest_ns or 0) < _SETTLED_NS
    return early or any(not operation.at_boot for operation in console.operations[incident.after :])


def _one(code: Code, told: Told, lines: Sequence[LogLine], certain: bool) -> Iterator[Finding]:
    for finding in _alternatives((code,), told, lines, 0):
        yield replace(finding, inferred=not certain)


def _of_hung(console: ConsoleReader) -> Iterator[Finding]:
    """A thread that hangs for minutes waits for the lock, or holds it."""
    if not console.hung:
        return
    died = [o for o in console.operations if o.oops]
    open_still = list(waiting(console.operations))
    holder = next((o for o in reversed(died)), None)
    hanging = None
    if holder is None:
        last = console.operations[-1] if console.operations else None
        if last is not None and last.window is not None and not last.at_boot:
            hanging = last
            told = words.driver_hangs(last)
            yield from _one(codes.DRIVER_HANGS, told, [*last.lines[:2], console.hung[0]], False)
    blocked = next((o for o in open_still if o is not holder), None)
    lines = [*(blocked.lines[:2] if blocked else []), *console.hung[:2]]
    told = words.hung(holder or hanging, blocked)
    yield from _one(codes.HOTPLUG_LOCK_STUCK, told, lines, False)
