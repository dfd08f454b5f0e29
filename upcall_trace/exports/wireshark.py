"""The Wireshark dissector as one Lua file, and where Wireshark looks for it. docs/wireshark.md."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Final

from dissectors.lua import TABLE_MARK, tables

from ..user_folders import home, user_folder

FILE_NAME: Final = "upcall.lua"
_PARTS: Final = (FILE_NAME, "upcall_showing.lua")


def dissector() -> str:
    """The text of the dissector: both parts of the program, filled with the protocol's tables."""
    program = "\n".join(files("dissectors").joinpath(part).read_text("utf-8") for part in _PARTS)
    assert TABLE_MARK in program
    return program.replace(TABLE_MARK, tables(), 1)


def plugin_folder() -> Path:
    """The folder of a user's own Lua plugins, which Wireshark and tshark read when they start."""
    return home() / ".local" / "lib" / "wireshark" / "plugins"


def shared_file() -> Path:
    """A file outside Wireshark's folders, for `tshark -X lua_script:FILE`."""
    return user_folder("XDG_CACHE_HOME", ".cache") / "upcall-trace" / FILE_NAME
