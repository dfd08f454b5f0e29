"""What a user can be told, each with its exit code; the table is in docs/exit-codes.md.

Every error of ours is an `UpcallError`. It is defined in `dissectors`, which imports nothing of
this package.
"""

from __future__ import annotations

from enum import IntEnum

from dissectors.errors import UpcallError as UpcallError


class ExitCode(IntEnum):
    """Exit codes, the same for every command."""

    EXPECTED = 0
    DIFFERENT = 1
    USAGE = 2
    LOST = 3
    UNREACHABLE = 4
    UNREADABLE = 5
    NOTHING_RUN = 6
    INTERRUPTED = 130


EXIT_MEANINGS: dict[ExitCode, str] = {
    ExitCode.EXPECTED: "as expected",
    ExitCode.DIFFERENT: "replies differ, the peer died on the way, or a finding is at or above "
    "--fail-on",
    ExitCode.USAGE: "wrong usage, or a plan refused",
    ExitCode.LOST: "finished, but something was lost on the way: a torn file, a truncated import, "
    "a gap in the recording",
    ExitCode.UNREACHABLE: "the peer cannot be reached, or is not ready",
    ExitCode.UNREADABLE: "the input cannot be read",
    ExitCode.NOTHING_RUN: "nothing was run, so nothing was shown to work",
    ExitCode.INTERRUPTED: "interrupted; the file was closed cleanly",
}


class UserError(UpcallError):
    """One clear sentence for the user; subclasses own the exit code."""

    exit_code: ExitCode = ExitCode.USAGE


class WrongUsage(UserError):
    """What was asked for cannot be done like this."""


class Unreachable(UserError):
    """Nobody listens, or nobody answers, where we were told to connect."""

    exit_code = ExitCode.UNREACHABLE


class PeerDied(UserError):
    """What we talked to, or kept running, ended on the way."""

    exit_code = ExitCode.DIFFERENT


class UnreadableInput(UserError):
    """A file that is missing, not ours to read, damaged beyond use or of an unknown format."""

    exit_code = ExitCode.UNREADABLE


class SomethingLost(UserError):
    """Finished, but not everything is there."""

    exit_code = ExitCode.LOST


class NothingRun(UserError):
    """There was nothing to do, so nothing was shown to work."""

    exit_code = ExitCode.NOTHING_RUN


class Interrupted(UserError):
    """Told to stop before it was done."""

    exit_code = ExitCode.INTERRUPTED
