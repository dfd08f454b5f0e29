"""What was found at operations, as columns: whoever diagnoses makes them, filters ask them."""

from __future__ import annotations

from typing import NamedTuple
from zlib import crc32

import numpy as np
from numpy.typing import NDArray


def code_number(code: str) -> int:
    """A code as a number: its digits; a plugin's code has one of its own, below 0."""
    digits = code[2:]
    return int(digits) if digits.isdecimal() and len(digits) <= 9 else -(crc32(code.encode()) + 1)


class Judged(NamedTuple):
    """What was found at operations: a row and a code's number for each finding, and the worst
    severity at each row, 0 for none."""

    rows: NDArray[np.int64]
    codes: NDArray[np.int64]
    worst: NDArray[np.uint8]
