"""The lab's pieces: found, missing, and got, by programs that are small scripts here."""

from __future__ import annotations

import ctypes.util
import os
import stat
import threading
from pathlib import Path
from typing import Final

import pytest

from upcall_trace.errors import Unreachable, WrongUsage
from upcall_trace.lab.cache import cache, held
from upcall_trace.lab.pieces import (
    VHOST_VERSION,
    Kernel,
    find_kernel,
    find_vhost,
    install,
    run,
    survey,
)

RELEASE: Final = "6.1.0-99-cloud-amd64"
SETUP: Final = "upcall-trace lab setup --install"
_SYSTEM: Final = "/usr/sbin:/usr/bin:/sbin:/bin"
SCRIPTS: Final = {
    "qemu-system-x86_64": "exit 1",
    "setpriv": "exit 1",
    "make": "exit 1",
    "strip": "exit 1",
    "cpio": "exit 1",
    "gcc": "echo /usr/lib/libc.a",
    "apt-cache": """
        case "$2" in
        linux-image-cloud-amd64)
            printf '%s\\n' "$2" '  Depends: linux-image-RELEASE' '  Recommends: linux-perf' ;;
        linux-headers-RELEASE)
            printf '  Depends: %s\\n' linux-headers-6.1.0-99-common linux-compiler-gcc-12-x86 \\
                linux-kbuild-6.1 libc6 '<linux-virtual>' ;;
        esac""",
    "apt-get": """
        test "$1" = download || exit 0
        for package; do case "$package" in -q | download) ;; *) : >"$package.deb" ;; esac; done""",
    "dpkg-deb": """
        headers="$3/usr/src/linux-headers-RELEASE"
        case "$2" in
        */linux-image-*) mkdir -p "$3/boot" && : >"$3/boot/vmlinuz-RELEASE" ;;
        */linux-headers-RELEASE.deb)
            mkdir -p "$headers"
            echo include /usr/src/linux-headers-6.1.0-99-common/Makefile >"$headers/Makefile" ;;
        */busybox-static.deb) mkdir -p "$3/bin" && : >"$3/bin/busybox" ;;
        esac""",
    "cargo": """
        while [ "$1" != --root ]; do shift; done
        mkdir -p "$2/bin" && : >"$2/bin/vhost-device-vsock\"""",
}
"""Programs that do as much of their work as is looked at afterwards."""


class Computer:
    """A computer with programs of our choice, and a cache of its own."""

    def __init__(self, directory: Path) -> None:
        self.programs = directory / "bin"
        self.programs.mkdir()
        self.log = directory / "ran"
        self.said: list[str] = []

    def add(self, *names: str) -> None:
        for name in names:
            self.script(name, SCRIPTS[name].replace("RELEASE", RELEASE))

    def script(self, name: str, text: str) -> None:
        """A program that notes that it ran, and then runs `text`."""
        program = self.programs / name
        program.write_text(
            f'#!/bin/sh\nPATH={_SYSTEM}\necho "{name} $*" >>{self.log}\n{text}\n', "utf-8"
        )
        program.chmod(0o755)

    def remove(self, *names: str) -> None:
        for name in names:
            (self.programs / name).unlink()

    def ran(self, name: str = "") -> list[str]:
        """What was run since this was asked last, of this program only if one is named."""
        text = self.log.read_text("utf-8") if self.log.exists() else ""
        self.log.write_text("")
        return [line for line in text.splitlines() if line.startswith(name)]

    def install(self) -> None:
        install(self.said.append, building=find_kernel() is None)

    def refuses(self) -> str:
        """Why the pieces cannot be got."""
        with pytest.raises(Unreachable) as told:
            self.install()
        assert "\n" not in str(told.value)
        return str(told.value)


@pytest.fixture
def computer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Computer:
    """A computer with all programs and no pieces, used by somebody who is not root."""
    computer = Computer(tmp_path)
    computer.add(*SCRIPTS)
    monkeypatch.setenv("PATH", str(computer.programs))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(ctypes.util, "find_library", lambda name: f"lib{name}.so.1")
    return computer


@pytest.fixture
def as_root(computer: Computer, monkeypatch: pytest.MonkeyPatch) -> Computer:
    """The same, used by root."""
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    return computer


def unpack(release: str, age_s: int = 0) -> Path:
    """An unpacked kernel, with so old an image."""
    image = cache() / "kernel" / release / "boot" / f"vmlinuz-{release}"
    image.parent.mkdir(parents=True)
    image.touch()
    os.utime(image, (1_700_000_000 - age_s, 1_700_000_000 - age_s))
    return image


def compiled() -> Path:
    """Our own vsock backend."""
    path = cache() / f"vhost-device-vsock-{VHOST_VERSION}" / "bin" / "vhost-device-vsock"
    path.parent.mkdir(parents=True)
    path.touch()
    return path


