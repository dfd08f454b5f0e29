"""The only way out to the terminal: data to stdout, talk to stderr, both made safe first."""

from __future__ import annotations

import json
import os
import select
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
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
_AT_ONCE = 512
"""Items of a list that are written at once."""
_PATIENCE_MS = 500
"""How long a remark waits for somebody to read the ones before it."""
SECONDS = _Seconds()


def out(text: str, colour: str | None = None) -> None:
    """One or more lines of data; colour is dropped as `wants_colour` says.

    What comes from outside is the caller's to make safe: a newline in it would begin a line.
    """
    for line in text.split("\n"):
        click.secho(safe(line), fg=colour, color=wants_colour())


def out_all(lines: Iterable[tuple[str, str | None]]) -> None:
    """Very many lines of data, each with its colour, written some at a time."""
    wanted = wants_colour()
    them = iter(lines)
    while some := list(islice(them, _AT_ONCE)):
        told = (
            click.style(safe(line), fg=colour) if colour else safe(line) for line, colour in some
        )
        click.echo("\n".join(told), color=wanted)


def out_json(value: Any) -> None:
    """One JSON value on one line, in ASCII.

    An object may have iterators in the place of lists: their items are made while they are written.
    """
    if not isinstance(value, dict) or not any(isinstance(v, Iterator) for v in value.values()):
        click.echo(json.dumps(value))
        return
    lead = "{"
    for name, part in value.items():
        click.echo(f"{lead}{json.dumps(name)}: ", nl=False)
        lead = ", "
        if not isinstance(part, Iterator):
            click.echo(json.dumps(part), nl=False)
            continue
        between = "["
        while some := list(islice(part, _AT_ONCE)):
            click.echo(between + json.dumps(some)[1:-1], nl=False)
            between = ", "
        click.echo("[]" if between == "[" else "]", nl=False)
    click.echo("}")


def talk(text: str) -> None:
    """A remark of one line for the person at the terminal.

    Where stderr was closed, is full or is not read, the remark is lost and nothing else changes.
    """
    say(safe(text) + "\n")


def say(text: str) -> None:
    """Write to stderr as `talk` does, without a newline of its own; `text` is safe."""
    stream = sys.stderr
    if stream is None:
        return
    try:
        descriptor = stream.fileno()
        stream.flush()
    except (OSError, ValueError):  # closed, or no file at all: somebody takes it in memory
        descriptor = -1
    try:
        if descriptor < 0:
            stream.write(text)
            stream.flush()
            return
        raw = text.encode(stream.encoding or "utf-8", "backslashreplace")
        poll = select.poll()
        poll.register(descriptor, select.POLLOUT)
        for begin in range(0, len(raw), select.PIPE_BUF):
            # So much fits whenever there is room at all: this never waits for a reader.
            if not any(events & select.POLLOUT for _, events in poll.poll(_PATIENCE_MS)):
                return
            os.write(descriptor, raw[begin : begin + select.PIPE_BUF])
    except (OSError, ValueError):
        pass


def has_terminal() -> bool:
    """Whether stderr is a terminal."""
    return sys.stderr is not None and sys.stderr.isatty()


def show_markdown(text: str) -> None:
    """A page of ours, formatted for the terminal, through a pager."""
    from rich.console import Console
    from rich.markdown import Markdown

    wanted = wants_colour()
    console = Console(force_terminal=wanted or None, no_color=wanted is False)
    with console.capture() as formatted:
        console.print(Markdown(text, hyperlinks=False))
    # None: only a pager that shows colours, which click knows of less, gets them.
    click.echo_via_pager(formatted.get(), color=wanted)


def wants_colour() -> bool | None:
    """What --color said, then NO_COLOR (https://no-color.org); None: a terminal gets colours."""
    context = click.get_current_context(silent=True)
    if context is not None and context.color is not None:
        return context.color
    return False if os.environ.get("NO_COLOR") else None


def is_formatted() -> bool:
    """Whether pages are formatted rather than printed as the Markdown that they are."""
    context = click.get_current_context(silent=True)
    return sys.stdout.isatty() or (context is not None and context.color is True)


@contextmanager
def progress(what: str, size: int) -> Iterator[Any]:
    """A progress bar over `size` bytes on a terminal's stderr; elsewhere nothing is shown.

    Yields a function that takes the offset reached.
    """
    if not has_terminal() or size < (8 << 20):
        yield None
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import Progress

    plain = wants_colour() is False
    with Progress(console=Console(stderr=True, no_color=plain), transient=True) as bar:
        task = bar.add_task(escape(safe(what)), total=size)
        yield lambda offset: bar.update(task, completed=offset)
