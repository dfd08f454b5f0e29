"""Moments on a command line."""

from __future__ import annotations

import pytest

from upcall_trace.cli.support.times import parse_moment

NOW_S = 1_788_256_800.0


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("now", NOW_S), ("-10m", NOW_S - 600), ("-1.5h", NOW_S - 5400), ("-30s", NOW_S - 30),
        ("-2d", NOW_S - 172_800), ("2026-09-01T10:00:00Z", NOW_S),
        ("2026-09-01T12:00:00+02:00", NOW_S), ("2026-09-01 10:00:01+00:00", NOW_S + 1),
    ],
)  # fmt: skip
def test_a_moment(text: str, seconds: float) -> None:
    assert parse_moment(text, NOW_S) == round(seconds * 1e9)


@pytest.mark.parametrize("text", ["", "soon", "10m", "-10y", "2026-13-01", "-" + "9" * 40])
def test_what_is_none(text: str) -> None:
    assert parse_moment(text, NOW_S) is None


def test_days_begin_at_midnight_here() -> None:
    today, yesterday = (parse_moment(text, NOW_S) for text in ("today", "yesterday"))
    assert today is not None
    assert yesterday is not None
    assert 0 <= NOW_S * 1e9 - today < 86_400e9
    assert 82_000e9 < today - yesterday < 91_000e9