# What is there.


def test_everything_that_is_missing_is_reported_with_its_remedy(computer: Computer) -> None:
    computer.remove("qemu-system-x86_64", "setpriv")
    assert {piece.name: piece.remedy for piece in survey() if piece.where is None} == {
        "qemu-system-x86_64": f"{SETUP}, or install qemu-system-x86",
        "setpriv": f"{SETUP}, or install util-linux",
        "vhost-device-vsock": SETUP,
        "guest kernel": SETUP,
    }


def test_what_is_there_is_reported_with_its_place(computer: Computer) -> None:
    backend, image = compiled(), unpack(RELEASE)
    assert {piece.name: piece.where for piece in survey()} == {
        "qemu-system-x86_64": computer.programs / "qemu-system-x86_64",
        "setpriv": computer.programs / "setpriv",
        "vhost-device-vsock": backend,
        "guest kernel": image,
    }


def test_looking_makes_nothing(computer: Computer) -> None:
    survey()
    assert not cache().exists()
    assert computer.ran() == []


def test_our_own_backend_goes_before_an_installed_one(computer: Computer) -> None:
    assert find_vhost() is None
    computer.script("vhost-device-vsock", "exit 1")
    assert find_vhost() == computer.programs / "vhost-device-vsock"
    own = compiled()
    assert find_vhost() == own


@pytest.mark.usefixtures("computer")
def test_the_newest_kernel_is_taken_and_knows_its_parts() -> None:
    assert find_kernel() is None
    unpack("6.1.0-9-amd64", age_s=500)
    newest = unpack("6.1.0-10-amd64", age_s=100)
    unpack("6.1.0-8-amd64", age_s=900)
    kernel = find_kernel()
    assert kernel is not None
    assert kernel.release == "6.1.0-10-amd64"
    assert kernel.image == newest
    assert kernel.headers == kernel.tree / "usr/src/linux-headers-6.1.0-10-amd64"
    assert kernel.busybox == kernel.tree / "bin/busybox"


def test_a_kernel_finds_its_modules_by_name(tmp_path: Path) -> None:
    kernel = Kernel(tmp_path, RELEASE)
    drivers = tmp_path / "lib" / "modules" / RELEASE / "kernel" / "drivers"
    (drivers / "virtio").mkdir(parents=True)
    (drivers / "virtio" / "virtio_mmio.ko").touch()
    assert kernel.module("virtio_mmio") == drivers / "virtio" / "virtio_mmio.ko"
    with pytest.raises(Unreachable, match=f"the kernel {RELEASE} has no module virtio$"):
        kernel.module("virtio")
    (drivers / "virtio" / "virtio_mem.ko.xz").touch()
    assert kernel.module("virtio_mem") == drivers / "virtio" / "virtio_mem.ko.xz"
    (tmp_path / "lib/modules" / RELEASE / "modules.builtin").write_text("kernel/v/virtio.ko\n")
    assert kernel.module("virtio") is None


def test_the_cache_is_where_the_user_keeps_caches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache() == tmp_path / "upcall-trace" / "lab"
    monkeypatch.setenv("HOME", "/home/somebody")
    for unset in ("", None):
        if unset is None:
            monkeypatch.delenv("XDG_CACHE_HOME")
        else:
            monkeypatch.setenv("XDG_CACHE_HOME", unset)
        assert cache() == Path("/home/somebody/.cache/upcall-trace/lab")


# Getting what is missing.


def test_everything_is_got_without_root_when_the_programs_are_there(computer: Computer) -> None:
    computer.install()
    assert [piece.name for piece in survey() if piece.where is None] == []
    kernel = find_kernel()
    assert kernel is not None
    assert kernel.release == RELEASE
    assert kernel.busybox.exists()
    makefile = (kernel.headers / "Makefile").read_text("utf-8")
    assert makefile == f"include {kernel.tree}/usr/src/linux-headers-6.1.0-99-common/Makefile\n"
    assert len(computer.said) == 2
    assert VHOST_VERSION in computer.said[0]
    assert RELEASE in computer.said[1]
    left = [path.name for path in cache().iterdir()]
    assert sorted(left) == [".lock", "kernel", f"vhost-device-vsock-{VHOST_VERSION}"]


def test_only_the_kernel_its_headers_and_busybox_are_fetched(computer: Computer) -> None:
    computer.install()
    names = (
        f"linux-image-{RELEASE}",
        "linux-headers-6.1.0-99-common",
        "linux-kbuild-6.1",
        f"linux-headers-{RELEASE}",
        "busybox-static",
    )
    assert computer.ran("apt-get") == [f"apt-get download -q {' '.join(names)}"]


