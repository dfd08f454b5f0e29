"""What a lab is made of: where each piece is found, and how what is missing is got.

Two things come from the system: QEMU and, only while the pieces are made, a compiler. Everything
else is kept in the user's cache and nothing of it is installed: the guest's kernel, its headers and
busybox are unpacked from Debian's packages, vhost-device-vsock is compiled by cargo.
"""

from __future__ import annotations

import ctypes.util
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ..errors import Unreachable
from ..user_folders import home
from .cache import cache, held, work_folder

VHOST_VERSION: Final = "0.3.0"
KERNEL_PACKAGE: Final = "linux-image-cloud-amd64"
_SETUP: Final = "upcall-trace lab setup --install"
_RUN_PROGRAMS: Final = {"qemu-system-x86_64": "qemu-system-x86", "setpriv": "util-linux"}
_BUILD_PROGRAMS: Final = {
    "gcc": "gcc", "make": "make", "strip": "binutils", "cpio": "cpio", "dpkg-deb": "dpkg",
    "apt-get": "apt",
}  # fmt: skip
_STATIC_LIBRARY: Final = "libc.a"
_RELEASE: Final = re.compile(r"linux-image-(\d[\w.+-]*)")

Talk = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Piece:
    """One piece; `where` is None while it is missing, and `remedy` says how to get it."""

    name: str
    where: Path | None
    remedy: str


@dataclass(frozen=True, slots=True)
class Kernel:
    """An unpacked kernel: `tree` is where the packages were unpacked."""

    tree: Path
    release: str

    @property
    def image(self) -> Path:
        return self.tree / "boot" / f"vmlinuz-{self.release}"

    @property
    def headers(self) -> Path:
        return self.tree / "usr" / "src" / f"linux-headers-{self.release}"

    @property
    def busybox(self) -> Path:
        return self.tree / "bin" / "busybox"

    def module(self, name: str) -> Path | None:
        """The file of a kernel module, `.ko` or `.ko.xz`; None for what is built in.

        Raises Unreachable when this kernel has neither.
        """
        modules = self.tree / "lib" / "modules" / self.release
        found = next(
            (path for end in ("", ".xz") for path in modules.rglob(f"{name}.ko{end}")), None
        )
        builtin = modules / "modules.builtin"
        names = builtin.read_text("utf-8") if builtin.exists() else ""
        if found is None and f"/{name}.ko\n" not in names:
            raise Unreachable(f"the kernel {self.release} has no module {name}")
        return found


def survey() -> list[Piece]:
    """Every piece that a running lab needs, but the initramfs, which is built from them."""
    kernel = find_kernel()
    return [
        *(Piece(name, _program(name), f"{_SETUP}, or install {package}")
          for name, package in _RUN_PROGRAMS.items()),
        Piece("vhost-device-vsock", find_vhost(), _SETUP),
        Piece("guest kernel", kernel.image if kernel else None, _SETUP),
    ]  # fmt: skip


def find_vhost() -> Path | None:
    """The vsock backend: our own of the version that was tried, else one that is installed."""
    own = cache() / f"vhost-device-vsock-{VHOST_VERSION}" / "bin" / "vhost-device-vsock"
    return own if own.exists() else _program("vhost-device-vsock")


def find_kernel(package: str = KERNEL_PACKAGE) -> Kernel | None:
    """The newest kernel of this package that was unpacked."""
    trees = sorted(_kernels(package).glob("*/boot/vmlinuz-*"), key=lambda p: p.stat().st_mtime)
    if not trees:
        return None
    image = trees[-1]
    return Kernel(image.parents[1], image.name.removeprefix("vmlinuz-"))


def install(talk: Talk, building: bool) -> None:
    """Get every piece that is missing; raises UserError with the way out. Takes minutes at most.

    With `building` that includes what builds the guest's file system. Afterwards nothing needs the
    network any more.
    """
    with held():
        programs = dict(_RUN_PROGRAMS)
        if building or find_vhost() is None:  # cargo wants a linker
            programs |= _BUILD_PROGRAMS
        _install_packages(_missing_packages(programs), talk)
        if find_vhost() is None:
            _compile_vhost(talk)
        if find_kernel() is None:
            _unpack_kernel(talk)


def fetch_kernel(package: str, talk: Talk) -> Kernel:
    """Another of Debian's kernels, fetched and unpacked unless it is there; raises Unreachable."""
    with held():
        if find_kernel(package) is None:
            _unpack_kernel(talk, package)
    found = find_kernel(package)
    assert found is not None
    return found


def _kernels(package: str) -> Path:
    """Where a package's kernels are unpacked: the guest's apart from others."""
    return cache() / ("kernel" if package == KERNEL_PACKAGE else f"kernel-{package}")


