"""Text from outside made safe for a terminal: apart from the rest, for every start needs it."""

from __future__ import annotations


def safe(text: str | bytes) -> str:
    """`text` with everything that is not printable written as an escape, `\\x1b` for ESC."""
    if isinstance(text, bytes):
        text = text.decode("utf-8", "backslashreplace")
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
