"""TOML from outside, bounded: the parser itself takes what grows with the square of a key.

It keeps each beginning of a key with dots, so that 200 kB of `a.a.a…` need more memory than most
machines have; and any file may need some hundred times its size.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import IO, Any, Final

from ..errors import UpcallError

LIMIT: Final = 1 << 20
"""Bytes of a file: some hundred machines, or ten thousand rules."""
_PARTS: Final = 8
_PART: Final = rb"""(?:[A-Za-z0-9_-]+|"(?:[^"\\\n]|\\.)*"|'[^'\n]*')"""
_LONG_KEY: Final = rb"(?m:^|[\[{,])[ \t]*%b(?:[ \t]*\.[ \t]*%b){%d}" % (_PART, _PART, _PARTS)
_INT_LIMIT: Final = 1 << 64


class BadToml(UpcallError, ValueError):
    """Not a TOML file, or one with more in it than any of ours; the words say what it is."""


def read_toml(path: Path) -> dict[str, Any]:
    """The table in a file; raises OSError and BadToml."""
    with path.open("rb") as file:
        return parse_toml(_bounded(file))


def _bounded(file: IO[bytes]) -> bytes:
    raw = file.read(LIMIT + 1)
    if len(raw) > LIMIT:
        raise BadToml(f"it is longer than {LIMIT:,} bytes")
    return raw


def parse_toml(raw: bytes) -> dict[str, Any]:
    """The table in a text; raises BadToml. Integers need at most 64 bits."""
    import tomllib  # most runs read none

    if re.search(_LONG_KEY, raw):
        raise BadToml(f"a key has more than {_PARTS} parts")
    try:
        table = tomllib.loads(raw.decode("utf-8"))
    except RecursionError:
        raise BadToml("its values are nested too deeply") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadToml(str(error)) from None
    except ValueError:  # Python converts no endless digits, and its words are not for users
        raise BadToml("a number has too many digits") from None
    waiting: list[Any] = [table]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value
        elif isinstance(value, int) and abs(value) >= _INT_LIMIT:
            raise BadToml("a number needs more than 64 bits")
    return table