def run(command: list[str], what: str, cwd: Path | None = None, stdin: bytes | None = None) -> str:
    """A program's output; raises Unreachable with its last words when it fails."""
    try:
        ended = subprocess.run(
            command,
            cwd=cwd,
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            check=False,
            env=os.environ | {"DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C.UTF-8"},
        )
    except OSError as error:
        raise Unreachable(f"{what} failed: {command[0]}: {error.strerror}") from None
    said = ended.stdout.decode("utf-8", "replace")
    if ended.returncode:
        words = [line.strip() for line in said.split("\n") if line.strip()][-3:]
        raise Unreachable(f"{what} failed: {' | '.join(words) or f'exit {ended.returncode}'}")
    return said


def _program(name: str) -> Path | None:
    found = shutil.which(name)
    return Path(found) if found else None


def _missing_packages(programs: dict[str, str]) -> list[str]:
    missing = {package for name, package in programs.items() if _program(name) is None}
    if "gcc" in programs:
        if "gcc" in missing or not _has_static_library():
            missing.add("libc6-dev")
        if ctypes.util.find_library("elf") is None:
            missing.add("libelf1")  # for the objtool that comes with the kernel's headers
    return sorted(missing)


def _has_static_library() -> bool:
    found = run(["gcc", f"-print-file-name={_STATIC_LIBRARY}"], "asking gcc for its library")
    return Path(found.strip()).is_absolute()


def _install_packages(packages: list[str], talk: Talk) -> None:
    if not packages:
        return
    command = ["apt-get", "install", "-y", "-q", "--no-install-recommends", *packages]
    if _program("apt-get") is None:
        raise Unreachable(
            f"these Debian packages are missing, and there is no apt-get: {', '.join(packages)};"
            " install what holds the same programs here"
        )
    if os.geteuid() != 0:
        raise Unreachable(
            f"these system packages are missing: sudo apt-get install {' '.join(packages)};"
            f" then run {_SETUP} again, which needs no root"
        )
    talk(f"installing {' '.join(packages)}")
    try:
        run(command, "installing packages")
    except Unreachable:
        run(["apt-get", "update", "-q"], "reading the package lists")
        run(command, "installing packages")


def _compile_vhost(talk: Talk) -> None:
    cargo = _program("cargo") or _program(str(home() / ".cargo" / "bin" / "cargo"))
    if cargo is None:
        raise Unreachable(
            "cargo is missing, which compiles vhost-device-vsock: get Rust from https://rustup.rs"
        )
    talk(f"compiling vhost-device-vsock {VHOST_VERSION}, which takes about a minute")
    target = cache() / f"vhost-device-vsock-{VHOST_VERSION}"
    with work_folder() as work:
        run(
            [str(cargo), "install", "--locked", "--quiet", "--version", VHOST_VERSION,
             "--target-dir", f"{work}/target", "--root", f"{work}/root", "vhost-device-vsock"],
            "compiling vhost-device-vsock",
        )  # fmt: skip
        shutil.rmtree(target, ignore_errors=True)
        (work / "root").rename(target)


def _unpack_kernel(talk: Talk, kernel_package: str = KERNEL_PACKAGE) -> None:
    release = _release(kernel_package)
    packages = [
        f"linux-image-{release}",
        *(name for name in _depends(f"linux-headers-{release}") if name.startswith("linux-")
          and "compiler" not in name and "image" not in name),
        f"linux-headers-{release}",
        "busybox-static",
    ]  # fmt: skip
    talk(f"fetching and unpacking Debian's kernel {release}; nothing of it is installed")
    with work_folder() as work:
        fetched, tree = work / "fetched", work / "tree"
        fetched.mkdir()
        run(["apt-get", "download", "-q", *packages], "fetching the guest's kernel", fetched)
        for package in sorted(fetched.iterdir()):
            run(["dpkg-deb", "-x", str(package), str(tree)], f"unpacking {package.name}")
        target = _kernels(kernel_package) / release
        shutil.rmtree(target, ignore_errors=True)
        target.parent.mkdir(exist_ok=True)
        # The headers' own Makefile expects them where the package would install them.
        makefile = tree / "usr" / "src" / f"linux-headers-{release}" / "Makefile"
        relocated = makefile.read_text("utf-8").replace("/usr/src/", f"{target}/usr/src/")
        makefile.write_text(relocated, "utf-8")
        tree.rename(target)


def _release(kernel_package: str = KERNEL_PACKAGE) -> str:
    """The newest kernel release that Debian offers this machine."""
    for attempt in ("as it is", "updated"):
        for package in _depends(kernel_package):
            found = _RELEASE.fullmatch(package)
            if found:
                return found[1]
        if attempt == "as it is" and os.geteuid() == 0:
            run(["apt-get", "update", "-q"], "reading the package lists")
    raise Unreachable(
        f"apt knows no {kernel_package}: the stock guest needs Debian's packages for amd64;"
        " sudo apt-get update may help, and lab up --kernel takes a kernel of your own"
    )


def _depends(package: str) -> list[str]:
    try:
        listed = run(["apt-cache", "depends", package], f"asking apt about {package}")
    except Unreachable:
        return []
    return re.findall(r"^ *Depends: ([^\s<>]+)$", listed, re.MULTILINE)
