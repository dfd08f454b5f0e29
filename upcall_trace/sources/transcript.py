"""The "upcall-transcript" format, version 1: JSON lines, one send or receive each.

A line's bytes are `hex` followed by `zeros` zero bytes. docs/formats.md.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Self

from dissectors.constants import UPCALL_PORT

from ..capture.allowance import Allowance
from ..capture.reader import Damage
from ..capture.records import (
    MAX_CHUNK,
    Begins,
    Chunk,
    Close,
    GaveUp,
    Header,
    How,
    Open,
    Record,
    Vmm,
)
from ..errors import UnreadableInput

FORMAT = "upcall-transcript"
VERSION = 1
_HEADER_KEYS = ("kind", "format", "version", "port")
_LINE_LIMIT = 4 << 20
_SEND_LIMIT = 1 << 20
_INT_LIMIT = 1 << 62
_TEXT_LIMIT = 4096
_NANOSECONDS = 1_000_000_000


class TranscriptSource:
    """A transcript as a `Source`; lines that are not what they should be become `damage`."""

    live = False

    def __init__(self, path: Path) -> None:
        self.damage: list[Damage] = []
        self.complete = False
        self._file: IO[bytes] = path.open("rb")
        try:
            self.header = _header(path, self._file.readline(_LINE_LIMIT))
        except BaseException:
            self._file.close()
            raise

    def records(self) -> Iterator[tuple[int, Record]]:
        offset = self._file.tell()
        allowance = Allowance()
        while line := self._file.readline(_LINE_LIMIT):
            if line.strip():
                try:
                    records = list(_records(json.loads(line)))
                except (ValueError, KeyError, TypeError, RecursionError, OverflowError):
                    at_end = not line.endswith(b"\n") and len(line) < _LINE_LIMIT
                    self.damage.append(Damage(offset, len(line), at_end))
                else:
                    for record in records:
                        if isinstance(record, Chunk):
                            allowance.take(len(record.data), offset)
                        yield offset, record
            offset += len(line)
        self.complete = not any(damage.at_end for damage in self.damage)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


def read(path: Path) -> TranscriptSource:
    """Open the transcript at `path`; raises OSError and UnreadableInput."""
    return TranscriptSource(path)


def _header(path: Path, line: bytes) -> Header:
    try:
        values = json.loads(line)
        if not isinstance(values, dict) or values.get("format") != FORMAT:
            raise ValueError
    except (ValueError, RecursionError):
        raise UnreadableInput(f"{path}: the first line is not a transcript's header") from None
    version = values.get("version")
    if version != VERSION:
        found = f"version {version}" if type(version) is int else "no known version"
        raise UnreadableInput(f"{path} is a transcript of {found}; this program knows {VERSION}")
    notes = {
        key[:_TEXT_LIMIT]: value[:_TEXT_LIMIT]
        for key, value in values.items()
        if isinstance(value, str) and key not in _HEADER_KEYS
    }
    port = values.get("port", UPCALL_PORT)
    if type(port) is not int or not 0 <= port < 1 << 32:
        raise UnreadableInput(f"{path}: the header's port is not a number of 32 bits")
    notes = dict(list(notes.items())[:64])
    return Header(source="transcript", arch=notes.get("arch"), port=port, notes=notes)


def _number(values: dict[str, Any], key: str, low: int = 0, high: int = _INT_LIMIT) -> int:
    value = values[key]
    if type(value) is not int or not low <= value < high:
        raise ValueError(key)
    return value


def _records(values: dict[str, Any]) -> Iterator[Record]:
    kind = values["kind"]
    if kind == "header":
        return
    t_ns = _number(values, "t_ns", -_INT_LIMIT)
    conn = _number(values, "conn", 0, 1 << 32)
    match kind:
        case "bytes":
            to_guest = {">": True, "<": False}[values["dir"]]
            zeros = _number(values, "zeros", 0, _SEND_LIMIT)
            sent = bytes.fromhex(values["hex"]) + bytes(zeros)
            for begin in range(0, max(1, len(sent)), MAX_CHUNK):
                yield Chunk(t_ns, conn, to_guest, sent[begin : begin + MAX_CHUNK])
        case "open":
            begins = Begins(values.get("begins", Begins.LINE))
            port = _number(values, "port", 0, 1 << 32) if "port" in values else None
            accepted = values.get("accepted")
            if accepted is not None and type(accepted) is not bool:
                raise ValueError("accepted")
            yield Open(t_ns, conn, begins, port, accepted)
        case "close":
            yield Close(t_ns, conn, by_guest=False, how=How(values.get("how", How.CLOSE)))
        case "closed_by_guest":
            yield Close(t_ns, conn, by_guest=True)
        case "reset_by_guest":
            yield Close(t_ns, conn, by_guest=True, how=How.RESET)
        case "gave_up":
            after_s = float(values["after_s"])
            if not 0 <= after_s < 1e9:
                raise ValueError("after_s")
            yield GaveUp(t_ns, conn, round(after_s * _NANOSECONDS))
        case "vmm":
            yield Vmm(t_ns, str(values["action"])[:_TEXT_LIMIT], conn)
        case _:
            raise ValueError(f"unknown kind {kind!r}")
