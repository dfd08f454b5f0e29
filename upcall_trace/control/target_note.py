"""What a guest that may be experimented on leaves beside its socket: a note of what it is.

The note belongs to the process that holds the socket: it is locked for as long as that process
lives, names the socket by device and inode, and only counts when file and socket are the reader's
own. So neither a note that outlived its guest nor one that a stranger wrote makes a real guest
look like a simulated one. docs/replay.md.
"""

from __future__ import annotations

import fcntl
import json
import os
import stat
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from socket import SO_PEERCRED, SOL_SOCKET
from socket import socket as Stream
from struct import Struct
from typing import Final, Self

from ..kernel.world import World, parse_world, world_table

SUFFIX: Final = ".target"
_LIMIT: Final = 1 << 20
# What is in the way may be a pipe that nobody writes to.
_READ: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_ANCESTORS: Final = 8
_PEER: Final = Struct("iII")
KINDS: Final = ("simulated", "lab")
RECORDING: Final = "recording"
"""The backend of a guest that answers from a recording."""


@dataclass(frozen=True, slots=True)
class TargetNote:
    """What the guest behind a socket is.

    `world` is what it looks like when it boots; `control` is the path of its VMM's side, if it has
    one.
    """

    kind: str
    backend: str
    name: str
    world: World
    control: str | None = None
    pid: int = field(default=0, compare=False)
    """The process that listens, as far as its note says so."""

    def is_of(self, stream: Stream) -> bool:
        """Whether a connection leads to who wrote the note, or to a program that it runs."""
        raw = stream.getsockopt(SOL_SOCKET, SO_PEERCRED, _PEER.size)
        peer = _PEER.unpack(raw)[0]
        for _ in range(_ANCESTORS):
            if peer == self.pid or peer <= 1:
                break
            peer = _parent(peer)
        return bool(peer == self.pid and peer > 1)

    @property
    def tells_world(self) -> bool:
        """False for a recording that answers: what its guest looked like nobody asked."""
        return self.backend != RECORDING


class PostedNote:
    """The note beside `socket`, until `close`; a context manager. Raises OSError."""

    def __init__(self, socket: Path, note: TargetNote) -> None:
        self._path = _beside(socket)
        if _is_a_note(self._path):  # of a guest that was killed
            self._path.unlink()
        self._descriptor = os.open(
            self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600
        )
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX)
            self.write(socket, note)
        except BaseException:
            self.close()
            raise

    def write(self, socket: Path, note: TargetNote) -> None:
        """Write it, for the socket that is there now."""
        told = {
            "v": 1,
            "socket": _identity(socket.stat()),
            "kind": note.kind,
            "backend": note.backend,
            "name": note.name,
            "world": world_table(note.world),
            "control": note.control,
            "pid": os.getpid(),
        }
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, json.dumps(told).encode(), 0)

    def close(self) -> None:
        """Take it away; more than once does no harm."""
        if self._descriptor < 0:
            return
        with suppress(OSError):
            if _identity(self._path.lstat()) == _identity(os.fstat(self._descriptor)):
                self._path.unlink()
        os.close(self._descriptor)
        self._descriptor = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_target_note(socket: Path) -> TargetNote | None:
    """What the guest behind `socket` says it is; None unless it can be believed."""
    try:
        descriptor = os.open(_beside(socket), _READ)
    except OSError:
        return None
    try:
        status, behind = os.fstat(descriptor), socket.stat()
        ours = status.st_uid == behind.st_uid == os.geteuid()
        if not ours or not stat.S_ISREG(status.st_mode) or status.st_mode & 0o022:
            return None
        if not _is_locked(descriptor):
            return None
        told = json.loads(os.read(descriptor, _LIMIT))
        if told.pop("v") != 1 or told.pop("socket") != _identity(behind):
            return None
        world = parse_world("world", told.pop("world"))
        note = TargetNote(**told, world=world)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None
    finally:
        os.close(descriptor)
    texts = [note.backend, note.name, note.control or ""]
    believable = note.kind in KINDS and all(isinstance(text, str) for text in texts)
    believable = believable and type(note.pid) is int
    return note if believable else None


def _parent(pid: int) -> int:
    try:
        # The name of a program stands in parentheses and may have any in it.
        return int(Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[1])
    except (OSError, ValueError, IndexError):
        return 0


def _beside(socket: Path) -> Path:
    return Path(f"{socket}{SUFFIX}")


def _is_a_note(path: Path) -> bool:
    """Whether a file is one of ours, and not somebody's who happens to call it so."""
    try:
        if not stat.S_ISREG(path.lstat().st_mode):
            return False
        told = json.loads(path.read_bytes()[:_LIMIT] or b"{}")
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(told, dict) and (not told or {"v", "socket", "kind"} <= told.keys())


def _identity(status: os.stat_result) -> list[int]:
    return [status.st_dev, status.st_ino]


def _is_locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    return False
