"""How the lines of a log are written anew, remembered by their shapes.

The shape of a line is the line with every digit written as 0, and with a mark for a container's
id. Logs say the same again and again, with other times and numbers: what is found out about one
line holds for all of its shape, as nothing that reads logs tells one digit from another. What does
is looked at in every line: rows of the table with a digit in them, and chunks of which a digit
tells what they are. A test goes through the patterns, and another compares lines with what they
are without this memory.
"""

from __future__ import annotations

import json
import re
from collections.abc import Container
from datetime import UTC, datetime, timedelta
from functools import cache, lru_cache
from json.encoder import encode_basestring_ascii as quoted
from typing import Final, NamedTuple

from ..logs.entries import LogEntry, shape_of
from ..logs.json_fields import TIMES, time_in
from ..logs.lines import HEAD, WALL_TIME, LogLine, logfmt_texts
from ..logs.meaning import Meaning
from ..logs.table import ROWS
from ..logs.times import parse_time
from .allowed_text import Replacements, StandIn, allowed_text, edits_of, parts_of, shape

_PROGRAMS: Final = frozenset({"kata", "kernel", "containerd", "dragonball", "runtime-rs"})
"""Programs of our own that the reader of logs goes by."""
_SHAPES: Final = 1 << 13
_AT_FIRST: Final = 1 << 9
_LONGEST: Final = 1 << 11
_COUNTS: Final = re.compile(r"\{\d{0,4},?\d{0,4}\}|0-9")
"""Digits of a pattern that are no digits of a line."""
_DIGIT: Final = re.compile(r"[0-9]")
_TIME: Final = re.compile(r"(.{19})(?:[.,](\d{1,9}))?(Z|[+-]\d\d:?\d\d)")
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)

_TOLD_OTHERWISE: Final = ("\x1b", "\x00", "&", "__CURSOR=")
"""What changes a text before it is read, and what begins an entry of fields."""
_JSON_TEXT: Final = re.compile(r'"[^"]*"')
_DIGITS_OF_JSON: Final = re.compile(r"[0-9.eE+-][0-9]|[0-9][.eE]")
"""Numbers of which digits tell whether they are JSON."""
_NO_JSON: Final = re.compile(r"\{\s{0,64}[^\s\"}]")
"""A brace of other things."""
_MOST_PLACES: Final = 4
_NOWHERE: Final = (0, 0)

Place = tuple[int, int]