def test_what_is_there_is_not_got_again(computer: Computer) -> None:
    computer.install()
    computer.ran()
    computer.said.clear()
    computer.install()
    assert computer.ran() == []
    assert computer.said == []


def test_half_a_piece_is_replaced(computer: Computer) -> None:
    halves = [
        cache() / "kernel" / RELEASE / "boot" / "config",
        cache() / f"vhost-device-vsock-{VHOST_VERSION}" / "bin" / "README",
    ]
    for half in halves:
        half.parent.mkdir(parents=True)
        half.touch()
    computer.install()
    assert [piece.name for piece in survey() if piece.where is None] == []
    assert not any(half.exists() for half in halves)


def test_a_kernel_that_is_there_needs_no_compiler(computer: Computer) -> None:
    unpack(RELEASE)
    compiled()
    computer.remove("gcc", "make", "strip", "cpio", "dpkg-deb", "apt-get", "cargo")
    computer.install()
    assert computer.ran() == []


# Packages of the system.


def test_without_root_the_command_for_root_is_told(computer: Computer) -> None:
    computer.remove("qemu-system-x86_64", "gcc")
    assert computer.refuses() == (
        "these system packages are missing: sudo apt-get install gcc libc6-dev qemu-system-x86;"
        f" then run {SETUP} again, which needs no root"
    )
    assert computer.ran() == []


def test_without_apt_what_is_missing_is_told_even_to_root(as_root: Computer) -> None:
    as_root.remove("qemu-system-x86_64", "setpriv", "apt-get")
    assert as_root.refuses() == (
        "these Debian packages are missing, and there is no apt-get:"
        " apt, qemu-system-x86, util-linux; install what holds the same programs here"
    )
    assert as_root.said == []


@pytest.mark.parametrize("answer", ["echo libc.a", "echo"])
def test_a_compiler_without_a_static_library_needs_one(computer: Computer, answer: str) -> None:
    computer.script("gcc", answer)
    assert "sudo apt-get install libc6-dev;" in computer.refuses()


def test_the_kernels_own_tools_need_libelf(
    computer: Computer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ctypes.util, "find_library", lambda _: None)
    assert "sudo apt-get install libelf1;" in computer.refuses()
    unpack(RELEASE)
    compiled()
    computer.install()  # what is built needs no tools


def test_cargo_needs_a_linker(computer: Computer) -> None:
    unpack(RELEASE)
    computer.remove("gcc")
    assert "sudo apt-get install" in (said := computer.refuses())
    assert " gcc " in said


def test_root_installs_packages_by_one_command(as_root: Computer) -> None:
    as_root.remove("cpio", "qemu-system-x86_64")
    as_root.install()
    assert as_root.said[0] == "installing cpio qemu-system-x86"
    assert as_root.ran("apt-get")[0] == (
        "apt-get install -y -q --no-install-recommends cpio qemu-system-x86"
    )


def test_old_package_lists_are_read_anew_once(as_root: Computer) -> None:
    compiled()
    unpack(RELEASE)
    as_root.remove("setpriv")
    lists = as_root.programs / "lists"
    as_root.script(
        "apt-get", f'case "$1" in update) : >{lists} ;; install) test -e {lists} ;; esac'
    )
    as_root.install()
    assert [line.split()[1] for line in as_root.ran("apt-get")] == ["install", "update", "install"]


def test_what_cannot_be_installed_is_told_in_apts_words(as_root: Computer) -> None:
    as_root.remove("setpriv")
    as_root.script(
        "apt-get", 'test "$1" = update || { echo "E: Unable to locate util-linux"; exit 100; }'
    )
    assert as_root.refuses() == "installing packages failed: E: Unable to locate util-linux"


# The backend and the kernel.


def test_without_cargo_it_is_told_where_cargo_comes_from(computer: Computer) -> None:
    computer.remove("cargo")
    why = computer.refuses()
    assert why.startswith("cargo is missing, which compiles vhost-device-vsock")
    assert "https://rustup.rs" in why


def test_cargo_is_found_where_rustup_puts_it(computer: Computer, tmp_path: Path) -> None:
    home = tmp_path / "home" / ".cargo" / "bin"
    home.mkdir(parents=True)
    (computer.programs / "cargo").rename(home / "cargo")
    computer.install()
    assert find_vhost() is not None


def test_a_backend_that_does_not_compile_leaves_nothing_behind(computer: Computer) -> None:
    computer.script(
        "cargo",
        'while [ "$1" != --root ]; do shift; done; mkdir -p "$2/bin"\n'
        "printf 'one\\n\\ntwo\\nthree\\n  error: no linker  \\n' >&2; exit 101",
    )
    assert computer.refuses() == (
        "compiling vhost-device-vsock failed: two | three | error: no linker"
    )
    assert find_vhost() is None
    assert [path.name for path in cache().iterdir()] == [".lock"]


