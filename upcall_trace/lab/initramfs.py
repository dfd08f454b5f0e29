"""The guest's file system: a few programs, the kernel's modules and ours, in one small archive.

One archive serves every machine. It is built from `guest/` beside this file, and kept in the cache
under a digest of all that went into it.
"""

from __future__ import annotations

import gzip
import hashlib
import lzma
import shutil
from importlib.resources import as_file, files
from pathlib import Path
from typing import Final

from ..errors import Unreachable
from .cache import cache, held, work_folder
from .machines import MODULES
from .pieces import Kernel, Talk, run

_SOURCES: Final = ("agent.c", "init", "Kbuild", "upcall_lab.c")
_APPLETS: Final = (
    "cat", "cttyhack", "dmesg", "echo", "grep", "head", "insmod", "ip", "kill", "ls", "lsmod",
    "mkdir", "mount", "od", "poweroff", "ps", "setsid", "sh", "sleep", "tail", "top", "usleep",
    "vi", "wc",
)  # fmt: skip
"""Links to busybox for init; the rest is there as `busybox NAME`."""


def initramfs_for(kernel: Kernel, talk: Talk) -> Path:
    """The archive for a kernel, built first when the cache has none; raises Unreachable."""
    with as_file(files("upcall_trace.lab").joinpath("guest")) as sources:
        target = _target(kernel, sources)
        if target.exists():
            return target
        with held():
            if not target.exists():
                talk(f"building the guest for Linux {kernel.release}")
                _build(kernel, sources, target)
    return target


def is_built(kernel: Kernel) -> bool:
    """True when the cache has the archive for a kernel."""
    with as_file(files("upcall_trace.lab").joinpath("guest")) as sources:
        return _target(kernel, sources).exists()


def _target(kernel: Kernel, sources: Path) -> Path:
    return cache() / "initramfs" / f"{_digest(kernel, sources)}.cpio.gz"


def _digest(kernel: Kernel, sources: Path) -> str:
    digest = hashlib.sha256(f"{kernel.tree} {kernel.release} {MODULES} {_APPLETS}".encode())
    for name in _SOURCES:
        digest.update((sources / name).read_bytes())
    return digest.hexdigest()[:16]


def _build(kernel: Kernel, sources: Path, target: Path) -> None:
    with work_folder() as work:
        made, tree = work / "made", work / "tree"
        made.mkdir()
        for name in _SOURCES:
            shutil.copyfile(sources / name, made / name)
        module, agent = made / "upcall_lab.ko", made / "agent"
        run(["make", "-s", "-C", str(kernel.headers), f"M={made}", "CC=gcc",
             "CONFIG_DEBUG_INFO_BTF_MODULES=", "modules"],
            "compiling the guest's module")  # fmt: skip
        run(["strip", "--strip-debug", str(module)], "stripping the guest's module")
        run(["gcc", "-O2", "-s", "-static", "-o", str(agent), str(made / "agent.c"), "-lutil"],
            "compiling the guest's agent")  # fmt: skip
        for directory in ("bin", "modules", "dev", "proc", "sys", "tmp"):
            (tree / directory).mkdir(parents=True)
        _place(kernel.busybox, tree / "bin" / "busybox")
        _place(agent, tree / "bin" / "agent")
        _place(made / "init", tree / "init")
        for applet in _APPLETS:
            (tree / "bin" / applet).symlink_to("busybox")
        for name in MODULES:
            if found := kernel.module(name):
                _place(found, tree / "modules" / f"{name}.ko")
        _place(module, tree / "modules" / module.name)
        _archive(tree, target)


def _place(source: Path, target: Path) -> None:
    try:
        if source.suffix == ".xz":
            target.write_bytes(lzma.decompress(source.read_bytes()))
        else:
            shutil.copyfile(source, target)
        target.chmod(0o755)
    except OSError as error:
        raise Unreachable(f"{source} cannot be put into the guest: {error.strerror}") from None


def _archive(tree: Path, target: Path) -> None:
    names = sorted(str(path.relative_to(tree)) for path in tree.rglob("*"))
    packed = Path(tree.parent / "cpio")
    run(["cpio", "--quiet", "-o", "-H", "newc", "-R", "0:0", "-O", str(packed)],
        "packing the guest", tree, "\n".join(names).encode() + b"\n")  # fmt: skip
    target.parent.mkdir(parents=True, exist_ok=True)
    fresh = target.with_suffix(".new")
    with packed.open("rb") as plain, gzip.GzipFile(fresh, "wb", 6, mtime=0) as squeezed:
        shutil.copyfileobj(plain, squeezed)
    fresh.replace(target)
