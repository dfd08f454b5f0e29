"""Lengths of time become whole nanoseconds, without the errors of floating point."""

from __future__ import annotations

import pytest

from upcall_trace.durations import nanoseconds


@pytest.mark.parametrize(
    ("number", "unit", "expected"),
    [
        ("850", "ns", 850),
        ("0.5", "us", 500),
        ("250", "ms", 250_000_000),
        ("1.5", "s", 1_500_000_000),
        ("999999999999999.999999999", "s", 999_999_999_999_999_999_999_999),
    ],
)
def test_a_number_of_a_unit(number: str, unit: str, expected: int) -> None:
    assert nanoseconds(number, unit) == expected
