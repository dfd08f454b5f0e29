"""Codes that logs alone can tell: no recording shows them.

What reads logs is imported where a log is told of: all rules are loaded for every capture.
"""

from __future__ import annotations

from dissectors.constants import errno_name

from ... import codes
from ...views.text import safe
from ..finding import Told
from ..situation import Situation
from .registry import rule


@rule(codes.NO_UPCALL)
def no_upcall(line: object) -> Told:
    """There can be no channel in this boot.

    **What it says.** The guest's kernel could not start its upcall server, or the VMM could not
    make its client. The finding's side tells which.

    **Why it matters.** Nothing can be hotplugged. When the client could not be made, the VM does
    not start at all.

    **On the wire.** Nothing, or CONNECT that is always refused.

    **Example.** `db-upcall-srv: Init server err: -98` on the guest's console, or `VM upcall init
    failed, no support hotplug: …` in the VMM's log.

    **Limits.** It needs a log.

    **What to do.** Guest: look at the kernel's configuration, and at `dragonball_upcall_srv.port`.
    VMM: upcall needs the VM's virtio-vsock device.
    """
    from ...logs.lines import LogLine
    from ..log_console_words import no_server

    assert isinstance(line, LogLine)  # no recording shows it
    return no_server(line)


@rule(codes.CPU_REFUSED_BY_KERNEL)
def cpu_refused_by_kernel(at: Situation) -> Told:
    """The guest's kernel refused a CPU for a reason that only its console names.

    **What it says.** Registering a CPU failed, for example without memory, or a CPU to be
    removed is not possible in this guest.

    **Why it matters.** Ids that stand before it in the list are up, or gone, already.

    **On the wire.** A reply to ADD_CPU or DEL_CPU with a negative ret, -22 or another.

    **Example.** `cpu 2 cannot be added, register cpu failed -12` on the guest's console.

    **Limits.** It needs the guest's console.

    **What to do.** -12: look at the guest's memory. `cpu not possible`: the VMM named a CPU that
    the guest was not booted for.
    """
    line = None if at.console is None else at.console.decided_by
    said = ""
    if line is not None:
        from ...logs.meaning import quote

        said = f": {safe(quote(line.text.strip()))}"
    name = errno_name(at.ret or 0)
    return Told(
        what=f"The guest's kernel refused {at.op}" + (f": {at.ret} ({name})." if name else "."),
        why=f"Its console names the reason{said}.",
        so="Ids before it in the list are done; Dragonball's resize never ends.",
        next="-12 means that the guest has no memory left. Else compare the ids with its CPUs.",
    )


@rule(codes.GUEST_THREAD_DIED)
def guest_thread_died(at: Situation) -> Told:
    """An oops killed the guest's upcall thread, and it is none of the deaths that are known.

    **What it says.** The oops names `db_dev_mgr`, the thread of an upcall connection, or a thread
    of a CPU that came up, while this request was under way.

    **Why it matters.** The connection stays open and silent for good. If the thread held the
    hotplug lock, every later CPU and MMIO request hangs.

    **On the wire.** A request without a reply.

    **Example.** `CPU: 0 PID: 71 Comm: db_dev_mgr` after `Oops:` in the middle of an ADD_CPU on
    x86-64.

    **Limits.** It needs the guest's console. All connections have a thread of that name.

    **What to do.** Report the oops with its backtrace; restart the guest.
    """
    said = at.console
    thread = said.comm if said is not None and said.comm else "db_dev_mgr"
    what = at.op if at.request.msg_type else "a request that the console does not name"
    return Told(
        what=f"An oops killed the guest's thread {safe(thread)} during {what}.",
        why="It is a bug of the guest's kernel, and not one of the known ones.",
        so="No answer comes; the connection stays silent, and the hotplug lock may be held.",
        next="Report the oops with its backtrace, and restart the VM.",
    )


@rule(codes.GUEST_STOOD_STILL)
def guest_stood_still(ran: str, passed: str) -> Told:
    """The guest's clock ran for less time than the host's.

    **What it says.** Between two requests, the lines of the guest's console are closer together
    than the requests are in the capture. The guest did not run for the rest of that time.

    **Why it matters.** A reply that was late in that time was not late because of the guest.

    **On the wire.** Nothing, or a late reply (UP601).

    **Example.** A VM that was paused for 20 s while its resize ran into its limit of 250 ms.

    **Limits.** It needs the guest's console, with times, beside a capture. A console whose lines
    do not fit the requests proves nothing.

    **What to do.** Look for a pause, a snapshot or a migration at that time, and at the host's
    load.
    """
    return Told(
        what=f"The guest's clock ran {ran} of {passed} before this request.",
        why="The VM was paused, was restored from a snapshot, or got no time of the host.",
        so="What was late in that time was not the guest's fault.",
        next="Look for a pause or a snapshot, and at the host's load.",
    )


@rule(codes.MISSING_IN_GUEST)
def missing_in_guest(place: str = "", disk: str = "") -> Told:
    """The agent waited for what the VMM counts as plugged, and it never appeared.

    **What it says.** Kata's agent in the guest timed out waiting for a device to appear, or for
    CPUs to come online.

    **Why it matters.** Dragonball counts any answer to an add as done, and a broken stream as a
    success, so this is where such a failure comes to light.

    **On the wire.** Nothing; an earlier request may show why.

    **Example.** `Timeout after 3s waiting for uevent VirtioBlkPciMatcher …` in the runtime's log.
    The PCI address in it is that of ADD_PCI.

    **Limits.** Every VMM's users can see these lines. The finding is certain only where the lines
    of the same sandbox are Dragonball's.

    **What to do.** Look in the guest's console what became of the request.
    """
    from ..log_words import missing_device

    return missing_device(place, disk)


@rule(codes.OTHER_VMM)
def other_vmm_page(name: str) -> Told:
    """These lines are of a VMM without upcall.

    **What it says.** The log is of QEMU, Cloud Hypervisor or Firecracker.

    **Why it matters.** Whatever failed there, it was not upcall; no other finding is about those
    lines.

    **On the wire.** Nothing.

    **Example.** `hot add vCPUs failed` with `subsystem=qmp`.

    **Limits.** It goes by names in the lines. A log that has nothing else ends the command with 6.

    **What to do.** Use the documentation of that VMM.
    """
    from ..log_words import other_vmm

    return other_vmm(name)
