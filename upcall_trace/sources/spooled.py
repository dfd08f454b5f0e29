"""A plain copy of what cannot be read in place: standard input, and packed files.

The copy has no name, so that nothing of it stays behind, however the program ends. It is in memory
unless it is large: what somebody wants redacted is not to be on a disk, not even for a moment.
"""

from __future__ import annotations

import os
import stat
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import IO, Final

from ..capture.unpacking import STDIN, Torn, packing, read_block, unpacked
from ..errors import UnreadableInput

_BLOCK: Final = 1 << 20
_RATIO: Final = 500
_FREE: Final = 16 << 20
"""An archive may stand for so many times its size, and for so much in any case."""
_IN_MEMORY: Final = 64 << 20
"""A copy up to this size is in memory."""
_SNIFFED: Final = 8
_KEPT: Final = 64
"""Copies that are kept to be opened again; each of them takes a descriptor."""


class SpooledPath(type(Path())):  # type: ignore[misc]  # the class of this system's paths
    """The path of a copy, which calls itself what the user calls the original.

    `torn` is true when the archive ended early or was damaged: then the copy ends there.
    """

    __slots__ = ("_copy", "torn")
    _copy: int
    torn: bool

    def __fspath__(self) -> str:
        return f"/proc/self/fd/{self._copy}"

    def __del__(self) -> None:
        with suppress(AttributeError, OSError):  # what is made of such a path has no copy
            os.close(self._copy)


_known: dict[tuple[str, int, int, int], SpooledPath] = {}


def plain(path: Path) -> Path:
    """`path`, or a copy of its bytes where it is standard input or packed.

    Raises OSError, and UnreadableInput for an archive that stands for too much.
    """
    if isinstance(path, SpooledPath):
        return path
    key = _key(path)
    if key is None:
        return path
    if key not in _known:
        if path != STDIN:
            with path.open("rb") as file:
                if packing(file.read(_SNIFFED)) is None:
                    return path
        copies = [known for known in _known if known[0] != "-"]  # nobody gives that twice
        if len(copies) >= _KEPT:
            del _known[copies[0]]
        _known[key] = _copy_of(path, key[3])
    return _known[key]


def _key(path: Path) -> tuple[str, int, int, int] | None:
    """What a copy is known by; None for what is no file."""
    if path == STDIN:
        return ("-", 0, 0, 0)
    told = path.stat()
    if not stat.S_ISREG(told.st_mode):
        return None
    return (str(path), told.st_ino, told.st_mtime_ns, told.st_size)


def _copy_of(path: Path, size: int) -> SpooledPath:
    name = "standard input" if path == STDIN else str(path)
    with ExitStack() as stack:
        copy = stack.enter_context(_anonymous())
        torn, copy = _fill(stack, copy, path, name, size)
        if torn and not copy.tell():
            raise UnreadableInput(f"{name} is a damaged archive: nothing of it can be unpacked")
        copy.flush()
        spooled = SpooledPath(name)
        # The descriptor lives as long as somebody has the path: it may be opened again.
        spooled._copy, spooled.torn = os.dup(copy.fileno()), torn
    return spooled


def _anonymous() -> IO[bytes]:
    """A file in memory; one on the disk where the kernel has none."""
    try:
        return os.fdopen(os.memfd_create("upcall-trace"), "w+b")
    except OSError:
        return _on_disk()


def _on_disk() -> IO[bytes]:
    import tempfile  # hardly ever: what is read is nearly always a file

    return tempfile.TemporaryFile()


def _moved(copy: IO[bytes], target: IO[bytes]) -> IO[bytes]:
    copy.seek(0)
    while block := copy.read(_BLOCK):
        target.write(block)
    copy.truncate(0)
    return target


def _fill(
    stack: ExitStack, copy: IO[bytes], path: Path, name: str, size: int
) -> tuple[bool, IO[bytes]]:
    """Write all of `path` into `copy`; whether the archive is torn, and where the copy is now."""
    limit = None if path == STDIN else max(_FREE, size * _RATIO)
    interrupted = False
    with unpacked(path) as file:
        while True:
            try:
                block = read_block(file, _BLOCK)
            except Torn:
                return True, copy
            except KeyboardInterrupt:
                if path != STDIN:
                    raise
                if interrupted:
                    return False, copy  # what came is shown
                interrupted = True  # Ctrl-C ends what feeds the pipe, too, which says its last now
                continue
            if not block:
                return False, copy
            if copy.tell() <= _IN_MEMORY < copy.tell() + len(block):
                copy = _moved(copy, stack.enter_context(_on_disk()))
            copy.write(block)
            if limit is not None and copy.tell() > limit:
                raise UnreadableInput(
                    f"{name} stands for more than {limit >> 20} MiB; unpack it if you trust it"
                )
