"""Tables of what can be read as a capture, and of what a capture can be written as."""

from __future__ import annotations

from upcall_trace import exports, sources

from .markdown import code, table


def source_formats() -> str:
    """The formats that can be read."""
    rows = [(code(row.name), row.about, row.lacks, row.since) for row in sources.FORMATS]
    return table(("format", "what it is", "what it lacks", "since"), rows)


def export_formats() -> str:
    """The formats that can be written."""
    rows = [
        (code(row.name), ", ".join(map(code, row.suffixes)), row.about, row.loses, row.since)
        for row in exports.FORMATS
    ]
    return table(("format", "suffix", "what it is", "what it loses", "since"), rows)
