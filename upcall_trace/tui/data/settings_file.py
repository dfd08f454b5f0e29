"""Keeping settings in their file: what the user wrote there beside them stays."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

from ...capture.toml_files import BadToml, parse_toml
from .settings import USUAL_COLUMNS, Settings

_BARE: Final = re.compile(r"[A-Za-z0-9_-]+")
_LIMIT: Final = 64 << 10


def write_settings(path: Path, settings: Settings) -> None:
    """Write settings into the file at `path`, line by line; raises OSError.

    Other lines and remarks stay. A file whose lines cannot be changed one by one is written anew.
    """
    path = path.resolve()  # a link to the user's own place stays one
    wanted = _values(settings)
    try:
        lines = path.read_bytes()[:_LIMIT].decode().splitlines()
    except (FileNotFoundError, UnicodeDecodeError):
        lines = []
    text = _changed(lines, wanted)
    if not _says(text, wanted):
        text = _changed([], wanted)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)


def _values(settings: Settings) -> dict[str, Any]:
    """What is not as usual."""
    values: dict[str, Any] = {}
    if settings.theme is not None:
        values["theme"] = settings.theme
    if settings.columns != USUAL_COLUMNS:
        values["columns"] = list(settings.columns)
    for name in ("keys", "filters"):
        if table := getattr(settings, name):
            values[name] = table
    return values


def _says(text: str, wanted: Mapping[str, Any]) -> bool:
    try:
        return {name: value for name, value in _parsed(text).items() if value} == wanted
    except BadToml:
        return False


def _changed(lines: list[str], wanted: Mapping[str, Any]) -> str:
    """The lines with the wanted values in place of theirs."""
    begins = [n for n, line in enumerate(lines) if line.lstrip().startswith("[")] + [len(lines)]
    top = _table(
        lines[: begins[0]],
        {name: value for name, value in wanted.items() if not isinstance(value, dict)},
        ("theme", "columns"),
    )
    changed, seen = top, set()
    for begin, end in pairwise(begins):
        name = lines[begin].strip().strip("[]").strip()
        body = lines[begin + 1 : end]
        if name in ("keys", "filters"):
            seen.add(name)
            body = _table(body, wanted.get(name, {}), None)
        changed += [lines[begin], *body]
    for name, table in wanted.items():
        if isinstance(table, dict) and name not in seen:
            changed += [*([""] if changed else []), f"[{name}]", *_table([], table, None)]
    return "\n".join(changed) + "\n" if changed else ""


def _table(lines: list[str], wanted: Mapping[str, Any], ours: tuple[str, ...] | None) -> list[str]:
    """Lines of one table; of names that are not wanted only those that are not `ours` stay."""
    left, changed = dict(wanted), []
    for line in lines:
        name = _name(line)
        if name is None or (ours is not None and name not in ours):
            changed.append(line)
        elif name in left:
            changed.append(line if _same(line, left[name]) else _line(name, left[name]))
            del left[name]
    end = len(changed)
    while end and not changed[end - 1].strip():
        end -= 1
    return [*changed[:end], *(_line(name, value) for name, value in left.items()), *changed[end:]]


def _name(line: str) -> str | None:
    """What a line gives a value to, None for a remark or an empty line."""
    try:
        return next(iter(_parsed(line)), None)
    except BadToml:
        return None


def _same(line: str, value: object) -> bool:
    return value in _parsed(line).values()


def _parsed(text: str) -> dict[str, Any]:
    return parse_toml(text.encode())


def _line(name: str, value: str | list[str]) -> str:
    key = name if _BARE.fullmatch(name) else _text(name)
    told = _text(value) if isinstance(value, str) else f"[{', '.join(map(_text, value))}]"
    return f"{key} = {told}"


def _text(text: str) -> str:
    """A basic string of TOML, whose escapes are those of JSON; it may not hold a bare DEL."""
    valid = text.encode("utf-8", "replace").decode()
    return json.dumps(valid, ensure_ascii=False).replace("\x7f", "\\u007f")
