"""Lengths of time as people write them: `250ms`, `1.5s`."""

from __future__ import annotations

from decimal import Decimal
from typing import Final

UNITS_NS: Final = {"ns": 1, "us": 1_000, "ms": 1_000_000, "s": 1_000_000_000}
"""Nanoseconds in each unit that a length of time may be written with."""


def nanoseconds(number: str, unit: str) -> int:
    """So many of a unit as whole nanoseconds; `number` is decimal, with or without a fraction."""
    return round(Decimal(number) * UNITS_NS[unit])
