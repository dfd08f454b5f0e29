"""Lines of a log of any kind, with the times that they carry and the marks of whose they are.

Plain consoles, dmesg with or without times, syslog, every form of `journalctl`, container logs and
JSON of any shipper. Everything is hostile: lines are bounded, bytes that are no text stay as
escapes, and whoever prints them makes them safe first. Every pattern here is linear: what repeats
in it is bounded, which a test proves.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from .entries import CONTAINER, LogEntry, Scanner
from .journal import journal_entry
from .json_fields import Fields, fields_of, records
from .opening import LogFile
from .times import parse_time

_SAID_LIMIT: Final = 64 << 10
_ANSI: Final = re.compile(r"\x1b\[[0-9;?]{0,16}[A-Za-z]")
_ENTITY: Final = re.compile(r"&(?:quot|apos|lt|gt|#39|#34|#x27|#x22);")
_QUOTES: Final = str.maketrans({"\u2018": "'", "\u2019": "'", "\u201c": '"', "\u201d": '"'})
"""What word processors and trackers make of quotes."""
_GUEST_TIME: Final = re.compile(r"\[ {0,12}(\d{1,9}\.\d{1,9})\]")
WALL_TIME: Final = re.compile(
    r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(?:[.,]\d{1,9})?(?:Z|[+-]\d\d:?\d\d)?"
)
HEAD: Final = 400
"""What stands before a message is looked for in so many characters of a line."""
_PROGRAM: Final = re.compile(r"(?:^|[ \t/])([A-Za-z][\w.@-]{1,63})\[(\d{1,10})\]: ?")
_HOST: Final = re.compile(r"(?:^|[ \t])([\w.-]{1,255})[ \t]{1,8}[\w.@-]{1,64}(?:\[\d{1,10}\])?: ")
_KERNEL: Final = re.compile(r"(?:^|[ \t])([\w.-]{1,255})[ \t]{1,8}kernel: ")
_STREAM: Final = re.compile(r" (?:stdout|stderr) [FP] ")
_SHIMS: Final = ("kata", "dragonball", "containerd-shim-kata", "runtime-rs")
_SANDBOX: Final = re.compile(
    r"\bsandbox(?:_id|-id|ID)?(?:=\"?|:? \"?(?=[0-9a-f]{12}))([\w.-]{2,128})"
)
_SOURCE: Final = re.compile(r"\bsource[=:] ?\"?([\w.-]{2,128})")
_PID: Final = re.compile(r"\bpid[=:] ?\"?(\d{1,10})\b")
_SUBSYSTEM: Final = re.compile(r"\bsubsystem[=:] ?\"?([\w.-]{2,64})")
_POD: Final = re.compile(r"\bpod=\"?([\w./-]{2,253})|PodSandboxMetadata\{Name:([\w.-]{2,253}),")
_CONTAINER: Final = re.compile(r"\b([0-9a-f]{64})\b")
_ID: Final = re.compile(r"[0-9a-f]{12,128}\Z")


class LogLine(NamedTuple):
    """One entry. `text` is its message; times are nanoseconds, None where the line has none.

    `guest_ns` counts from the guest's boot, `wall_ns` from 1970. `sandbox`, `pod`, `pid` and `host`
    say whose it is, as far as it tells; `pid` is a shim's.
    """

    number: int
    text: str
    guest_ns: int | None
    wall_ns: int | None
    sandbox: str | None = None
    pod: str | None = None
    pid: str | None = None
    host: str | None = None
    subsystem: str | None = None
    program: str | None = None
    file: str | None = None
    spans: bool = False
    """Its text is of several lines of the file."""
    dressed: bool = False
    """Something wrote it down for the program that said it: a journal, a shipper, syslog."""
    loose: bool = False
    """Nothing around its words tells that they are a line: it proves nothing."""


def read_lines(path: Path) -> Iterator[LogLine]:
    """Every line of a log; raises UnreadableInput."""
    log = LogFile(path)
    for entry in Scanner(None).entries(log.blocks()):
        yield from lines_of(entry, None)


def lines_of(entry: LogEntry, file: str | None) -> Iterator[LogLine]:
    """The lines that an entry holds: one, or all those that a shipper put into one."""
    raw = entry.raw if len(entry.raw) <= _SAID_LIMIT else _around(entry.raw, entry.hit)
    if (written := journal_entry(raw)) is not None:
        yield _of_fields(entry.number, fields_of(written), None, file)
        return
    if raw.find(b"\n") + 1 not in (0, len(raw)) and CONTAINER.match(raw):
        raw = _undressed(raw)
    text = raw.decode("utf-8", "backslashreplace").rstrip("\r\n")
    at = text.find("{")
    found = records(text, at) if at >= 0 else ()
    if not found:
        yield _plain(entry.number, text, file)
        return
    outer = _plain(0, text[:at], file) if at > 0 else None
    for fields in found:
        yield _of_fields(entry.number, fields, outer, file)


def _undressed(raw: bytes) -> bytes:
    """Lines of a container's log without what stands before each but the first."""
    first, *rest = raw.split(b"\n")
    for line in rest:
        dress = CONTAINER.match(line)
        before = CONTAINER.match(first)
        goes_on = before is not None and before[1] == b"P" and b"\n" not in first
        text = line[dress.end() :] if dress else line
        first += text if goes_on else b"\n" + text
    return first


