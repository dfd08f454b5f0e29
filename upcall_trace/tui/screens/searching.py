"""Looking for a text or bytes: in the pane that had the focus last, or in all operations."""

from __future__ import annotations

from ..data.search import Sought
from ..panes.line_view import LineView
from .capture_panes import CapturePanes
from .work import Work


class Searching:
    """What is looked for on a capture's screen, and how to go on with it."""

    def __init__(self, panes: CapturePanes) -> None:
        self._panes = panes
        self._sought: Sought | None = None

    def _is_of_lines(self, pane: LineView) -> bool:
        """Whether a pane's own lines are looked through; else it is all operations."""
        panes = self._panes
        return pane not in (panes.ladder, panes.sessions, panes.detail.fields, panes.detail.hex)

    def begin(self, typed: str, pane: LineView) -> bool:
        """Look for what was typed; raises WrongUsage. Whether operations are looked through."""
        self._sought = sought = Sought.of(typed)
        if self._is_of_lines(pane) and sought.raw is None:
            if not (pane.find(sought.text, 1) or pane.find(sought.text, -1)):
                self._panes.say("no line here has it")
            return False
        self._panes.ladder.found = None
        self._panes.say("looking for it")
        self._panes.work.find(sought)
        return True

    def go_on(self, step: int, pane: LineView) -> None:
        """To the next one that has it, or that matches the filter, or back."""
        if self._sought is not None and self._is_of_lines(pane):
            if not pane.find(self._sought.text, step):
                self._panes.say("no more lines have it")
        elif not self._panes.ladder.go_to_match(step):
            self._panes.say("no more matches")

    def take(self, event: Work.Found) -> None:
        """Some were found: the cursor goes to the first of them."""
        ladder = self._panes.ladder
        first = ladder.found is None
        if event.rows:
            ladder.take_found(event.rows)
            if first and not ladder.go_to_match(1):
                ladder.go_to_match(-1)
        more = "" if event.ended else " so far"
        self._panes.say(f"{len(event.rows)} operations have it{more}; n and N go to them")

    def end(self) -> bool:
        """Look for nothing any more; False when nothing was looked for."""
        was, self._sought = self._sought, None
        found, self._panes.ladder.found = self._panes.ladder.found, None
        if was is not None or found is not None:
            self._panes.say("nothing is looked for any more")
            return True
        return False
