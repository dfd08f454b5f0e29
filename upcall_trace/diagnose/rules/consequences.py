"""UP701 to UP704: what the VMM and its user are left with. Dragonball is meant as the client."""

from __future__ import annotations

from dissectors.constants import MAGIC_VERSION, MessageType

from ... import codes
from ...logs.evidence import Evidence
from ...views.text import safe
from ..finding import Told
from ..situation import Situation, WaitEnd
from .registry import POSSIBLY, Cue, Likelihood, rule


def _drops_the_error(at: Situation) -> bool | Likelihood:
    if at.request.msg_type not in (MessageType.ADD_MMIO, MessageType.ADD_PCI):
        return False
    stale = {cause.code for cause in at.causes} == {codes.STALE_ERROR}
    if stale or at.request.magic_version != MAGIC_VERSION:
        return False
    return POSSIBLY if any(cause.inferred for cause in at.causes) else True


@rule(codes.DEVICE_SILENTLY_LOST, {Cue.REFUSAL: _drops_the_error})
def device_silently_lost(at: Situation) -> Told:
    """A device add failed, and Dragonball takes any answer for success.

    **What it says.** The guest refused the device, yet the VMM keeps it as plugged.

    **Why it matters.** Nobody is told. The user finds a missing disk or interface later, and
    trying again fails because the VMM says that the device exists.

    **On the wire.** A reply to ADD_MMIO or ADD_PCI with a negative ret.

    **Example.** `mmio_lifecycle`, request 1.2.

    **Limits.** True for Dragonball; for another VMM use `--vmm other`. When the errno may be
    stale, the device may be there after all.

    **What to do.** Fix the cause that stands at the same request. Remove the device from the VMM
    before you add it again.
    """
    return Told(
        what=f"VMM and guest now disagree about {at.op}.",
        why="Dragonball counts any answer to an add as done, errors included.",
        so="The container misses a device, and adding it again fails: the VMM says it exists.",
        next="Remove the device from the VMM, fix the cause given here, and add it again.",
    )


def _failed(at: Situation) -> bool:
    return at.is_cpu and at.request.magic_version == MAGIC_VERSION


def _still_waits(at: Situation) -> bool:
    """Nobody ended the wait: a reset counts as success, and a client that left waits no more."""
    left = at.ended in (WaitEnd.GUEST, WaitEnd.CLIENT)
    return _failed(at) and at.waited_long and not left


@rule(codes.RESIZE_WEDGED, {Cue.REFUSAL: _failed, Cue.SILENCE: _still_waits})
def resize_wedged(at: Situation) -> Told:
    """A vCPU resize failed, and none will work from now on.

    **What it says.** Dragonball never finishes a resize whose request was refused or not
    answered.

    **Why it matters.** Every later resize is refused with `VcpuIsHotplugging` until the VM
    restarts; the pod keeps the CPUs it has.

    **On the wire.** A reply to ADD_CPU or DEL_CPU that is not 0, or no reply while the connection
    lasts. No further CPU request follows from Dragonball.

    **Example.** `cpu_lifecycle`, request 1.0.

    **Limits.** True for Dragonball; for another VMM use `--vmm other`. When the stream breaks
    before the answer, Dragonball counts that as success instead (UP605).

    **What to do.** Restart the pod, and fix the cause that stands at the same request.
    """
    return Told(
        what=f"The resize that sent {at.op} never ends.",
        why="Dragonball reports nothing and does not undo; it waits for a success.",
        so="The caller times out, and every later resize is refused with VcpuIsHotplugging.",
        next="Fix the cause given here; to resize this pod again, restart it.",
    )


@rule(codes.HOST_SIDE_FAILURE)
def host_side_failure(line: Evidence) -> Told:
    """The VMM failed before it asked the guest.

    **What it says.** The VMM's log reports a failed action, and no request went to the guest.

    **Why it matters.** The guest is not the place to look.

    **On the wire.** Nothing: no request was sent.

    **Example.** No recording has it; kata #13287 reports a vCPU that could not be added again
    because the VMM itself answered EEXIST.

    **Limits.** It needs the VMM's log, and a recording that covers the time of the line.

    **What to do.** Follow the error in the VMM's log.
    """
    return Told(
        what=f"The VMM reports: {safe(line.text)[:120]}.",
        why="The action failed on the VMM's side; no request for it reached the guest.",
        so="The operation fails for the user, and the guest knows nothing of it.",
        next="Follow this error in the VMM's log; the guest is not the cause.",
        evidence=(line,),
    )


@rule(codes.DEVICE_LEAKED, {Cue.END: lambda at: isinstance(at, Situation)})
def device_leaked(at: Situation) -> Told:
    """A device was added and not removed by the end of the recording.

    **What it says.** The guest still has a device that this recording shows being added.

    **Why it matters.** At the end of a pod every volume should have gone. A device that the VMM
    removed although the guest refused stays behind in the guest, without anything behind it.

    **On the wire.** An add with success, and no removal with success after it.

    **Example.** `mmio_lifecycle`, request 1.13.

    **Limits.** A recording that ends before the pod does shows devices that are still in use.

    **What to do.** Compare with the VMM's list of devices.
    """
    return Told(
        what=f"The guest still has the device of {at.op}.",
        why="No removal that worked follows in this recording.",
        so="If the VMM has let go of it, the guest uses a device with nothing behind it.",
        next="Compare with the VMM's list of devices; note that the recording can end early.",
    )
