"""Markdown that the generators make: tables, code and fenced blocks."""

from __future__ import annotations

from collections.abc import Sequence


def table(headings: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table, its columns aligned for whoever reads the source."""
    cells = [[str(cell).replace("|", "\\|") for cell in row] for row in (headings, *rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    cells.insert(1, ["-" * width for width in widths])
    lines = (" | ".join(map(str.ljust, row, widths)) for row in cells)
    return "\n".join(f"| {line} |" for line in lines)


def code(text: object) -> str:
    """`text` in the type of code."""
    return f"`{text}`"


def fenced(text: str, language: str = "text") -> str:
    """`text` as a fenced block."""
    return f"```{language}\n{text.rstrip()}\n```"
