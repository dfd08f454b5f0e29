"""UP201 to UP203, UP209, UP210, UP212, UP213: CPUs that do not come. docs/protocol.md section 4."""

from __future__ import annotations

from typing import Final

from dissectors.constants import EBUSY, EEXIST, EINVAL, EIO, Arch, MessageType
from dissectors.messages import CpuReplyArm

from ... import codes
from ...logs.evidence import Evidence
from ...views.text import duration
from ..finding import Cause, Ref, Told, maybe, sure
from ..situation import Situation
from .registry import Cue, explains, rule
from .wording import LOCK_LOST, apic, pointing, refused, resize_never_ends, unanswered, up_since

_LONG_WAIT_NS: Final = 9_000_000_000
"""A vCPU that does not start makes the guest wait for 10 s."""
_AT_ONCE_NS: Final = 1_000_000_000
_ADD_CPU: Final = frozenset({MessageType.ADD_CPU})


@explains(Cue.REPLY, _ADD_CPU)
def refused_add(at: Situation) -> list[Cause]:
    """Why ADD_CPU got its answer."""
    ret, x86 = at.ret, at.arch is Arch.X86_64
    partly = maybe(codes.PARTIAL_CPU_ADD) if at.cpu is not None and at.cpu.count > 1 else []
    if ret == 0:
        return []
    if ret == EINVAL and x86:
        return _unknown_or_known(at, partly)
    if ret == EIO:
        return _not_started(at) + partly
    if ret == EEXIST and x86:
        return sure(codes.CPU_LOST_ITS_ID) + partly
    return sure(codes.CPU_BUSY if ret == EBUSY else codes.UNEXPLAINED_RESULT)


def _unknown_or_known(at: Situation, partly: list[Cause]) -> list[Cause]:
    """-EINVAL has two meanings; which it is rests on what the recording shows of the ids."""
    either = maybe(codes.CPU_ALREADY_KNOWN, codes.NO_CPU_NUMBER) + partly
    if at.history.unsure:
        return either
    if any(cpu in at.history.cpus for cpu in at.apic_ids):
        return either if at.history.unplugged_numbers else maybe(codes.CPU_ALREADY_KNOWN)
    if at.apic_ids and all(cpu in at.history.removed_cpus for cpu in at.apic_ids):
        return maybe(codes.NO_CPU_NUMBER) + partly
    return either


def _not_started(at: Situation) -> list[Cause]:
    """-EIO after 10 s is a vCPU that nobody runs; at once it can be one that had failed before."""
    failed = [cpu for cpu in at.apic_ids if cpu in at.history.failed_cpus]
    if (at.latency_ns or 0) > _AT_ONCE_NS or not (failed or at.history.unsure):
        return sure(codes.VCPU_NOT_STARTED)
    if not failed:  # it can have failed where the recording does not show the answer
        return maybe(codes.VCPU_NOT_STARTED, codes.CPU_NEVER_AGAIN)
    _, took_ns = at.history.failed_cpus[failed[0]]
    runs = failed[0] in at.history.running
    waited = took_ns is not None and took_ns >= _LONG_WAIT_NS // 2
    if len(at.apic_ids) == 1 and (runs or waited):
        return sure(codes.CPU_NEVER_AGAIN)
    return maybe(codes.CPU_NEVER_AGAIN, codes.VCPU_NOT_STARTED)


@explains(Cue.SILENCE, _ADD_CPU)
def unanswered_add(at: Situation) -> list[Cause]:
    """On aarch64 more CPUs than are possible; on x86-64 no death of ADD_CPU is known."""
    if at.arch is Arch.AARCH64 and at.waited_long:
        own = (codes.ADD_BEYOND_POSSIBLE,)
        return maybe(codes.HOTPLUG_LOCK_STUCK, *own) if at.holder else maybe(*own)
    return maybe(codes.HOTPLUG_LOCK_STUCK) if at.holder and at.waited_long else []


def first_removed(at: Situation) -> tuple[int, Ref] | None:
    """An id of the request that the recording shows removed and not added again."""
    for cpu in at.apic_ids:
        ref = at.history.removed_cpus.get(cpu)
        if ref is not None:
            return cpu, ref
    return None


def removed(found: tuple[int, Ref] | None) -> tuple[Evidence, ...]:
    return pointing(found[1], "removed this CPU") if found else ()


