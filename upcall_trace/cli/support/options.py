"""Options that several commands read the same way."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import click
from click.shell_completion import CompletionItem

from ...errors import WrongUsage

overwrite_option = click.option(
    "--overwrite", is_flag=True, help="Replace the output when it exists."
)


class Named(click.types.StringParamType):
    """One of names that are not known before they are asked for, as those of plugins."""

    def __init__(self, kind: str, names: Callable[[], Iterable[str]]) -> None:
        self.name = kind
        self._names = names

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> Any:
        """The names that begin as what is typed, in upper or lower case."""
        typed = incomplete.lower()
        return [CompletionItem(name) for name in self._names() if name.lower().startswith(typed)]


def parse_notes(notes: tuple[str, ...]) -> dict[str, str]:
    """The KEY=TEXT notes of a command line; raises WrongUsage."""
    for note in notes:
        if not note.partition("=")[0] or "=" not in note:
            raise WrongUsage(f"a note is KEY=TEXT, not {note!r}")
    return {key: text for key, _, text in (note.partition("=") for note in notes)}
