"""The page of a code: found by its number or its name, shown as the documentation is."""

from __future__ import annotations

import difflib
import inspect
import re
from typing import Final

from ...diagnose.rules.registry import rules
from ...errors import WrongUsage
from .output import is_formatted, out, show_markdown
from .pages import with_commands

_NUMBER: Final = re.compile(r"UP\d+", re.IGNORECASE)


def code_words() -> list[str]:
    """What a code can be called: the numbers of all, then their names."""
    known = rules()
    return [*known, *(rule.name for rule in known.values())]


def is_code(word: str) -> bool:
    """Whether a word is a code, or looks like one: UP and digits."""
    return bool(_NUMBER.fullmatch(word)) or word.lower() in map(str.lower, code_words())


def explain(word: str) -> None:
    """Print the page of a code; raises WrongUsage for a word that is none, with the nearest."""
    known = {number.lower(): rule for number, rule in rules().items()}
    known |= {rule.name.lower(): rule for rule in known.values()}
    rule = known.get(word.lower())
    if rule is None:
        near = difflib.get_close_matches(word.lower(), known, n=1)
        hint = f"known are {', '.join(rules())}"
        if near:
            hint = f"did you mean {known[near[0]].code} {known[near[0]].name}?"
        raise WrongUsage(f"{word!r} is no code; {hint}")
    title = f"{rule.code} {rule.name} ({rule.severity.word})"
    page = with_commands(inspect.cleandoc(rule.page))
    if is_formatted():
        show_markdown(f"# {title}\n\n{page}")
    else:
        out(f"{title}\n\n{page}")
