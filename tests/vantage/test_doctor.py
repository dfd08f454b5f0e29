"""What the doctor concludes from machines of every kind, each a small tree of files."""

from __future__ import annotations

import errno
import gzip
import os
import socket
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Final

import pytest

from upcall_trace.vantage.doctor import (
    Host,
    Point,
    examine,
    in_guest_memory,
    in_kernel_messages,
    in_the_journal,
    kernel_option,
    on_a_socket,
    on_vsockmon,
    over_vsock,
    vmm_sockets,
)

NET_RAW: Final = 1 << 13
SYSLOG: Final = 1 << 34
UNIX_HEADING: Final = "Num       RefCount Protocol Flags    Type St Inode Path\n"
Answer = Callable[[Path], bool]


def nobody(_: Path) -> bool:
    return False


def somebody(_: Path) -> bool:
    return True


def unknown_cid(_: Path) -> int:
    raise PermissionError(errno.EACCES, "Permission denied")


@pytest.fixture
def bare(tmp_path: Path) -> Host:
    """A machine with nothing at all."""
    return Host(
        root=tmp_path,
        bind=lambda: None,
        alive=somebody,
        local_cid=unknown_cid,
        which=lambda _: None,
        version=lambda _: "",
        access=lambda path, _: path.exists(),
        release="6.1.0-test",
        has_vsock=True,
    )


def put(host: Host, path: str, text: str | bytes = "") -> None:
    """A file of the machine."""
    file = host.root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(text.encode() if isinstance(text, str) else text)


def grant(host: Host, capabilities: int) -> None:
    put(host, "proc/self/status", f"Name:\tx\nCapPrm:\t0\nCapEff:\t{capabilities:016x}\n")


@pytest.fixture
def sockets(bare: Host) -> Callable[[str], None]:
    """Makes sockets in the machine's tree; the path that counts is short, pytest's is not."""

    def make(path: str) -> None:
        file = bare.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        with socket.socket(socket.AF_UNIX) as made:
            here = Path.cwd()
            os.chdir(file.parent)
            try:
                made.bind(file.name)
            finally:
                os.chdir(here)

    return make


# Sockets of VMMs.


def test_sockets_are_found_by_name_where_vmms_put_them(
    bare: Host, sockets: Callable[[str], None]
) -> None:
    found = [
        "run/kata-containers/a/kata.hvsock", "run/kata/a/root/kata.hvsock",
        "run/vc/firecracker/a/root/kata.hvsock", "run/vc/vm/a/clh.sock",
        "srv/jailer/firecracker/a/root/v.sock",
    ]  # fmt: skip
    for path in (
        *found, "run/kata/a/root/kata.hvsock_5000", "run/kata/a/api.sock", "tmp/kata.hvsock",
        "run/kata-containers/shared/a/kata.hvsock", "run/vc/1/2/3/4/5/6/7/kata.hvsock",
    ):  # fmt: skip
        sockets(path)
    put(bare, "run/kata/b/kata.hvsock", "not a socket")
    assert [each.path for each in vmm_sockets(bare)] == [f"/{path}" for path in found]


def test_listeners_in_the_kernel_s_list_count_and_nothing_else_in_it(bare: Host) -> None:
    rows = [
        "0: 00000002 00000000 00010000 0001 01 101 /somewhere/else/kata.hvsock",
        "0: 00000002 00000000 00010000 0001 01 102 /with a blank/vm.vsock",
        "0: 00000003 00000000 00000000 0001 03 103 /connected/kata.hvsock",
        "0: 00000002 00000000 00010000 0005 01 104 /seqpacket/kata.hvsock",
        "0: 00000002 00000000 00010000 0001 01 105 /run/dbus/system_bus_socket",
        "0: 00000002 00000000 00010000 0001 01 106 @/abstract/kata.hvsock",
        "0: 00000002 00000000 garbage 0001 01 107 /garbage/kata.hvsock",
        "0: 00000002 00000000 00010000 0001 01 108",
    ]
    put(bare, "proc/net/unix", UNIX_HEADING + "\n".join(rows))
    assert [each.path for each in vmm_sockets(bare)] == [
        "/somewhere/else/kata.hvsock", "/with a blank/vm.vsock",
    ]  # fmt: skip


def listener(host: Host, path: str) -> None:
    """Somebody listens at `path`, as the kernel tells it."""
    row = f"0: 00000002 00000000 00010000 0001 01 101 {path}\n"
    put(host, "proc/net/unix", UNIX_HEADING + row)


LONGEST: Final = f"/{'a' * 90}/kata.hvsock"
"""With the ending that taking its place needs, as many bytes as the kernel allows."""


