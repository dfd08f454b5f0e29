"""UP308 to UP310: device requests that are never answered. docs/protocol.md sections 4 and 7."""

from __future__ import annotations

from dissectors.constants import MMIO_TYPES, PCI_TYPES

from ... import codes
from ..finding import Cause, Told, maybe
from ..situation import REMOVALS, Situation, WaitEnd, added_here
from .registry import Cue, explains, rule
from .wording import LOCK_LOST, console_lines, quote, unanswered


@explains(Cue.SILENCE, MMIO_TYPES | PCI_TYPES)
def unanswered_device(at: Situation) -> list[Cause]:
    """What a silent request for a device may mean.

    Whether a lock that it waits for is held for ever is not known before the recording is over.
    """
    removes = at.request.msg_type in REMOVALS
    cut_off = maybe(codes.CHANNEL_REMOVED) if removes and not added_here(at) else []
    if at.ended is WaitEnd.GUEST:
        return cut_off
    # No packet comes after the channel is gone, so in the guest the recording ends with it.
    last_packet = removes and at.ended is WaitEnd.RECORDING and not at.seen_by_client
    if not at.waited_long and not last_packet:
        return []
    likely = maybe(codes.HOTPLUG_LOCK_STUCK) if at.is_mmio and at.holder else []
    if likely and at.holder_keeps_it:
        return likely
    likely += cut_off
    if at.is_mmio and not at.history.mmio_works:
        likely += maybe(codes.MMIO_WITHOUT_BOOT_DEVICE)
    if not removes:
        likely += maybe(codes.DRIVER_HANGS)
    return likely


@rule(codes.CHANNEL_REMOVED)
def channel_removed(at: Situation) -> Told:
    """The guest was asked to remove the device that this channel itself runs on.

    **What it says.** The device to be removed is the guest's vsock device. Upcall runs on it, so
    the guest could not answer any more.

    **Why it matters.** Every connection over vsock is cut, the one of Kata's agent included. The VM
    cannot be managed any longer.

    **On the wire.** DEL_MMIO (type 6) or DEL_PCI (type 8) with no reply, and nothing more from the
    guest on any connection, or a reset.

    **Example.** `channel_removed_5_10`, request 1.0: DEL_MMIO of the vsock device. A CONNECT after
    that gets neither OK nor a refusal (UP109).

    **Limits.** Which device carries the channel is on the wire nowhere. Without the guest's world
    this is inferred from the silence. It is never a device that was added over the channel.

    **What to do.** Look which device the VMM has at this address. Restart the VM.
    """
    if at.pci is not None:
        name = f"at bus {at.pci.busno} slot {at.pci.slot}.{at.pci.function}"
    else:
        assert at.mmio is not None  # nothing else removes a device
        name = f"at {at.mmio.mmio_base:#x}"
    return Told(
        what=unanswered(at),
        why=f"The device {name} is the vsock device that this channel itself runs on.",
        so="Every vsock connection of the guest is cut, upcall's and the Kata agent's alike.",
        next="Look in the VMM's log which device has this address; restart the VM.",
    )


@rule(codes.MMIO_WITHOUT_BOOT_DEVICE)
def mmio_without_boot_device(at: Situation) -> Told:
    """The guest was booted without a virtio-mmio device, and its kernel does not survive that.

    **What it says.** The command line of the guest has no `virtio_mmio.device=`. Where
    the kernel's patches make the parent device static, as on 5.10, every MMIO request to such a
    guest that passes the first checks kills the thread that serves it.

    **Why it matters.** No reply comes, and no MMIO device can ever be plugged into this guest. The
    hotplug lock is free: CPU requests on a new connection are answered.

    **On the wire.** ADD_MMIO (type 5) or DEL_MMIO (type 6) with no reply, while no MMIO request of
    this guest gets another answer than -22.

    **Example.** `mmio_without_boot_device_5_10`, request 1.2: the first ADD_MMIO that is more than
    malformed. Requests 2.1 and 3.4 die in the same way.

    **Limits.** Silence is all that the wire shows. An ADD_MMIO whose driver hangs (UP310) looks the
    same, until a request that needs the hotplug lock is answered.

    **What to do.** Look for an oops in the guest's console, and for `virtio_mmio.device=` in
    /proc/cmdline. Boot the guest with at least one virtio-mmio device, or plug over PCI.
    """
    return Told(
        what=unanswered(at),
        why=(
            "The guest was booted without any virtio_mmio.device=; in its kernel every MMIO "
            "request then kills the serving thread (oops)."
        ),
        so="No MMIO device can be plugged into this guest; CPU requests on other connections work.",
        next="Look for an oops in the console, and boot with at least one virtio_mmio.device=.",
    )


@rule(codes.DRIVER_HANGS)
def driver_hangs(at: Situation) -> Told:
    """The device's driver waits for an interrupt that never comes.

    **What it says.** The guest registered the device and its driver began to probe it. The probe
    waits for the device's interrupt, most likely because the request names another interrupt than
    the device uses. Nothing crashes, and nothing ends the wait.

    **Why it matters.** The thread holds the kernel's hotplug lock while it waits. CPU and MMIO
    requests that need the lock hang on every connection (UP603), until the VM restarts.

    **On the wire.** ADD_MMIO (type 5) or ADD_PCI (type 7) with no reply.

    **Example.** `mmio_wrong_interrupt_5_10`, request 2.0: ADD_MMIO of a real disk with interrupt 9
    instead of 8.

    **Limits.** Silence is all that the wire shows. The console decides: it has `Registering device`
    for this window, and no oops. With a wrong interrupt that other devices raise, 5 for instance,
    the answer comes when they do.

    **What to do.** Compare the interrupt in the request with the one at which the VMM created the
    device. Restart the VM.
    """
    lines = console_lines(at)
    said = f"; the console has {quote(lines)}, and no oops" if lines else ""
    return Told(
        what=unanswered(at),
        why=f"The device's driver waits for an interrupt that never comes{said}.",
        so=LOCK_LOST,
        next="Compare the interrupt with the one that the VMM gave the device; restart the VM.",
        evidence=lines,
    )
