"""The pages of the documentation, which are shipped with the program."""

from __future__ import annotations

import difflib
import re
from pathlib import Path
from typing import Final

from ...errors import UnreadableInput, WrongUsage

_PACKAGE: Final = Path(__file__).resolve().parents[2]
_PLACES: Final = (_PACKAGE / "pages", _PACKAGE.parent / "docs")
"""In an installed package, and in a checkout."""
_MARKER: Final = re.compile(r"^<!-- (?:generated: .+|end generated) -->\n\n?", re.MULTILINE)
_REFERENCE: Final = re.compile(r"\bdocs/([a-z-]+)\.md")
_ROW: Final = re.compile(r"^\| \[([a-z-]+)\.md\]\(\1\.md\) \| (.*) \|$", re.MULTILINE)


def page_names() -> list[str]:
    """The names of all pages, without `.md`; none when this installation has none."""
    return sorted({path.stem for place in _PLACES for path in place.glob("*.md")})


def page(name: str) -> str:
    """A page as Markdown, by its name with or without `.md` and folder.

    Raises WrongUsage for a name that is none, with the nearest one.
    """
    wanted = name.rpartition("/")[2].removesuffix(".md").lower()
    names = page_names()
    if not names:
        raise UnreadableInput("the pages are not part of this installation")
    if wanted not in names:
        near = difflib.get_close_matches(wanted, names, n=1)
        hint = f"did you mean {near[0]!r}?" if near else "upcall-trace docs lists them"
        raise WrongUsage(f"no page is called {name!r}; {hint}")
    path = next(place / f"{wanted}.md" for place in _PLACES if (place / f"{wanted}.md").is_file())
    return _MARKER.sub("", path.read_text(encoding="utf-8"))


def with_commands(text: str) -> str:
    """A docstring for somebody who has no `docs/`: its references name the command instead."""
    return _REFERENCE.sub(r"`upcall-trace docs \1`", text)


def contents() -> list[tuple[str, str]]:
    """What to read each page for, in the order of the index."""
    return _ROW.findall(page("index"))
