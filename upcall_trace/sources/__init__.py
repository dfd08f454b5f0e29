"""Foreign formats, and the one table of them.

A format that can be read offers a `Source`: a header and the records of a capture. Which one a
file has is decided by its first bytes, never by its name. Modules are imported when needed.
"""

from __future__ import annotations

import stat
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Final, Protocol

from ..capture.reader import CaptureReader, Damage, NotACapture
from ..capture.records import MAGIC, Header, Record
from ..errors import UnreadableInput

_SNIFFED = 4096


class Source(AbstractContextManager["Source"], Protocol):
    """What every readable file offers; `damage` and `complete` are true after the last record."""

    header: Header
    damage: list[Damage]
    complete: bool
    live: bool

    def records(self) -> Iterator[tuple[int, Record]]:
        """(offset, record); the offset is 0 in formats whose records have none."""
        ...


@dataclass(frozen=True, slots=True)
class Format:
    """One foreign format: how it is recognised, and the module that reads it as `read(path)`."""

    name: str
    recognise: Callable[[bytes], bool]
    module: str


def _is_pcap(start: bytes) -> bool:
    return start[:4] in (
        b"\xd4\xc3\xb2\xa1", b"\xa1\xb2\xc3\xd4", b"\x4d\x3c\xb2\xa1", b"\xa1\xb2\x3c\x4d",
        b"\x0a\x0d\x0d\x0a",
    )  # fmt: skip


def _is_transcript(start: bytes) -> bool:
    return start.lstrip()[:1] == b"{" and b'"upcall-transcript"' in start


FORMATS: Final = (
    Format("pcap", _is_pcap, "pcap"),
    Format("transcript", _is_transcript, "transcript"),
)


def open_source(path: Path) -> Source:
    """Open a capture, or any file that `import` accepts.

    Raises UnreadableInput, in one sentence, for everything that can be wrong with it.
    """
    try:
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode):
            raise UnreadableInput(f"{path} is {_kind(mode)}, not a file")
        with path.open("rb") as file:
            start = file.read(_SNIFFED)
        if start.startswith(MAGIC[:6]):
            return CaptureReader(path)
        for known in FORMATS:
            if known.recognise(start):
                reader = import_module(f".{known.module}", __name__)
                source: Source = reader.read(path)
                return source
    except NotACapture as error:
        raise UnreadableInput(f"{path} cannot be read as a capture: {error}") from None
    except OSError as error:
        raise UnreadableInput(f"{path}: {error.strerror or error}") from None
    if not start:
        raise UnreadableInput(f"{path} is empty")
    known_names = ", ".join(known.name for known in FORMATS)
    raise UnreadableInput(f"{path} is neither a capture nor one of the formats {known_names}")


def _kind(mode: int) -> str:
    for test, name in (
        (stat.S_ISDIR, "a directory"),
        (stat.S_ISSOCK, "a socket"),
        (stat.S_ISFIFO, "a pipe"),
    ):
        if test(mode):
            return name
    return "a device"
