"""Whether words of a log stand in a line of it, or somebody quotes them in a sentence.

People hand over more than logs: an issue's text, a chat, a page of documentation, source code. What
those quote was not said where it stands. So of a line that no journal, shipper or console dressed,
what is before and behind the words is looked at: a log's line has its source's marks there, and a
sentence has words of somebody who tells. What stands before several lines is a source's mark, too.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from enum import Enum, auto
from operator import attrgetter
from typing import Final, NamedTuple

from .lines import LogLine
from .meaning import Match

_LOOKED: Final = 400
_MARKS: Final = re.compile(
    r"(?:\[ {0,12}\d{1,9}\.\d{1,9}\]|<\d{1,3}>"
    r"|\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d[\d.,]{0,12}(?:Z|[+-]\d\d:?\d\d)?"
    r"|\b(?:[A-Z][a-z]{2} [ \d]\d )?\d\d?:\d\d:\d\d[\d.,]{0,12}"
    r"|\[?\b(?:TRACE|DEBUG|DEBG|INFO|WARN|WARNING|ERROR|ERRO|FATAL|CRIT)\b\]?:?"
    r"|\b(?:db-dev-mgr|db-upcall-srv|virtio-mmio|db_devmgr_\w{1,20}) ?:"
    r"|</?\w{1,16}[^<>\n]{0,80}>) {0,8}"
)
"""What stands before a line's words wherever it is written: times, levels, prefixes, tags."""
_DATED: Final = re.compile(
    r"[ \[(<|]{0,8}(?:\d{4}[-/.]\d\d[-/.]\d\d[T ,@]{1,3}|\d\d?[-/.]\d\d?[-/.]\d{2,4}[ ,@]{1,3}"
    r"|[A-Za-z]{3} {1,2}\d{1,2},? (?:\d{4},? )?(?:@ )?)\d\d:\d\d:\d\d|\d{10,19}\b"
)
"""A line that begins with a day and a second of it, or with a count of seconds."""
_PLAIN_WORDS: Final = re.compile(r"\b[^\W\d_]{2,16}[:,]? [^\W\d_]{2,16}\b")
_TELLER: Final = re.compile(
    r"\b(?:I(?=[ ,'])|we|my|saw|seen?|noticed|says?|said|shows?|showed|prints|printed|hello|hi|"
    r"thanks|anyone|somebody|looks? like)\b",
    re.IGNORECASE,
)
"""Words of somebody who tells, before what is quoted."""
_TELLER_BEHIND: Final = re.compile(
    r"\bI(?= [a-z]|')|\b(?:my|saw|noticed|shows? up|appears? (?:in|on|when|every|after)|anyone|"
    r"somebody|yesterday|today|every time|over and over|again and again)\b"
)
"""The same behind it."""
_GOES_ON: Final = re.compile(r"\W{0,4} [a-z]{2,16}\b(?![:=(])|[:;,] \w")
_TWO_WORDS: Final = re.compile(r" [a-z]{2,16} [a-z]{2,16}\b(?![:=(])")
_SOURCE_CODE: Final = re.compile(
    r"\b\w{1,32}!\(|\b(?:pr_\w{1,8}|dev_\w{1,8}|printk|printf|contains)\(|\bgrep "
)
"""What prints or looks for the words, and does not say them."""
_OPENS: Final = ('"', "'", "`", "\u00ab", "*")
_HOLDERS: Final = ("=", "(", ":", ",", "{", "[")
"""Behind these a quote is a value."""
_SEPARATOR: Final = re.compile(r"(?:[:=(\[{|>\])/-]|,|;|\t|  |\\n|\\t) {0,8}\Z")
_ONE_WORD: Final = re.compile(r"[\W\d_]{0,16}[\w.:/@-]{0,64}\W{0,8}\Z")
_ERRORS: Final = re.compile(r"fail|error|cannot|could not|unable|refused|caused by", re.IGNORECASE)
_COLUMNS: Final = re.compile(r"\t| {2}\S")
_LETTERS: Final = re.compile(r"[^\W\d_]")
_DIFFERING: Final = re.compile(r"[0-9a-f]{1,64}")
"""What numbers and ids are made of. Letters of words are among it: they are the same each time."""


