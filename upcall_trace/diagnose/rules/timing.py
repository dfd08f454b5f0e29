"""UP601 to UP605: answers that come late, not at all, or into a dropped connection."""

from __future__ import annotations

from dissectors.constants import CALLER_TIMEOUT_NS

from ... import codes
from ...logs.evidence import Evidence
from ...views.text import duration
from ..finding import Told
from ..situation import Situation
from .registry import rule


@rule(codes.LATE_REPLY)
def late_reply(at: Situation) -> Told:
    """The guest answered after its caller had stopped waiting.

    **What it says.** The reply took more than 250 ms. The Kata runtime waits that long for a vCPU
    resize and for adding or removing a block device, and reports a timeout afterwards.

    **Why it matters.** The guest did what it was asked, or refused it, but the user was told of a
    timeout. The channel stayed busy meanwhile, so other requests were refused.

    **On the wire.** More than 250 ms between the last byte of the request and the last byte of
    its reply. Nothing in the bytes shows it.

    **Example.** `cpu_lifecycle`, request 1.3: two vCPUs took 289 ms.

    **Limits.** Whether anybody waited is not on the wire: memory, balloon and network devices are
    added without waiting. A guest under emulation is slower than one on real hardware.

    **What to do.** See what held the guest up: another request that is named here, a vCPU that
    the VMM had not started, or a slow host.
    """
    took = duration(at.latency_ns or 0)
    why = "Plugging took the guest this long."
    evidence: tuple[Evidence, ...] = ()
    if at.held_up_by is not None:
        why = f"{str(at.held_up_by).capitalize()} held the guest's hotplug lock meanwhile."
        evidence = (
            Evidence("request", "held the lock", at.held_up_by.conn, at.held_up_by.request),
        )
    return Told(
        what=f"The reply to {at.op} took {took}.",
        why=why,
        so=f"The Kata runtime gives up after {duration(CALLER_TIMEOUT_NS)} and reports a timeout.",
        next="Look at what the guest did in that time, in its console and on other connections.",
        evidence=evidence,
    )


@rule(codes.UNANSWERED)
def unanswered(at: Situation) -> Told:
    """No reply came before the connection or the recording ended.

    **What it says.** The request was sent, and nothing that answers it was recorded.

    **Why it matters.** Dragonball's client has no timeout: the channel stays busy until the
    stream breaks, and every further request is refused.

    **On the wire.** A request without a reply at the connection's end or the recording's.

    **Example.** `guest_oops`, request 1.1.

    **Limits.** A recording that was stopped early ends before replies that were on their way; a
    vCPU that does not start is answered only after 10 s.

    **What to do.** If another code stands at the same request, that is the cause. Else record
    longer, or look for an oops in the guest's console.
    """
    died = at.history.died.get(at.ref.conn)
    if died is not None and died != at.ref:
        why = f"The guest's thread for this connection has been gone since {died}."
        evidence: tuple[Evidence, ...] = (
            Evidence("request", "the last one that the thread took", died.conn, died.request),
        )
    else:
        why = "The guest's thread died, is waiting, or the recording ended first."
        evidence = ()
    return Told(
        what=f"Nothing answers {at.op}.",
        why=why,
        so="Dragonball waits without limit and its channel stays busy; callers time out.",
        next="Look for an oops in the guest's console; a new connection may still be answered.",
        evidence=evidence,
    )


@rule(codes.HOTPLUG_LOCK_STUCK)
def hotplug_lock_stuck(at: Situation) -> Told:
    """A dead thread holds the guest's hotplug lock, and this request waits for it.

    **What it says.** An earlier request killed its thread while it held the kernel's device
    hotplug lock. Every later CPU request and every MMIO request that really adds or removes a
    device waits for ever, on any connection.

    **Why it matters.** No hotplug of CPUs or MMIO devices will work in this guest again.

    **On the wire.** Silence, on a connection whose earlier requests may have been answered. PCI
    requests and requests that are refused at once still get their answers.

    **Example.** `aarch64_lifecycle`, request 3.3, after 2.1 had added one CPU too many.

    **Limits.** Without the guest's world the lock is one explanation of several.

    **What to do.** Restart the guest. Then avoid what killed the first thread; the finding at
    that request says how.
    """
    culprit = at.history.stuck_by
    if culprit is None:
        why = "An earlier request left the lock taken; this recording does not show which."
        evidence: tuple[Evidence, ...] = ()
    else:
        why = f"{str(culprit).capitalize()} killed its thread with the guest's hotplug lock taken."
        evidence = (Evidence("request", "took the lock and died", culprit.conn, culprit.request),)
    return Told(
        what=f"{at.op} hangs in the guest.",
        why=why,
        so="Every CPU and MMIO hotplug in this guest hangs from now on, on any connection.",
        next="Restart the guest; then look at the request that killed the thread.",
        evidence=evidence,
    )


@rule(codes.NOT_READY)
def not_ready(line: Evidence, reason: str, busy_with: Situation | None = None) -> Told:
    """The VMM says that its upcall channel is not ready.

    **What it says.** Dragonball's log has `UpcallServerNotReady`. It stands for three different
    things: not connected yet, busy with an earlier request, or given up after 501 tries.

    **Why it matters.** The operation was refused inside the VMM; no frame of it was sent. The
    runtime tries block, network and host devices again 500 times, every 10 ms, and nothing else.

    **On the wire.** Nothing, or the earlier request that is still without an answer.

    **Example.** No recording has it; kata #9902 and kata #9915 report it.

    **Limits.** It needs the VMM's log, and times that can be compared with the recording's.

    **What to do.** Booting: try again later. Busy: look at the request that is named. Given up:
    the VM has to be restarted, and the guest's kernel checked for upcall.
    """
    evidence: tuple[Evidence, ...] = (line,)
    if busy_with is not None:
        ref = busy_with.ref
        evidence += (Evidence("request", "had no answer yet", ref.conn, ref.request),)
    return Told(
        what="The VMM refused an operation: its upcall channel was not ready.",
        why=reason,
        so="No request was sent for it; resizes are not tried again by themselves.",
        next="Read the lines before this one in the VMM's log, and the request that is named.",
        evidence=evidence,
    )


@rule(codes.RESET_WHILE_BUSY)
def reset_while_busy(at: Situation) -> Told:
    """The stream broke while a request was open.

    **What it says.** The guest's side closed or reset the connection before it answered.

    **Why it matters.** Dragonball reports such a reset to whoever waits, and counts it as success
    for a vCPU resize: the VMM then believes in CPUs that the guest may not have.

    **On the wire.** A request, then the end of the connection from the guest's side.

    **Example.** No recording has it.

    **Limits.** Whether the guest executed the request cannot be seen.

    **What to do.** Compare the CPUs in the guest with what the VMM believes, and look for a
    restart of the guest or of its vsock device.
    """
    success = " For a vCPU resize it counts as success." if at.is_cpu else ""
    return Told(
        what=f"The connection broke while {at.op} had no answer.",
        why="The guest's side closed it: a restart, a removed device, or a fault in between.",
        so=f"Dragonball calls back with a reset and reconnects.{success}",
        next="Compare what the guest has with what the VMM believes, and look for a guest restart.",
    )
