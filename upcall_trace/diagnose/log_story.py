"""Findings from logs: what the VMM says of its channel, and a console without any capture."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

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
from ..logs.evidence import Evidence
from ..logs.guest_console import ConsoleOperation, arch_of
from ..logs.vmm import Said, VmmLine
from .causes import learn, of_reply, of_silence
from .finding import Finding, Ref, Told
from .history import History
from .log_decisions import decide
from .rules.registry import rules
from .situation import Situation

_BOOTING = "The VM was still booting: the channel had not been connected yet."
_GAVE_UP = "The client had given up for good after 501 tries to connect."
_BUSY = "An earlier request had no answer yet, and the channel takes one at a time."
_UNKNOWN = "The log does not tell which: booting, busy with a request, or given up."


def of_vmm_log(lines: Sequence[VmmLine], found: Sequence[Finding]) -> Iterator[Finding]:
    """What the VMM's log adds to the findings of a capture, or says alone.

    `found` are the capture's findings: a request without an answer is what keeps the channel busy.
    """
    connected = gave_up = False
    told: set[object] = set()
    busy = next(
        (
            f
            for f in found
            if f.code in (codes.UNANSWERED, codes.LATE_REPLY) and f.request is not None
        ),
        None,
    )
    for line in lines:
        match line.said:
            case Said.SERVICE_CONNECTED:
                connected = True
            case Said.GAVE_UP:
                gave_up = True
                yield _of_log(codes.CONNECT_REFUSED_LOOP, line, _gave_up(line))
            case Said.NOT_READY:
                reason = _why_not_ready(connected, gave_up, lines)
                if reason not in told:
                    told.add(reason)
                    yield _not_ready(line, reason, busy if reason == _BUSY else None)
            case Said.ACTION_FAILED if line.line.text not in told:
                told.add(line.line.text)
                told_of = rules()[codes.HOST_SIDE_FAILURE].tell(line.evidence)
                yield _of_log(codes.HOST_SIDE_FAILURE, line, told_of, inferred=bool(found))
            case Said.WEDGED if not _has(found, codes.RESIZE_WEDGED) and Said.WEDGED not in told:
                told.add(Said.WEDGED)
                yield _of_log(codes.RESIZE_WEDGED, line, _wedged(line), inferred=True)
            case Said.TIMED_OUT if busy is None and Said.TIMED_OUT not in told:
                told.add(Said.TIMED_OUT)
                yield _of_log(codes.UNANSWERED, line, _timed_out(line), inferred=True)


def _has(found: Sequence[Finding], code: Code) -> bool:
    return any(finding.code == code for finding in found)


def _why_not_ready(connected: bool, gave_up: bool, lines: Sequence[VmmLine]) -> str:
    if gave_up:
        return _GAVE_UP
    if connected:
        return _BUSY
    tells = {Said.INIT, Said.SERVER_CONNECTED, Said.SERVICE_CONNECTED, Said.CONNECT_FAILED}
    return _BOOTING if any(line.said in tells for line in lines) else _UNKNOWN


def _not_ready(line: VmmLine, reason: str, busy: Finding | None) -> Finding:
    told = rules()[codes.NOT_READY].tell(line.evidence, reason)
    if busy is not None:
        seen = Evidence("request", "had no answer in time", busy.conn, busy.request)
        told = replace(told, evidence=(*told.evidence, seen))
    return _of_log(codes.NOT_READY, line, told, inferred=reason in (_BUSY, _UNKNOWN))


def _gave_up(line: VmmLine) -> Told:
    return Told(
        what="Dragonball's upcall client gave up connecting to the guest.",
        why="It tried 501 times; nothing answered on the guest's upcall port.",
        so="No CPU, memory or device can be hotplugged until the VM restarts.",
        next="Check that the guest's kernel has upcall (CONFIG_DRAGONBALL_UPCALL_SRV) and boots.",
        evidence=(line.evidence,),
    )


def _wedged(line: VmmLine) -> Told:
    return Told(
        what="The VMM refuses to resize: an earlier resize never ended.",
        why="Dragonball finishes a resize only when the guest answers it with success.",
        so="Every resize is refused with VcpuIsHotplugging until the VM restarts.",
        next="Find the first resize in the log, and what the guest's console says at that time.",
        evidence=(line.evidence,),
    )


def _timed_out(line: VmmLine) -> Told:
    return Told(
        what="The runtime waited 250 ms for the guest's answer and gave up.",
        why="The guest answered later, refused a vCPU resize, or did not answer at all.",
        so="The operation is reported as a timeout, whatever the guest did.",
        next="Look at the guest's console of that time, or record the traffic.",
        evidence=(line.evidence,),
    )


def _of_log(code: Code, line: VmmLine, told: Told, inferred: bool = False) -> Finding:
    if not told.evidence:
        told = replace(told, evidence=(line.evidence,))
    return rules()[code].finding(told, None, None, inferred)


def of_console(operations: Sequence[ConsoleOperation]) -> Iterator[Finding]:
    """What a console tells without a capture: every operation is rebuilt, and all is inferred."""
    arch = arch_of(operations)
    history = History()
    table = rules()
    for number, said in enumerate(operations):
        if said.msg_type is None:
            yield from _of_nameless(said)
            continue
        at = _situation(number, said, arch, history)
        if said.oops:
            causes = decide(of_silence(at), at, said)
        elif at.reply is None:
            continue  # how it ended is not in the log, or its last line is missing
        else:
            causes = decide(of_reply(at) if at.ret else [], at, said)
            learn(history, at, causes)
        for cause in causes:
            rule = table[cause.code]
            if rule.severity <= Severity.NOTE:
                continue
            told = replace(rule.tell(at), evidence=tuple(said.evidence))
            yield rule.finding(told, None, None, inferred=True)


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
            return cpu_request(said.msg_type, said.count if said.arm else said.ids)
        case MessageType.ADD_MMIO if said.window is not None:
            return mmio_request(said.msg_type, *said.window)
        case MessageType.ADD_PCI | MessageType.DEL_PCI if said.pci is not None:
            bus, devfn = said.pci
            return pci_request(said.msg_type, bus, devfn >> 3, devfn & 7)
    return bare_request(said.msg_type or 0)


_NAMELESS = {
    EEXIST: (codes.MMIO_OVERLAP, codes.IRQ_CONFLICT),
    EBUSY: (codes.MMIO_RESOURCE_BUSY,),
    EINVAL: (codes.MMIO_BAD_SIZE_FIELD, codes.MMIO_BAD_IRQ),
    ENODEV: (codes.MMIO_NO_SUCH_DEVICE,),
    EPERM: (codes.UNKNOWN_TYPE, codes.RESERVED_MEMORY_OP),
}
"""What fails without a line of its own: MMIO requests that are refused at once, unknown types."""


def _of_nameless(said: ConsoleOperation) -> Iterator[Finding]:
    ret = said.ret or 0
    name = errno_name(ret)
    told = Told(
        what=f"A request failed in the guest with {ret}" + (f" ({name})." if name else "."),
        why="The console does not say which one; refused MMIO requests have no line of their own.",
        so="The VMM drops most errors, so a device may be missing without any other sign.",
        next="Record the traffic to see the request; upcall-trace docs vantage-points says how.",
        evidence=tuple(said.evidence),
    )
    for code in _NAMELESS.get(ret, (codes.UNEXPLAINED_RESULT,)):
        yield rules()[code].finding(told, None, None, inferred=True)
