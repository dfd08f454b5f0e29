"""UP204 to UP208 and UP214: CPUs that do not go. docs/protocol.md section 4."""

from __future__ import annotations

from itertools import pairwise
from typing import Final

from dissectors.constants import EBUSY, EINVAL, Arch, MessageType

from ... import codes
from ..finding import Cause, Ref, Told, maybe, sure
from ..situation import Situation
from .cpu_adds import first_removed, removed
from .registry import Cue, explains, rule
from .wording import LOCK_LOST, apic, pointing, refused, resize_never_ends, unanswered, up_since

_SILENT: Final = (
    "This connection stays open and silent for good; Dragonball stays busy on it, "
    "so no later resize or hotplug gets through."
)
_WAS_ALREADY: Final = 1
_DEL_CPU: Final = frozenset({MessageType.DEL_CPU})


@explains(Cue.REPLY, _DEL_CPU)
def refused_removal(at: Situation) -> list[Cause]:
    """Why DEL_CPU got its answer."""
    ret, x86 = at.ret, at.arch is Arch.X86_64
    if ret == 0:
        return []
    if ret == EBUSY:
        return sure(codes.CPU_BUSY)
    if ret == _WAS_ALREADY and x86:
        return sure(codes.CPU_ALREADY_OFFLINE)
    if ret != EINVAL:
        return sure(codes.UNEXPLAINED_RESULT)
    if not x86:
        return sure(codes.REMOVE_ALL_CPUS)
    boot_cpu = 0 in at.apic_ids
    load = next(iter(at.reply.fields().values()), 0) if at.reply else 0
    if load:  # the refusal to remove all would have written a zero there
        return sure(codes.REMOVE_BOOT_CPU if boot_cpu else codes.UNEXPLAINED_RESULT)
    if at.last_load or not boot_cpu:
        return sure(codes.REMOVE_ALL_CPUS)
    return maybe(codes.REMOVE_ALL_CPUS, codes.REMOVE_BOOT_CPU)


@explains(Cue.SILENCE, _DEL_CPU)
def unanswered_removal(at: Situation) -> list[Cause]:
    """What a removal dies of: an id that is not found, before the first one or on the way."""
    if not at.waited_long:
        return []
    stuck = maybe(codes.HOTPLUG_LOCK_STUCK) if at.holder else []
    if at.arch is Arch.AARCH64 or not at.apic_ids or at.holder_keeps_it:
        return stuck
    if len(at.apic_ids) == 1:
        return [*stuck, *maybe(codes.REMOVE_UNFINDABLE_CPU)]
    falling = all(a > b for a, b in pairwise(at.apic_ids))
    likely = [codes.REMOVAL_ORDER, codes.REMOVE_UNFINDABLE_CPU]
    return [*stuck, *maybe(*(reversed(likely) if falling else likely))]


@rule(codes.REMOVE_ALL_CPUS)
def remove_all_cpus(at: Situation) -> Told:
    """The request would leave the guest without any CPU.

    **What it says.** The guest refused DEL_CPU because the list is as long as, or longer than, the
    guest has CPUs.

    **Why it matters.** No CPU was removed. The VMM counts more vCPUs than the guest has, and
    refuses every later resize.

    **On the wire.** Reply type 2 with ret -22 (EINVAL) and 0 in apic_index (cpu_id on aarch64). On
    x86-64 the boot CPU in the list gives the same ret, but leaves apic_index alone (UP205).

    **Example.** `cpu_lifecycle`, request 1.8: DEL_CPU of APIC ids 0 and 1, the only ones left.

    **Limits.** Only the length of the list counts, so ids that the guest does not have make it
    longer too. After replies whose apic_index was 0 anyway the two refusals look the same. An id
    of a CPU number that is not possible would also look like this.

    **What to do.** Find out why the VMM counts more CPUs than the guest: an add that failed, or a
    removal that it never took note of.
    """
    count = at.cpu.count if at.cpu else 0
    found = first_removed(at)
    why = f"The list has {count} CPU{'' if count == 1 else 's'} and the guest has no more than that"
    if found:
        why += f"; {apic([found[0]])} was already removed by {found[1]}"
    return Told(
        what=refused(at),
        why=f"{why}.",
        so=resize_never_ends("No CPU was removed"),
        next="Look for an add that failed: the VMM seems to count more vCPUs than the guest has.",
        evidence=removed(found),
    )


