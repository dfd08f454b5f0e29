"""What can be read as a capture: one table of foreign formats, open to plugins.

A format that can be read offers a `Source`: a header and the records of a capture. Which one a
file has is decided by its first bytes, never by its name. Modules are imported when needed, those
of plugins when no format of ours fits. docs/formats.md, docs/plugins.md.
"""

from __future__ import annotations

import codecs
import stat
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Final, Protocol, Self

from ..capture.frames import MAGIC
from ..capture.reader import CaptureReader, Damage, NotACapture
from ..capture.records import Header, Record
from ..errors import UnreadableInput
from ..plugins import BrokenPlugin, Plugin, installed, note
from .spooled import SpooledPath, plain

SNIFFED: Final = 4096
"""How many bytes of a file's beginning a format is recognised by."""


class Source(AbstractContextManager["Source"], Protocol):
    """What every readable file offers; `damage` and `complete` are true after the last record."""

    header: Header
    live: bool

    @property
    def damage(self) -> list[Damage]:
        """Where the file cannot be read, or is not what was written."""
        ...

    @property
    def complete(self) -> bool:
        """Whether nothing is missing at its end, and nothing that was read was damaged."""
        ...

    def records(self) -> Iterator[tuple[int, Record]]:
        """(offset, record); the offset is 0 in formats whose records have none."""
        ...


@dataclass(frozen=True, slots=True)
class SourceFormat:
    """One foreign format that can be read.

    `recognise` gets the first `SNIFFED` bytes of a file, or all of a shorter one. `module` is
    imported when a file is recognised. Its `read(path)` returns a `Source`; it raises OSError, and
    UnreadableInput with a sentence that names the file.
    """

    name: str
    about: str
    recognise: Callable[[bytes], bool]
    module: str
    lacks: str = ""
    """What a capture made by us has, and such a file has not."""
    since: str = ""
    """The first version of the program that reads it."""


def _is_pcap(start: bytes) -> bool:
    return start[:4] in (
        b"\xd4\xc3\xb2\xa1", b"\xa1\xb2\xc3\xd4", b"\x4d\x3c\xb2\xa1", b"\xa1\xb2\x3c\x4d",
        b"\x0a\x0d\x0d\x0a",
    )  # fmt: skip


def _is_transcript(start: bytes) -> bool:
    text = start.removeprefix(codecs.BOM_UTF8).lstrip()
    return text.startswith(b"{") and b'"upcall-transcript"' in text


FORMATS: Final = (
    SourceFormat(
        "pcap",
        "a pcap or pcapng file with link type VSOCK (271), made on a vsockmon interface",
        _is_pcap,
        "upcall_trace.sources.pcap",
        lacks="CONNECT and OK lines; which side closed its direction first",
        since="0.1.0",
    ),
    SourceFormat(
        "transcript",
        "JSON lines, one send or receive each, made by a test or by hand",
        _is_transcript,
        "upcall_trace.sources.transcript",
        lacks="the wall clock, gaps, marks",
        since="0.1.0",
    ),
)
"""The formats of ours. A plugin's entry point in the group `upcall_trace.sources` names another
`SourceFormat`, of the entry point's name."""


def open_source(path: Path) -> Source:
    """Open a capture, or any file that `import` accepts.

    Raises UnreadableInput, in one sentence, for everything that can be wrong with it.
    """
    try:
        path = plain(path)
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            from ..capture.ring import RingReader  # hardly ever a folder

            return _told(RingReader(path), path)
        if not stat.S_ISREG(mode):
            raise UnreadableInput(f"{path} is {_kind(mode)}, not a file")
        with path.open("rb") as file:
            start = file.read(SNIFFED)
        if start.startswith(MAGIC[:6]):
            return _told(CaptureReader(path), path)
        for known in FORMATS:
            if known.recognise(start):
                return _told(import_module(known.module).read(path), path)
        if start and (foreign := _of_a_plugin(path, start)):
            return foreign
    except NotACapture as error:
        raise UnreadableInput(f"{path} cannot be read as a capture: {error}") from None
    except OSError as error:
        raise UnreadableInput(f"{path}: {error.strerror or error}") from None
    if not start:
        raise UnreadableInput(f"{path} is empty")
    raise UnreadableInput(
        f"{path} is neither a capture nor one of the formats {', '.join(format_names())}"
    )


def _told(source: Source, path: Path) -> Source:
    """The source; of a torn archive it says that the end is missing."""
    if isinstance(path, SpooledPath) and path.torn:
        return _TornSource(source, path.stat().st_size)
    return source


class _TornSource:
    """A source whose archive ended early."""

    complete = False
    live = False

    def __init__(self, source: Source, size: int) -> None:
        self._source = source
        self._end = Damage(size, 1, at_end=True)
        self.header = source.header

    @property
    def damage(self) -> list[Damage]:
        told = self._source.damage
        return told if any(each.at_end for each in told) else [*told, self._end]

    def records(self) -> Iterator[tuple[int, Record]]:
        return self._source.records()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *trouble: object) -> None:
        self._source.__exit__(None, None, None)


def format_names() -> list[str]:
    """The names of all formats that can be read, plugins' last; imports no plugin."""
    own = [known.name for known in FORMATS]
    return own + [plugin.name for plugin in installed("sources") if plugin.name not in own]


def plugged_format(plugin: Plugin) -> SourceFormat:
    """The format that a plugin adds; raises BrokenPlugin."""
    if plugin.name in {known.name for known in FORMATS}:
        raise plugin.broken("has the name of a format that is built in")
    known = plugin.load(SourceFormat)
    if known.name != plugin.name:
        raise plugin.broken(f"calls its format {known.name!r}")
    return known


def _of_a_plugin(path: Path, start: bytes) -> Source | None:
    for plugin in installed("sources"):
        try:
            known = plugged_format(plugin)
            with plugin.in_use():
                recognised = known.recognise(start)
        except BrokenPlugin as trouble:
            note(trouble)  # another one may know the file
            continue
        if recognised:
            from .plugged import PluggedSource

            source: Source = PluggedSource(plugin, known.module, path)
            return source
    return None


def _kind(mode: int) -> str:
    for test, name in (
        (stat.S_ISDIR, "a directory"),
        (stat.S_ISSOCK, "a socket"),
        (stat.S_ISFIFO, "a pipe"),
    ):
        if test(mode):
            return name
    return "a device"


def capture_kind(start: bytes) -> str | None:
    """What a file is that begins so, for people; None for what cannot be read as a capture."""
    if start.startswith(MAGIC[:6]):
        return "a capture"
    named = {"pcap": "a packet capture", "transcript": "a capture (a transcript)"}
    for known in FORMATS:
        if known.recognise(start):
            return named.get(known.name, f"a capture of the format {known.name}")
    return None