def test_a_kernel_that_cannot_be_fetched_leaves_nothing_behind(computer: Computer) -> None:
    compiled()
    computer.script("apt-get", 'echo "E: Could not resolve deb.debian.org"; exit 100')
    assert computer.refuses() == (
        "fetching the guest's kernel failed: E: Could not resolve deb.debian.org"
    )
    assert find_kernel() is None
    left = sorted(path.name for path in cache().iterdir())
    assert left == [".lock", f"vhost-device-vsock-{VHOST_VERSION}"]


def test_a_package_that_cannot_be_unpacked_is_named(computer: Computer) -> None:
    computer.script("dpkg-deb", "exit 2")
    assert computer.refuses() == "unpacking busybox-static.deb failed: exit 2"
    assert find_kernel() is None


@pytest.mark.parametrize("listing", ["exit 0", "echo 'E: No packages found'; exit 100"])
def test_a_system_without_debians_kernels_is_told_of_kernels_of_its_own(
    computer: Computer, listing: str
) -> None:
    computer.script("apt-cache", listing)
    why = computer.refuses()
    assert why.startswith("apt knows no linux-image-cloud-amd64")
    assert "lab up --kernel" in why
    assert computer.ran("apt-get") == []


def test_root_reads_the_package_lists_when_there_is_no_kernel_in_them(as_root: Computer) -> None:
    lists = as_root.programs / "lists"
    known = SCRIPTS["apt-cache"].replace("RELEASE", RELEASE)
    as_root.script("apt-cache", f"test -e {lists} || exit 0\n{known}")
    as_root.script(
        "apt-get",
        f'test "$1" != update || : >{lists}\n{SCRIPTS["apt-get"]}',
    )
    as_root.install()
    assert [line.split()[1] for line in as_root.ran("apt-get")] == ["update", "download"]
    assert find_kernel() is not None


# The cache.


@pytest.mark.usefixtures("computer")
def test_one_at_a_time_changes_the_cache() -> None:
    order: list[str] = []

    def second() -> None:
        with held():
            order.append("second")

    other = threading.Thread(target=second)
    with held():
        other.start()
        other.join(0.1)
        assert other.is_alive()
        order.append("first")
    other.join(10)
    assert order == ["first", "second"]


@pytest.mark.usefixtures("computer")
def test_the_cache_is_free_again_after_a_failure() -> None:
    for _ in range(2):
        with pytest.raises(Unreachable), held():
            raise Unreachable("no network")


def test_a_cache_that_cannot_be_written_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(WrongUsage) as told:
        install(lambda _: None, building=True)
    assert str(told.value) == f"the cache {cache()} cannot be written: Not a directory"


# Running programs.


def test_a_programs_output_is_both_of_its_streams() -> None:
    assert run(["sh", "-c", "echo out; echo err >&2"], "asking") == "out\nerr\n"


def test_a_program_reads_what_it_is_given_or_nothing(tmp_path: Path) -> None:
    assert run(["cat"], "reading") == ""
    assert run(["cat"], "reading", stdin=b"a\xffb") == "a\N{REPLACEMENT CHARACTER}b"
    assert run(["pwd", "-P"], "asking", tmp_path) == f"{tmp_path.resolve()}\n"


def test_a_program_asks_nobody_and_speaks_english(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LC_ALL", "de_DE.UTF-8")
    said = run(["sh", "-c", "echo $DEBIAN_FRONTEND $LC_ALL"], "asking")
    assert said == "noninteractive C.UTF-8\n"


@pytest.mark.parametrize(
    ("script", "why"),
    [
        ("exit 3", "asking failed: exit 3"),
        ("echo; echo ' '; exit 3", "asking failed: exit 3"),
        ("echo no; exit 1", "asking failed: no"),
        ("printf '1\\n2\\n\\n3\\n4\\n'; exit 1", "asking failed: 2 | 3 | 4"),
        ("kill -KILL $$", "asking failed: exit -9"),
    ],
)
def test_a_failing_program_is_told_with_its_last_words(script: str, why: str) -> None:
    with pytest.raises(Unreachable) as told:
        run(["sh", "-c", script], "asking")
    assert str(told.value) == why


def test_a_program_that_is_missing_or_none_is_told(tmp_path: Path) -> None:
    with pytest.raises(Unreachable, match="asking failed: /none: No such file or directory"):
        run(["/none"], "asking")
    (tmp_path / "plain").touch(stat.S_IRUSR)
    with pytest.raises(Unreachable, match="plain: Permission denied"):
        run([str(tmp_path / "plain")], "asking")
