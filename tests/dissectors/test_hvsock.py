"""The text lines of hybrid vsock: docs/protocol.md section 2."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dissectors.constants import CONNECT_LINE_LIMIT, OK_LINE_LIMIT, UPCALL_PORT
from dissectors.events import ConnectLine, OkLine
from dissectors.hvsock import (
    PASSFD_LINE,
    connect_line,
    line_end,
    ok_line,
    ok_line_end,
    parse_connect,
    parse_ok,
)


@pytest.mark.parametrize(
    ("line", "port"),
    [
        (b"CONNECT 219\n", 219),
        (b"connect 219\n", 219),
        (b"CoNnEcT 0\r\n", 0),
        (b"CONNECT 4294967295\n", 0xFFFFFFFF),
        (b"CONNECT 4294967296\n", None),
        (b"CONNECT 00000000000000000000219\n", 219),
        (b"CONNECT 000000000000000000000219\n", None),  # one byte more than Dragonball reads
        (b"CONNECT -1\n", None),
        (b"CONNECT 0xdb\n", None),
        (b"CONNECT 2_19\n", None),
        ("CONNECT ٢\n".encode(), None),
        (b"CONNECT abc\n", None),
        (b"CONNECT \n", None),
        (b"CONNECT\n", None),
        (b"CONNECT219\n", None),
        (b"CONNECT 219", None),
        (b"OK 219\n", None),
        (b"HELLO\n", None),
        (PASSFD_LINE, None),
        (b"\n", None),
        (b"", None),
    ],
)
def test_a_connect_line_gives_its_port(line: bytes, port: int | None) -> None:
    assert parse_connect(line) == port


@pytest.mark.parametrize(
    ("line", "port"),
    [
        (b"OK 219\n", 219),
        (b"ok 1073741824\n", 1 << 30),
        (b"OK " + b"1".zfill(46) + b"\n", 1),
        (b"OK " + b"1".zfill(47) + b"\n", None),
        (b"OK\n", None),
        (b"OK 219", None),
        (b"CONNECT 219\n", None),
        (b"no\n", None),
    ],
)
def test_an_ok_line_gives_its_port(line: bytes, port: int | None) -> None:
    assert parse_ok(line) == port


@pytest.mark.parametrize("parse", [parse_connect, parse_ok])
@pytest.mark.parametrize("word", [b"CONNECT ", b"OK "])
def test_a_number_too_long_for_python_is_only_malformed(
    parse: Callable[[bytes], int | None], word: bytes
) -> None:
    assert parse(word + b"9" * 10_000 + b"\n") is None


@given(st.integers(0, 0xFFFFFFFF))
def test_every_port_comes_back_from_its_lines(port: int) -> None:
    for made, parse, end in (
        (connect_line(port), parse_connect, line_end),
        (ok_line(port), parse_ok, ok_line_end),
    ):
        assert parse(made.raw) == made.port == port
        assert end(made.raw) == len(made.raw)


def test_the_client_asks_for_the_upcall_port_by_itself() -> None:
    assert connect_line() == ConnectLine(b"CONNECT 219\n", UPCALL_PORT)
    assert ok_line(7) == OkLine(b"OK 7\n", 7)


@given(st.binary(max_size=80) | st.binary(max_size=40).map(lambda b: b"CONNECT " + b + b"\n"))
def test_any_bytes_are_a_line_or_not_and_nothing_raises(received: bytes) -> None:
    assert parse_connect(received) is None or received.lower().startswith(b"connect ")
    assert parse_ok(received) is None or received.lower().startswith(b"ok ")
    for end, limit in (
        (line_end(received), CONNECT_LINE_LIMIT),
        (ok_line_end(received), OK_LINE_LIMIT),
    ):
        if end > 0:
            assert received[:end].index(b"\n") == end - 1 < limit
        else:
            assert b"\n" not in received[:limit]
            assert end == (-1 if len(received) >= limit else 0)


@pytest.mark.parametrize(("end", "limit"), [(line_end, 32), (ok_line_end, 50)])
def test_a_line_ends_within_its_limit_or_there_is_none(
    end: Callable[[bytes], int], limit: int
) -> None:
    assert end(b"") == 0
    assert end(b"x" * (limit - 1)) == 0
    assert end(b"x" * (limit - 1) + b"\n") == limit
    assert end(b"x" * limit) == -1
    assert end(b"x" * limit + b"\n") == -1
    assert end(b"a\nb\n") == 2
