"""UP513 and UP601 to UP605: answers that come late, in pieces, or not at all."""

from __future__ import annotations

from typing import Final

from dissectors.constants import CALLER_TIMEOUT_NS, CPU_TYPES, EIO, MESSAGE_SIZE

from ... import codes
from ...codes import Side
from ...logs.evidence import Evidence
from ...views.text import duration
from ..finding import Told
from ..situation import Situation, WaitEnd
from .registry import POSSIBLY, Cue, Likelihood, rule
from .wording import pointing

_APART_NS: Final = 1_000_000
"""Pieces that came so far apart were read one by one."""


def _is_late(at: Situation) -> bool:
    return (at.latency_ns or 0) > CALLER_TIMEOUT_NS and (at.is_cpu or at.is_mmio or at.is_pci)


@rule(codes.LATE_REPLY, {Cue.REPLY: _is_late})
def late_reply(at: Situation) -> Told:
    """The guest answered after its caller had stopped waiting.

    **What it says.** The reply took more than 250 ms. The Kata runtime waits that long for a vCPU
    resize and for adding or removing a block device, and reports a timeout afterwards.

    **Why it matters.** The guest did what it was asked, or refused it, but the user saw a
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
    if at.held_up_by is not None:
        why = f"{str(at.held_up_by).capitalize()} held the guest's hotplug lock meanwhile."
    elif at.is_cpu and at.ret == EIO:
        why = "The guest waits 10 s for a vCPU that does not start."
    else:
        why = "Plugging took the guest this long."
    waits = "Its caller" if at.request.msg_type in CPU_TYPES else "A caller that plugs a disk"
    return Told(
        what=f"The reply to {at.op} took {took}.",
        why=why,
        so=f"{waits} gives up after {duration(CALLER_TIMEOUT_NS)} and reports a timeout.",
        next="Look at what the guest did in that time, in its console and on other connections.",
        evidence=pointing(at.held_up_by, "held the lock"),
    )


_SO_FAR: Final = {
    WaitEnd.RECORDING: (
        "Dragonball's client sets no time limit, so its channel stays busy until an answer comes."
    ),
    WaitEnd.GAVE_UP: "Dragonball itself would not give up: its channel would stay busy.",
    WaitEnd.CLIENT: "Nobody waits for the answer any more; the guest may still do as it was asked.",
    WaitEnd.GUEST: "The client learns of a reset, and not what became of its request.",
}


@rule(codes.UNANSWERED, {Cue.SILENCE: lambda at: True})
def unanswered(at: Situation) -> Told:
    """No reply came before the connection or the recording ended.

    **What it says.** The request was sent, and nothing that answers it was recorded.

    **Why it matters.** What the guest did with it is not known. Dragonball's client has no timeout:
    as long as the stream lasts the channel stays busy, and every further request is refused.

    **On the wire.** A request without a reply at the connection's end or the recording's.

    **Example.** `guest_oops`, request 1.1.

    **Limits.** A recording that was stopped early ends before replies that were on their way; a
    vCPU that does not start is answered only after 10 s.

    **What to do.** If another code stands at the same request, that is the cause. Else look who
    ended the connection, record longer, or look for an oops in the guest's console.
    """
    died, cut_off = at.history.died.get(at.ref.conn), at.cut_off_by
    waited = duration(at.waited_ns)
    evidence: tuple[Evidence, ...] = ()
    if died is not None and died != at.ref:
        why = f"{str(died).capitalize()} was the last one that this connection's thread took."
        evidence = pointing(died, "the last one that the thread took")
    elif cut_off is not None and cut_off != at.ref:
        why = f"{str(cut_off).capitalize()} may have removed the device that the channel runs on."
        evidence = pointing(cut_off, "removed a device")
    elif at.received:
        why = f"Only {at.received} of the {MESSAGE_SIZE} bytes of its reply came."
    elif at.ended is WaitEnd.GUEST:
        why = f"The guest's side closed the connection {waited} after the request."
    elif at.held_up_by is not None:
        why = f"{str(at.held_up_by).capitalize()} may have held the guest's hotplug lock meanwhile."
        evidence = pointing(at.held_up_by, "held the lock")
    elif at.ended is WaitEnd.CLIENT:
        why = f"The client closed the connection {waited} after the request."
    elif at.ended is WaitEnd.GAVE_UP:
        why = "The client stopped waiting; the guest's thread died, or waits for something itself."
    else:
        why = f"The recording ended {waited} after the request."
    return Told(
        what=f"Nothing answers {at.op}.",
        why=why,
        so=_SO_FAR[at.ended],
        next="Look for an oops in the guest's console; a new connection may still be answered.",
        evidence=evidence,
        side=Side.CLIENT if at.ended is WaitEnd.CLIENT else None,
    )


@rule(codes.HOTPLUG_LOCK_STUCK)
def hotplug_lock_stuck(at: Situation) -> Told:
    """Another request holds the guest's hotplug lock for ever, and this one waits for it.

    **What it says.** An earlier request took the kernel's device hotplug lock and never gave it
    back: its thread died with it (UP207, UP210), or a driver hangs in it (UP310). Every later CPU
    request and every MMIO request that really adds or removes a device waits, on any connection.

    **Why it matters.** No hotplug of CPUs or MMIO devices will work in this guest again.

    **On the wire.** Silence, on a connection whose earlier requests may have been answered, while
    no later request that needs the lock is answered. PCI requests and requests that are refused at
    once still get their answers.

    **Example.** `aarch64_lifecycle`, request 3.3, after 2.1 had added one CPU too many.
    `mmio_wrong_interrupt_5_10`, request 4.0, behind the driver of 2.0.

    **Limits.** Without the guest's world the lock is one explanation of several. It is not said of
    a request when none before it in the recording can hold the lock.

    **What to do.** Restart the guest. Then avoid what keeps the lock; the finding at that request
    says how.
    """
    holder = at.holder
    if holder is None:
        why = "The guest's console shows that this thread waits for a lock that is never released."
    else:
        why = f"{str(holder).capitalize()} took the guest's hotplug lock and never released it."
    return Told(
        what=f"{at.op} hangs in the guest.",
        why=why,
        so="Every CPU and MMIO hotplug in this guest hangs from now on, on any connection.",
        next="Restart the guest; then look at the request that keeps the lock.",
        evidence=pointing(holder, "took the lock and keeps it"),
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
    restart the VM, and check the guest's kernel for upcall.
    """
    evidence: tuple[Evidence, ...] = (line,)
    if busy_with is not None:
        ref = busy_with.ref
        evidence += (Evidence("request", "had no answer yet", ref.conn, ref.request),)
    return Told(
        what="The VMM refused an operation: its upcall channel was not ready.",
        why=reason,
        so="No request was sent for it; nobody tries a resize again automatically.",
        next="Read the lines before this one in the VMM's log, and the request that is named.",
        evidence=evidence,
    )


