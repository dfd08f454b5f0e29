"""The sentences about what a guest's console tells of no recorded request."""

from __future__ import annotations

from collections.abc import Sequence

from dissectors.constants import op_name

from ..codes import Side
from ..logs.console_operations import ConsoleOperation
from ..logs.lines import LogLine
from ..logs.meaning import quote
from ..views.text import safe
from .finding import Told


def nameless(ret: int, name: str) -> Told:
    return Told(
        what=f"A request failed in the guest with {ret}" + (f" ({name})." if name else "."),
        why="The console does not say which one; refused MMIO requests have no line of their own.",
        so="The VMM drops most errors, so a device may be missing without any other sign.",
        next="Record the traffic to see the request; upcall-trace docs vantage-points says how.",
    )


def no_server(line: LogLine) -> Told:
    return Told(
        what="The guest's kernel could not start its upcall server.",
        why=f"It says: {safe(quote(line.text.strip()))}.",
        so="There is no upcall in this boot: every CONNECT is refused.",
        next="Look at the kernel's configuration and at dragonball_upcall_srv.port.",
        side=Side.GUEST,
    )


def no_thread() -> Told:
    return Told(
        what="The guest accepted a connection, but could not start its thread.",
        why="Creating a kernel thread failed, mostly because no memory was left.",
        so="No CONNECT message comes, so the client drops the stream and tries again.",
        next="Look at the guest's memory.",
    )


def not_sent() -> Told:
    return Told(
        what="The guest could not deliver an answer: its connection was gone.",
        why="The client left, or the stream broke, while the guest worked on a request.",
        so="The guest has done what it was asked; the VMM does not know, and counts a vCPU request "
        "as success.",
        next="Compare what the guest has with what the VMM believes.",
    )


def no_service(count: int) -> Told:
    often = "once" if count == 1 else f"{count} times"
    return Told(
        what=f"The guest closed a connection before it had a service ({often}).",
        why="The service byte was unknown, did not come within 10 s, or the client had gone.",
        so="No request was sent on it.",
        next="Look which program connected: Dragonball sends its service byte at once.",
    )


def panicked(lines: Sequence[LogLine], ready: bool) -> Told:
    when = "while it ran" if ready else "before it served any upcall request"
    return Told(
        what=f"The guest's kernel panicked {when}.",
        why=f"It says: {safe(quote(lines[-1].text.strip()))}.",
        so="The guest is dead; what was open stays unanswered. This is not upcall's fault.",
        next="Look at the lines before the panic, which name the function that failed.",
        side=Side.GUEST,
    )


def driver_hangs(last: ConsoleOperation) -> Told:
    base, size, irq = last.window or (0, 0, 0)
    return Told(
        what=f"The driver of the device at {base:#x}+{size:#x} (IRQ {irq}) may hang.",
        why="It was registered last, nothing follows, and a thread of upcall waits for minutes.",
        so="It holds the hotplug lock: every later CPU or MMIO request hangs behind it.",
        next="Compare its interrupt with the one that the VMM gave the device.",
    )


def hung(holder: ConsoleOperation | None, blocked: ConsoleOperation | None) -> Told:
    who = f"{op_name(blocked.msg_type)}" if blocked and blocked.msg_type else "A request"
    why = "An earlier request left the lock taken; the console does not show which."
    if holder is not None:
        name = op_name(holder.msg_type) if holder.msg_type else "the request"
        line = holder.lines[0].number
        did = "killed its thread with the lock held" if holder.oops else "holds the lock"
        why = f"{name} of line {line} {did}."
    return Told(
        what=f"{who} hangs in the guest: the kernel reports its thread blocked for minutes.",
        why=why,
        so="Every CPU and MMIO hotplug in this guest hangs from now on, on any connection.",
        next="Restart the guest; then look at the request that left the lock taken.",
    )
