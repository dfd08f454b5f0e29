"""The line at the top: what is shown, how it is going, and what is missing."""

from __future__ import annotations

from collections.abc import Sequence

from ...views.text import safe
from ..data.browsed import Arranged, BrowsedCapture
from ..panes.ladder_lines import Clock
from ..panes.styled import Line, Styled


def what_is_shown(recording: BrowsedCapture, arranged: Arranged) -> Line:
    """The capture's name, and which of its operations are shown."""
    pieces: Line = [Styled(f" {safe(recording.path.name)} ", "key")]
    count = f" {len(recording)} operations"
    if arranged.wanted.filter is not None:
        text = safe(arranged.wanted.filter.text)
        count = f" {arranged.matches} of {len(recording)} match {text}"
    pieces.append(Styled(count))
    if arranged.wanted.conn is not None:
        pieces.append(Styled(f" · connection {arranged.wanted.conn}", "key"))
    return pieces


def how_it_grows(recording: BrowsedCapture, paused: bool, held: int, following: bool) -> Line:
    """Whether it is recorded, held, followed, and how many requests wait for their answer."""
    pieces: Line = []
    if recording.live:
        text = f" ‖ paused, {held} held" if paused else " ● recording"
        pieces.append(Styled(text, "late" if paused else "ok"))
        if waiting := recording.waiting():
            pieces.append(Styled(f" … {waiting} wait", "late"))
    elif paused:
        pieces.append(Styled(" ‖ paused", "late"))
    if following:
        pieces.append(Styled(" ↓ following", "ok"))
    return pieces


def what_lacks(recording: BrowsedCapture, lacks: Sequence[str]) -> Line:
    """What is needed to tell all, and is not there."""
    pieces = [Styled(f" ! no {what}", "warning") for what in lacks]
    if recording.trouble:
        pieces.append(Styled(f" ! {recording.trouble}", "warning"))
    return pieces


def how_far(recording: BrowsedCapture, clock: Clock, walked: tuple[int, int, bool]) -> Line:
    """How times are shown, and how far reading and diagnosis are."""
    passed, _, ended = walked
    progress = ""
    if not recording.ended and not recording.live:
        progress = " · reading"
    elif not (ended or recording.live):
        progress = f" · diagnosed {100 * passed // max(len(recording), 1)} %"
    return [Styled(f" · time {clock.value}", "dim"), Styled(progress, "dim")]