@rule(codes.RESET_WHILE_BUSY, {Cue.SILENCE: lambda at: at.ended is WaitEnd.GUEST})
def reset_while_busy(at: Situation) -> Told:
    """The stream broke while a request was open.

    **What it says.** The guest's side closed or reset the connection before it answered.

    **Why it matters.** Dragonball reports such a reset to the caller, and counts it as success for
    a vCPU resize. The VMM then believes in CPUs that the guest may not have.

    **On the wire.** A request, then the end of the connection from the guest's side.

    **Example.** No recording of a healthy guest has it: it takes a guest that goes away.

    **Limits.** Whether the guest executed the request cannot be seen.

    **What to do.** Compare the CPUs in the guest with what the VMM believes, and look for a
    restart of the guest or of its vsock device.
    """
    success = " For a vCPU resize it counts as success." if at.is_cpu else ""
    return Told(
        what=f"The connection broke while {at.op} had no answer.",
        why="The guest's side closed it: the guest or its VMM ended or started anew, or the "
        "device of the channel went away.",
        so=f"Dragonball calls back with a reset and reconnects.{success}",
        next="Compare what the guest has with what the VMM believes, and look for a guest restart.",
    )


def _in_pieces(at: Situation) -> bool | Likelihood:
    """Whether the client got it in pieces, too, is certain when they came well apart."""
    if at.piece_ns is None or not at.seen_by_client or at.ended is WaitEnd.GUEST:
        return False
    if at.reply is None:
        return at.ended is not WaitEnd.RECORDING
    apart = (at.replied_ns or 0) - at.piece_ns
    return True if apart >= _APART_NS else POSSIBLY


@rule(codes.REPLY_IN_PIECES, {Cue.REPLY: _in_pieces, Cue.SILENCE: _in_pieces})
def reply_in_pieces(at: Situation) -> Told:
    """A reply reached the client in more than one piece.

    **What it says.** The guest's side handed over a part of the reply, and the rest later or never.

    **Why it matters.** Dragonball reads once and wants the whole message. It takes a part for a
    failed read, drops the stream and reconnects. The request that waits gets a reset, which
    counts as success for a vCPU resize (UP605).

    **On the wire.** Fewer than 1024 bytes from the guest, with the rest in another receive.

    **Example.** No recording of a real guest has it.

    **Limits.** It is seen where the client's own receives are recorded, and inferred where pieces
    came almost together: the client may have read them as one. Packets inside the guest do not tell
    how the VMM hands them on. It is about Dragonball; with `--vmm other` it is not said.

    **What to do.** Look at the multiplexer between guest and client: it must hand over whole
    messages, or the client must wait for the rest.
    """
    if at.reply is None:
        what = f"Only {at.piece} of {MESSAGE_SIZE} bytes of the reply to {at.op} came."
    else:
        what = f"The reply to {at.op} came in pieces: {at.piece} bytes first, the rest later."
    return Told(
        what=what,
        why="Whatever carries the channel delivered a part of the message on its own.",
        so="Dragonball fails the read, drops the stream and reconnects; the caller gets a reset.",
        next="Look at the multiplexer between guest and client, and at what the client does next.",
    )
