"""Options that several commands read the same way."""

from __future__ import annotations

from ...errors import WrongUsage


def parse_notes(notes: tuple[str, ...]) -> dict[str, str]:
    """The KEY=TEXT notes of a command line; raises WrongUsage."""
    for note in notes:
        if not note.partition("=")[0] or "=" not in note:
            raise WrongUsage(f"a note is KEY=TEXT, not {note!r}")
    return {key: text for key, _, text in (note.partition("=") for note in notes)}
