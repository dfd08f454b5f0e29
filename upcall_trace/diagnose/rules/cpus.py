"""UP201 to UP210: CPUs that do not come or go. docs/protocol.md section 4."""

from __future__ import annotations

from typing import Final

from dissectors.messages import CpuReplyArm

from ... import codes
from ...logs.evidence import Evidence
from ...views.text import duration
from ..finding import Ref, Told
from ..situation import Situation
from .registry import rule
from .wording import LOCK_LOST, apic, pointing, refused, unanswered, up_since

_LONG_WAIT_NS: Final = 9_000_000_000
_SILENT: Final = (
    "This connection stays open and silent for good; Dragonball stays busy on it, "
    "so no later resize or hotplug gets through."
)


def _stuck(outcome: str) -> str:
    """What the guest is left with, and what Dragonball makes of any vCPU request that fails."""
    return (
        f"{outcome}; Dragonball reports nothing, the resize times out after 250 ms, "
        "and later ones are refused (VcpuIsHotplugging)."
    )


def _first_removed(at: Situation) -> tuple[int, Ref] | None:
    """An id of the request that the recording shows removed and not added again."""
    for cpu in at.apic_ids:
        ref = at.history.removed_cpus.get(cpu)
        if ref is not None:
            return cpu, ref
    return None


def _removed(found: tuple[int, Ref] | None) -> tuple[Evidence, ...]:
    return pointing(found[1], "removed this CPU") if found else ()


@rule(codes.VCPU_NOT_STARTED)
def vcpu_not_started(at: Situation) -> Told:
    """A CPU that was to be added never came up.

    **What it says.** The guest prepared a CPU, asked it to start and heard nothing from it, because
    the VMM never ran that vCPU.

    **Why it matters.** The kernel waits 10 s for it with the hotplug lock held, so other CPU and
    MMIO requests wait as well. Kata's resize has timed out after 250 ms. Dragonball never finishes
    it and refuses every later one.

    **On the wire.** Reply type 1 with ret -5 (EIO), normally about 10 s after the request.

    **Example.** `cpu_lifecycle`, request 1.0: ADD_CPU of APIC id 1, answered after 10.08 s. Request
    1.1 is the same one after the VMM had created the vCPU, and succeeds.

    **Limits.** With several ids the reply does not tell which one failed. The console does: it has
    `cpu up failed`. On aarch64 this result has not been recorded.

    **What to do.** Look in the VMM's log whether the vCPU's thread was created and is running. It
    must run before the request is sent.
    """
    ids, found = at.apic_ids, _first_removed(at)
    one = apic(ids) if len(ids) == 1 else "One of the CPUs that it asks for"
    why = f"{one} did not start: the VMM does not run that vCPU"
    if found:
        which = "it" if len(ids) == 1 else apic([found[0]])
        why += f"; {found[1]} had removed {which}"
    late = at.latency_ns is not None and at.latency_ns >= _LONG_WAIT_NS
    after = f" after {duration(at.latency_ns)}" if late and at.latency_ns else ""
    return Told(
        what=f"The guest refused {at.op}{after}: {at.result}.",
        why=f"{why}.",
        so=_stuck("That CPU is missing in the guest"),
        next="Look in the VMM's log whether this vCPU's thread was started before the request.",
        evidence=_removed(found),
    )


