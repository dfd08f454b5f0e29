"""Commands that plugins add, each a `click.Command` that an entry point names."""

from __future__ import annotations

from collections.abc import Container, Iterator
from contextlib import contextmanager
from typing import Final

import click

from ...plugins import BrokenPlugin, Plugin, installed

_CHOSEN: Final = "upcall_trace.plugin"
_OURS_TO_TELL: Final = (click.ClickException, click.exceptions.Exit, click.Abort, BrokenPipeError)
"""What click raises for every command, and what comes of a reader who left."""


def plugged_names(own: Container[str]) -> dict[str, Plugin]:
    """The commands of plugins by name; those with the name of one of ours are not among them."""
    return {plugin.name: plugin for plugin in installed("commands") if plugin.name not in own}


def plugged_command(plugin: Plugin, ctx: click.Context) -> click.Command | None:
    """The command that a plugin adds, None while a broken one is completed.

    Raises BrokenPlugin.
    """
    try:
        command = plugin.load(click.Command)
    except BrokenPlugin:
        if ctx.resilient_parsing:
            return None
        raise
    ctx.meta[_CHOSEN] = plugin
    return command


@contextmanager
def held(ctx: click.Context) -> Iterator[None]:
    """Around the run of a command: what one of a plugin raises is a BrokenPlugin.

    sys.exit() of a plugin gives the exit code, as it does in a program of its own.
    """
    try:
        yield
    except (Exception, SystemExit) as error:
        plugin: Plugin | None = ctx.meta.get(_CHOSEN)
        if plugin is None:
            raise
        if isinstance(error, SystemExit) and isinstance(error.code, int | None):
            raise click.exceptions.Exit(error.code or 0) from None
        with plugin.in_use(passes=_OURS_TO_TELL):
            raise


def exit_code(ctx: click.Context, returned: object) -> object:
    """What a command returned, but for a plugin's that is no exit code."""
    return returned if _CHOSEN not in ctx.meta or isinstance(returned, int) else 0
