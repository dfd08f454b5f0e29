"""The sentences about what a VMM's log tells."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from ..codes import Side
from ..logs import client_lines as client
from ..logs import runtime_lines as runtime
from ..logs.lines import LogLine
from ..logs.meaning import Match, Meaning, quote
from ..views.text import duration, safe
from .finding import Told
from .log_requests import ChannelPhase, OpenRequest

_KINDS: Final = {
    "cpu": "a vCPU request",
    "cpu-add": "ADD_CPU",
    "cpu-del": "DEL_CPU",
    "disk-add": "the request that plugs a disk (ADD_PCI or ADD_MMIO)",
    "disk-del": "the request that removes a disk (DEL_PCI or DEL_MMIO)",
    "vfio-add": "ADD_PCI of a host device",
    "vfio-del": "DEL_PCI of a host device",
    "net-add": "the request that plugs a network device",
    "memory-add": "ADD_MMIO of a memory or balloon device",
    "device": "the request for a device",
    "unknown": "a request that the log does not show",
}
_ONE: Final = "It takes one at a time."
_RESTART: Final = "Restart the pod; nothing else brings the channel of this VM back."


def name_of(asked: OpenRequest | None) -> str:
    """A request as people know it, with the number of the line that shows it."""
    if asked is None:
        return _KINDS["unknown"]
    name = _KINDS[asked.kind] + (f" ({asked.id})" if asked.id else "")
    return f"{name} of line {asked.line.number}" if asked.line is not None else name


def why_not_ready(phase: ChannelPhase, waiting: OpenRequest | None, own: bool | None) -> str:
    """Which of the reasons it was, as far as the lines before tell."""
    if own:
        return (
            "The channel was busy with the DEL_PCI of this very removal, which the VMM had sent a "
            "moment before."
        )
    match phase.name:
        case "GAVE_UP":
            return "The client had given up for good, after 501 tries to connect."
        case "RECONNECTING":
            return "The stream had broken, and the client was reconnecting."
        case "RESTORED":
            return (
                "The VM was restored: its channel was not connected again yet, as the guest still "
                "holds the old connection."
            )
        case "STARTING":
            return "The channel was never connected: the guest was still booting, or has no upcall."
        case "READY" if waiting is not None:
            return f"The channel was busy: {name_of(waiting)} had no answer yet. {_ONE}"
        case "READY":
            return f"The channel was busy with a request that the log does not show. {_ONE}"
    return "The log does not tell which: never connected, reconnecting, busy, or given up."


def what_was_refused(rows: Mapping[Meaning, Match], spent: bool) -> str:
    """The operation that was refused, in a few words."""
    named = next(
        (rows[r][1] for r in (runtime.DISK_FAILED, runtime.INSERT_FAILED) if r in rows), ""
    )
    what = f"to plug disk {named}" if named else "an operation"
    if runtime.INSERT_FAILED in rows and not named:
        what = "to plug a disk"
    if runtime.HOST_REMOVE in rows:
        what = f"to remove host device {rows[runtime.HOST_REMOVE][2]}".rstrip()
    elif runtime.REMOVE_FAILED in rows:
        what = f"to remove disk {rows[runtime.REMOVE_FAILED][2]}".rstrip()
    elif runtime.OWN_BALLOON in rows:
        what = "to plug the balloon"
    return f"{what}, 500 times in 5 s" if spent else what


def not_ready(reason: str, what: str) -> Told:
    return Told(
        what=f"The VMM refused {safe(what)}: its upcall channel was not ready.",
        why=reason,
        so="No request was sent for it. Resizes, memory and removals are not tried again.",
        next="Look at what kept the channel, which is named here or stands in the lines before.",
    )


def init_failed(line: LogLine, at: int) -> Told:
    return Told(
        what="The VMM could not make its upcall client, and so the VM does not start.",
        why=f"It says: {safe(quote(line.text, at))}.",
        so="There is no channel and no guest; nothing can be hotplugged.",
        next="Look at the VM's configuration: upcall needs the virtio-vsock device of the VM.",
        side=Side.VMM,
    )


def unanswered_after_restore() -> Told:
    return Told(
        what="After the restore the first CONNECT was not answered.",
        why="The guest still holds a connection with the same ports from before its snapshot.",
        so="The client tries again 10 ms later from the next port, which normally works.",
        next="Nothing, if the channel gets ready after it; else look at the guest's vsock.",
    )


def not_ok(characters: str) -> Told:
    return Told(
        what="Something else than OK came back for CONNECT.",
        why=f"The client received {safe(characters)!r}.",
        so="The client drops the stream and tries again, up to 501 times.",
        next="Look who listens behind the VM's vsock socket: it is no multiplexer, or refused.",
    )


def bad_hello(number: str) -> Told:
    what = f"type {number}" if number and number != "0" else "a wrong magic, size or flags"
    return Told(
        what="The guest's first message is no CONNECT message.",
        why=f"The client read a message with {what}.",
        so="The client drops the stream and tries again; the channel does not get ready.",
        next="Look which kernel the guest runs: its upcall server speaks another protocol.",
    )


def no_hello() -> Told:
    return Told(
        what="OK came and the service byte was sent, but no CONNECT message.",
        why="The stream ended first: the guest could not start the service's thread, or closed.",
        so="The client drops the stream and tries again; the channel does not get ready.",
        next="Look in the guest's console for lines of db-upcall-srv and db-dev-mgr.",
    )


def no_service() -> Told:
    return Told(
        what="The guest may not know the service that it was asked for.",
        why="A kernel without the device manager closes the stream after the service byte.",
        so="The channel does not get ready.",
        next="Check that the guest's kernel has CONFIG_DRAGONBALL_DEVICE_MANAGER.",
        side=Side.GUEST,
    )


def no_service_byte() -> Told:
    return Told(
        what="The stream ended between OK and the service byte.",
        why="The guest accepted the connection and closed it at once.",
        so="The client tries again 10 ms later.",
        next="Look in the guest's console for lines of db-upcall-srv.",
    )


def reset(broken: OpenRequest) -> Told:
    so = "The client reconnects. Whether the guest did what it was asked cannot be seen."
    if broken.is_cpu:
        so += " A vCPU resize that ends so counts as success."
    return Told(
        what=f"The stream broke while {name_of(broken)} had no answer.",
        why="The guest's end closed or reset it: a restart, a removed device, a dead VM.",
        so=so,
        next="Compare what the guest has with what the VMM believes, and look for a guest restart.",
    )


def counted_as_success(broken: OpenRequest) -> Told:
    return Told(
        what=f"The stream broke while {name_of(broken)} had no answer, and it counts as success.",
        why="Success with index 0 is what Dragonball makes of a reset; the guest said nothing.",
        so="The VMM believes in a resize that the guest may not have done. After a removal it "
        "stops vCPU threads that the guest may still use.",
        next="Count the CPUs in the guest, and look why the stream broke.",
    )


def idle_lost() -> Told:
    return Told(
        what="Something happened on the idle channel, and Dragonball's client cannot handle it.",
        why="Mostly the guest's end has gone away. The client does not read then, so it is told "
        "again without end.",
        so="The client does not reconnect: hotplug is dead until the VM restarts. The log floods.",
        next=_RESTART,
    )


def send_failed(idle: bool) -> Told:
    return Told(
        what="A request could not be sent: the channel's stream was dead.",
        why="The guest's end of the idle channel had gone away before"
        + (", as the lines without end show." if idle else "."),
        so="Dragonball does not reconnect an idle channel: hotplug is dead until the VM restarts. "
        "vCPU threads of a resize that failed so run already.",
        next=_RESTART,
    )


def gave_up(was_ready: bool) -> Told:
    if was_ready:
        return Told(
            what="Dragonball's upcall client gave up connecting again.",
            why="The guest had answered before; then each of 501 tries was refused: the VM or its "
            "vsock is gone, or the guest did not come up again.",
            so="Nothing can be hotplugged until the VM restarts.",
            next="Look whether the VM still runs, and at the end of the guest's console.",
        )
    return Told(
        what="Dragonball's upcall client gave up connecting to the guest.",
        why="It tried 501 times; nothing answered on the guest's upcall port.",
        so="No CPU, memory or device can be hotplugged until the VM restarts.",
        next="Check that the guest's kernel has upcall (CONFIG_DRAGONBALL_UPCALL_SRV) and boots.",
    )


def refusals(count: int, was_ready: bool) -> Told:
    times = "once" if count == 1 else f"{count} times"
    why = "Nothing listens on the guest's upcall port: it is not up yet, or has no upcall."
    if was_ready:
        why = "The guest had answered before: the VM or its vsock is gone, or it restarts."
    return Told(
        what=f"The client's CONNECT was refused {times}, and the log has no success after it.",
        why=why,
        so="The channel is not ready; the client gives up for good after 501 tries.",
        next="Look in the guest's console whether its kernel boots, and for db-upcall-srv.",
    )


def vmm_refused() -> Told:
    return Told(
        what="The VMM refused a CONNECT: its vsock device has no room for another connection.",
        why="The limit of host connections was reached; the guest was not asked.",
        so="The client that connected is cut off, as if nothing listened.",
        next="Look which programs keep connections to this VM's vsock socket open.",
        side=Side.VMM,
    )


def died_booting(killed: bool) -> Told:
    return Told(
        what="The VM ended before its channel was ever ready.",
        why="The guest's CPU shut down: its kernel died while booting."
        if killed
        else "The VMM was stopped while the guest was booting.",
        so="This has nothing to do with hotplug: no request was ever sent.",
        next="Look at the guest's console for a panic.",
        side=Side.GUEST if killed else Side.UNKNOWN,
    )


def killed(name: str, was_ready: bool) -> Told:
    ready = "was ready before" if was_ready else "was not ready"
    return Told(
        what=f"The host killed the VM's process ({safe(name)}). The channel {ready}.",
        why="The host ran out of memory, or a limit of the pod was reached.",
        so="Whatever was open then stays unanswered; nothing of it is upcall's fault.",
        next="Look at the limits of the pod, its overhead included, and at the host's memory.",
        side=Side.OPERATOR,
    )


def late(asked: OpenRequest, took: int | None) -> Told:
    after = f"after {duration(took)}" if took is not None and took > 0 else "later"
    done = "The operation is done in the guest."
    return Told(
        what=f"The answer to {name_of(asked)} came {after}, when its caller had given up.",
        why="The guest took longer than the 250 ms that the runtime waits.",
        so=f"The runtime reported a timeout. {done if asked.is_cpu else ''}".rstrip(),
        next="Look what the guest did in that time, in its console and on other connections.",
    )


def refused(took: int | None) -> Told:
    after = f" after {duration(took)}" if took is not None and took > 0 else ""
    return Told(
        what=f"The guest refused a vCPU resize{after}, and so the resize never ends.",
        why="Dragonball finishes a resize only when the guest answers it with success.",
        so="Every later resize is refused with VcpuIsHotplugging until the VM restarts.",
        next="Look in the guest's console why it refused; to resize this pod again, restart it.",
    )


def wedged() -> Told:
    return Told(
        what="The VMM refuses to resize: an earlier resize has not ended.",
        why="It was refused by the guest, is not answered, or its answer is still to come.",
        so="Unless that answer comes, every resize is refused until the VM restarts.",
        next="Find the first resize in the log, and what the guest's console says at that time.",
    )


def unanswered(asked: OpenRequest) -> Told:
    return Told(
        what=f"The runtime waited 250 ms for the answer to {name_of(asked)}, and the log has none.",
        why="The guest answered after the log's end, hangs, or its thread died.",
        so="The operation is reported as a timeout, and the channel stays busy until it is "
        "answered.",
        next="Look at the guest's console of that time, or record the traffic.",
    )


def left_in_list(asked: OpenRequest) -> Told:
    return Told(
        what=f"The disk of {name_of(asked)} stays in the VMM's list.",
        why="Its answer came when nobody waited any more, so the VMM did not finish its work.",
        so="Adding the disk again is refused: the VMM says that it exists.",
        next="Restart the pod, or give the disk another path and id.",
    )


def disk_left(name: str, broken: bool) -> Told:
    guest = "whether the guest let go of it is unknown" if broken else "the guest was asked before"
    return Told(
        what=f"The VMM could not drop disk {safe(name)}, and {guest}.".replace("disk ,", "a disk,"),
        why="Its channel was not ready when it came to the second step of the removal.",
        so="The disk stays in the VMM, with the host's device behind it; it is not tried again.",
        next="Look in the guest whether the disk is there; it goes away with the VM.",
    )


def host_side(
    line: LogLine, at: int, row: Meaning | None = None, kept: OpenRequest | None = None
) -> Told:
    why = "The action failed on the VMM's side; no request for it was sent to the guest."
    side: Side | None = None
    if kept is not None:
        why = f"It is the retry of {name_of(kept)}, which timed out and stays in the VMM's list."
    elif row is runtime.ACTION_FAILED:
        why = "The VMM refused it; the log does not prove that the guest was not asked."
    elif row in (runtime.TOO_MUCH_MEMORY, client.NO_UPCALL_BUILT):
        side = Side.OPERATOR
    return Told(
        what=f"The VMM reports: {safe(quote(line.text, at))}.",
        why=why,
        so="The operation fails for the user, and the guest knows nothing of it."
        if row is not client.NO_UPCALL_BUILT and row is not runtime.TOO_MUCH_MEMORY
        else "The operation is called a success, and nothing is done.",
        next="Follow this error in the VMM's log; the guest is not the cause.",
        side=side,
    )


def missing_device(place: str, disk: str) -> Told:
    at = f" at PCI address {place}" if place else ""
    whose = f" (disk {safe(disk)})" if disk else ""
    return Told(
        what=f"The agent waited for a device{at}{whose}, and it never appeared in the guest.",
        why="The VMM counts it as plugged; between VMM and guest it was lost: the request failed, "
        "was not answered, or the device's driver did.",
        so="The container does not get its device.",
        next="Look in the guest's console what became of the request, or record the traffic.",
    )


def missing_cpus(count: str, explained: bool) -> Told:
    why = (
        "An earlier request was lost with its stream, and the VMM counted it as success."
        if explained
        else "The VMM counts the CPUs as plugged; the guest has fewer. Every VMM's users see this."
    )
    return Told(
        what=f"The agent waited 5 s for {count} CPU(s), and they did not come online.",
        why=why,
        so="The container runs with fewer CPUs than it was given.",
        next="Look in the guest's console for refused CPUs, and in the log for a broken stream.",
    )


def vcpu_died() -> Told:
    return Told(
        what="A vCPU's thread died in the VMM, and a vCPU resize failed.",
        why="The guest waits for a CPU that nothing runs.",
        so="The CPU does not come up; ADD_CPU ends with -EIO after 10 s.",
        next="Follow the error of that thread in the VMM's log.",
        side=Side.VMM,
    )


def other_vmm(name: str) -> Told:
    return Told(
        what=f"These lines are of {name}, a VMM without upcall.",
        why=f"{name} plugs devices and CPUs in another way.",
        so="Nothing here is about upcall, whatever failed.",
        next=f"Look for help with {name}; this program knows Dragonball's channel only.",
    )