@rule(codes.CPU_ALREADY_KNOWN)
def cpu_already_known(at: Situation) -> Told:
    """An id in the list belongs to a CPU that the guest has.

    **What it says.** The guest refused ADD_CPU because its CPU table has an id of the list: from an
    earlier request, or from boot.

    **Why it matters.** One known id is enough to refuse the whole list. VMM and guest disagree
    about which CPUs there are, and Dragonball refuses every later resize.

    **On the wire.** Reply type 1 with ret -22 (EINVAL), at once. The same number means that there
    is no CPU number for an id (UP203); known ids are looked for first.

    **Example.** `cpu_lifecycle`, request 1.2: ADD_CPU of APIC id 1, which request 1.1 had added.

    **Limits.** Without the guest's world this rests on earlier requests, and CPUs from boot are
    not among them. Old kernels do not recognise a CPU that their search no longer reaches.

    **What to do.** Compare the VMM's vCPUs with /sys/devices/system/cpu/online in the guest. Look
    for an add that was sent twice, or for a removal that failed.
    """
    known = [cpu for cpu in at.apic_ids if cpu in at.history.cpus]
    found = _first_removed(at)
    if known:
        ref = at.history.cpus[known[0]]
        more = f", like {len(known) - 1} more of the list" if len(known) > 1 else ""
        why = f"{apic(known[:1])} is in the guest already: it is up {up_since(ref)}{more}"
        evidence = pointing(ref, "added this CPU")
    elif found:
        why = (
            "The guest has an id of the list already, by something this recording does not show; "
            f"{found[1]} had removed {apic([found[0]])}"
        )
        evidence = _removed(found)
    else:
        why = "The guest has an id of the list already, though this recording does not show it come"
        evidence = ()
    return Told(
        what=refused(at),
        why=f"{why}.",
        so=_stuck("No CPU was added"),
        next="Compare the VMM's vCPUs with the guest's online CPUs; look for an add sent twice.",
        evidence=evidence,
    )


