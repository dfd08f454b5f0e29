"""TOML from outside: bounded in memory and time, and refused in one sentence."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import limited
from upcall_trace.capture.toml_files import LIMIT, BadToml, parse_toml, read_toml

TOO_MUCH = {
    "digits": b"a = " + b"9" * 5000,
    "hexadecimal digits": b"a = 0x" + b"f" * 5000,
    "brackets": b"a = " + b"[" * 100_000,
    "braces": b"a = " + b"{a=" * 100_000,
    "a key of many parts": b"a" + b".a" * 100_000 + b" = 1",
    "a quoted one": b'"a" . "a\\"b"' + b" . 'a'" * 100_000 + b" = 1",
    "a table's name of many parts": b"[a" + b".a" * 100_000 + b"]",
    "an inline table's": b"x = {b = 1, a" + b".a" * 100_000 + b" = 1}",
    "bytes that are no UTF-8": b"a = '\xff'",
    "no TOML": b"\0",
}


@pytest.mark.parametrize("raw", TOO_MUCH.values(), ids=list(TOO_MUCH))
def test_what_is_refused(raw: bytes) -> None:
    with pytest.raises(BadToml) as refused:
        parse_toml(raw)
    assert len(str(refused.value)) < 200


def test_what_is_read() -> None:
    text = b'a.b."c.d".e = 1\n[x.y]\nk = ["a.b.c.d.e.f.g.h.i.j", 18446744073709551615, {a.b=-1}]\n'
    assert parse_toml(text) == {
        "a": {"b": {"c.d": {"e": 1}}},
        "x": {"y": {"k": ["a.b.c.d.e.f.g.h.i.j", (1 << 64) - 1, {"a": {"b": -1}}]}},
    }


def test_a_long_file(tmp_path: Path) -> None:
    path = tmp_path / "x.toml"
    path.write_bytes(b"#" * LIMIT)
    assert read_toml(path) == {}
    path.write_bytes(b"#" * (LIMIT + 1))
    with pytest.raises(BadToml, match="longer than 1,048,576 bytes"):
        read_toml(path)


WORST = {
    "keys": "'.'.join(f'{n}{p}' for p in 'abcdefgh') + '=1'",
    "tables": "f'[{n}]'",
    "tables of tables": "'[' + '.'.join(f'{n}{p}' for p in 'abcdefgh') + ']'",
}


@pytest.mark.parametrize("line", WORST.values(), ids=list(WORST))
def test_as_much_as_a_file_may_hold(line: str) -> None:
    """Whatever it says, less than the 500 MB that a hostile file may cost."""
    program = (
        "from upcall_trace.capture.toml_files import LIMIT, parse_toml\n"
        f"text = '\\n'.join({line} for n in range(LIMIT // 8)).encode()[:LIMIT]\n"
        "parse_toml(text[:text.rindex(b'\\n')])"
    )
    command = limited([sys.executable, "-c", program], "RLIMIT_AS", 600 << 20)
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
