"""Redaction of logs by an allow-list: what the diagnosis understands stays, and nothing else.

A line that says nothing of the table of understood lines is left out. Of the others, the words
that stand in the table stay, and numbers that cannot be an address of a network or a person's;
everything else is replaced by a stand-in, the same one wherever it stands. So a secret of a kind
that nobody thought of is left out, too, unless it is one of the table's own words.

A line is written anew, with the marks that the diagnosis goes by: times, which guest, who spoke.
docs/redaction.md.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from enum import Enum, auto
from functools import cache, lru_cache
from itertools import pairwise
from typing import Final

from ..logs.entries import Scanner
from ..logs.lines import LogLine, lines_of
from ..logs.table import ROWS, understand, understood, wanted

_WORD: Final = re.compile(r"[A-Za-z_]{1,64}")
_NO_WORD: Final = re.compile(r"\\.|\[[^\]]{0,64}\]|\{[^}]{0,64}\}")
"""What is no word of a line: a pattern's escapes, classes and counts, and what is filled in."""
_EITHER_CASE: Final = re.compile(r"\[([A-Z])[a-z]\]")
_CHUNK: Final = re.compile(r"[^\s\"'`,;=(){}\[\]<>|!]{1,4096}")
_PARTS: Final = re.compile(r"[A-Za-z_]+|[0-9]+")
_NUMBER: Final = re.compile(r"[-+]?[0-9]{1,5}(?:\.[0-9]{1,3})?[.:]?")
_HEX_NUMBER: Final = re.compile(r"0x[0-9a-fA-F]{1,16}(?:MB)?[.:]?")
_HEX_BYTE: Final = re.compile(r"[0-9a-f]{1,2}")
_HEX_ID: Final = re.compile(r"[0-9a-fA-F.:-]{4,}")
_AFTER_HEX: Final = frozenset({"busno", "devfn", "slot"})
_BEFORE_HEX: Final = frozenset({"address", "at", "irq", "mem", "size", "value"})
_OF_USERS: Final = ("uid", "gid")
_GUEST_TIME: Final = re.compile(r"\[ {0,12}[0-9]{1,9}\.[0-9]{1,9}\]")
_LINES: Final = re.compile(r"(\n|\\{1,8}n)")
"""What ends a line of a message, also where it is written out."""
_NUMBERS_IN_A_NAME: Final = 2
_LONGEST_NUMBER_IN_A_NAME: Final = 4
_NUMBERS_IN_A_ROW: Final = 2
_REMEMBERED: Final = 48
_WIDEST: Final = 16
# Words of our own that the reader of logs goes by, and that no row of the table has.
_PROGRAMS: Final = frozenset({"kata", "kernel", "containerd", "dragonball", "runtime-rs"})
_STRUCTURE: Final = (
    "Caused by ok error err failed at of in the to for and hypervisor agent client device manager "
    "vm vcpu dmesg created stopped reset plugged unplugged CPU slot bus start plug unplug "
    "proxy vsockmon transcript merge guest memory pcapng test file is damaged here left out on "
    "purpose cut off by capture packet size limit packets that capturing program lost no room "
    "disk full was not recorded written op context set operation would block connection reset "
    "broken pipe Others virtual errors requested region subblock plugged rpc status message create "
    "container task shim UpcallMissVsock RIP pointer dereference Tainted dbs_upcall blk init try "
    "handler instance"
)
_IDENTITIES: Final = "id"

_STAND_IN: Final = re.compile(
    r"(?:host|id|ip|mac|user|name|path|pid|long|token)-(?:[0-9]{1,9}|more)[.:]*"
)
_FORMS: Final = re.compile(
    r"0x[0-9a-fA-F]{1,16}[-@+]0x[0-9a-fA-F]{1,16}[.:]?"  # a window
    r"|[0-9a-f]{4}:[0-9a-f]{2}:[01][0-9a-f]\.[0-7][.:]?"  # a PCI device
    r"|(?:cpuhp|swapper)/[0-9]{1,4}:?"  # threads, by which an oops is told to be of a CPU
    r"|(?:[0-9]{4}:)?[a-z_]{1,64}\+0x[0-9a-f]{1,6}/0x[0-9a-f]{1,6}"  # a place in a backtrace
    r"|\^?/devices/pci[0-9a-f]{4}:[0-9a-f]{2}(?:/[0-9a-f]{4}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]){1,4}"
    r"/virtio|\+/block/"  # where the agent looks for a device
    r"|[0-9]{1,2}\.[0-9]{1,3}\.[0-9]{1,3}"  # a kernel's version
    r"|#[0-9]{1,3}|0-9"  # which oops it is; a class in a pattern of the agent's
    r"|[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(?:\.[0-9]{1,9})?Z"  # a time
)
"""What looks so is the kernel's or a device's, wherever it stands."""

