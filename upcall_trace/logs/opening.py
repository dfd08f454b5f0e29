"""The text of a log, whatever it is packed with and written in, in blocks of bounded size."""

from __future__ import annotations

import codecs
import io
import stat
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Final

from ..capture.unpacking import STDIN, Torn, packing, read_block, unpacked
from ..errors import UnreadableInput

BLOCK: Final = 1 << 20
SNIFFED: Final = 4096
_PEEKED: Final = 64 << 10

Progress = Callable[[int], object]


class LogFile:
    """One log while it is read; `torn` is set when its archive ends or breaks early.

    `stream` is read in place of the file where the log is no file.
    """

    def __init__(self, path: Path, stream: IO[bytes] | None = None) -> None:
        self.path = path
        self.torn = False
        self._stream = stream

    def blocks(self, progress: Progress | None = None) -> Iterator[bytes]:
        """The text as UTF-8, block by block; `progress` is told how far the file is read.

        Raises UnreadableInput.
        """
        if self._stream is not None:
            yield from self._decoded(self._stream, progress)
            return
        try:
            with unpacked(self.path) as file:
                yield from self._decoded(file, progress)
        except OSError as error:
            raise UnreadableInput(f"{self.path}: {error.strerror or error}") from None

    def _decoded(self, file: IO[bytes], progress: Progress | None) -> Iterator[bytes]:
        decoder: codecs.IncrementalDecoder | None = None
        first, read = True, 0
        returns: bool | None = None
        """Lines end in carriage returns alone, as a serial line's may."""
        while block := self._read(file):
            read += len(block)
            if first:
                first = False
                encoding = _encoding(block)
                if encoding is not None:
                    decoder = codecs.getincrementaldecoder(encoding)("replace")
                else:
                    block = block.removeprefix(codecs.BOM_UTF8)
            if decoder is not None:
                block = decoder.decode(block).removeprefix("\ufeff").encode("utf-8", "replace")
            if returns is None:
                returns = b"\n" not in block[:_PEEKED] and b"\r" in block[:_PEEKED]
            if returns:
                block = block.replace(b"\r", b"\n")
            yield block
            if progress is not None:
                progress(_offset(file, read))

    def _read(self, file: IO[bytes]) -> bytes:
        try:
            return read_block(file, BLOCK)
        except Torn:
            self.torn = True
            return b""


def sniff(path: Path) -> bytes:
    """The first bytes of a file or of standard input, unpacked; raises UnreadableInput."""
    try:
        if path != STDIN:
            mode = path.stat().st_mode
            if stat.S_ISDIR(mode) or stat.S_ISSOCK(mode):
                kind = "a directory" if stat.S_ISDIR(mode) else "a socket"
                raise UnreadableInput(f"{path} is {kind}, not a file")
            if not stat.S_ISREG(mode):
                return b""  # what is read of a pipe is gone
            with unpacked(path) as file:
                return read_block(file, SNIFFED)[:SNIFFED]
        if sys.stdin is None:
            raise UnreadableInput("standard input is closed")
        buffered: io.BufferedReader = sys.stdin.buffer  # type: ignore[assignment]
        start = buffered.peek(_PEEKED)[:_PEEKED]
        opens = packing(start)
        return read_block(opens(io.BytesIO(start)), SNIFFED) if opens else start[:SNIFFED]
    except Torn:
        return b""
    except OSError as error:
        raise UnreadableInput(f"{path}: {error.strerror or error}") from None


def _offset(file: IO[bytes], read: int) -> int:
    """How far the file itself is read, for archives too."""
    inner = getattr(file, "fileobj", None) or getattr(file, "_fp", None) or file
    try:
        return int(inner.tell())
    except (OSError, ValueError):
        return read


def _encoding(start: bytes) -> str | None:
    """`utf-16-le` or `utf-16-be` where the text is that, else None."""
    if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16-le" if start.startswith(codecs.BOM_UTF16_LE) else "utf-16-be"
    start = start[:SNIFFED]
    even, odd, half = start[0::2].count(0), start[1::2].count(0), len(start) // 2
    if half >= 8 and max(even, odd) * 4 > half * 3 and min(even, odd) * 20 < half:
        return "utf-16-be" if even > odd else "utf-16-le"
    return None


def is_text(start: bytes) -> bool:
    """Whether bytes are text: hardly any control characters but those of lines and terminals.

    NULs in a row are what a crash leaves in a log; spread about they are none of text.
    """
    start = start[:SNIFFED]
    if _encoding(start) is not None:
        return True
    odd = sum(c < 32 and c not in b"\t\n\r\x1b\x0c\x08\x07\x00" for c in start)
    runs = sum(bool(run) for run in start.split(b"\x00"))
    return odd * 50 <= len(start) and (runs <= 4 or runs * 64 < len(start))
