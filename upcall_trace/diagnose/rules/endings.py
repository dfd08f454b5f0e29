"""UP606, UP608 and UP802: how a channel, a boot or a VM ended, as far as traffic tells."""

from __future__ import annotations

from typing import Any, Final

from dissectors.constants import MAGIC_VERSION, MessageType

from ... import codes
from ..finding import Ref, Told
from ..lives import LOOP_LENGTH
from ..situation import ConnectionSituation, Situation
from .registry import POSSIBLY, Cue, Likelihood, rule
from .wording import pointing

_ADDING: Final = frozenset({MessageType.ADD_CPU, MessageType.ADD_MMIO})


def _closed_while_idle(at: Any) -> bool | Likelihood:
    """At a VM's stop it looks the same, so the traffic alone makes it possible only."""
    if not isinstance(at, ConnectionSituation) or at.at_end:
        return False
    lost = at.connection.closed_by_guest and bool(at.connection.hello) and not at.unanswered
    return POSSIBLY if lost else False


@rule(codes.IDLE_CHANNEL_LOST, {Cue.END: _closed_while_idle})
def idle_channel_lost(at: ConnectionSituation) -> Told:
    """The guest's side closed a channel on which nothing was asked, and nobody connected anew.

    **What it says.** The connection was ready and no request was open when the guest's side closed
    it. No connection follows.

    **Why it matters.** Dragonball does not notice: it neither reads nor reconnects, writes the
    same line into its log without end, and every later send fails with `ConnectionReset`. Hotplug
    is dead until the VM restarts.

    **On the wire.** The end of the stream from the guest's side, after a reply or the CONNECT
    message, and nothing after it.

    **Example.** No recording of a real guest has it. Dragonball's own client was seen to write
    204,986 lines in four seconds.

    **Limits.** A VM that stops ends its channel in the same way. Dragonball's log decides: it has
    `we should get message from event handler`. It is about Dragonball; with `--vmm other` it is not
    said.

    **What to do.** Look in the VMM's log for that line, and in the guest for what closed its end.
    Restart the VM.
    """
    return Told(
        what=f"The guest's side closed connection {at.connection.number} while nothing was asked.",
        why="The guest or its vsock device let the channel go while it was idle.",
        so="Dragonball does not notice and does not reconnect: hotplug is dead until the VM "
        "restarts.",
        next="Look in the VMM's log for `we should get message from event handler`; a VM that "
        "stops ends its channel like this, too.",
    )


def _forgot(at: Situation) -> Ref | None:
    """The request that had added what this one adds again with success, without a removal."""
    history = at.history
    if at.predicted or at.request.msg_type not in _ADDING or at.ret != 0 or history.unsure:
        return None
    if at.doubtful or at.misfit or at.request.magic_version != MAGIC_VERSION:
        return None
    if at.mmio is not None:
        return history.windows.get((at.mmio.mmio_base, at.mmio.mmio_size, at.mmio.mmio_irq))
    return next((history.cpus[cpu] for cpu in at.apic_ids if cpu in history.cpus), None)


def _started_anew(at: Situation) -> bool | Likelihood:
    return POSSIBLY if _forgot(at) is not None else False


def _listens_again(at: ConnectionSituation) -> bool | Likelihood:
    """Its listener lives as long as the guest, so one that was gone and is back is a new one."""
    gone = at.worked_before is not None and at.refusals > 0
    return POSSIBLY if gone and at.connection.accepted else False


@rule(
    codes.GUEST_REBOOTED,
    {Cue.REPLY: _started_anew, Cue.HANDSHAKE: _listens_again},
)
def guest_rebooted(at: Situation | ConnectionSituation) -> Told:
    """The guest booted again, and everything that it had been given is gone.

    **What it says.** The guest does something that only a guest can do that has forgotten what it
    was told: it takes a device or a CPU that it has, or accepts connections again after it had
    refused them. The console shows the boot itself.

    **Why it matters.** CPUs and devices that were plugged are gone in the guest, or are those of
    the boot. The VMM counts them still. Nobody reads a connection of the boot before.

    **On the wire.** ADD_CPU or ADD_MMIO with ret 0 for what an earlier request had added. Or
    connections that are refused after one had worked, and then one that is accepted.

    **Example.** No recording of a guest without its console shows it.

    **Limits.** The traffic alone makes it likely, not certain; a restored snapshot looks the same.
    A second `Linux version` on the console is certain, a clock that steps back is not.

    **What to do.** Look in the guest's console for a second boot and for what caused it. Plug again
    what the guest needs.
    """
    if isinstance(at, Situation):
        ref = _forgot(at)
        return Told(
            what=f"The guest took {at.op}, though it had been added already.",
            why=f"{str(ref).capitalize()} had added it and nothing removed it, so the guest has "
            "forgotten it: it booted anew, or was restored.",
            so="What was plugged before is gone in the guest, while the VMM counts it still.",
            next="Look in the guest's console for a second `Linux version`.",
            evidence=pointing(ref, "had added it"),
        )
    number = at.connection.number
    return Told(
        what=f"The guest accepts again on connection {number}, after {at.refusals} refusals.",
        why=f"It had answered on connection {at.worked_before}; a guest's listener is gone only "
        "when the guest is, so it booted anew.",
        so="What was plugged before is gone in the guest, while the VMM counts it still.",
        next="Look in the guest's console for a second `Linux version`.",
    )


def _gone_for_good(at: ConnectionSituation) -> bool | Likelihood:
    """Refused to the end of the recording, after the guest had answered and then broke off."""
    gone = at.worked_before is not None and at.broke_before is not None
    return POSSIBLY if gone and at.at_end and at.refusals >= LOOP_LENGTH else False


@rule(codes.VM_DIED, {Cue.REFUSED: _gone_for_good})
def vm_died(at: ConnectionSituation) -> Told:
    """The VM is gone, and upcall is not the reason.

    **What it says.** The guest's kernel panicked, or the VMM or its shim ended. In traffic: the
    guest had answered, its side broke the connection, and every later one was refused to the end.

    **Why it matters.** What failed after that is a consequence. Nothing can be plugged into a VM
    that is gone.

    **On the wire.** The end of a connection that had worked, then refusals and nothing else.

    **Example.** No recording of a real guest has it.

    **Limits.** Traffic alone makes it likely, not certain: a guest that boots for longer than the
    recording lasts looks the same. Its console and the host's log say what happened.

    **What to do.** Look where the guest's console stops, and in the host's log for who ended the
    VMM: the out-of-memory killer, a signal, a crash.
    """
    return Told(
        what=f"The VM is gone: its side broke connection {at.broke_before}, and the {at.refusals} "
        "connections after that were refused.",
        why="The guest had answered before, so it ended, panicked or was killed, or does not come "
        "back from a restart.",
        so="Whatever failed after that is a consequence; upcall is not the reason.",
        next="Look where the guest's console stops, and in the host's log for who ended the VMM.",
    )
