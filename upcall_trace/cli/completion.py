"""`completion`: have bash, zsh or fish complete commands, options, names and files."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import click
from click.shell_completion import BashComplete, FishComplete, ShellComplete, ZshComplete

from ..errors import ExitCode, WrongUsage
from ..user_folders import user_folder
from .support.output import out, talk

_PROGRAM: Final = "upcall-trace"
_VARIABLE: Final = "_UPCALL_TRACE_COMPLETE"
"""Where click looks for what a shell asks; it follows from the program's name."""
_MADE: Final = "# Made by upcall-trace completion install; the next one replaces it."


def _data() -> Path:
    return user_folder("XDG_DATA_HOME", ".local/share")


class _Zsh(ZshComplete):
    """click's asks whether the function is being loaded, which holds for its first call only."""

    source_template = ZshComplete.source_template.replace(
        "$zsh_eval_context[-1] == loadautofunc", f"$funcstack[1] == _{_PROGRAM}"
    )


@dataclass(frozen=True, slots=True)
class _Shell:
    script: type[ShellComplete]
    path: Callable[[], Path]
    way: str
    """What is left to do by hand, with the file as `{path}` and its folder as `{folder}`."""


_SHELLS: Final = {
    "bash": _Shell(
        BashComplete,
        lambda: _data() / "bash-completion/completions" / _PROGRAM,
        "the package bash-completion loads it; without that package add to ~/.bashrc: . {path}",
    ),
    "zsh": _Shell(
        _Zsh,
        lambda: _data() / "zsh/site-functions" / f"_{_PROGRAM}",
        "add to ~/.zshrc, before compinit: fpath=({folder} $fpath); autoload -Uz compinit; "
        "compinit",
    ),
    "fish": _Shell(
        FishComplete,
        lambda: user_folder("XDG_CONFIG_HOME", ".config") / "fish/completions" / f"{_PROGRAM}.fish",
        "fish loads it by itself",
    ),
}


@click.group("completion")
def completion_command() -> None:
    """Complete commands, options, names of pages, formats and plugins, and files with Tab."""


@completion_command.command("install")
@click.argument("shell", type=click.Choice(list(_SHELLS)), required=False)
def install_command(shell: str | None) -> ExitCode:
    """Write the completion script of a shell into your own folder for it.

    Without SHELL it is that of $SHELL. It does not change your shell's start-up files: it prints
    what to add to them. To remove it, delete the file that this command names.
    """
    name = shell or _own_shell()
    path = _SHELLS[name].path()
    try:
        if path.exists() and _MADE not in path.read_text("utf-8", "replace"):
            raise WrongUsage(f"{path} exists and is not of this command; move it away first")
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{path.name}.part")
        part.write_text(_script(name), "utf-8")
        part.replace(path)
    except OSError as error:
        raise WrongUsage(f"{path} cannot be written: {error.strerror or error}") from None
    out(str(path))
    talk(_SHELLS[name].way.format(path=path, folder=path.parent))
    talk(f"it completes in every {name} that you start from now on")
    return ExitCode.EXPECTED


@completion_command.command("show")
@click.argument("shell", type=click.Choice(list(_SHELLS)))
def show_command(shell: str) -> ExitCode:
    """Print the completion script of a shell."""
    out(_script(shell).rstrip("\n"))
    return ExitCode.EXPECTED


def _own_shell() -> str:
    name = Path(os.environ.get("SHELL", "")).name
    if name not in _SHELLS:
        said = f"$SHELL is {name}" if name else "$SHELL is not set"
        raise WrongUsage(f"{said}; name one of {', '.join(_SHELLS)}")
    return name


def _script(shell: str) -> str:
    """The script, with the line by which it is known again; zsh wants its own first line first."""
    if shell == "bash" and shutil.which("bash") is None:
        raise WrongUsage("there is no bash on this machine to complete for")
    from . import cli

    lines = _SHELLS[shell].script(cli, {}, _PROGRAM, _VARIABLE).source().strip().split("\n")
    lines.insert(1 if lines[0].startswith("#compdef") else 0, _MADE)
    return "\n".join(lines) + "\n"
