"""Entries of `journalctl -o export` and `-o verbose`: a field a line."""

from __future__ import annotations

import re
from typing import Final

_VERBOSE: Final = re.compile(rb"\n[ \t]{1,64}_{0,2}[A-Z][A-Z0-9_]{1,63}=")
_FIELD: Final = re.compile(rb"[ \t]{0,64}(_{0,2}[A-Z][A-Z0-9_]{0,63})=(.*)")
_NAME: Final = re.compile(rb"_{0,2}[A-Z][A-Z0-9_]{0,63}\Z")
_LENGTH: Final = 8


def journal_entry(raw: bytes) -> dict[str, str] | None:
    """The fields of such an entry; None when it is none."""
    if raw.startswith(b"__CURSOR="):
        return _exported(raw)
    return _verbose(raw) if _VERBOSE.search(raw) else None


def _exported(raw: bytes) -> dict[str, str]:
    """What has newlines in it stands behind its length."""
    fields: dict[str, str] = {}
    at = 0
    while at < len(raw):
        end = raw.find(b"\n", at)
        end = len(raw) if end < 0 else end
        line = raw[at:end]
        at = end + 1
        if _NAME.match(line):
            size = int.from_bytes(raw[at : at + _LENGTH], "little")
            fields[line.decode()] = _text(raw[at + _LENGTH : at + _LENGTH + size])
            at += _LENGTH + size + 1
        elif found := _FIELD.match(line):
            fields[found[1].decode()] = _text(found[2])
    return fields


def _verbose(raw: bytes) -> dict[str, str]:
    """A line that is no field goes on with the one before."""
    fields: dict[str, str] = {}
    name = ""
    for line in raw.split(b"\n")[1:]:
        if found := _FIELD.match(line):
            name = found[1].decode()
            fields[name] = _text(found[2])
        elif name and line.strip():
            fields[name] += "\n" + _text(line.strip())
    return fields


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "backslashreplace").rstrip("\r")
