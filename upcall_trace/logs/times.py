"""Times of log lines."""

from __future__ import annotations

import re
from datetime import datetime
from typing import Final

_FRACTION: Final = re.compile(r"([.,]\d{1,6})\d{0,3}")


def parse_time(text: str) -> int | None:
    """RFC 3339, with fractions cut to microseconds, as nanoseconds since 1970."""
    text = _FRACTION.sub(r"\1", text[:40].replace(",", "."))
    try:
        parsed = datetime.fromisoformat(text)
    except ValueError:
        return None
    try:
        return round(parsed.timestamp() * 1e9)
    except (OverflowError, ValueError, OSError):
        return None
