"""Whether words of a log stand in a line of it, or somebody quotes them in a sentence.

People hand over more than logs: an issue's text, a chat, a page of documentation, source code. What
those quote was not said where it stands. So of a line that no journal, shipper or console dressed,
what is before and behind the words is looked at: a log's line has its source's marks there, and a
sentence has words of somebody who tells.
"""

from __future__ import annotations

import re
from enum import Enum, auto
from typing import Final

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


class Stands(Enum):
    """How words of the table stand in a line."""

    AS_A_LINE = auto()
    """What is before them is what a source puts there."""
    LOOSELY = auto()
    """Nothing tells whether they are a line: they prove nothing."""
    IN_A_SENTENCE = auto()
    """Somebody quotes them."""


_LINE: Final = Stands.AS_A_LINE


def how(line: LogLine, match: Match) -> Stands:
    """How the words that were found first in a line stand in it."""
    if line.program or line.subsystem or line.sandbox or line.pid or line.pod:
        return _LINE
    text = line.text
    if line.guest_ns is not None and text.startswith("["):
        return _LINE
    at = match.at
    begins = max(text.rfind("\n", 0, at) + 1, at - _LOOKED)
    ends = text.find("\n", at)
    before = text[begins:at].removesuffix(match.meaning.lead)
    words = text[at : min(ends if ends >= 0 else len(text), at + _LOOKED)]
    return _how(before, words, words[len(match[0]) :])


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
    foreign = any(not each.isascii() for each in _LETTERS.findall(head))
    if foreign or _TELLER.search(head) or _TELLER_BEHIND.search(words):
        return Stands.IN_A_SENTENCE
    if not _LETTERS.search(head) or _ONE_WORD.match(head):
        return _LINE
    if _SEPARATOR.search(head) or (not quoted and _SEPARATOR.search(bare)):
        named = not head.endswith(":") or _ERRORS.search(head) or _COLUMNS.search(head)
        return _LINE if named else Stands.LOOSELY
    return Stands.IN_A_SENTENCE if quoted or _TWO_WORDS.match(behind) else Stands.LOOSELY
