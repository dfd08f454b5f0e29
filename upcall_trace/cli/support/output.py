"""The only way out to the terminal: data to stdout, talk to stderr, both made safe first."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click

from ...views.printable import safe


class _Seconds(click.FloatRange):
    """A time span of at most a year; neither infinite nor no number at all."""

    def __init__(self) -> None:
        super().__init__(0, _YEAR_S, min_open=True)

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        converted = super().convert(value, param, ctx)
        if converted != converted:  # not a number, which no limit keeps out
            self.fail(f"{value} is no time", param, ctx)
        return converted


_YEAR_S = 31_536_000.0
SECONDS = _Seconds()


def out(text: str, colour: str | None = None) -> None:
    """One or more lines of data; colour is dropped when stdout is not a terminal.

    What comes from outside is the caller's to make safe: a newline in it would begin a line.
    """
    for line in text.split("\n"):
        click.secho(safe(line), fg=colour, color=None if _colour_allowed() else False)


def out_json(value: Any) -> None:
    """One JSON value on one line, in ASCII."""
    click.echo(json.dumps(value))


def talk(text: str) -> None:
    """A remark of one line for the person at the terminal."""
    click.echo(safe(text), err=True)


def show_markdown(text: str) -> None:
    """A page of ours, formatted for the terminal, through a pager."""
    from rich.console import Console
    from rich.markdown import Markdown

    console = Console(no_color=not _colour_allowed())
    with console.capture() as formatted:
        console.print(Markdown(text, hyperlinks=False))
    # None: only a pager that shows colours, which click knows of less, gets them.
    click.echo_via_pager(formatted.get(), color=None if _colour_allowed() else False)


def _colour_allowed() -> bool:
    import os

    return "NO_COLOR" not in os.environ


@contextmanager
def progress(what: str, size: int) -> Iterator[Any]:
    """A progress bar over `size` bytes on a terminal's stderr; elsewhere nothing is shown.

    Yields a function that takes the offset reached.
    """
    if not sys.stderr.isatty() or size < (8 << 20):
        yield None
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(escape(safe(what)), total=size)
        yield lambda offset: bar.update(task, completed=offset)