@rule(codes.REMOVE_BOOT_CPU)
def remove_boot_cpu(at: Situation) -> Told:
    """The boot CPU is in the list.

    **What it says.** The guest refused DEL_CPU when it came to the boot CPU, APIC id 0.

    **Why it matters.** The ids are worked off in their order: those before the boot CPU are gone,
    and the VMM still runs their threads. Every later resize is refused.

    **On the wire.** Reply type 2 with ret -22 (EINVAL) and an apic_index that is left over from an
    earlier reply. A 0 there means a refusal to remove all CPUs (UP204), or that 0 was left over.

    **Example.** `cpu_lifecycle`, request 1.7: DEL_CPU of APIC id 0 with 2 in apic_index, which
    request 1.6 left there.

    **Limits.** The reply does not say how many CPUs are gone; it follows from the order of the
    list.

    **What to do.** Leave id 0 out. Dragonball lists ids from the highest down: look what made it,
    or another client, go as far as 0.
    """
    ids = at.apic_ids
    gone = ids[: ids.index(0)] if 0 in ids else []
    why = "The list has the boot CPU (APIC id 0), which the guest does not let go"
    outcome = "No CPU was removed"
    if gone:
        why += f"; it came after {apic(gone)} in the list"
        outcome = f"{apic(gone)} {'is' if len(gone) == 1 else 'are'} gone in the guest already"
    return Told(
        what=refused(at),
        why=f"{why}.",
        so=resize_never_ends(outcome),
        next="Find out who sent this request and why: vCPU 0 must stay as long as the VM runs.",
    )


def _unfindable(at: Situation) -> tuple[str, Ref | None]:
    """Which id the kernel's lookup misses and why, as far as the recording shows."""
    history = at.history
    if not at.apic_ids:
        return "a CPU of the list, and this recording does not show which", None
    missing = [cpu for cpu in at.apic_ids if cpu not in history.cpus]
    if not missing:
        cpu = max(at.apic_ids)
        known = f"{apic([cpu])}, though it is up {up_since(history.cpus[cpu])}"
        reach = ": an earlier removal put it out of reach" if history.unplugged_numbers else ""
        return known + reach, history.cpus[cpu]
    removed = [cpu for cpu in missing if cpu in history.removed_cpus]
    if removed:
        ref = history.removed_cpus[removed[0]]
        return f"{apic(removed[:1])}, which was already removed by {ref}", ref
    return f"{apic(missing[:1])}, which this recording does not show to be up", None


@rule(codes.REMOVE_UNFINDABLE_CPU)
def remove_unfindable_cpu(at: Situation) -> Told:
    """The request removes a CPU that the guest cannot find, and the guest's thread died of it.

    **What it says.** The kernel looks an id up and uses the result as an index without checking it.
    For an id that it does not find the result is -1: a kernel oops, and the thread that serves the
    connection is gone.

    **Why it matters.** No reply ever comes, and the connection stays open. Dragonball has no
    timeout for replies: its channel stays busy for the rest of the VM's life.

    **On the wire.** DEL_CPU (type 2) with no reply. Other connections go on answering.

    **Example.** `guest_oops`, request 1.1: DEL_CPU of APIC id 9, which the guest never had. New
    kernels do the same: `guest_oops_6_12`, request 1.1.

    **Limits.** Silence is all that the wire shows. Old kernels also lose CPUs that are online: they
    look at as many numbers as there are CPUs, so after a removal the highest ones are out of reach.

    **What to do.** Look for an oops in the guest's console. Restart the VM. Then look why the VMM
    removed a CPU that the guest does not have.
    """
    missed, ref = _unfindable(at)
    return Told(
        what=unanswered(at),
        why=f"The kernel's lookup does not find {missed}; its thread dies of that (kernel oops).",
        so=_SILENT,
        next="Look for an oops in the guest's console, and restart the VM.",
        evidence=pointing(ref, "added or removed this CPU"),
    )


