"""A recording replayed in a test."""

from __future__ import annotations

import time
from typing import Final

from ..errors import ExitCode, NothingRun
from ..replay.plan import DANGERS
from ..replay.report import verdict_lines
from ..replay.run import Recording, Replay, Terms
from ..replay.tempo import Patience
from ..replay.verdict import Verdict
from ..views.text import safe
from .failing import ReplayFailed
from .guests import Choice, guest_for, told

_SILENCE_S: Final = 0.2
"""A simulated guest in this process has answered by then, or never will."""


def replay(recording: Recording, choice: Choice) -> Verdict:
    """Replay a recording against the chosen guest, and return a verdict that is as recorded.

    Raises ReplayFailed with the report when it is not, or when the plan has dangers that nobody
    accepted, and UserError when it cannot begin.
    """
    header = recording.capture.header
    if not recording.script.asked:
        raise NothingRun(f"{recording.path} has no request to replay")
    # Which dangers nobody accepted, `choice` tells.
    own = choice.address is None
    patience = Patience(silence_s=_SILENCE_S if own else None, simulated=own)
    terms = Terms(patience=patience, allow=DANGERS)
    with (
        guest_for(choice, header) as target,
        Replay(recording, target, terms=terms) as played,
    ):
        choice.check(played.plan.dangers, target)
        begun = time.monotonic()
        for _ in played.play():
            pass
        verdict = played.verdict
        if verdict.exit_code is not ExitCode.EXPECTED:
            lines = verdict_lines(played, time.monotonic() - begun)
            whom = f"{safe(str(recording.path))} was sent to {told(target)}"
            raise ReplayFailed([*lines, whom], verdict.exit_code)
    return verdict


def losses(recording: Recording) -> list[str]:
    """What is missing of a recording, in sentences."""
    capture, name = recording.capture, safe(str(recording.path))
    found = []
    if capture.damage:
        size = sum(damage.size for damage in capture.damage)
        found.append(f"{name}: {size} bytes cannot be read")
    if capture.gaps:
        found.append(f"{name}: {capture.gaps} bytes of traffic were not recorded")
    if not capture.complete and not found:
        found.append(f"{name}: the recording was not closed cleanly")
    return found
