"""What can be watched from this machine, what cannot, and what would change that.

It only looks: no connection is made, nothing is loaded, written or run but `tshark --version`.
docs/vantage-points.md tells what each place shows.
"""

from __future__ import annotations

import fcntl
import gzip
import os
import platform
import re
import shlex
import shutil
import socket
import stat
import struct
import subprocess
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from ..sockets.addresses import UNIX_PATH_LIMIT, is_alive
from .guest_memory.obstacles import about, obstacles, refusal
from .guest_memory.sandboxes import vmm_processes

_VMM_PLACES: Final = ("run/kata", "run/kata-containers", "run/vc", "srv/jailer")
_VMM_SOCKET: Final = re.compile(r"(?:.*[._-])?h?v\.?sock|clh\.sock")
"""File names that VMMs give to their hybrid-vsock sockets."""
_NOT_ENTERED: Final = frozenset({"mounts", "passthrough", "rootfs", "shared"})
"""Directories of containers' files; they may be large."""
_DEPTH: Final = 6
_MOST_ENTRIES: Final = 50_000
_READ_LIMIT: Final = 4 << 20
_ASIDE: Final = len(".vmm")
_LISTENS: Final = 1 << 16
_STREAM: Final = 1
_ARPHRD_VSOCKMON: Final = 826
_IFF_UP: Final = 1
_GET_LOCAL_CID: Final = 0x7B9
_CID_HOST: Final = 2
_CID_LAST: Final = 0xFFFFFFFE
_NET_ADMIN, _NET_RAW, _SYS_PTRACE, _SYSLOG = 12, 13, 19, 34


