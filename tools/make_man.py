"""Manual pages of every command, made from its help: `make man` writes them into dist/man."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

import click
from click_man.core import write_man_pages  # type: ignore[import-untyped]  # no annotations

from upcall_trace import __version__
from upcall_trace.cli import cli

ROOT = Path(__file__).resolve().parent.parent


def whole_group() -> click.Group:
    """The program with every command loaded, which it does not do itself."""
    context = click.Context(cli, **cli.context_settings)
    commands = {name: cli.get_command(context, name) for name in cli.list_commands(context)}
    loaded = {name: command for name, command in commands.items() if command is not None}
    _keep_help_options(context, loaded.values())
    return click.Group("upcall-trace", loaded, help=cli.help, params=[*cli.params])


def _keep_help_options(context: click.Context, commands: Iterable[click.Command]) -> None:
    """A command keeps the help option that it makes first, and click-man knows nothing of -h."""
    for command in commands:
        inner = click.Context(command, parent=context)
        command.get_help_option(inner)
        if isinstance(command, click.Group):
            below = (command.get_command(inner, name) for name in command.list_commands(inner))
            _keep_help_options(inner, filter(None, below))


def write_pages(folder: Path, date: str | None = None) -> list[Path]:
    """Write one page a command into `folder`; `date` as in the page's head, today without."""
    folder.mkdir(parents=True, exist_ok=True)
    write_man_pages("upcall-trace", whole_group(), None, __version__, str(folder), date)
    return sorted(folder.glob("*.1"))


if __name__ == "__main__":
    for path in write_pages(ROOT / "dist" / "man"):
        sys.stdout.write(f"{path.relative_to(ROOT)}\n")