@pytest.mark.parametrize(
    ("path", "alive", "writable", "obstacle"),
    [
        ("/vm/kata.hvsock", somebody, True, None),
        ("/vm/kata.hvsock", nobody, True, "nobody listens there"),
        ("/vm/kata.hvsock", somebody, False, "directory cannot be written"),
        (LONGEST, somebody, True, None),
        (f"/a{LONGEST[1:]}", somebody, True, "path is too long"),
    ],
    ids=["good", "dead", "not ours", "long", "too long"],
)
def test_what_stands_against_recording_in_place(
    bare: Host, path: str, alive: Answer, writable: bool, obstacle: str | None
) -> None:
    listener(bare, path)
    asked: list[Path] = []

    def access(asked_path: Path, mode: int) -> bool:
        asked.append(asked_path)
        return writable and mode == os.W_OK

    (found,) = vmm_sockets(replace(bare, alive=alive, access=access))
    assert found.path == path
    assert found.alive is (alive is somebody)
    assert (found.obstacle is None) == (obstacle is None)
    assert (obstacle or "") in (found.obstacle or "")
    assert {*asked} <= {bare.root / path[1:].rpartition("/")[0]}


def test_a_socket_that_cannot_be_reached_is_told_with_the_reason(bare: Host) -> None:
    listener(bare, "/vm/kata.hvsock")

    def alive(_: Path) -> bool:
        raise PermissionError(errno.EACCES, "Permission denied")

    (found,) = vmm_sockets(replace(bare, alive=alive))
    assert found.alive is None
    assert found.obstacle == "it cannot be reached: Permission denied"