def _bind() -> None:
    """Take a Unix socket of an abstract name of the kernel's choice; raises OSError."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.bind("")


def _local_cid(device: Path) -> int:
    """The context id of this machine; raises OSError."""
    with device.open("rb") as file:
        answer = fcntl.ioctl(file, _GET_LOCAL_CID, bytes(4))
    (cid,) = struct.unpack("I", answer)
    return int(cid)


def _version(program: str) -> str:
    """What a program says with --version; raises OSError."""
    try:
        ended = subprocess.run(
            [program, "--version"], capture_output=True, check=False, timeout=10, text=True,
            errors="backslashreplace",
        )  # fmt: skip
    except subprocess.SubprocessError:
        return ""
    return ended.stdout


@dataclass(frozen=True, slots=True)
class Host:
    """The machine that is looked at. Tests give another root, and other answers."""

    root: Path = Path("/")
    bind: Callable[[], None] = _bind
    alive: Callable[[Path], bool] = is_alive
    local_cid: Callable[[Path], int] = _local_cid
    which: Callable[[str], str | None] = shutil.which
    version: Callable[[str], str] = _version
    access: Callable[[Path, int], bool] = os.access
    refusal: Callable[[int], str | None] = refusal
    release: str = field(default_factory=platform.release)
    has_vsock: bool = hasattr(socket, "AF_VSOCK")

    def text(self, path: str) -> str | None:
        """The beginning of a file, None when it cannot be read."""
        try:
            with (self.root / path).open("rb") as file:
                return file.read(_READ_LIMIT).decode("utf-8", "backslashreplace")
        except OSError:
            return None

    def capable(self, capability: int) -> bool:
        """Whether this process has a capability, by its number."""
        found = re.search(r"^CapEff:\s*([0-9a-f]+)$", self.text("proc/self/status") or "", re.M)
        return found is not None and bool(int(found[1], 16) >> capability & 1)


@dataclass(frozen=True, slots=True)
class Point:
    """A place to watch from. `why` is None where it works; `way` is what to do then or else."""

    name: str
    title: str
    found: tuple[str, ...]
    why: str | None
    way: str

    @property
    def works(self) -> bool:
        return self.why is None


@dataclass(frozen=True, slots=True)
class VmmSocket:
    """What looks like a VMM's hybrid-vsock socket.

    `alive` says whether somebody listens, None when that cannot be told from here; `obstacle` what
    is against `record --in-place`, None when nothing is.
    """

    path: str
    alive: bool | None
    obstacle: str | None


@dataclass(frozen=True, slots=True)
class Examination:
    """All that was found out; `tools` are programs that other commands can use, by version."""

    points: list[Point]
    sockets: list[VmmSocket]
    capabilities: dict[str, bool]
    tools: dict[str, str | None]


def examine(host: Host) -> Examination:
    """Look at everything."""
    sockets = vmm_sockets(host)
    return Examination(
        points=[
            on_a_socket(host, sockets),
            over_vsock(host),
            on_vsockmon(host),
            in_guest_memory(host),
            in_the_journal(host),
            in_kernel_messages(host),
        ],
        sockets=sockets,
        capabilities={
            "net_admin": host.capable(_NET_ADMIN),
            "net_raw": host.capable(_NET_RAW),
            "syslog": host.capable(_SYSLOG),
            "sys_ptrace": host.capable(_SYS_PTRACE),
        },
        tools={"tshark": _tshark(host)},
    )


# The proxy on a Unix socket.


def vmm_sockets(host: Host) -> list[VmmSocket]:
    """Sockets that look like a VMM's, by their files and by the kernel's list of listeners."""
    found: set[str] = set()
    for place in _VMM_PLACES:
        found.update(_socket_files(host, place))
    found.update(_listeners(host))
    return [_judged(host, path) for path in sorted(found)]


def _socket_files(host: Host, place: str) -> Iterator[str]:
    waiting = [(host.root / place, 0)]
    left = _MOST_ENTRIES
    while waiting and left > 0:
        directory, depth = waiting.pop()
        try:
            with os.scandir(directory) as entries:
                for entry in entries:
                    left -= 1
                    if entry.is_dir(follow_symlinks=False):
                        if depth < _DEPTH and entry.name not in _NOT_ENTERED:
                            waiting.append((Path(entry.path), depth + 1))
                    elif _VMM_SOCKET.fullmatch(entry.name) and stat.S_ISSOCK(
                        entry.stat(follow_symlinks=False).st_mode
                    ):
                        yield f"/{Path(entry.path).relative_to(host.root)}"
                    if left <= 0:
                        break
        except OSError:
            continue  # not there, or not ours to read


def _listeners(host: Host) -> Iterator[str]:
    """Paths in /proc/net/unix that a stream socket listens at."""
    for line in (host.text("proc/net/unix") or "").splitlines()[1:]:
        columns = line.split(maxsplit=7)
        if len(columns) < 8 or not columns[7].startswith("/"):
            continue
        try:
            flags, kind = int(columns[3], 16), int(columns[4], 16)
        except ValueError:
            continue
        name = columns[7].rpartition("/")[2]
        if flags & _LISTENS and kind == _STREAM and _VMM_SOCKET.fullmatch(name):
            yield columns[7]


def _judged(host: Host, path: str) -> VmmSocket:
    file = host.root / path.lstrip("/")
    alive: bool | None
    try:
        alive = host.alive(file)
    except OSError as error:
        return VmmSocket(path, None, f"it cannot be reached: {error.strerror or error}")
    obstacle = None
    if not alive:
        obstacle = "nobody listens there"
    elif len(os.fsencode(path)) + _ASIDE > UNIX_PATH_LIMIT:
        obstacle = "its path is too long: go to its directory and give the name alone"
    elif not host.access(file.parent, os.W_OK):
        obstacle = "its directory cannot be written: be its owner, or root"
    return VmmSocket(path, alive, obstacle)


def on_a_socket(host: Host, sockets: list[VmmSocket]) -> Point:
    """Can a proxy listen?"""
    name, title = "socket", "the proxy on a VMM's Unix socket"
    found = tuple(
        f"{each.path}: {each.obstacle or 'can be recorded in place'}" for each in sockets
    ) or ("no socket of a VMM was found; give its path if you know it",)
    try:
        host.bind()
    except OSError as error:
        return Point(
            name, title, found, f"sockets cannot be made here: {error.strerror or error}",
            "leave the container or sandbox that forbids it",
        )  # fmt: skip
    open_to_us = [each.path for each in sockets if each.obstacle is None]
    vmm = shlex.quote(open_to_us[0]) if open_to_us else "vmm.sock"
    return Point(name, title, found, None, f"upcall-trace record --in-place {vmm} -o trace.upcap")


# vsock of the host kernel.


def over_vsock(host: Host) -> Point:
    """Can a proxy reach a guest that hangs on the kernel's vhost-vsock?"""
    device = host.root / "dev/vsock"
    protocols = host.text("proc/net/protocols") or ""
    loaded = device.exists() or re.search(r"^AF_VSOCK\b", protocols, re.M) is not None
    vhost = (host.root / "dev/vhost-vsock").exists()
    cid = None
    found = ["vsock is in this kernel" if loaded else "vsock is not loaded"]
    found.append("/dev/vhost-vsock is there" if vhost else "/dev/vhost-vsock is not there")
    if loaded:
        try:
            cid = host.local_cid(device)
            own = f"own context id {cid}" if cid <= _CID_LAST else "no context id of its own"
            found.append(own)
        except OSError as error:
            found.append(f"own context id unknown: {error.strerror or error}")
    why = None
    way = "upcall-trace record --listen trace.sock --upstream vsock://CID -o trace.upcap"
    if not host.has_vsock:
        why, way = "this Python was built without vsock", "use a Python with socket.AF_VSOCK"
    elif not vhost and cid is not None and _CID_HOST < cid <= _CID_LAST:
        why = "this machine is itself a guest, and has none of its own"
        way = "run the proxy on its host, or record in here from vsockmon"
    elif not vhost and cid != _CID_HOST:
        why = "no guest can hang on this kernel's vsock"
        way = "on a host of such guests, as root: modprobe vhost_vsock"
    return Point("vsock", "the proxy to a guest on the kernel's vsock", tuple(found), why, way)