def allowed_line(line: LogLine, stand_in: StandIn) -> str:
    """One understood line, written anew; several lines of the log become one."""
    text = allowed_text(line.text.rstrip("\r\n"), stand_in)
    marks = {
        "_HOSTNAME": line.host and stand_in("host", line.host),
        "SOURCE": line.sandbox and stand_in("id", line.sandbox),
        "pod_name": line.pod and stand_in("name", line.pod),
        "_PID": line.pid and stand_in("pid", line.pid).rpartition("-")[2],
        "SUBSYSTEM": line.subsystem and allowed_text(line.subsystem, stand_in),
        "SYSLOG_IDENTIFIER": line.program if line.program in _PROGRAMS else None,
    }
    told = {name: value for name, value in marks.items() if value}
    if line.wall_ns is not None:
        told["__REALTIME_TIMESTAMP"] = str(max(0, line.wall_ns // 1000))
        told["when"] = _moment(line.wall_ns // 1_000_000_000)
    elif not told and "\n" not in text:
        return text
    return json.dumps({**told, "MESSAGE": text})


@lru_cache(maxsize=256)
def _moment(seconds: int) -> str:
    try:
        return datetime.fromtimestamp(seconds, UTC).isoformat()
    except (OverflowError, ValueError, OSError):
        return "unknown"


@lru_cache(maxsize=256)
def _second(text: str) -> timedelta | None:
    """Since 1970, of a time with its zone; None for what is no time."""
    try:
        return datetime.fromisoformat(text) - _EPOCH
    except ValueError:
        return None


def wall_time(text: str) -> int | None:
    """As `parse_time` and `time_in` tell it, of times of which many are in one second."""
    if text.isdecimal():
        return time_in({"ts": text})
    found = _TIME.fullmatch(text)
    if found is None:
        return parse_time(text)
    since = _second(found[1] + found[3])
    if since is None:
        return None
    micros = int((found[2] or "0")[:6].ljust(6, "0"))
    return round(((since.days * 86_400 + since.seconds) * 10**6 + micros) / 10**6 * 1e9)


Places = tuple[Place, ...]
"""Where a value stands in a line: the same at all of them, if they are several."""


class Written(NamedTuple):
    """How lines of one shape are written anew: where in them what stands."""

    message: tuple[Places, ...]
    """Of each text of the message; there is a space between them."""
    escaped: bool
    """There are backslashes before the quotes in it."""
    edits: tuple[Replacements, ...]
    """Of each line of it."""
    rows: tuple[tuple[Meaning, Place | None], ...]
    marks: tuple[tuple[str, str, Places | str], ...]
    """Name, kind of stand-in, and where it stands, or what it is where it has no digit."""
    subsystem: str | None
    program: str | None
    wall: Place | None
    bare: bool
    """There is nothing but the message."""

    def line(self, text: str, stand_in: StandIn) -> str | None:
        """A line of the shape, written anew; None when it has to be looked at by itself."""
        said = self._said(text)
        wall_ns = None
        if self.wall is not None:
            wall_ns = wall_time(text[self.wall[0] : self.wall[1]])
        if said is None or (self.wall is not None and not wall_ns):
            return None
        marks = [_value(text, mark) for _, _, mark in self.marks] if self.marks else []
        if None in marks:
            return None
        if len(self.edits) == 1:
            said = self.edits[0].applied(said, stand_in)
        else:
            lines = parts_of(said)
            for at, edits in enumerate(self.edits):
                lines[2 * at] = edits.applied(lines[2 * at], stand_in)
            said = "".join(lines)
        if self.bare:
            return said
        fields: list[str] = []
        for (name, kind, _), value in zip(self.marks, marks, strict=True):
            stands = stand_in(kind, value or "")
            fields.append(name + quoted(stands.rpartition("-")[2] if kind == "pid" else stands))
        if self.subsystem is not None:
            fields.append('"SUBSYSTEM": ' + quoted(allowed_text(self.subsystem, stand_in)))
        if self.program is not None:
            fields.append(f'"SYSLOG_IDENTIFIER": "{self.program}"')
        if wall_ns is not None:
            fields.append(f'"__REALTIME_TIMESTAMP": "{max(0, wall_ns // 1000)}"')
            fields.append(f'"when": "{_moment(wall_ns // 1_000_000_000)}"')
        fields.append('"MESSAGE": ' + quoted(said))
        return "{" + ", ".join(fields) + "}"

    def _said(self, text: str) -> str | None:
        """The message of a line of the shape; None when it has to be looked at by itself."""
        said = _value(text, self.message[0])
        if len(self.message) > 1:
            texts = [_value(text, places) for places in self.message]
            said = None if None in texts else " ".join(filter(None, texts))
        if said is None:
            return None
        if self.escaped:
            said = said.replace('\\"', '"')
        if len(self.edits) == 1:
            if not self.edits[0].fit(said):
                return None
        else:
            for part, edits in zip(parts_of(said)[::2], self.edits, strict=True):
                if not edits.fit(part):
                    return None
        for row, place in self.rows:
            if _place(row, said) != place:
                return None
        return said


def _value(text: str, places: Places | str) -> str | None:
    """What stands there, None where it is not the same at all of them."""
    if isinstance(places, str):
        return places
    begin, end = places[0]
    value = text[begin:end]
    for begin, end in places[1:]:
        if text[begin:end] != value:
            return None
    return value


class LineShapes(Container[bytes]):
    """The shapes of lines that are entries of one line each, and understood."""

    def __init__(self) -> None:
        self._written: dict[bytes, Written] = {}
        self._learnt = self._used = 0

    def __contains__(self, shape: object, /) -> bool:
        return shape in self._written

    def __len__(self) -> int:
        return len(self._written)

    def line(self, entry: LogEntry, stand_in: StandIn) -> str | None:
        """The entry written anew; None when it has to be looked at by itself."""
        raw = entry.raw
        if not self._written or len(raw) > _LONGEST or b"\x00" in raw:
            return None
        written = self._written.get(entry.shape or shape_of(raw))
        if written is None:
            return None
        self._used += 1
        return written.line(_text(raw), stand_in)

    def learn(self, entry: LogEntry, line: LogLine) -> None:
        """Remember how this line is written, the one and only line of its entry."""
        raw = entry.raw
        if self._learnt > _AT_FIRST + self._used:
            return  # hardly anything is said twice
        self._learnt += 1
        if len(raw) > _LONGEST or not raw.isascii() or raw.find(b"\n") + 1 not in (0, len(raw)):
            return
        zeroes = entry.shape or shape_of(raw)
        written = _learnt(_text(raw), zeroes, line)
        if written is None:
            return
        if len(self._written) >= _SHAPES:
            self._written.clear()
        self._written[zeroes] = written


def _text(raw: bytes) -> str:
    return raw.decode("ascii").rstrip("\r\n")


def _learnt(text: str, zeroes: bytes, line: LogLine) -> Written | None:
    """How a line is written, if nothing but digits and ids can change what it is."""
    if any(each in text for each in _TOLD_OTHERWISE) or not line.text:
        return None
    at = text.find("{")
    may_be_json = at >= 0 and _may_be_json(text, at)
    wall = _time_of_json(text, at) if may_be_json else _time_of_text(text)
    escaped = may_be_json or " msg=" in text
    said = [line.text] if may_be_json else _said(text, line)
    if wall is None or said is None or (wall == _NOWHERE) != (line.wall_ns is None):
        return None
    if wall != _NOWHERE and (not line.wall_ns or wall_time(text[slice(*wall)]) != line.wall_ns):
        return None
    if escaped and "\\" in text.replace('\\"', ""):
        return None
    edits = tuple(map(edits_of, parts_of(line.text)[::2]))
    message = [_places(text, each.replace('"', '\\"') if escaped else each) for each in said]
    marks: list[tuple[str, str, Places | str]] = []
    for name, kind, value in (
        ("_HOSTNAME", "host", line.host),
        ("SOURCE", "id", line.sandbox),
        ("pod_name", "name", line.pod),
        ("_PID", "pid", line.pid),
    ):
        if value:
            where = _places(text, value) if _DIGIT.search(value) else value
            marks.append((f'"{name}": ', kind, where))
    subsystem = line.subsystem or None
    if any(b"\x00" in zeroes[begin:end] for places in message for begin, end in places):
        return None  # a row might look into an id
    placed = all(message) and all(where for _, _, where in marks)
    if not placed or not all(each.blind for each in edits):
        return None
    if subsystem is not None and _DIGIT.search(subsystem):
        return None
    program = line.program if line.program in _PROGRAMS else None
    return Written(
        tuple(message),
        escaped,
        edits,
        tuple((row, _place(row, line.text)) for row in _rows_in(line.text)),
        tuple(marks),
        subsystem,
        program,
        None if wall == _NOWHERE else wall,
        not marks and subsystem is None and program is None and wall == _NOWHERE,
    )


def _may_be_json(text: str, at: int) -> bool:
    """Whether a text with a brace at `at` may be JSON with some other digits."""
    end = text.rstrip()
    if not end.rstrip(",").endswith(("}", "]")):
        return False
    array = end.endswith("]") or text[:at].rstrip().endswith("[")
    return array or _NO_JSON.match(text, at) is None


def _said(text: str, line: LogLine) -> list[str] | None:
    """The parts of a text's message; None where they are not told for certain."""
    if " msg=" in text:
        said = logfmt_texts(text)
        return said if " ".join(said) == line.text else None
    return [line.text] if text.endswith(line.text) else None


def _time_of_text(text: str) -> Place | None:
    found = WALL_TIME.search(text[:HEAD])
    return found.span() if found else _NOWHERE


def _time_of_json(text: str, at: int) -> Place | None:
    """Where the time of a flat object is; None where digits may change what the object says."""
    before = text[:at].rstrip()
    bare = text[at:].replace('\\"', "__")
    if (before and not before.endswith(":")) or "\\" in bare:
        return None
    if _DIGITS_OF_JSON.search(_JSON_TEXT.sub("", bare)):
        return None
    try:
        fields = json.loads(text[at:])
    except (ValueError, RecursionError):
        return None
    if not isinstance(fields, dict) or fields.get("error") or fields.get("err"):
        return None
    for value in fields.values():
        if isinstance(value, (dict, list)) or (isinstance(value, str) and value.startswith("{")):
            return None
    name = next((name for name in TIMES if name in fields), None)
    if name is None:
        return _NOWHERE
    found = [*re.finditer(f'"{re.escape(name)}"\\s*:\\s*"([^"]*)"', bare)]
    if len(found) != 1 or bare.count(f'"{name}"') != 1:
        return None
    return at + found[0].start(1), at + found[0].end(1)


def _places(text: str, value: str) -> Places:
    """Every place of a value in a line; none where there are too many."""
    found: list[Place] = []
    at = text.find(value)
    while at >= 0 and value:
        found.append((at, at + len(value)))
        if len(found) > _MOST_PLACES:
            return ()
        at = text.find(value, at + 1)
    return tuple(found)


@cache
def digit_rows() -> tuple[Meaning, ...]:
    """The rows that tell digits apart: a digit is one of their words, or of what is filled in."""
    return tuple(
        row
        for row in ROWS
        if _DIGIT.search(row.anchor)
        or (row.pattern is not None and _DIGIT.search(_COUNTS.sub("", row.pattern.pattern)))
    )


def _rows_in(text: str) -> list[Meaning]:
    """Those that a text of the shape may say."""
    zeroes = shape(text)
    return [row for row in digit_rows() if any(shape(each) in zeroes for each in row.anchors)]


def _place(row: Meaning, text: str) -> Place | None:
    """Where a row is in a text, None where it is not."""
    at = row.place(text)
    if row.pattern is None or at < 0:
        return (at, at) if at >= 0 else None
    found = row.pattern.search(text)
    return found.span() if found is not None else None
