"""What stands between this process and the memory of the VMs of this machine."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from ...errors import UpcallError
from .processes import RunningVmm
from .sandboxes import VmmProcess

_PAGE: Final = os.sysconf("SC_PAGE_SIZE")
_GIB: Final = 1 << 30
_ENCRYPTED: Final = ("sev-guest", "sev-snp-guest", "tdx-guest", "confidential-guest-support")
_SCOPES: Final = {
    "1": "kernel.yama.ptrace_scope is 1: only a process's own parents may read it",
    "2": "kernel.yama.ptrace_scope is 2: it needs CAP_SYS_PTRACE",
    "3": "kernel.yama.ptrace_scope is 3: nobody may, until the next boot",
}


def refusal(pid: int) -> str | None:
    """Why a process's memory cannot be read, None when it can; nothing of it is looked at."""
    try:
        with RunningVmm(pid):
            return None
    except UpcallError as error:
        return str(error)


def about(vmm: VmmProcess, proc: Path, refused: str | None) -> str:
    """One VMM in a line: what it is, whose, how large, and whether it can be read."""
    of = f", sandbox {vmm.sandbox}" if vmm.sandbox else ""
    pages = f", {vmm.size / _GIB:.1f} GiB in {vmm.size // _PAGE} pages" if vmm.mappings else ""
    if refused is not None:
        state = "may not be read"
    elif not vmm.holds_a_guest:
        state = "holds no guest's memory"
    elif _is_encrypted(proc / str(vmm.pid)):
        state = "its guest's memory is encrypted"
    else:
        state = "can be read"
    return f"process {vmm.pid}: {vmm.kind}{of}{pages}: {state}"


def obstacles(proc: Path, sys_place: Path, may_ptrace: bool) -> Iterator[str]:
    """What may be the reason that a process of somebody else cannot be read."""
    if not may_ptrace:
        yield "CAP_SYS_PTRACE is missing"
    scope = _text(proc / "sys/kernel/yama/ptrace_scope")
    if scope in _SCOPES:
        yield _SCOPES[scope]
    if _text(proc / "self/uid_map").split() not in ([], ["0", "0", "4294967295"]):
        yield "this is a user namespace of its own"
    if _text(sys_place / "fs/selinux/enforce") == "1":
        yield "SELinux is enforcing"
    confined = _text(proc / "self/attr/current").rstrip("\0")
    if confined.endswith("(enforce)"):
        yield f"AppArmor confines this process: {confined}"


def _is_encrypted(place: Path) -> bool:
    try:
        words = (place / "cmdline").read_bytes().decode("utf-8", "backslashreplace")
    except OSError:
        return False
    return any(word in words for word in _ENCRYPTED)


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="backslashreplace").strip()
    except OSError:
        return ""