def _around(raw: bytes, hit: int) -> bytes:
    """The beginning of an entry that is too long, and what is around the wanted place in it."""
    begin = max(hit - _SAID_LIMIT // 4, HEAD)
    return raw[:HEAD] + b" ... " + raw[begin : begin + _SAID_LIMIT]


def _plain(number: int, text: str, file: str | None) -> LogLine:
    """A line of text: what stands before its message, and what it says of itself."""
    if "\x1b" in text:
        text = _ANSI.sub("", text)
    if "\x00" in text:
        text = text.replace("\x00", "")
    if "&" in text and _ENTITY.search(text):
        text = html.unescape(text)
    if not text.isascii():
        text = text.translate(_QUOTES)
    if text.startswith("[") and (guest := _GUEST_TIME.match(text)) and not _named(text):
        # A console's own line. Whatever stands in it, it is the guest's words.
        guest_ns = round(float(guest[1]) * 1e9)
        return LogLine(number, text, guest_ns, None, file=file, spans="\n" in text)
    head = text[:HEAD]
    wall_ns = None
    if found := WALL_TIME.search(head):
        wall_ns = parse_time(found[0])
    program = pid = host = None
    begins = 0
    for found in _PROGRAM.finditer(head):
        program, number_ = found[1], found[2]
        begins = found.end()
        if program.startswith(_SHIMS):
            pid = number_
        if host is None and (named := _HOST.search(head[: found.end()])):
            host = named[1]
    if program is None and (found := _KERNEL.search(head)):
        program, host, begins = "kernel", found[1], found.end()
    elif program is None and (found := _STREAM.search(head)):
        begins = found.end()
    said = text[begins:]
    own = _GUEST_TIME.match(said)
    guest = own or _GUEST_TIME.search(text, begins, begins + 200) or _GUEST_TIME.search(head)
    marks = _Marks(pid=pid) if own else _marks(said, pid)
    dressed = begins > 0 or marks.written
    if marks.written and " msg=" in said:
        said = _logfmt_text(said)
    return LogLine(
        number, said[:_SAID_LIMIT], round(float(guest[1]) * 1e9) if guest else None, wall_ns,
        marks.sandbox, marks.pod, marks.pid, host, marks.subsystem, program, file, "\n" in said,
        dressed,
    )  # fmt: skip


def _named(text: str) -> bool:
    """Whether a line that begins with a guest's time is a journal's, by its monotonic clock."""
    return "]: " in text[:HEAD] and _PROGRAM.search(text[:HEAD]) is not None


class _Marks(NamedTuple):
    """Whose a message is by its own words; `written` when it is a logger's line."""

    sandbox: str | None = None
    pod: str | None = None
    pid: str | None = None
    subsystem: str | None = None
    written: bool = False


def _marks(said: str, pid: str | None) -> _Marks:
    sandbox = pod = subsystem = None
    written = said.startswith("time=") or " msg=" in said or " level=" in said
    if written and (found := _PID.search(said)):
        pid = found[1]
    if ("sandbox" in said and (found := _SANDBOX.search(said))) or (
        "source" in said and (found := _SOURCE.search(said)) and _ID.match(found[1])
    ):
        sandbox = found[1]
    if "subsystem" in said and (found := _SUBSYSTEM.search(said)):
        subsystem = found[1]
    if ("pod=" in said or "PodSandboxM" in said) and (found := _POD.search(said)):
        pod = (found[1] or found[2]).rpartition("/")[2] or None
    if sandbox is None and pid is None and pod is None and len(said) >= 64:
        found = _CONTAINER.search(said)
        pod = found[1] if found else None
    return _Marks(sandbox, pod, pid, subsystem, written)


def _logfmt_text(text: str) -> str:
    """msg and error of a logrus line, with their quotes undone; the whole line where neither is."""
    return " ".join(logfmt_texts(text)) or text


def logfmt_texts(text: str) -> list[str]:
    """What a logrus line says, in its order."""
    return [value for key in (" msg=", " error=", " err=") if (value := _value(text, key))]


def _value(text: str, key: str) -> str:
    at = text.find(key)
    if at < 0:
        return ""
    at += len(key)
    if text[at : at + 1] != '"':
        end = text.find(" ", at)
        return text[at : end if end >= 0 else len(text)]
    out: list[str] = []
    at += 1
    while at < len(text) and text[at] != '"':
        if text[at] == "\\" and at + 1 < len(text):
            at += 1
            out.append("\n" if text[at] == "n" else text[at])
        else:
            out.append(text[at])
        at += 1
    return "".join(out)


def _of_fields(number: int, fields: Fields, outer: LogLine | None, file: str | None) -> LogLine:
    """A line whose marks stand in fields; its text may be a dressed line itself."""
    inner = _plain(number, fields.text, file)
    pid = inner.pid
    program = fields.program or inner.program or (outer.program if outer else None)
    shim = fields.program is None or fields.program.startswith(_SHIMS)
    if pid is None and fields.pid and (fields.own_pid or shim):
        pid = fields.pid
    sandbox = fields.sandbox or inner.sandbox
    host = fields.host or inner.host or (outer.host if outer else None)
    if outer is not None and outer.pid and pid is None:
        pid = outer.pid
    return LogLine(
        number,
        inner.text,
        inner.guest_ns if inner.guest_ns is not None else fields.guest_ns,
        fields.wall_ns or inner.wall_ns or (outer.wall_ns if outer else None),
        sandbox,
        inner.pod if sandbox is None and not fields.pod else fields.pod,
        pid,
        host,
        fields.subsystem or inner.subsystem,
        program,
        file,
        False,
        True,
    )