_PROGRAM: Final = re.compile(
    r"(?<!/)/(?:qemu-system-(?:x86_64|aarch64)|qemu-kvm|cloud-hypervisor|firecracker"
    r"|clh(?:-api)?\.sock(?::[0-9]{1,5})?)\Z"
)
"""The end of a path that tells another VMM."""

StandIn = Callable[[str, str], str]
"""(kind, what is taken out) -> what stands for it."""


@cache
def allowed_words() -> frozenset[str]:
    """Every word of the table's rows, in lower case."""
    texts = [_STRUCTURE]
    for row in ROWS:
        texts += [row.anchor, _NO_WORD.sub(" ", row.words), row.example]
        if row.pattern is not None:
            texts.append(_NO_WORD.sub(" ", _EITHER_CASE.sub(r"\1", row.pattern.pattern)))
    return frozenset(word.lower() for text in texts for word in _WORD.findall(text))


class _Is(Enum):
    """What a chunk of a text is: only words stay without a look at what is around them."""

    WORD = auto()
    NUMBER = auto()
    HEX = auto()
    DIGITS = auto()
    FOREIGN = auto()
    NOTHING = auto()


def allowed_text(text: str, stand_in: StandIn) -> str:
    """`text` of a log or a capture, with stand-ins for all but words of the table and numbers.

    A number stays behind a word of the table: behind anything else it may be part of a secret. So
    may numbers in a row, such as those of a card or bytes, but for numbers of CPUs that follow
    each other.
    """
    parts = _LINES.split(text)
    parts[::2] = [_allowed_part(part, stand_in) for part in parts[::2]]
    return "".join(parts)


def _allowed_part(text: str, stand_in: StandIn) -> str:
    """The same for a text of one line."""
    out: list[str] = []
    done = 0
    before, behind = "", _Is.WORD
    row: list[tuple[int, int]] = []
    plain = True

    def end_row() -> None:
        nonlocal done, plain, behind
        chunks = [text[begin:end] for begin, end in row]
        many = len(row) > _NUMBERS_IN_A_ROW and not _follow_each_other(chunks)
        if not plain or many or behind is _Is.FOREIGN:
            value = " ".join(chunks).rstrip(".:")
            stands = stand_in(_kind(value), value)
            for begin, end in row:
                out.append(text[done:begin])
                out.append(stands)
                done = end
            behind = _Is.FOREIGN
        row.clear()
        plain = True

    for found in _CHUNK.finditer(text):
        chunk, begin = found[0].rstrip("\\"), found.start()  # of an escaped quote behind it
        end = begin + len(chunk)
        kind = _what(chunk) if len(chunk) <= _REMEMBERED else _look_at(chunk)
        if kind is _Is.NOTHING:
            continue
        if (before in _AFTER_HEX and _HEX_BYTE.fullmatch(chunk)) or _is_time(text, begin, end):
            kind = _Is.WORD
        elif kind is _Is.HEX:
            kind = _Is.NUMBER if before in _BEFORE_HEX else _Is.DIGITS
        if kind is _Is.NUMBER and before.endswith(_OF_USERS):
            stand_in("user", chunk)
            out.append(text[done:begin] + "0")
            done = end
        elif kind is _Is.NUMBER or kind is _Is.DIGITS:
            row.append((begin, end))
            plain = plain and kind is _Is.NUMBER
        else:
            if row:
                end_row()
            if kind is _Is.FOREIGN and not _STAND_IN.fullmatch(chunk):
                bare = chunk.rstrip(".:")
                if program := _PROGRAM.search(bare):
                    bare = bare[: program.start()]
                out.append(text[done:begin])
                out.append(stand_in(_kind(bare), bare))
                done = begin + len(bare)
            behind = kind
        before = chunk.rstrip(":").lower()
    if row:
        end_row()
    out.append(text[done:])
    return "".join(out)


def _is_time(text: str, begin: int, end: int) -> bool:
    """Whether a console's time stands there, in its brackets."""
    if not text.startswith("]", end):
        return False
    found = _GUEST_TIME.match(text, max(text.rfind("[", max(begin - _WIDEST, 0), begin), 0))
    return found is not None and found.end() == end + 1