@rule(codes.NO_CPU_NUMBER)
def no_cpu_number(at: Situation) -> Told:
    """The guest has no CPU number for an id.

    **What it says.** Every CPU of a Linux guest has a number as well as an APIC id. The guest found
    none for an id of the list. Old kernels (5.10, 6.1) have used all of nr_cpu_ids; new ones (6.12,
    6.18) only take ids that the firmware listed at boot.

    **Why it matters.** This guest cannot grow by that CPU, however often it is tried, and
    Dragonball refuses every later resize.

    **On the wire.** Reply type 1 with ret -22 (EINVAL). The same number means a known id (UP202).

    **Example.** `cpu_lifecycle_6_12`, request 1.7: ADD_CPU of APIC id 77, which is not in the
    firmware's table.

    **Limits.** The reply is the same on all kernels, so the reason is the one of the kernel that
    the guest runs. With several ids those before the failing one are up (UP209).

    **What to do.** Compare the ids with the maximum of vCPUs that the VM was booted with, and with
    `nr_cpus` on the guest's command line.
    """
    ids = at.apic_ids
    who = apic(ids) if len(ids) == 1 else "an id of the list"
    found = _first_removed(at) if len(ids) == 1 else None
    if found:
        why = f"There is no CPU number left for {who}, which was up until {found[1]} removed it"
    else:
        why = (
            f"There is no CPU number for {who}: an old kernel has used up nr_cpu_ids, "
            "a new one takes only ids of the firmware's boot table"
        )
    return Told(
        what=refused(at),
        why=f"{why}.",
        so=_stuck("That CPU was not added"),
        next="Compare the ids with the VM's maximum of vCPUs at boot and the guest's nr_cpus.",
        evidence=_removed(found),
    )


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
    found = _first_removed(at)
    why = f"The list has {count} CPU{'' if count == 1 else 's'} and the guest has no more than that"
    if found:
        why += f"; {apic([found[0]])} was already removed by {found[1]}"
    return Told(
        what=refused(at),
        why=f"{why}.",
        so=_stuck("No CPU was removed"),
        next="Look for an add that failed: the VMM seems to count more vCPUs than the guest has.",
        evidence=_removed(found),
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
        so=_stuck(outcome),
        next="Look who sent this request and why: vCPU 0 has to stay as long as the VM runs.",
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
    """A CPU that the guest cannot find was to be removed, and the guest's thread died of it.

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
        next="Look for an oops in the guest's console; upcall needs the VM restarted.",
        evidence=pointing(ref, "added or removed this CPU"),
    )


@rule(codes.REMOVAL_ORDER)
def removal_order(at: Situation) -> Told:
    """CPUs were to be removed in an order that old kernels do not survive.

    **What it says.** Kernels 5.10 and 6.1 look an id up among as many CPU numbers as there are CPUs
    at that moment. Each removal of the list shortens the search, and an id that comes late can fall
    out of it. The lookup then fails in the middle of the work, and the thread dies.

    **Why it matters.** It dies with the hotplug lock held. CPU and MMIO requests that need the lock
    hang on every connection, and nothing but a restart of the VM helps.

    **On the wire.** DEL_CPU (type 2) of several ids, such as 1, 2, 3, and no reply.

    **Example.** No recording has it.

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
    """The guest could not take a CPU offline.

    **What it says.** The kernel tried to take a CPU of the list offline, and something in the guest
    did not let it go.

    **Why it matters.** The CPU stays. Those listed before it may be gone, while the VMM runs the
    threads of all of them and refuses every later resize.

    **On the wire.** Reply type 2 with ret -16 (EBUSY).

    **Example.** No recording has it.

    **Limits.** The reply says neither which CPU it was nor what held it.

    **What to do.** Look for `del vcpu failed` and what stands around it in the guest's console. CPU
    hotplug may be switched off for a while, or a deadline task may need the CPU.
    """
    ids = at.apic_ids
    who = apic(ids) if len(ids) == 1 else "a CPU of the list"
    outcome = "The CPU stays in the guest"
    if at.cpu and at.cpu.count > 1:
        outcome = "That CPU stays, and those listed before it may be gone"
    return Told(
        what=refused(at),
        why=f"The kernel could not take {who} offline: something in the guest holds it.",
        so=_stuck(outcome),
        next="Look around `del vcpu failed` in the guest's console for what holds the CPU.",
    )


@rule(codes.PARTIAL_CPU_ADD)
def partial_cpu_add(at: Situation) -> Told:
    """An add of several CPUs failed on the way, and a part of them is up.

    **What it says.** The guest adds the CPUs of a list one by one and stops at the first failure.
    The ones before it stay up: nothing is rolled back.

    **Why it matters.** The reply is an error, so the VMM does not count them, yet the guest uses
    them. A later request for the same ids is refused as already known (UP202).

    **On the wire.** ADD_CPU (type 1) with more than one CPU, and a negative ret, normally -5 (EIO).

    **Example.** No recording has it.

    **Limits.** On x86-64 the reply does not say how many came up, and whether it was any at all is
    often only likely. On aarch64 the load holds the number online afterwards, by the kernel's
    source.

    **What to do.** Look at /sys/devices/system/cpu/online in the guest.
    """
    ids = at.apic_ids
    first = f"at least {apic(ids[:1])}" if ids else "at least one"
    why = f"CPUs are added one by one: {first} came up before another failed, and stays up"
    if isinstance(at.reply, CpuReplyArm) and at.reply.cpu_id:
        why += f"; the reply counts {at.reply.cpu_id} online"
    return Told(
        what=f"The guest did only a part of {at.op}: {at.result}.",
        why=f"{why}.",
        so="VMM and guest disagree: Dragonball rolls nothing back and refuses later resizes.",
        next="Compare /sys/devices/system/cpu/online in the guest with what the VMM asked for.",
    )


@rule(codes.ADD_BEYOND_POSSIBLE)
def add_beyond_possible(at: Situation) -> Told:
    """More CPUs were asked for than an aarch64 guest can have.

    **What it says.** On aarch64 a request holds a number of CPUs. The guest brings up the next ones
    that are offline; when there are no more, its thread dies.

    **Why it matters.** The CPUs that fit are up. The thread died with the hotplug lock held, so CPU
    and MMIO requests that need it hang on every connection.

    **On the wire.** ADD_CPU (type 1) on aarch64 with no reply.

    **Example.** `aarch64_lifecycle`, request 2.1: ADD_CPU of one CPU while all four are up.

    **Limits.** Silence is all that the wire shows. How many CPUs are possible is known from the
    guest only.

    **What to do.** Look for an oops in the console and restart the VM. Compare the VMM's maximum of
    vCPUs with /sys/devices/system/cpu/possible in the guest.
    """
    count = at.cpu.count if at.cpu else 0
    asked = "one more CPU" if count == 1 else f"{count} more CPUs"
    fitting = "" if count == 1 else " after the ones that fit came up"
    return Told(
        what=unanswered(at),
        why=f"The guest does not have {asked} to bring up; its thread died{fitting} (kernel oops).",
        so=LOCK_LOST,
        next="Restart the VM; compare its maximum of vCPUs with the guest's possible CPUs.",
    )