class Stands(Enum):
    """How words of the table stand in a line."""

    AS_A_LINE = auto()
    """What is before them is what a source puts there."""
    LOOSELY = auto()
    """Nothing tells whether they are a line: they prove nothing."""
    LIKE_A_SENTENCE = auto()
    """What is around them could be a sentence's."""
    IN_A_SENTENCE = auto()
    """Somebody quotes them."""


_LINE: Final = Stands.AS_A_LINE
_DOUBTFUL: Final = (Stands.LOOSELY, Stands.LIKE_A_SENTENCE)
_WAITING: Final = 64
_HEADS: Final = 1000
_place: Final = attrgetter("at")


class Placed(NamedTuple):
    """A line with the rows that are in it, and how their words stand there."""

    line: LogLine
    matches: Sequence[Match]
    stands: Stands
    head: str
    """What stands before the words, without what differs from line to line."""
    words: str


def settled(found: Iterable[tuple[LogLine, Sequence[Match]]]) -> Iterator[Placed]:
    """How the words of each stand, in their order.

    A doubtful one waits for others: where the same stands before different words, it is what their
    source puts there.
    """
    waiting: deque[Placed] = deque()
    said: dict[str, str] = {}
    sources: set[str] = set()
    for line, matches in found:
        placed = place(line, matches)
        waiting.append(placed)
        doubtful = placed.stands in _DOUBTFUL and len(said) < _HEADS
        if doubtful and said.setdefault(placed.head, placed.words) != placed.words:
            sources.add(placed.head)
        while waiting and (
            waiting[0].stands not in _DOUBTFUL
            or waiting[0].head in sources
            or len(waiting) > _WAITING
        ):
            yield _known(waiting.popleft(), sources)
    for placed in waiting:
        yield _known(placed, sources)


def _known(placed: Placed, sources: set[str]) -> Placed:
    named = placed.stands in _DOUBTFUL and placed.head in sources
    return placed._replace(stands=_LINE) if named else placed


def place(line: LogLine, matches: Sequence[Match]) -> Placed:
    """How the words that were found first in a line stand in it, as far as it tells alone."""
    match = min(matches, key=_place)
    if line.program or line.subsystem or line.sandbox or line.pid or line.pod:
        return Placed(line, matches, _LINE, "", "")
    text = line.text
    if line.guest_ns is not None and text.startswith("["):
        return Placed(line, matches, _LINE, "", "")
    at = match.at
    begins = max(text.rfind("\n", 0, at) + 1, at - _LOOKED)
    ends = text.find("\n", at)
    before = text[begins:at].removesuffix(match.meaning.lead)
    words = text[at : min(ends if ends >= 0 else len(text), at + _LOOKED)]
    stands = _how(before, words, words[len(match[0]) :])
    return Placed(line, matches, stands, _DIFFERING.sub("0", before), match[0])


def _how(before: str, words: str, behind: str) -> Stands:
    """The same by what stands before the words, from them on, and behind them."""
    if _SOURCE_CODE.search(before):
        return Stands.IN_A_SENTENCE
    if before.count("`") % 2 and "`" in words:  # code in a page of Markdown
        around = before[: before.rfind("`")] + words.partition("`")[2]
        return Stands.IN_A_SENTENCE if _LETTERS.search(around) or "|" in around else _LINE
    bare = _MARKS.sub("", before)
    head = bare.rstrip("".join(_OPENS) + " \\")
    quoted = bare[-1:] if bare.endswith(_OPENS) else ""
    if quoted and not head.endswith(_HOLDERS):
        _, closed, rest = words.partition(quoted)
        if closed and _GOES_ON.match(rest):
            return Stands.IN_A_SENTENCE
    if _TELLER.search(head) or _TELLER_BEHIND.search(words):
        return Stands.IN_A_SENTENCE
    if any(not each.isascii() for each in _LETTERS.findall(head)):
        return Stands.LIKE_A_SENTENCE
    if not _LETTERS.search(head) or _ONE_WORD.match(head):
        return _LINE
    if not quoted and _DATED.match(before) and not _PLAIN_WORDS.search(head):
        return _LINE
    if _SEPARATOR.search(head) or (not quoted and _SEPARATOR.search(bare)):
        named = not head.endswith(":") or _ERRORS.search(head) or _COLUMNS.search(head)
        return _LINE if named else Stands.LOOSELY
    if quoted:
        return Stands.IN_A_SENTENCE
    return Stands.LIKE_A_SENTENCE if _TWO_WORDS.match(behind) else Stands.LOOSELY