def _follow_each_other(chunks: list[str]) -> bool:
    """Whether numbers count up or down by one, as those of CPUs do that come or go."""
    if not all(chunk.isdecimal() for chunk in chunks):
        return False
    steps = {int(b) - int(a) for a, b in pairwise(chunks)}
    return steps in ({1}, {-1})


def _look_at(chunk: str) -> _Is:
    """What a chunk is, whatever it stands behind."""
    if _FORMS.fullmatch(chunk):
        return _Is.WORD
    if _NUMBER.fullmatch(chunk):
        return _Is.NUMBER
    if _HEX_NUMBER.fullmatch(chunk):
        return _Is.HEX
    if not chunk.isascii():
        return _Is.FOREIGN if any(c.isalnum() for c in chunk) else _Is.NOTHING
    parts = _PARTS.findall(chunk)
    numbers = [part for part in parts if part.isdigit()]
    words = [part for part in parts if not part.isdigit()]
    if not words:
        return _Is.DIGITS if numbers else _Is.NOTHING
    if _STAND_IN.fullmatch(chunk) or len(numbers) > _NUMBERS_IN_A_NAME:
        return _Is.FOREIGN
    if "/" in chunk.strip("/") or (numbers and _HEX_ID.fullmatch(chunk)):
        return _Is.FOREIGN
    short = all(len(number) <= _LONGEST_NUMBER_IN_A_NAME for number in numbers)
    known = short and all(word.lower() in allowed_words() for word in words)
    return _Is.WORD if known else _Is.FOREIGN


_what = lru_cache(maxsize=1 << 14)(_look_at)
"""The same of what logs say again and again."""


def _kind(chunk: str) -> str:
    """What a chunk is called in front of people, as far as its look tells."""
    digits = sum(c in "0123456789abcdefABCDEF" for c in chunk)
    if "/" in chunk:
        return "path"
    if digits >= 8 and digits + chunk.count("-") >= len(chunk):
        return "id"
    if chunk.count(".") == 3 or chunk.count(":") > 2:
        return "ip"
    return "name"


def allowed_line(line: LogLine, stand_in: StandIn) -> str:
    """One understood line, written anew; several lines of the log become one."""
    text = allowed_text(line.text.rstrip("\r\n"), stand_in)
    marks = {
        "_HOSTNAME": line.host and stand_in("host", line.host),
        "SOURCE": line.sandbox and stand_in(_IDENTITIES, line.sandbox),
        "pod_name": line.pod and stand_in("name", line.pod),
        "_PID": line.pid and stand_in("pid", line.pid).rpartition("-")[2],
        "SUBSYSTEM": line.subsystem and allowed_text(line.subsystem, stand_in),
        "SYSLOG_IDENTIFIER": line.program if line.program in _PROGRAMS else None,
    }
    told = {name: value for name, value in marks.items() if value}
    if not told and line.wall_ns is None and "\n" not in text:
        return text
    if line.wall_ns is not None:
        told["__REALTIME_TIMESTAMP"] = str(max(0, line.wall_ns // 1000))
        told["when"] = _moment(line.wall_ns)
    return json.dumps({**told, "MESSAGE": text})


def _moment(wall_ns: int) -> str:
    try:
        return datetime.fromtimestamp(wall_ns // 1_000_000_000, UTC).isoformat()
    except (OverflowError, ValueError, OSError):
        return "unknown"


def allowed_lines(blocks: Iterable[bytes], stand_in: StandIn) -> Iterator[str | int]:
    """The understood lines of a log, redacted; a number stands for so many that were left out."""
    scanner = Scanner(wanted())
    last = 0
    for line, _ in understood(scanner, blocks, None):
        if line.number > last + 1:
            yield line.number - last - 1
        last = max(last, line.number + line.text.count("\n"))
        yield allowed_line(line, stand_in)
    if scanner.lines > last:
        yield scanner.lines - last


def some_lines(
    blocks: Iterable[bytes], stand_in: StandIn, others: Callable[[bytes], bytes]
) -> Iterator[bytes]:
    """All lines of a log: the understood ones as above, and what `others` makes of the rest."""
    for entry in Scanner(None).entries(blocks):
        lines = [line for line in lines_of(entry, None) if understand(line)]
        if lines:
            for line in lines:
                yield allowed_line(line, stand_in).encode() + b"\n"
        else:
            yield others(entry.raw)