# vsockmon.


def on_vsockmon(host: Host) -> Point:
    """Can this machine's own vsock be watched?"""
    name, title = "vsockmon", "a vsockmon interface, inside the guest"
    interfaces = _vsockmon_interfaces(host)
    option = kernel_option(host, "VSOCKMON", "vsockmon")
    told = {"y": "built in", "m": "a module", "n": "not built", None: "unknown"}[option]
    found = [f"CONFIG_VSOCKMON of this kernel: {told}"]
    found += [f"{each} is {'up' if up else 'down'}" for each, up in interfaces.items()]
    ready = [each for each, up in interfaces.items() if up]
    first = next(iter([*ready, *interfaces]), "vsockmon0")
    why = None
    way = f"upcall-trace record --interface {first} -o guest.upcap"
    set_up = f"ip link set {first} up"
    if not interfaces and option == "n":
        why = "this kernel was built without vsockmon"
        way = "in a guest: build its kernel with it; upcall-trace docs vantage-points says how"
    elif not interfaces:
        why = "there is no vsockmon interface"
        way = f"as root: ip link add {first} type vsockmon && {set_up}"
    elif not ready:
        why, way = f"{first} is down", f"as root: {set_up}"
    elif not host.capable(_NET_RAW):
        why = "packets may not be captured by this user"
        way = f"as root, or with CAP_NET_RAW: {way}"
    return Point(name, title, tuple(found), why, way)


def _vsockmon_interfaces(host: Host) -> dict[str, bool]:
    """Interface -> whether it is up."""
    interfaces: dict[str, bool] = {}
    try:
        names = sorted(path.name for path in (host.root / "sys/class/net").iterdir())
    except OSError:
        return {}
    for name in names:
        if (host.text(f"sys/class/net/{name}/type") or "").strip() == str(_ARPHRD_VSOCKMON):
            flags = (host.text(f"sys/class/net/{name}/flags") or "").strip()
            interfaces[name] = bool(flags) and bool(int(flags, 0) & _IFF_UP)
    return interfaces


def kernel_option(host: Host, option: str, module: str) -> str | None:
    """`y`, `m` or `n` as this kernel was built, None when nothing tells."""
    if (host.root / "sys/module" / module).exists():
        return "m"
    config = _kernel_config(host)
    if config is not None:
        found = re.search(rf"^CONFIG_{option}=([ym])$", config, re.M)
        return found[1] if found else "n"
    for listing, answer in (("builtin", "y"), ("dep", "m")):
        text = host.text(f"lib/modules/{host.release}/modules.{listing}")
        if text is not None and re.search(rf"/{module}\.ko\b", text):
            return answer
    return None


def _kernel_config(host: Host) -> str | None:
    try:
        with gzip.open(host.root / "proc/config.gz") as file:
            return file.read(_READ_LIMIT).decode("utf-8", "backslashreplace")
    except (OSError, EOFError, zlib.error):
        pass  # most kernels do not carry it
    for path in (f"boot/config-{host.release}", f"lib/modules/{host.release}/config"):
        text = host.text(path)
        if text is not None:
            return text
    return None