def test_the_real_probe_makes_no_connection(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as vmm:
        here = Path.cwd()
        directory = tmp_path / "run" / "kata"
        directory.mkdir(parents=True)
        os.chdir(directory)
        try:
            vmm.bind("kata.hvsock")
            vmm.listen()
            (found,) = vmm_sockets(Host(root=tmp_path))
            assert found.alive
            vmm.setblocking(False)
            with pytest.raises(BlockingIOError):
                vmm.accept()
        finally:
            os.chdir(here)


# The places to watch from. Each way out names a command.


def check(point: Point, works: bool, why: str, way: str) -> None:
    assert point.works is works
    assert why in (point.why or "")
    assert way in point.way
    assert point.title


def test_a_proxy_needs_a_socket_and_suggests_one_that_it_can_take(bare: Host) -> None:
    check(on_a_socket(bare, []), True, "", "record --in-place vmm.sock -o")
    assert "no socket of a VMM was found" in on_a_socket(bare, []).found[0]
    listener(bare, "/with a blank/kata.hvsock")
    put(bare, "with a blank/x")
    point = on_a_socket(bare, vmm_sockets(bare))
    check(point, True, "", "--in-place '/with a blank/kata.hvsock' -o")
    assert point.found == ("/with a blank/kata.hvsock: can be recorded in place",)
    dead = replace(bare, alive=nobody)
    check(on_a_socket(dead, vmm_sockets(dead)), True, "", "--in-place vmm.sock")

    def forbidden() -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    host = replace(bare, bind=forbidden)
    check(on_a_socket(host, []), False, "Operation not permitted", "sandbox")


@pytest.mark.parametrize(
    ("files", "cid", "works", "why", "way"),
    [
        (["dev/vsock", "dev/vhost-vsock"], 2, True, "", "--upstream vsock://CID"),
        (["dev/vhost-vsock"], None, True, "", "--upstream vsock://CID"),
        (["dev/vsock"], 2, True, "", "--upstream vsock://CID"),
        (["dev/vsock"], 3, False, "itself a guest", "vsockmon"),
        (["dev/vsock", "dev/vhost-vsock"], 3, True, "", "--upstream vsock://CID"),
        (["dev/vsock"], 0xFFFFFFFF, False, "no guest can hang", "modprobe vhost_vsock"),
        (["dev/vsock"], None, False, "no guest can hang", "modprobe vhost_vsock"),
        ([], 2, False, "no guest can hang", "modprobe vhost_vsock"),
    ],
)  # fmt: skip
def test_the_kernel_s_vsock(
    bare: Host, files: list[str], cid: int | None, works: bool, why: str, way: str
) -> None:
    for file in files:
        put(bare, file)
    host = bare if cid is None else replace(bare, local_cid=lambda _: cid)
    check(over_vsock(host), works, why, way)


def test_the_kernel_s_vsock_is_told_with_its_facts(bare: Host) -> None:
    put(bare, "proc/net/protocols", "protocol size\nAF_VSOCK 1240\n")
    assert over_vsock(bare).found == (
        "vsock is in this kernel", "/dev/vhost-vsock is not there",
        "own context id unknown: Permission denied",
    )  # fmt: skip
    assert over_vsock(replace(bare, local_cid=lambda _: 7)).found[2] == "own context id 7"
    none = replace(bare, local_cid=lambda _: 0xFFFFFFFF)
    assert over_vsock(none).found[2] == "no context id of its own"
    check(over_vsock(replace(bare, has_vsock=False)), False, "this Python", "socket.AF_VSOCK")


def interface(host: Host, name: str, kind: int, flags: str = "0x1003") -> None:
    put(host, f"sys/class/net/{name}/type", f"{kind}\n")
    put(host, f"sys/class/net/{name}/flags", f"{flags}\n")


def test_vsockmon_works_with_an_interface_that_is_up_and_the_right(bare: Host) -> None:
    interface(bare, "eth0", 1)
    interface(bare, "mon1", 826, "0x80")
    interface(bare, "mon2", 826, "0x81")
    grant(bare, NET_RAW)
    point = on_vsockmon(bare)
    check(point, True, "", "upcall-trace record --interface mon2 -o")
    assert point.found[1:] == ("mon1 is down", "mon2 is up")


def test_what_vsockmon_lacks_is_told_step_by_step(bare: Host) -> None:
    check(on_vsockmon(bare), False, "no vsockmon interface", "ip link add vsockmon0 type vsockmon")
    put(bare, f"boot/config-{bare.release}", "CONFIG_VSOCKETS=y\n# CONFIG_VSOCKMON is not set\n")
    check(on_vsockmon(bare), False, "built without vsockmon", "docs vantage-points")
    interface(bare, "mon0", 826, "0x80")
    check(on_vsockmon(bare), False, "mon0 is down", "ip link set mon0 up")
    interface(bare, "mon0", 826)
    check(on_vsockmon(bare), False, "may not be captured", "CAP_NET_RAW")
    grant(bare, ~NET_RAW & (1 << 41) - 1)
    check(on_vsockmon(bare), False, "may not be captured", "CAP_NET_RAW")
    grant(bare, NET_RAW)
    check(on_vsockmon(bare), True, "", "record --interface mon0")


@pytest.mark.parametrize(
    ("path", "content", "expected"),
    [
        ("nothing", b"", None),
        ("proc/config.gz", b"CONFIG_VSOCKMON=y\n", "y"),
        ("proc/config.gz", b"CONFIG_VSOCKMON=m\n", "m"),
        ("proc/config.gz", b"# CONFIG_VSOCKMON is not set\n", "n"),
        ("proc/config.gz", b"CONFIG_MY_VSOCKMON=y\n", "n"),
        ("boot/config-6.1.0-test", b"CONFIG_VSOCKMON=m\n", "m"),
        ("boot/config-6.2.0", b"CONFIG_VSOCKMON=m\n", None),
        ("lib/modules/6.1.0-test/config", b"CONFIG_VSOCKMON=y\n", "y"),
        ("lib/modules/6.1.0-test/modules.dep", b"kernel/drivers/net/vsockmon.ko.zst:\n", "m"),
        ("lib/modules/6.1.0-test/modules.builtin", b"kernel/drivers/net/vsockmon.ko\n", "y"),
        ("lib/modules/6.1.0-test/modules.dep", b"kernel/drivers/net/nlmon.ko:\n", None),
        ("sys/module/vsockmon/refcnt", b"0\n", "m"),
    ],
)
def test_how_the_kernel_was_built(
    bare: Host, path: str, content: bytes, expected: str | None
) -> None:
    put(bare, path, gzip.compress(content) if path.endswith(".gz") else content)
    assert kernel_option(bare, "VSOCKMON", "vsockmon") == expected


@pytest.mark.parametrize("cut", [5, 20, -12])
def test_a_damaged_list_of_options_tells_nothing(bare: Host, cut: int) -> None:
    put(bare, "proc/config.gz", gzip.compress(b"CONFIG_VSOCKMON=y\n" * 99)[:cut])
    assert kernel_option(bare, "VSOCKMON", "vsockmon") is None
    put(bare, "proc/config.gz", b"no gzip")
    assert kernel_option(bare, "VSOCKMON", "vsockmon") is None


def test_the_journal(bare: Host) -> None:
    check(in_the_journal(bare), False, "there is no journal", "give that file")
    (bare.root / "var/log/journal/abc").mkdir(parents=True)
    tools = replace(bare, which=lambda name: f"/bin/{name}")
    check(in_the_journal(bare), False, "journalctl is not installed", "copy")
    check(in_the_journal(tools), False, "the journal is empty", "give that file")
    put(bare, "var/log/journal/abc/system.journal")
    check(in_the_journal(tools), True, "", "upcall-trace diagnose --vmm-log")
    assert in_the_journal(tools).found == ("/var/log/journal: readable",)
    secret = replace(tools, access=lambda _, mode: mode != os.R_OK)
    check(in_the_journal(secret), False, "not for this user", "systemd-journal")


def test_the_kernel_s_messages(bare: Host) -> None:
    check(in_kernel_messages(bare), False, "neither /dev/kmsg nor dmesg", "from the VMM")
    tools = replace(bare, which=lambda name: f"/bin/{name}")
    check(in_kernel_messages(tools), True, "", "upcall-trace diagnose --console")
    put(bare, "dev/kmsg")
    check(in_kernel_messages(bare), True, "", "upcall-trace diagnose --console")
    closed = replace(bare, access=lambda *_: False)
    check(in_kernel_messages(closed), False, "/dev/kmsg is not for this user", "dmesg")
    put(bare, "proc/sys/kernel/dmesg_restrict", "1\n")
    check(in_kernel_messages(tools), False, "not for this user", "CAP_SYSLOG")
    grant(bare, SYSLOG)
    check(in_kernel_messages(tools), True, "", "upcall-trace diagnose --console")


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("TShark (Wireshark) 4.0.17 (Git v4.0.17 packaged as 4.0.17-0+deb12u1).\n", "4.0.17"),
        ("no number", "unknown"),
    ],
)
def test_tshark_is_asked_for_its_version(bare: Host, said: str, expected: str) -> None:
    assert examine(bare).tools == {"tshark": None}
    asked: list[str] = []

    def version(program: str) -> str:
        asked.append(program)
        return said

    host = replace(bare, which=lambda name: f"/opt/{name}", version=version)
    assert examine(host).tools == {"tshark": expected}
    assert asked == ["/opt/tshark"]


