"""Bytes of a file or of standard input, unpacked where gzip, xz or zstd packed them.

What a file is packed with is seen from its first bytes, never from its name.
"""

from __future__ import annotations

import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import IO, Final

from ..errors import UnreadableInput, UpcallError

STDIN: Final = Path("-")
"""As a command line writes it; its bytes can be read once."""
STDOUT: Final = STDIN
"""The same name for an output."""
_SNIFFED: Final = 6


class Torn(UpcallError):
    """The archive ends early or is damaged; what was read before is good."""


# Whoever reads a plain file waits for none of the libraries.
def _gzip(raw: IO[bytes]) -> IO[bytes]:
    import gzip

    return gzip.GzipFile(fileobj=raw)  # type: ignore[return-value]


def _xz(raw: IO[bytes]) -> IO[bytes]:
    import lzma

    return lzma.LZMAFile(raw)


def _zstd(raw: IO[bytes]) -> IO[bytes]:
    opened: IO[bytes] = zstd_library().ZstdFile(raw)
    return opened


def zstd_library() -> ModuleType:
    """The library for zstd, which newer Pythons have of their own."""
    if sys.version_info >= (3, 14):
        from compression import zstd
    else:
        from backports import zstd
    return zstd


_PACKED: Final[dict[bytes, Callable[[IO[bytes]], IO[bytes]]]] = {
    b"\x1f\x8b": _gzip,
    b"\xfd7zXZ\x00": _xz,
    b"\x28\xb5\x2f\xfd": _zstd,
}


def packing(start: bytes) -> Callable[[IO[bytes]], IO[bytes]] | None:
    """What unpacks a file that begins so; None for a plain one."""
    return next((opens for magic, opens in _PACKED.items() if start.startswith(magic)), None)


@contextmanager
def unpacked(path: Path) -> Iterator[IO[bytes]]:
    """The bytes of a file or of standard input; raises OSError, and UnreadableInput."""
    with _opened(path) as raw:
        opens = packing(raw.peek(_SNIFFED))  # type: ignore[attr-defined]  # both are buffered
        yield opens(raw) if opens else raw


@contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    if path == STDIN:
        if sys.stdin is None:
            raise UnreadableInput("standard input is closed")
        yield sys.stdin.buffer
        return
    with path.open("rb") as file:
        yield file


def read_block(file: IO[bytes], size: int) -> bytes:
    """At most `size` bytes of what `unpacked` gave, empty at its end; raises OSError, and Torn.

    `read` would lose what stands between its beginning and the damage.
    """
    try:
        return file.read1(size)  # type: ignore[attr-defined,no-any-return]
    except (EOFError, zlib.error) as error:
        raise Torn(str(error)) from None
    except Exception as error:
        # Errors of their own, in modules that may not be loaded.
        if type(error).__name__ in ("BadGzipFile", "LZMAError", "ZstdError"):
            raise Torn(str(error)) from None
        raise
