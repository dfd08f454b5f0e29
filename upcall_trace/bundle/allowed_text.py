"""Redaction of a text of a log by an allow-list of words: docs/redaction.md.

The words that stand in the table of understood lines stay, and numbers that cannot be an address
of a network or a person's; everything else is replaced by a stand-in, the same one wherever it
stands. So a secret of a kind that nobody thought of is left out, too, unless it is one of the
table's own words.

Which places of a text are replaced is the same for all texts of one shape, which is the text with
every digit written as 0: nothing here tells one digit from another, but in chunks that are looked
at again in each text. So places are remembered by shape. What stands in them is never remembered.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from enum import Enum, auto
from functools import cache, lru_cache
from itertools import pairwise
from typing import Final, NamedTuple

from ..logs.table import ROWS

_WORD: Final = re.compile(r"[A-Za-z_]{1,64}")
_NO_WORD: Final = re.compile(r"\\.|\[[^\]]{0,64}\]|\{[^}]{0,64}\}")
"""What is no word of a line: a pattern's escapes, classes and counts, and what is filled in."""
_EITHER_CASE: Final = re.compile(r"\[([A-Z])[a-z]\]")
_CHUNK: Final = re.compile(r"[^\s\"'`,;=(){}\[\]<>|!]{1,4096}")
_PARTS: Final = re.compile(r"[A-Za-z_]+|[0-9]+")
_NUMBER: Final = re.compile(r"[-+]?[0-9]{1,5}(?:\.[0-9]{1,3})?[.:]?")
_HEX_NUMBER: Final = re.compile(r"0x[0-9a-fA-F]{1,10}(?:MB)?[.:]?")
_HEX_BYTE: Final = re.compile(r"[0-9a-f]{1,2}")
_HEX_ID: Final = re.compile(r"[0-9a-fA-F.:-]{4,}")
_AFTER_HEX: Final = frozenset({"busno", "devfn", "slot"})
_BEFORE_HEX: Final = frozenset({"address", "at", "irq", "mem", "size", "value"})
_VERSION: Final = re.compile(r"[0-9]{1,2}\.[0-9]{1,3}\.[0-9]{1,3}")
_BEFORE_VERSION: Final = frozenset({"version", "tainted"})
_TELLING: Final = _AFTER_HEX | _BEFORE_HEX | _BEFORE_VERSION
_OF_USERS: Final = ("uid", "gid")
_GUEST_TIME: Final = re.compile(r"\[ {0,12}[0-9]{1,9}\.[0-9]{1,9}\]")
_LINES: Final = re.compile(r"(\n|\\{1,8}n)")
"""What ends a line of a message, also where it is written out."""
_NUMBERS: Final = re.compile(r"[0-9]+")
_NUMBERED: Final = (
    "3s 3ms 3MB 3MiB virtio3 virtio-mmio.3 virtio_mmio.3 vcpu3 vcpu-3 cpu3 cpu#3 cpu-3 irq3 x86_64 "
    "host-x86_64-cpu db_dev_mgr:3 db-dev-mgr/3 Vcpu0CanNotBeRemoved"
)
"""Names with numbers in them that are no examples of the table."""
_NUMBERS_IN_A_NAME: Final = 2
_LONGEST_NUMBER_IN_A_NAME: Final = 4
_NUMBERS_IN_A_ROW: Final = 2
_REMEMBERED: Final = 48
_WIDEST: Final = 16
_SHAPES: Final = 1 << 13
_LONGEST_SHAPE: Final = 1 << 11
_CUT: Final = re.compile(r"[A-Za-z]{3}[g-ln-z](?= )")
"""The end of a chunk that is neither a number nor a part of one, and no number is in a row with."""
_ZEROES: Final = str.maketrans("123456789", "0" * 9)
_PLAIN_NUMBER: Final = re.compile(r"[-+]?[0-9]{1,20}(?:\.[0-9]{1,20})?[.:]?")
_DIGITS_TELL: Final = re.compile(r"[0-9]x|:..\.[0-9](?![0-9])|[0-9]-[0-9]\Z")
"""What of a chunk's digits decides what it is: 0x, a PCI device's function, and `0-9`."""
_SOME_PROGRAM: Final = "qemu-system-"
# Words of our own that the reader of logs goes by, and that no row of the table has.
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
_STAND_IN: Final = re.compile(
    r"(host|id|ip|mac|user|name|path|pid|long|token)-(?:[0-9]{1,9}|more)[.:]*"
)
_MARKS: Final = re.compile(
    r"(?:[!-/:-@\[-`{-~]|[\u2010-\u2027\u2030-\u205e\u00ab\u00b7\u00bb\u2190-\u21ff\u2500-\u257f])*"
)
"""Punctuation, arrows and lines."""
_FORMS: Final = re.compile(
    r"0x[0-9a-fA-F]{1,16}[-@+]0x[0-9a-fA-F]{1,16}[.:]?"  # a window
    r"|[0-9a-f]{4}:[0-9a-f]{2}:[01][0-9a-f]\.[0-7][.:]?"  # a PCI device
    r"|(?:cpuhp|swapper)/[0-9]{1,4}:?"  # threads, by which an oops is told to be of a CPU
    r"|(?:[0-9]{4}:)?[a-z_]{1,64}\+0x[0-9a-f]{1,6}/0x[0-9a-f]{1,6}"  # a place in a backtrace
    r"|\^?/devices/pci[0-9a-f]{4}:[0-9a-f]{2}(?:/[0-9a-f]{4}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]){1,4}"
    r"/virtio|\+/block/"  # where the agent looks for a device
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


@cache
def _numbered_names() -> frozenset[str]:
    """The names with numbers in them that say nothing of who it is, with 0 for each number."""
    guests = (row.example for row in ROWS if row.of_guest)
    chunks = _CHUNK.findall(" ".join([_NUMBERED, *guests]))
    return frozenset(_NUMBERS.sub("0", chunk.rstrip(".:").lower()) for chunk in chunks)


class _Is(Enum):
    """What a chunk of a text is: only words stay without a look at what is around them."""

    WORD = auto()
    NUMBER = auto()
    HEX = auto()
    VERSION = auto()
    DIGITS = auto()
    FOREIGN = auto()
    NOTHING = auto()


class Replacement(NamedTuple):
    """Places of a text, (begin, end), that get one stand-in, which is asked for by `kind`.

    For one place its value ends at `value_ends`. `kind` is None for a number of a user or a group:
    0 stands for it.
    """

    places: tuple[tuple[int, int], ...]
    value_ends: int
    kind: str | None


class Replacements(NamedTuple):
    """What is replaced in a text of one line, in the order in which stand-ins are asked for.

    It is the same in every text of the shape in which the chunks of `looked_at`, which are
    (begin, end, what it is), are that, too, and what is at the places of `same` is the same. It is
    not `blind` when more than that tells digits apart.
    """

    edits: tuple[Replacement, ...]
    looked_at: tuple[tuple[int, int, _Is], ...]
    same: tuple[tuple[int, int, str], ...]
    blind: bool

    def fit(self, text: str) -> bool:
        """Whether they are those of another text of the shape, too."""
        for begin, end, kind in self.looked_at:
            look = _what if end - begin <= _REMEMBERED else _look_at
            if look(text[begin:end]) is not kind:
                return False
        return not self.same or all(text[begin:end] == value for begin, end, value in self.same)

    def applied(self, text: str, stand_in: StandIn) -> str:
        """The text with its stand-ins."""
        if not self.edits:
            return text
        out: list[str] = []
        done = 0
        for places, value_ends, kind in self.edits:
            begin, end = places[0]
            if kind is None:
                stand_in("user", text[begin:end])
                stands = "0"
            elif len(places) == 1:
                out += (text[done:begin], stand_in(kind, text[begin:value_ends]))
                done = end
                continue
            else:
                stands = stand_in(kind, _joined([text[begin:end] for begin, end in places]))
            for begin, end in places:
                out += (text[done:begin], stands)
                done = end
        out.append(text[done:])
        return "".join(out)


def shape(text: str) -> str:
    """The text with every digit written as 0."""
    return text.translate(_ZEROES)


class _After(NamedTuple):
    """What the chunks that follow go by."""

    word: str = ""
    """The chunk before, where it tells what a number is."""
    kind: _Is = _Is.WORD


_START: Final = _After()
_remembered: Final[dict[tuple[_After, str], tuple[Replacements, _After]]] = {}


def edits_of(text: str) -> Replacements:
    """What is replaced in a text of one line."""
    return _edits_after(_START, text)[0]


def _edits_after(start: _After, text: str) -> tuple[Replacements, _After]:
    """The same behind other text, and what the text behind it goes by."""
    if len(text) > _LONGEST_SHAPE or not text.isascii():
        return _edits(start, text)
    key = (start, shape(text))
    known = _remembered.get(key)
    if known is not None and known[0].fit(text):
        return known
    made = _edits(start, text)
    if made[0].blind:
        if len(_remembered) >= _SHAPES:
            _remembered.clear()
        _remembered[key] = made
    return made


def parts_of(text: str) -> list[str]:
    """The lines of a text at even places, and what stands between them at odd ones."""
    return _LINES.split(text) if "\n" in text or "\\" in text else [text]


def allowed_text(text: str, stand_in: StandIn) -> str:
    """`text` of a log or a capture, with stand-ins for all but words of the table and numbers.

    A number stays behind a word of the table: behind anything else it may be part of a secret. So
    may numbers in a row, such as those of a card or bytes, but for numbers of CPUs that follow
    each other.
    """
    parts = parts_of(text)
    for at in range(0, len(parts), 2):
        parts[at] = _allowed_part(parts[at], stand_in)
    return "".join(parts)


def _allowed_part(text: str, stand_in: StandIn) -> str:
    """The same of a text of one line; a long one in pieces, as it may say things again."""
    if len(text) <= _LONGEST_SHAPE:
        return edits_of(text).applied(text, stand_in)
    out: list[str] = []
    after, done = _START, 0
    for end in [*(found.end() for found in _CUT.finditer(text)), len(text)]:
        piece = text[done:end]
        edits, after = _edits_after(after, piece)
        out.append(edits.applied(piece, stand_in))
        done = end
    return "".join(out)


def _edits(start: _After, text: str) -> tuple[Replacements, _After]:
    edits: list[Replacement] = []
    looked_at: list[tuple[int, int, _Is]] = []
    same: list[tuple[int, int, str]] = []
    before, behind = start
    row: list[tuple[int, int]] = []
    plain = blind = True

    def end_row() -> None:
        nonlocal plain, blind, behind
        chunks = [text[begin:end] for begin, end in row]
        many = len(row) > _NUMBERS_IN_A_ROW
        blind = blind and not many
        if not plain or behind is _Is.FOREIGN or (many and not _follow_each_other(chunks)):
            value = _joined(chunks)
            edits.append(Replacement(tuple(row), row[0][0] + len(value), _kind(value)))
            behind = _Is.FOREIGN
        row.clear()
        plain = True

    for found in _CHUNK.finditer(text):
        chunk, begin = found[0], found.start()
        if chunk.endswith("\\"):
            chunk = chunk.rstrip("\\")  # of an escaped quote behind it
        end = begin + len(chunk)
        kind = _what(chunk) if len(chunk) <= _REMEMBERED else _look_at(chunk)
        if _DIGITS_TELL.search(chunk) and not _PLAIN_NUMBER.fullmatch(chunk):
            looked_at.append((begin, end, kind))
        if kind is _Is.NOTHING:
            continue
        if (before in _AFTER_HEX and _HEX_BYTE.fullmatch(chunk)) or (
            text.startswith("]", end) and _is_time(text, begin, end)
        ):
            kind = _Is.WORD
        elif kind is _Is.HEX:
            kind = _Is.NUMBER if before in _BEFORE_HEX else _Is.DIGITS
        elif kind is _Is.VERSION:
            kind = _Is.WORD if before in _BEFORE_VERSION else _Is.DIGITS
        if kind is _Is.NUMBER and before.endswith(_OF_USERS):
            edits.append(Replacement(((begin, end),), end, None))
        elif kind is _Is.NUMBER or kind is _Is.DIGITS:
            row.append((begin, end))
            plain = plain and kind is _Is.NUMBER
        else:
            if row:
                end_row()
            if kind is _Is.FOREIGN:
                bare = chunk.rstrip(".:")
                if (at := bare.find(_SOME_PROGRAM)) >= 0:
                    same.append((begin + at, end, text[begin + at : end]))
                if program := _PROGRAM.search(bare):
                    bare = bare[: program.start()]
                value_ends = begin + len(bare)
                edits.append(Replacement(((begin, value_ends),), value_ends, _kind(bare)))
            behind = kind
        before = chunk.rstrip(":").lower()
    if row:
        end_row()
    tells = before in _TELLING or before.endswith(_OF_USERS)
    made = Replacements(tuple(edits), tuple(looked_at), tuple(same), blind)
    return made, _After(before if tells else "", behind)


def _joined(chunks: list[str]) -> str:
    """The value of numbers in a row."""
    return " ".join(chunks).rstrip(".:")


def _is_time(text: str, begin: int, end: int) -> bool:
    """Whether a console's time stands before a bracket at `end`, in its brackets."""
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
    if _VERSION.fullmatch(chunk):
        return _Is.VERSION
    if _HEX_NUMBER.fullmatch(chunk):
        return _Is.HEX
    if not chunk.isascii():
        return _Is.NOTHING if _MARKS.fullmatch(chunk) else _Is.FOREIGN
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
    if numbers and _NUMBERS.sub("0", chunk.rstrip(".:").lower()) not in _numbered_names():
        return _Is.FOREIGN  # a byte in hexadecimal, a host that is called by a word and a number
    return _Is.WORD if known else _Is.FOREIGN


_what = lru_cache(maxsize=1 << 14)(_look_at)
"""The same of what logs say again and again."""


def _kind(chunk: str) -> str:
    """What a chunk is called in front of people, as far as its look tells."""
    if stand_in := _STAND_IN.fullmatch(chunk):
        return stand_in[1]  # of an archive that is redacted again
    digits = sum(c in "0123456789abcdefABCDEF" for c in chunk)
    if "/" in chunk:
        return "path"
    if digits >= 8 and digits + chunk.count("-") >= len(chunk):
        return "id"
    if chunk.count(".") == 3 or chunk.count(":") > 2:
        return "ip"
    return "name"