@rule(codes.VCPU_NOT_STARTED)
def vcpu_not_started(at: Situation) -> Told:
    """A CPU of the request never came up.

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
    ids, found = at.apic_ids, first_removed(at)
    one = apic(ids) if len(ids) == 1 else "One of the CPUs that it asks for"
    why = f"{one} did not start: the VMM does not run that vCPU"
    if found:
        which = "it" if len(ids) == 1 else apic([found[0]])
        why += f"; {found[1]} had removed {which}"
    late = at.latency_ns is not None and at.latency_ns >= _LONG_WAIT_NS
    after = f" after {duration(at.latency_ns)}" if late and at.latency_ns else ""
    if at.reply is None:
        what = (
            f"No answer to {at.op} came in {duration(at.waited_ns)}, while the connection lasted."
        )
        so = "The guest waited 10 s for that CPU with the hotplug lock held; it is missing."
    else:
        what = f"The guest refused {at.op}{after}: {at.result}."
        so = resize_never_ends("That CPU is missing in the guest")
    return Told(
        what=what,
        why=f"{why}.",
        so=so,
        next="Look in the VMM's log whether this vCPU's thread was started before the request.",
        evidence=removed(found),
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
    found = first_removed(at)
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
        evidence = removed(found)
    else:
        why = "The guest has an id of the list already, though this recording does not show it come"
        evidence = ()
    return Told(
        what=refused(at),
        why=f"{why}.",
        so=resize_never_ends("No CPU was added"),
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
    found = first_removed(at) if len(ids) == 1 else None
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
        so=resize_never_ends("That CPU was not added"),
        next="Compare the ids with the VM's maximum of vCPUs at boot and the guest's nr_cpus.",
        evidence=removed(found),
    )


@rule(codes.PARTIAL_CPU_ADD)
def partial_cpu_add(at: Situation) -> Told:
    """An add of several CPUs failed on the way, and a part of them is up.

    **What it says.** The guest adds the CPUs of a list one by one and stops at the first failure.
    The ones before it stay up: nothing is rolled back.

    **Why it matters.** The reply is an error, so the VMM does not count them, yet the guest uses
    them. A later request for the same ids is refused as already known (UP202).

    **On the wire.** ADD_CPU (type 1) with more than one CPU, and a negative ret, normally -5 (EIO).

    **Example.** `cpu_lifecycle_5_10`, request 1.2: the first CPU of the list came up, the second
    did not start.

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


@rule(codes.CPU_NEVER_AGAIN)
def cpu_never_again(at: Situation) -> Told:
    """A CPU that failed to start once is refused at once, for as long as the guest runs.

    **What it says.** The CPU failed to start before. Kernel 5.10 cannot start such a CPU again, so
    it gives up at once, although the VMM runs the vCPU now.

    **Why it matters.** This CPU comes back only with a new boot. Its empty place also hides the
    highest CPU from the kernel's lookup, and to remove that one kills the guest's thread (UP206).
    Dragonball refuses every later resize.

    **On the wire.** Reply type 1 with ret -5 (EIO) within milliseconds, for an id that got -5 about
    10 s after an earlier request.

    **Example.** `cpu_retry_5_10`, request 1.1: ADD_CPU of APIC id 1, whose vCPU runs by then.
    Request 1.0 had waited 13.4 s for it.

    **Limits.** Kernel 6.1 and later start such a CPU. Where the first failure is not in the
    recording, a vCPU that does not start (UP201) looks the same.

    **What to do.** Start the vCPU before the first request for it. Restart the VM to get this CPU.
    """
    found = next((cpu for cpu in at.apic_ids if cpu in at.history.failed_cpus), None)
    ref = at.history.failed_cpus[found][0] if found is not None else None
    who = apic([found]) if found is not None else "A CPU of the list"
    before = f" by {ref}" if ref else " before"
    runs = ", though the VMM runs that vCPU now" if found in at.history.running else ""
    return Told(
        what=f"The guest refused {at.op} at once: {at.result}.",
        why=f"{who} failed to start{before}; kernel 5.10 cannot start such a CPU again{runs}.",
        so=resize_never_ends("That CPU is missing until the guest boots anew"),
        next="Restart the VM; run the vCPU's thread before the first request for it is sent.",
        evidence=pointing(ref, "failed to start this CPU"),
    )


@rule(codes.CPU_LOST_ITS_ID)
def cpu_lost_its_id(at: Situation) -> Told:
    """The CPU is online already, and the request made the guest forget its APIC id.

    **What it says.** The kernel's lookup did not find the CPU, though it is online: it is out of
    the lookup's range, or stands twice in the list. The kernel then registered it a second time,
    was refused, and had cleared the CPU's entry on the way.

    **Why it matters.** The CPU goes on running, without an id. A later request to remove it finds
    nothing and kills the guest's thread (UP206). Dragonball refuses every later resize.

    **On the wire.** Reply type 1 with ret -17 (EEXIST).

    **Example.** `cpu_lookup_5_10`, request 1.8: ADD_CPU of APIC id 3, which is online, after a
    removal has put it out of reach.

    **Limits.** With several ids the reply does not tell which one it was; those before it are up.

    **What to do.** Do not remove this CPU any more. Restart the VM, and look why the VMM added a
    CPU that it has.
    """
    ids = at.apic_ids
    twice = sorted({cpu for cpu in ids if ids.count(cpu) > 1})
    known = [cpu for cpu in ids if cpu in at.history.cpus]
    ref = at.history.cpus[known[0]] if known else None
    if twice:
        why = f"{apic(twice)} stands twice in the list, so the second one is online already"
    elif known:
        why = (
            f"{apic(known[:1])} is up {up_since(ref)}, but out of reach of the kernel's lookup, "
            "which goes over as many numbers as there are CPUs"
        )
    else:
        why = "A CPU of the list is online, out of reach of the kernel's lookup"
    return Told(
        what=refused(at),
        why=f"{why}.",
        so="The CPU runs on but has lost its APIC id: to remove it kills the guest's thread.",
        next="Do not remove that CPU; restart the VM, and look why the VMM added it again.",
        evidence=pointing(ref, "added this CPU"),
    )
