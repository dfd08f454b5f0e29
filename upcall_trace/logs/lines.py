"""Lines of a log of any kind, one by one, with the times that they carry.

Plain consoles, dmesg with or without times, syslog and journal text, `journalctl -o json` and the
JSON lines of Kata and Dragonball. Everything is hostile: lines are bounded, bytes that are no text
stay as escapes, and whoever prints them makes them safe first.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, Final, NamedTuple

from ..errors import UnreadableInput

_LINE_LIMIT: Final = 64 << 10
_NUMBERS: Final = re.compile(rb'"MESSAGE"\s*:\s*\[')
"""How a journal's message begins that is written as numbers; words cannot be found in it."""
_SAID_LIMIT: Final = 4096
_GUEST_TIME: Final = re.compile(r"\[\s*(\d{1,9}\.\d{1,9})\]")
_WALL_TIME: Final = re.compile(
    r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(?:[.,]\d+)?(?:Z|[+-]\d\d:?\d\d)?"
)


class LogLine(NamedTuple):
    """One line. `text` is its message; times are nanoseconds, None where the line has none.

    `guest_ns` counts from the guest's boot, `wall_ns` from 1970.
    """

    number: int
    text: str
    guest_ns: int | None
    wall_ns: int | None


def read_lines(path: Path, wanted: re.Pattern[bytes]) -> Iterator[LogLine]:
    """The lines that `wanted` finds something in; raises UnreadableInput."""
    try:
        with path.open("rb") as file:
            number = 0
            while raw := file.readline(_LINE_LIMIT):
                number += 1
                if wanted.search(raw) or _NUMBERS.search(raw):
                    yield _line(number, raw)
    except OSError as error:
        raise UnreadableInput(f"{path}: {error.strerror}") from None


def _line(number: int, raw: bytes) -> LogLine:
    text = raw.decode("utf-8", "backslashreplace").strip("\r\n")
    fields = _json_fields(text) if text.lstrip().startswith("{") else {}
    wall_ns = _json_time(fields)
    if fields:
        text = _json_text(fields)
    elif found := _WALL_TIME.search(text[:80]):
        wall_ns = _parse_time(found[0])
    guest = _GUEST_TIME.search(text)
    guest_ns = round(float(guest[1]) * 1e9) if guest else None
    return LogLine(number, text[:_SAID_LIMIT], guest_ns, wall_ns)


def _json_fields(text: str) -> dict[str, Any]:
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return fields if isinstance(fields, dict) else {}


def _json_text(fields: dict[str, Any]) -> str:
    """A journal's MESSAGE or a Kata log's msg; either may itself be a line of JSON."""
    for key in ("MESSAGE", "msg", "message"):
        said = fields.get(key)
        if isinstance(said, list):  # the journal writes bytes that are no text as numbers
            said = bytes(b for b in said if isinstance(b, int) and 0 <= b < 256).decode(
                "utf-8", "backslashreplace"
            )
        if isinstance(said, str):
            inner = _json_fields(said) if said.startswith("{") else {}
            rest = " ".join(
                str(value) for name, value in fields.items() if name in ("error", "err")
            )
            return f"{_json_text(inner) if inner else said} {rest}".rstrip()
    return ""


def _json_time(fields: dict[str, Any]) -> int | None:
    stamp = fields.get("__REALTIME_TIMESTAMP")
    if isinstance(stamp, str) and stamp.isdecimal() and len(stamp) < 18:
        return int(stamp) * 1000
    for key in ("ts", "time", "timestamp"):
        value = fields.get(key)
        if isinstance(value, str):
            return _parse_time(value)
    return None


def _parse_time(text: str) -> int | None:
    """RFC 3339, with fractions cut to microseconds, as nanoseconds since 1970."""
    text = re.sub(r"([.,]\d{1,6})\d*", r"\1", text.replace(",", "."))
    try:
        parsed = datetime.fromisoformat(text)
    except ValueError:
        return None
    try:
        return round(parsed.timestamp() * 1e9)
    except (OverflowError, ValueError, OSError):
        return None