def test_an_examination_of_nothing_has_a_way_for_everything(bare: Host) -> None:
    examination = examine(bare)
    assert [point.name for point in examination.points] == [
        "socket", "vsock", "vsockmon", "memory", "journal", "console",
    ]  # fmt: skip
    assert [point.works for point in examination.points] == [True] + [False] * 5
    assert examination.capabilities == dict.fromkeys(
        ("net_admin", "net_raw", "syslog", "sys_ptrace"), False
    )
    assert all(point.way for point in examination.points)


def test_looking_changes_nothing(bare: Host) -> None:
    for path in ("dev/vsock", "dev/vhost-vsock", "dev/kmsg", "proc/net/unix"):
        put(bare, path)
    before = sorted(bare.root.rglob("*"))
    examine(bare)
    assert sorted(bare.root.rglob("*")) == before


@pytest.mark.skipif(sys.platform != "linux", reason="the tree of Linux")
def test_this_machine_can_be_examined() -> None:
    assert on_a_socket(Host(), []).works
    assert len(examine(Host()).points) == 6


# Guest memory.

SHIM: Final = "/opt/kata/bin/containerd-shim-kata-v2 -namespace k8s.io -id "
SANDBOX: Final = "5a5a" * 16
LARGE: Final = "7f0000000000-7f0040000000 rw-s 00000000 00:01 77 /memfd:m\n"


def with_vmm(host: Host, command: str = f"{SHIM}{SANDBOX}", maps: str = LARGE) -> Host:
    """The machine with a VMM as process 7, whose memory may be read."""
    put(host, "proc/7/cmdline", command.replace(" ", "\0"))
    put(host, "proc/7/maps", maps)
    return replace(host, refusal=lambda _: None)


def test_a_vm_whose_memory_can_be_read_is_named_with_its_sandbox(bare: Host) -> None:
    point = in_guest_memory(with_vmm(bare))
    assert point.works
    assert point.found == (
        f"process 7: Dragonball, sandbox {SANDBOX}, 1.0 GiB in 262144 pages: can be read",
    )
    assert point.way == "upcall-trace peek --pid 7"


def test_without_a_vm_there_is_nothing_to_read(bare: Host) -> None:
    point = in_guest_memory(bare)
    assert point.why == "no VM runs here, as far as this process can see"
    assert "PID namespace" in point.way


def test_what_forbids_to_read_a_vms_memory_is_told(bare: Host) -> None:
    host = replace(with_vmm(bare), refusal=lambda _: "no")
    put(host, "proc/sys/kernel/yama/ptrace_scope", "1\n")
    put(host, "proc/self/uid_map", "0 100000 65536\n")
    put(host, "sys/fs/selinux/enforce", "1")
    put(host, "proc/self/attr/current", "docker-default (enforce)\n")
    point = in_guest_memory(host)
    assert point.why == (
        "CAP_SYS_PTRACE is missing; kernel.yama.ptrace_scope is 1: only a process's own parents "
        "may read it; this is a user namespace of its own; SELinux is enforcing; AppArmor confines "
        "this process: docker-default (enforce)"
    )
    assert "privileged debug pod" in point.way
    assert point.found[0].endswith(": may not be read")


def test_a_confidential_guest_is_told_as_one(bare: Host) -> None:
    command = "/usr/bin/qemu-system-x86_64 -object sev-guest,id=sev0"
    (found,) = in_guest_memory(with_vmm(bare, command)).found
    assert found.endswith("its guest's memory is encrypted")
