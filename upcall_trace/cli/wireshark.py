"""`wireshark`: the dissector for Wireshark and tshark."""

from __future__ import annotations

from pathlib import Path

import click

from ..errors import ExitCode, WrongUsage
from ..exports.wireshark import FILE_NAME, dissector, plugin_folder, shared_file
from .support.output import out, talk


@click.group("wireshark")
def wireshark_command() -> None:
    """The upcall dissector for Wireshark, tshark and termshark 3.4 to 4.6.

    With it, a display filter such as `upcall.type == 5 && upcall.ret < 0` works on packet captures
    of a vsockmon interface and on what `export --format pcapng` writes.
    """


@wireshark_command.command("install")
@click.option(
    "--to", "folder", type=click.Path(path_type=Path, file_okay=False),
    help="Another folder than your own plugin folder.",
)  # fmt: skip
def install_command(folder: Path | None) -> ExitCode:
    """Write the dissector into your Wireshark plugin folder; an older one is replaced.

    To remove it, delete the file that this command names.
    """
    path = _write((folder or plugin_folder()) / FILE_NAME)
    out(str(path))
    talk("start Wireshark again, or press Ctrl-Shift-L in it, to load the dissector")
    return ExitCode.EXPECTED


@wireshark_command.command("path")
def path_command() -> ExitCode:
    """Print the path of the dissector, for `tshark -X lua_script:PATH`."""
    out(str(_write(shared_file())))
    return ExitCode.EXPECTED


def _write(path: Path) -> Path:
    """The dissector of this version at `path`, which changes only when its text does."""
    text = dissector()
    try:
        if not path.is_file() or path.read_text("utf-8", "replace") != text:
            path.parent.mkdir(parents=True, exist_ok=True)
            part = path.with_suffix(".part")
            part.write_text(text, "utf-8")
            part.replace(path)
    except OSError as error:
        raise WrongUsage(f"{path} cannot be written: {error.strerror or error}") from None
    return path