# Guest memory.


def in_guest_memory(host: Host) -> Point:
    """Can the memory of a VM that runs here be read?"""
    name, title = "memory", "the memory of a running VM, stock Dragonball's included"
    proc = host.root / "proc"
    running = vmm_processes(proc)
    refused = {vmm.pid: host.refusal(vmm.pid) for vmm in running if vmm.holds_a_guest}
    hidden = {vmm.pid: "" for vmm in running if vmm.mappings is None}
    found = [about(vmm, proc, (refused | hidden).get(vmm.pid)) for vmm in running]
    open_to_us = [pid for pid, why in refused.items() if why is None]
    if open_to_us:
        way = f"upcall-trace peek --pid {open_to_us[0]}"
        return Point(name, title, tuple(found), None, way)
    if not refused and not hidden:
        return Point(
            name, title, tuple(found), "no VM runs here, as far as this process can see",
            "run it on the VMs' host; in a container, with the host's PID namespace",
        )  # fmt: skip
    why = "; ".join(obstacles(proc, host.root / "sys", host.capable(_SYS_PTRACE)))
    return Point(
        name, title, tuple(found), why or "their memory may not be read by this user",
        "run it as the VMM's user or root, with CAP_SYS_PTRACE, as in a privileged debug pod; "
        "upcall-trace docs guest-memory says how",
    )  # fmt: skip


# Logs.


def in_the_journal(host: Host) -> Point:
    """Is there a journal, where Kata and Dragonball usually log?"""
    name, title = "journal", "the VMM's log in this machine's journal"
    places = [
        path for path in ("var/log/journal", "run/log/journal") if (host.root / path).is_dir()
    ]
    files = {path: _journal_files(host.root / path) for path in places}
    readable = [path for path in places if any(host.access(file, os.R_OK) for file in files[path])]
    found = tuple(
        f"/{path}: "
        + ("readable" if path in readable else "not readable" if files[path] else "empty")
        for path in places
    )
    why = None
    way = "journalctl -t kata -o json > vmm.log; upcall-trace diagnose --vmm-log vmm.log"
    if not places:
        why, way = "there is no journal", "find where the VMM logs to, and give that file"
    elif host.which("journalctl") is None:
        why, way = "journalctl is not installed", "copy the journal to where it is"
    elif not any(files.values()):
        why, way = "the journal is empty", "find where the VMM logs to, and give that file"
    elif not readable:
        why, way = "the journal is not for this user", "be root, or of the group systemd-journal"
    return Point(name, title, found, why, way)


def _journal_files(journal: Path) -> list[Path]:
    """The machine's own journal: its directories may be for more people than its files."""
    return [*journal.glob("*.journal"), *journal.glob("*/system.journal")]


def in_kernel_messages(host: Host) -> Point:
    """Can this kernel's messages be read? In a guest they are what its console says."""
    name, title = "console", "the kernel's messages: in a guest, what its console says"
    restricted = (host.text("proc/sys/kernel/dmesg_restrict") or "0").strip() == "1"
    kmsg = host.root / "dev/kmsg"
    found = [f"dmesg is {'for root' if restricted else 'for everybody'}"]
    found.append("/dev/kmsg is there" if kmsg.exists() else "/dev/kmsg is not there")
    why = None
    way = "in the guest: dmesg > console.log; upcall-trace diagnose --console console.log"
    if restricted and not host.capable(_SYSLOG):
        why, way = "they are not for this user", "be root, or have CAP_SYSLOG"
    elif not kmsg.exists() and host.which("dmesg") is None:
        why, way = "there is neither /dev/kmsg nor dmesg", "take the console's log from the VMM"
    elif not host.access(kmsg, os.R_OK) and host.which("dmesg") is None:
        why, way = "/dev/kmsg is not for this user", "be root, or install dmesg"
    return Point(name, title, tuple(found), why, way)


# Programs that other commands can use.


def _tshark(host: Host) -> str | None:
    program = host.which("tshark")
    if program is None:
        return None
    try:
        found = re.search(r"\d+(?:\.\d+)+", host.version(program))
    except OSError:
        return None
    return found[0] if found else "unknown"
