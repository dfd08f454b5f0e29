"""How a replay in a test fails: with lines for a person, and the exit code that it deserves."""

from __future__ import annotations

from collections.abc import Iterable

from ..errors import ExitCode, UpcallError


class ReplayFailed(UpcallError):
    """A replay that did not go as recorded, or was refused; its text is the whole report."""

    def __init__(self, lines: Iterable[str], exit_code: ExitCode = ExitCode.DIFFERENT) -> None:
        super().__init__("\n".join(lines))
        self.exit_code = exit_code
