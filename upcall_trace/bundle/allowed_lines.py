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
from functools import cache
from typing import Final

from ..logs.entries import Scanner
from ..logs.lines import LogLine, lines_of
from ..logs.table import ROWS, understand, understood, wanted

_WORD: Final = re.compile(r"[A-Za-z_]{1,64}")
_ESCAPE: Final = re.compile(r"\\.")
_CHUNK: Final = re.compile(r"[^\s\"'`,;=(){}\[\]<>|!]{1,4096}")
_PARTS: Final = re.compile(r"[A-Za-z_]+|[0-9]+")
_NUMBER: Final = re.compile(r"[-+]?[0-9]{1,5}(?:\.[0-9]{1,9})?[.:]?")
_HEX_NUMBER: Final = re.compile(r"0x[0-9a-fA-F]{1,16}(?:[-@+]0x[0-9a-fA-F]{1,16})?[.:]?")
_PCI_ADDRESS: Final = re.compile(r"[0-9a-f]{4}:[0-9a-f]{2}:[01][0-9a-f]\.[0-7][.:]?")
_HEX_BYTE: Final = re.compile(r"[0-9a-f]{1,2}")
_AFTER_HEX: Final = ("busno", "devfn", "slot")
_NUMBERS_IN_A_NAME: Final = 2
_LONGEST_NUMBER_IN_A_NAME: Final = 4
# Words of our own that the reader of logs goes by, and that no row of the table has.
_PROGRAMS: Final = frozenset({"kata", "kernel", "containerd", "dragonball", "runtime-rs"})
_STRUCTURE: Final = (
    "Caused by ok error err failed at of in the to for and hypervisor agent client device manager "
    "vm vcpu dmesg created stopped reset plugged unplugged CPU slot bus start plug unplug "
    "proxy vsockmon transcript merge guest memory pcapng test file is damaged here left out on "
    "purpose cut off by capture packet size limit packets that capturing program lost no room "
    "disk full was not recorded written"
)
_IDENTITIES: Final = "id"

_KERNEL_NAMES: Final = re.compile(
    r"(?:cpuhp|swapper)/[0-9]{1,4}:?"  # threads, by which an oops is told to be of a CPU
    r"|[a-z_]{1,64}\+0x[0-9a-f]{1,6}/0x[0-9a-f]{1,6}"  # a place in a function of a backtrace
    r"|\^?/devices/pci[0-9a-f]{4}:[0-9a-f]{2}(?:/[0-9a-f]{4}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]){1,4}"
    r"/virtio|\+/block/"  # where the agent looks for a device
    r"|[0-9]{1,2}\.[0-9]{1,3}\.[0-9]{1,3}"  # a kernel's version
)
"""What the kernel alone is called so, and its backtraces are read by."""
_PLAIN: Final = (_NUMBER, _HEX_NUMBER, _PCI_ADDRESS, _KERNEL_NAMES)

StandIn = Callable[[str, str], str]
"""(kind, what is taken out) -> what stands for it."""


@cache
def allowed_words() -> frozenset[str]:
    """Every word of the table's rows, in lower case."""
    texts = [_STRUCTURE]
    for row in ROWS:
        texts += [row.anchor, row.words, row.example]
        if row.pattern is not None:
            texts.append(_ESCAPE.sub(" ", row.pattern.pattern))
    return frozenset(word.lower() for text in texts for word in _WORD.findall(text))


def allowed_text(text: str, stand_in: StandIn) -> str:
    """`text` of a log or a capture, with stand-ins for all but words of the table and numbers."""
    out: list[str] = []
    done = 0
    before = ""
    for found in _CHUNK.finditer(text):
        chunk = found[0]
        out.append(text[done : found.start()])
        done = found.end()
        if _is_allowed(chunk) or (before in _AFTER_HEX and _HEX_BYTE.fullmatch(chunk)):
            out.append(chunk)
        else:
            bare = chunk.rstrip(".:")
            out.append(stand_in(_kind(bare), bare) + chunk[len(bare) :])
        before = chunk.rstrip(":")
    out.append(text[done:])
    return "".join(out)


def _is_allowed(chunk: str) -> bool:
    """Whether it is a number, an address of a device, or made of words of the table alone."""
    if any(form.fullmatch(chunk) for form in _PLAIN):
        return True
    if not chunk.isascii():
        return not any(c.isalnum() for c in chunk)
    parts = _PARTS.findall(chunk)
    numbers = [part for part in parts if part.isdigit()]
    words = [part for part in parts if not part.isdigit()]
    if not words:
        return not numbers
    if len(numbers) > _NUMBERS_IN_A_NAME or "/" in chunk.strip("/"):
        return False
    short = all(len(number) <= _LONGEST_NUMBER_IN_A_NAME for number in numbers)
    return short and all(word.lower() in allowed_words() for word in words)


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