@rule(codes.REMOVAL_ORDER)
def removal_order(at: Situation) -> Told:
    """The request removes CPUs in an order that old kernels do not survive.

    **What it says.** Kernels 5.10 and 6.1 look an id up among as many CPU numbers as there are CPUs
    at that moment. Each removal of the list shortens the search, and an id that comes late can fall
    out of it. The lookup then fails in the middle of the work, and the thread dies.

    **Why it matters.** It dies with the hotplug lock held. CPU and MMIO requests that need the lock
    hang on every connection, and nothing but a restart of the VM helps.

    **On the wire.** DEL_CPU (type 2) of several ids, such as 1, 2, 3, and no reply.

    **Example.** `guest_oops_5_10`, request 2.3: DEL_CPU of APIC ids 1, 2 and 3.

    **Limits.** Silence is all that the wire shows. New kernels take any order. If the guest gave
    its CPUs numbers in another order than their ids, the order of the ids does not decide.

    **What to do.** List the ids from the highest down, as Dragonball does. Restart the VM.
    """
    ids = at.apic_ids
    descending = ids == sorted(ids, reverse=True)
    order = "its CPU numbers do not follow the ids" if descending else "they do not go downwards"
    return Told(
        what=unanswered(at),
        why=f"The order of the ids made an old kernel lose one midway ({order}); its thread died.",
        so=LOCK_LOST,
        next="Restart the VM, and remove CPUs from the highest id down, as Dragonball does.",
    )


@rule(codes.CPU_BUSY)
def cpu_busy(at: Situation) -> Told:
    """The guest could not take a CPU offline, or could not let any come or go for the moment.

    **What it says.** While a driver probes a PCI device, the kernel lets no CPU come or go: another
    connection's ADD_PCI is enough. Or, for a removal, something in the guest holds the CPU.

    **Why it matters.** The CPUs stay as they are, but for those listed before the one that failed.
    Dragonball never finishes the resize and refuses every later one.

    **On the wire.** Reply type 1 or 2 with ret -16 (EBUSY).

    **Example.** No recording has it.

    **Limits.** The reply says neither which CPU it was nor what was in its way.

    **What to do.** Look for a PCI device that was plugged at the same time; do one after the other.
    For a removal look around `del vcpu failed` in the guest's console.
    """
    ids = at.apic_ids
    adding = at.request.msg_type == MessageType.ADD_CPU
    several = bool(at.cpu and at.cpu.count > 1)
    pci = at.meanwhile[0] if at.meanwhile else None
    who = apic(ids) if len(ids) == 1 else "a CPU of the list"
    if pci is not None:
        why = f"No CPU may come or go while a PCI device is probed, as {pci} asked for meanwhile."
    elif adding:
        why = "The guest lets no CPU come or go for now, as while it probes a PCI device."
    else:
        why = f"The kernel could not take {who} offline: something in the guest holds it."
    outcome = "That CPU is missing" if adding else "The CPU stays in the guest"
    if several:
        done = "up" if adding else "gone"
        outcome = f"That CPU is as it was, and those listed before it may be {done}"
    return Told(
        what=refused(at),
        why=why,
        so=resize_never_ends(outcome),
        next="Look for a PCI device that was plugged just then, and in the guest's console around "
        "`del vcpu failed`.",
        evidence=pointing(pci, "was being worked on"),
    )


@rule(codes.CPU_ALREADY_OFFLINE)
def cpu_already_offline(at: Situation) -> Told:
    """The guest had set the CPU offline by itself.

    **What it says.** Somebody in the guest has written 0 to the CPU's `online` file. The kernel
    finds it offline already, answers +1 and stops there: the CPU stays in its table.

    **Why it matters.** Dragonball takes any `ret` but 0 for a failure that it never finishes: the
    vCPU's thread runs on and every later resize is refused. To add the CPU again gets -22 (UP202).

    **On the wire.** Reply type 2 with ret +1.

    **Example.** `cpu_offlined_5_10`, request 1.1: DEL_CPU of APIC id 3, after
    `echo 0 > /sys/devices/system/cpu/cpu3/online`.

    **Limits.** With several ids the reply does not tell which one it was; those before it are gone.

    **What to do.** Set the CPU online in the guest, then remove it. Look what in the guest sets
    CPUs offline.
    """
    ids = at.apic_ids
    who = apic(ids) if len(ids) == 1 else "A CPU of the list"
    gone = "" if len(ids) == 1 else "; those listed before it are gone"
    return Told(
        what=f"The guest answered {at.op} with {at.result}: it was offline already.",
        why=f"{who} was set offline in the guest itself; it stays in the kernel's table{gone}.",
        so="Dragonball takes it for a failure: the resize never ends, and later ones are refused.",
        next="Set that CPU online in the guest, remove it then, and look what had set it offline.",
    )
