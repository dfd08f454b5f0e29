"""What each key does on the screen of a capture."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import ClassVar

from textual import events, on
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.screen import Screen
from textual.widget import Widget

from ...capture.records import COMMENT, Mark
from ...codes import Severity
from ...errors import UserError, WrongUsage
from ...trace.filters import BadFilter, parse
from ...user_folders import typed_path
from ...views.text import safe
from ..data.marks import save
from ..data.send_line import ANYBODY, send_line
from ..panes.detail import Detail
from ..panes.line_view import LineView
from ..panes.prompt import Asks, Prompt
from ..panes.timeline import Timeline
from .capture_keys import CAPTURE_KEYS
from .capture_panes import CapturePanes
from .compare import CompareScreen
from .replaying import ReplayScreen
from .searching import Searching
from .work import Given, Work


class CaptureScreen(Screen[None], inherit_bindings=False):
    """The panes of one capture, and the keys."""

    CSS_PATH = "capture.tcss"
    AUTO_FOCUS = "#ladder"
    HORIZONTAL_BREAKPOINTS = [(0, "-tiny"), (60, "-narrow"), (140, "-wide"), (220, "-very-wide")]  # noqa: RUF012
    VERTICAL_BREAKPOINTS = [(0, "-flat"), (16, "-short"), (40, "-tall")]  # noqa: RUF012
    BINDINGS: ClassVar[list[BindingType]] = [*CAPTURE_KEYS]

    def __init__(
        self, given: Given, columns: Sequence[str], save_filter: Callable[[str, str], None]
    ) -> None:
        super().__init__()
        self._save_filter = save_filter
        self.given = given
        self.panes = panes = CapturePanes(given)
        self.recording = panes.recording
        self.sessions, self.ladder = panes.sessions, panes.ladder
        self.prompt = panes.prompt
        self.ladder.use_columns(columns)
        self._work = panes.work
        self._searching = Searching(panes)
        self._last: LineView = panes.ladder
        """The pane that has the focus, or had it last."""

    def compose(self) -> ComposeResult:
        yield self.panes

    @property
    def is_at_rest(self) -> bool:
        """Whether everything about the capture, and about the cursor, is on the screen."""
        return self.panes.is_at_rest

    def on_key(self, event: events.Key) -> None:
        if self.panes.said:
            self.panes.say("")

    def on_descendant_focus(self, event: events.DescendantFocus) -> None:
        if isinstance(event.widget, LineView):
            self._last = event.widget
            self._fit_to(event.widget)
        self.panes.tell_findings()
        self.panes.tell_bottom()

    def _fit_to(self, focused: Widget) -> None:
        """Where there is room for one pane only, it is the one with the focus."""
        self.panes.set_class(focused is self.sessions, "-at-sessions")
        self.panes.set_class(focused in self.query("#right LineView"), "-at-right")
        if self.panes.zoomed is not None:
            self.panes.zoom(_whole(focused))

    def on_resize(self) -> None:
        self.call_after_refresh(self._keep_focus_in_sight)

    def _keep_focus_in_sight(self) -> None:
        """A pane that had the focus may have no room any more; then it gets some."""
        if self.prompt.asks is None and (self.focused is None or not self._last.region):
            self.action_pane(self._last.id or "ladder")

    # Into a pane, and out of it.

    def action_pane(self, name: str) -> None:
        """Go to a pane."""
        pane = self.query_one(f"#{name}", LineView)
        self._fit_to(pane)
        if pane not in (self.sessions, self.ladder):
            self.panes.show_pane("detail" if isinstance(pane.parent, Detail) else name)
        self.set_focus(pane)  # now: the next key may be here already

    def action_zoom(self) -> None:
        """Give the focused pane the whole screen, or take it back."""
        self.panes.zoom(_whole(self._last) if self.panes.zoomed is None else None)

    @on(LineView.Chosen)
    def _chosen(self, event: LineView.Chosen) -> None:
        if event.pane is self.sessions:
            self._choose_session()
        elif event.pane is self.ladder:
            self.action_pane("fields")
        elif event.pane is self.panes.finding:
            self._go_to_evidence()
        elif event.pane is self.panes.log_pane and self.panes.log_pane.t_ns is not None:
            self._go_to_time(self.panes.log_pane.t_ns)
        elif event.pane is self.panes.detail.fields:
            self.action_pane("hex")

    @on(LineView.Left)
    def _left(self, event: LineView.Left) -> None:
        if self.panes.zoomed is not None:
            self.panes.zoom(None)
        elif event.pane is self.panes.detail.hex:
            self.action_pane("fields")
        elif event.pane is self.ladder:
            self.action_pane("sessions")
        elif event.pane is not self.sessions:
            self.action_pane("ladder")
        elif self.sessions.chosen is not None:
            self.sessions.move_to(0)
            self._choose_session(go_in=False)
        elif self._searching.end():
            return
        elif self.panes.wanted.filter is not None:
            self._work.lay(dataclasses.replace(self.panes.wanted, filter=None))

    @on(LineView.Moved)
    def _moved_elsewhere(self, event: LineView.Moved) -> None:
        if event.pane is self.sessions:
            self.panes.tell_findings()

    def _choose_session(self, go_in: bool = True) -> None:
        number = self.sessions.cursor
        conn = self.recording.connections[number - 1].number if number else None
        self.sessions.chosen = conn
        self.sessions.refresh()
        self._work.lay(dataclasses.replace(self.panes.wanted, conn=conn))
        if conn is not None:
            first = self.recording.rows.first_row(conn)
            if not self.ladder.go_to_connection(conn) and first is not None:
                self.ladder.go(first)
        if go_in:
            self.action_pane("ladder")

    def _go_to_evidence(self) -> None:
        evidence = self.panes.finding.evidence
        if evidence is None:
            return
        if evidence.conn is not None:
            row = None
            if evidence.request is not None:
                row = self.recording.rows.row(evidence.conn, evidence.request)
            there = self.ladder.go(row) if row is not None else False
            if not there and not self.ladder.go_to_connection(evidence.conn):
                self.panes.say("that is not shown: take the filter away")
            else:
                self.action_pane("ladder")
        elif evidence.line is not None:
            if self.panes.log_pane.go(evidence.source, evidence.line):
                self.action_pane("log")
            else:
                self.panes.say("that line of the log is not here")

    def _go_to_time(self, t_ns: int) -> None:
        operations = self.recording.operations
        row = int(operations.t_ns().searchsorted(t_ns))
        nearest = self.ladder.order.nearest_row(row)
        if nearest is not None:
            self.ladder.go(nearest)
            self.action_pane("ladder")

    @on(Timeline.Picked)
    def _time_picked(self, event: Timeline.Picked) -> None:
        row = self.ladder.order.nearest_row(event.row)
        if row is not None:
            self.ladder.go(row)

    # Filters, matches and findings.

    def action_filter(self) -> None:
        """Type an expression; what does not match is left out."""
        wanted = self.panes.wanted.filter
        self.prompt.ask(Asks.FILTER, wanted.text if wanted else "")

    def use_filter(self, text: str) -> None:
        """Show what an expression matches, as if it had been typed."""
        try:
            self._take_answer(Asks.FILTER, text)
        except BadFilter as error:
            self.panes.say(f"that filter is wrong at {error.position + 1}: {error.why}")

    def ask_for_filter_name(self) -> None:
        """Ask by what name the filter is to be saved."""
        if self.panes.wanted.filter is None:
            self.panes.say("there is no filter to save: / types one")
        else:
            self.prompt.ask(Asks.NAME)

    def action_match(self, step: int) -> None:
        """Go to the next operation or line that was found, or that matches, or back."""
        self._searching.go_on(step, self._last)

    def action_find(self) -> None:
        """Type a text to look for, or bytes."""
        self.prompt.ask(Asks.FIND)

    @on(Work.Found)
    def _found(self, event: Work.Found) -> None:
        self._searching.take(event)

    def action_hide(self) -> None:
        """Leave out what does not match, or only dim it."""
        wanted = self.panes.wanted
        self._work.lay(dataclasses.replace(wanted, hiding=not wanted.hiding))
        self.panes.say("what does not match is " + ("dimmed" if wanted.hiding else "left out"))

    def action_others(self) -> None:
        """Show other connections beside the chosen one, or leave them out."""
        wanted = self.panes.wanted
        self._work.lay(dataclasses.replace(wanted, context=not wanted.context))
        self.panes.say("other connections are " + ("left out" if wanted.context else "dimmed"))

    def action_failure(self, step: int) -> None:
        """Go to the next error, or back."""
        self._go_to_finding(step, Severity.ERROR, "failures")

    def action_finding(self, step: int) -> None:
        """Go to the next finding of any kind, or back."""
        self._go_to_finding(step, Severity.NOTE, "findings")

    def _go_to_finding(self, step: int, least: Severity, what: str) -> None:
        if self.ladder.go_to_finding(step, least):
            if self.focused is self.sessions:
                self.action_pane("ladder")
            return
        soon = "" if self.panes.walked[2] else " so far; the diagnosis goes on"
        self.panes.say(f"no more {what} {'below' if step > 0 else 'above'}{soon}")

    @on(Prompt.Typed)
    def _typed(self, event: Prompt.Typed) -> None:
        if event.asks is not Asks.FILTER or not event.text.strip():
            self.prompt.remark("")
            return
        try:
            self._work.count_matches(parse(event.text))
        except BadFilter as error:
            self.prompt.remark(f"{error.position + 1}: {safe(error.why)}", wrong=True)

    @on(Prompt.Cancelled)
    def _asked_enough(self) -> None:
        back = self.panes.zoomed is not None or self.prompt.asks is Asks.FIND
        self.prompt.close()
        self.set_focus(self._last if back else self.ladder)

    @on(Prompt.Answered)
    def _answered(self, event: Prompt.Answered) -> None:
        try:
            self._take_answer(event.asks, event.text)
        except BadFilter as error:
            self.prompt.remark(f"{error.position + 1}: {safe(error.why)}", wrong=True)
            return
        except UserError as error:
            self.panes.say(safe(str(error)))
        self._asked_enough()

    def _take_answer(self, asks: Asks, text: str) -> None:
        if asks is Asks.FILTER:
            wanted = parse(text) if text.strip() else None
            self._work.lay(dataclasses.replace(self.panes.wanted, filter=wanted))
        elif asks is Asks.FIND and text.strip():
            if self._searching.begin(text, self._last):
                self._last = self.ladder
        elif asks is Asks.NAME and text.strip():
            filter_now = self.panes.wanted.filter
            self._save_filter(text.strip(), filter_now.text if filter_now else "")
        elif asks is Asks.MARK:
            self._mark(text, "")
        elif asks is Asks.COMMENT and text.strip():
            self._mark(COMMENT, text)
        elif asks is Asks.JUMP:
            self._jump(text)
        elif asks is Asks.EXPORT:
            wish = self.ladder.order.rows
            self._work.write_out(typed_path(text), wish)

    # Marks and comments.

    def action_mark(self) -> None:
        """Mark the operation by a letter."""
        self._ask_about_operation(Asks.MARK)

    def action_comment(self) -> None:
        """Write a remark on the operation."""
        self._ask_about_operation(Asks.COMMENT)

    def action_jump(self) -> None:
        """Go to a marked operation."""
        self.prompt.ask(Asks.JUMP)

    def _ask_about_operation(self, asks: Asks) -> None:
        if self.panes.operation is None:
            self.panes.say("only operations can be marked; this line is none")
        else:
            self.prompt.ask(asks)

    def _mark(self, name: str, text: str) -> None:
        operation = self.panes.operation
        if operation is None:
            return
        mark = Mark(time.time_ns(), operation.conn, operation.request, name, text)
        place = save(self.given.path, mark)
        self.recording.own_marks.append(mark)
        self.ladder.remark()
        self.panes.tell_findings()
        aside = "" if place == self.given.path else f" beside it, in {place.name}"
        self.panes.say(f"kept in the capture{aside}" if not aside else f"kept{aside}")

    def _jump(self, letter: str) -> None:
        for mark in reversed(list(self.recording.all_marks())):
            if mark.name != COMMENT and mark.name[:1] == letter and mark.conn is not None:
                row = self.recording.rows.row(mark.conn, mark.request or 0)
                if row is not None and self.ladder.go(row):
                    return
        raise WrongUsage(f"nothing that is shown is marked {letter}")

    # Comparing, copying, exporting.

    def action_pick(self) -> None:
        """Pick the operation, or let go of it; the last two are compared."""
        row = self.ladder.row
        if row is None:
            return
        picked = self.ladder.picked
        if row in picked:
            picked.remove(row)
        else:
            picked[:] = [*picked[-1:], row]
        self.ladder.refresh()
        self.panes.say(
            f"{len(picked)} of 2 picked" + ("; d compares them" if len(picked) == 2 else "")
        )

    def action_compare(self) -> None:
        """Show the two picked operations side by side."""
        if len(self.ladder.picked) != 2:
            self.panes.say("pick two operations first, with space")
            return
        operations = self.recording.operations
        self.app.push_screen(
            CompareScreen(*(operations.operation(row) for row in self.ladder.picked))
        )

    def action_copy(self) -> None:
        """Copy the operation as a send command."""
        operation = self.panes.operation
        if operation is None:
            self.panes.say("only operations can be copied; this line is none")
            return
        operations = self.recording.operations
        layout = operations.layout(operation.row)
        msg_size = int(operations.column("msg_size")[operation.row])
        try:
            line = send_line(operation, layout, msg_size, self.given.address or ANYBODY)
        except WrongUsage as error:
            self.panes.say(str(error))
            return
        self.app.copy_to_clipboard(line)
        self.panes.say(f"copied: {line}")

    def action_replay(self, step: bool) -> None:
        """Show the plan for sending the capture again from here on; nothing is sent by that."""
        operation, replays = self.panes.operation, getattr(self.app, "replays", None)
        if operation is None:
            self.panes.say("only operations can be sent again; this line is none")
        elif replays is None or self.recording.live:
            self.panes.say("a capture that still grows is not sent again")
        else:
            place = operation.conn, operation.request
            address = self.given.address or ""
            self.app.push_screen(ReplayScreen(replays(self.given), *place, address, step))

    def action_export(self) -> None:
        """Write what is shown to a file."""
        name = self.given.path.with_suffix(".txt").name
        self.prompt.ask(Asks.EXPORT, name)

    # Time, and captures that grow.

    def action_clock(self) -> None:
        """Show times since the start, since the line before, or by the clock on the wall."""
        following = self.ladder.clock.following
        self.ladder.clock = self.panes.timeline.clock = following
        self.ladder.refresh()
        self.panes.timeline.refresh()
        self.panes.tell_top()
        if following.name == "ABSOLUTE" and self.recording.wall_ns is None:
            self.panes.say("the capture does not know its date; times are since the start")

    def action_follow(self) -> None:
        """Stay at the end of a capture that grows, or do not."""
        if not self.panes.following and not self.recording.live:
            self.ladder.action_last()
            self.panes.say("the capture is complete: it does not grow any more")
            return
        self.panes.following = not self.panes.following
        if self.panes.following:
            self.ladder.action_last()
        self.panes.tell_top()

    def action_pause(self) -> None:
        """Hold the view; what is recorded meanwhile comes when it goes on."""
        self.panes.paused = not self.panes.paused
        if not self.panes.paused:
            held, self.panes.held = self.panes.held, []
            for event in held:
                self.panes.read_more(event)
        self.panes.tell_top()


def _whole(pane: Widget) -> Widget:
    """What is zoomed with a pane: the fields with the bytes."""
    return pane.parent if isinstance(pane.parent, Detail) else pane
