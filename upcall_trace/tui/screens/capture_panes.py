"""The panes of a capture's screen, and what follows from each message that a worker posts."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Final

from textual import on
from textual.app import ComposeResult
from textual.containers import Container
from textual.timer import Timer
from textual.widget import Widget
from textual.widgets import Static

from dissectors.constants import Arch

from ...codes import Severity
from ...diagnose.finding import Finding
from ...kernel.noted_world import lacking_world
from ...trace.filters import parse
from ...trace.opening import Capture
from ...trace.operations import Operation
from ...views.connections import connection_facts
from ...views.line_order import Shows
from ...views.text import fields_text, result_text, safe
from ..data.browsed import BrowsedCapture, Wanted
from ..data.marks import marks_beside
from ..data.walk import Moment
from ..panes.bars import Bar, hints
from ..panes.detail import Detail
from ..panes.finding_pane import FindingPane
from ..panes.ladder import Ladder
from ..panes.line_view import LineView
from ..panes.log_pane import LogPane
from ..panes.message_fields import reply_fields, request_fields, told_fields
from ..panes.prompt import Asks, Prompt
from ..panes.sessions import Sessions
from ..panes.state_pane import StatePane
from ..panes.statistics_pane import StatisticsPane
from ..panes.styled import Styled
from ..panes.timeline import Timeline
from .top_line import how_far, how_it_grows, what_is_shown, what_lacks
from .work import Given, Work

_SETTLE_S: Final = 0.03
"""The cursor rests for so long before its surroundings are looked up."""
_SUM_EVERY_S: Final = 1.0
_TICK_S: Final = 0.5
_OPEN: Final = 64
"""Findings come when an operation is answered, which some others may be sent before."""
_BESIDE: Final = ("finding", "detail", "state", "statistics", "log")


class CapturePanes(Widget):
    """Sessions and ladder, and beside or below them what is known at the cursor."""

    def __init__(self, given: Given) -> None:
        super().__init__(id="panes")
        self.given = given
        self.recording = recording = BrowsedCapture(given.path)
        self.work = Work(given, recording, told=self)
        self.top = Bar(id="top")
        self.headline = Static(id="headline", markup=False)
        self.timeline = Timeline(recording)
        self.sessions = Sessions(recording)
        self.ladder = Ladder(recording)
        self.finding = FindingPane()
        self.detail = Detail()
        self.state = StatePane()
        self.statistics = StatisticsPane()
        self.log_pane = LogPane()
        self.prompt = Prompt()
        self.bottom = Bar(id="bottom")
        self.following = False
        self.paused = self._troubled = self._begun = False
        self.held: list[Work.Read] = []
        self.moment: Moment | None = None
        self._settling: Timer | None = None
        self.walked = (0, 0, False)
        self._followed = (0, False)
        """Of how many operations it is known what the guest had, and whether of all."""
        self._summed_s = 0.0
        self.said = self.headlined = ""
        self.lacks: list[str] = []  # what is needed to tell all, and is not there
        self.zoomed: Widget | None = None
        self._told_key: object = None

    def compose(self) -> ComposeResult:
        yield self.top
        yield self.headline
        yield self.timeline
        with Container(id="main"):
            with Container(id="left"):
                yield self.sessions
                yield self.ladder
            with Container(id="right"):
                with Container(id="why"):
                    yield self.finding
                    yield self.detail
                with Container(id="more"):
                    yield self.state
                    yield self.statistics
                    yield self.log_pane
        yield self.prompt
        yield self.bottom

    def on_mount(self) -> None:
        self.show_pane("finding")
        self.set_interval(_TICK_S, self._tick)
        self.recording.own_marks = marks_beside(self.given.path)
        self.tell_top()

    def on_resize(self) -> None:
        if not self.work.began:  # lines that come before the ladder has its height scroll it
            self.work.start_reading()

    # What comes from the workers.

    @on(Work.Read)
    def read_more(self, event: Work.Read) -> None:
        if self.paused:
            self.held.append(event)
            self.tell_top()
            return
        found = event.found
        known = self.recording.header.notes
        if isinstance(found, Capture):
            self.recording.take_whole(found, event.rows)
        else:
            self.following |= found.live and not self.recording.live and not found.first
            self.recording.take_grown(found)
        if self.recording.header.notes != known:
            self._look_for_world()
        wanted = self.wanted
        if self.given.filter is not None:
            wanted = replace(wanted, filter=parse(self.given.filter), hiding=True)
            self.given = replace(self.given, filter=None)
        self.work.lay(wanted)
        now = time.monotonic()
        # What is counted over all operations waits until the first ones are on the screen.
        shown = self.ladder.count() > 0 or not len(self.recording)
        if shown and (self.recording.ended or now - self._summed_s >= _SUM_EVERY_S):
            self._summed_s = now
            self.work.sum_up()
        self.ladder.remark()
        self.tell_top()

    def _look_for_world(self) -> None:
        lacking = lacking_world(self.recording.header.notes)
        if lacking and self.given.world is None:
            told = f"the guest is taken for a default pod: {lacking}; --world FILE tells"
            self.state.border_title = "5 guest state, as of a default pod: no world is known"
            self.post_message(Work.Lacks("world", told))

    @on(Work.Laid)
    def _lines_are_there(self, event: Work.Laid) -> None:
        before = self.ladder.place
        empty = not self.ladder.count()
        self.ladder.take(event.arranged, self.following and not self.paused)
        self.work.laid()
        if not self._begun:
            self._begin()
        if empty and self.ladder.count():
            self.call_after_refresh(self.timeline.measure)
            self.call_after_refresh(self.work.sum_up)
        else:
            self.timeline.measure()
        if empty or self.ladder.place != before:
            self._look()
        self.tell_top()
        if self.work.walk is None and not self.recording.glance:
            self.call_after_refresh(self.work.start_walking)

    def _begin(self) -> None:
        """On the first operation, unless connections that have none come before it."""
        order = self.ladder.order
        self._begun = order.count > 0  # lines of connections may come alone
        if self._begun and self.ladder.cursor == 0 and order.line(1).shows is Shows.REQUEST:
            self.ladder.move_to(1)

    @on(Work.Summed)
    def _sums_are_there(self, event: Work.Summed) -> None:
        self.work.summed()
        self.sessions.take(event.connections)
        self.statistics.take(event.kinds)
        self.timeline.measure()

    @on(Work.Walked)
    def _walk_came_on(self, event: Work.Walked) -> None:
        row = self.ladder.row
        waited = row is not None and self._followed[0] <= row < event.followed
        before, _, had_ended = self.walked
        self._followed = (event.followed, event.over)
        self.walked = (event.passed, event.offset, event.ended)
        if event.batch is not None:
            self.recording.take_findings(event.batch)
            self._tell_headline(event.headline)
            if self._sees(before, event.passed) or event.ended:
                self.ladder.refresh()
            self.sessions.refresh()
            self.timeline.refresh()
        ends = event.ended and not had_ended
        if ends or not had_ended:
            self.tell_findings()
        if waited or ends or event.over:
            self._settle()
        if ends:
            self._align_log()
        self.tell_top()

    def _tell_headline(self, text: str) -> None:
        """What failed first and whose fault it is, as `diagnose` says it."""
        if safe(text) != self.headlined:
            self.headlined = safe(text)
            self.headline.update(self.headlined)
            self.set_class(bool(text), "-failed")

    @on(Work.Arrived)
    def _moment_is_there(self, event: Work.Arrived) -> None:
        if event.row != self.ladder.row:
            return
        self.moment = event.moment
        self._tell_detail()

    @on(Work.LogsRead)
    def _logs_are_there(self, event: Work.LogsRead) -> None:
        self.log_pane.take(event.logs)
        self._align_log()

    @on(Work.Counted)
    def _matches_counted(self, event: Work.Counted) -> None:
        if self.prompt.asks is Asks.FILTER and event.text == self.prompt.line.value:
            self.prompt.remark(f"{event.count} of {len(self.recording)} match")

    @on(Work.Said)
    def _something_said(self, event: Work.Said) -> None:
        self.say(event.text)
        if event.trouble:
            self._troubled, self.recording.live = True, False
            self.tell_top()

    @on(Work.Lacks)
    def _something_lacks(self, event: Work.Lacks) -> None:
        self.lacks.append(event.what)
        self.say(event.why)
        self.tell_top()

    def zoom(self, pane: Widget | None) -> None:
        """Give a pane all the room between the lines at top and bottom, with None take it back."""
        self.zoomed = pane
        around = [] if pane is None else [*pane.ancestors_with_self]
        for each in self.query("#timeline, #main, #main Container, LineView, Detail"):
            inside = pane is not None and pane in each.ancestors
            each.set_class(each in around, "-zoomed")
            each.set_class(pane is not None and each not in around and not inside, "-away")

    def show_pane(self, name: str) -> None:
        """Where not all panes fit beside the ladder, show this one."""
        for other in _BESIDE:
            pane = self.query_one(f"#{other}")
            pane.add_class("beside")
            pane.set_class(other == name, "-shown")
        self.set_class(name == "finding", "-finding-only")
        self.set_class(name in ("state", "statistics", "log"), "-more")

    # What is at the cursor.

    @property
    def wanted(self) -> Wanted:
        """What the ladder is to show, or already does."""
        return self.work.wished or self.ladder.arranged.wanted

    @property
    def operation(self) -> Operation | None:
        """The operation that the cursor is on."""
        row = self.ladder.row
        return None if row is None else self.recording.operations.operation(row)

    @on(LineView.Moved)
    def _moved(self, event: LineView.Moved) -> None:
        if event.pane is self.ladder:
            self._look()

    def _look(self) -> None:
        """The cursor is somewhere else: tell at once what is known, and look up the rest."""
        if self.work.walk is not None:
            self.work.walk.rest()
        place = self.ladder.place
        key = (place, self.ladder.connection)
        self.tell_findings()
        self._see()
        if key != self._told_key:
            self._told_key = key
            row = self.ladder.row
            if self.moment is None or self.moment.row != row:
                self.moment = None
            self._tell_detail()
            if row is not None and self.moment is None:
                self._settle()

    def _settle(self) -> None:
        if self._settling is not None:
            self._settling.stop()
        self._settling = self.set_timer(_SETTLE_S, self._look_closer)

    @property
    def is_at_rest(self) -> bool:
        """Whether everything about the capture, and about the cursor, is on the screen."""
        told = self._followed[1] or self.recording.live or self._troubled
        return told and self._settling is None and self.work.is_at_rest

    def _look_closer(self) -> None:
        self._settling = None
        row = self.ladder.row
        if row is not None:
            self.work.look_around(row)

    def _sees(self, first: int, end: int) -> bool:
        """Whether the ladder shows any operation from `first` up to `end`."""
        rows = self.ladder.rows_seen()
        return rows is not None and rows[0] < end and rows[1] >= first - _OPEN

    def _see(self) -> None:
        """Tell the timeline and the logs what the ladder shows."""
        rows, row = self.ladder.rows_seen(), self.ladder.row
        if rows is not None:
            self.timeline.see(*rows)
        if row is not None and self.log_pane.count() > 1:
            t_ns = int(self.recording.operations.column("t_ns")[row]) - self.recording.first_ns
            self.log_pane.follow(t_ns)

    def tell_findings(self) -> None:
        recording, row = self.recording, self.ladder.row
        if self.screen.focused is self.sessions and self.sessions.cursor:
            conn: int | None = recording.connections[self.sessions.cursor - 1].number
            row = None
        else:
            conn = self.ladder.connection
        findings: list[Finding] = []
        key = None
        if row is not None:
            findings = recording.findings.of_row(row)
            key = (conn, int(recording.operations.column("request")[row]))
        elif conn is not None:
            findings = recording.findings.of_connection(conn)
            first = recording.findings.first_told(conn)
            if not findings and first is not None:
                findings = [first]
        remarks = [
            mark for mark in recording.all_marks() if key and (mark.conn, mark.request) == key
        ]
        nothing = ""
        if not findings:
            findings = recording.findings.of_connection(None) if row is None else []
            nothing = self._nothing_found(row)
        self.finding.tell(findings, remarks, nothing)

    def _nothing_found(self, row: int | None) -> str:
        if row is not None and row >= self.walked[0] and not self.walked[2]:
            return "The diagnosis has not come here yet."
        failures = sum(
            self.recording.findings.counts[each] for each in (Severity.ERROR, Severity.FATAL)
        )
        more = f" ] goes to the first of {failures} failures." if failures else ""
        return f"Nothing was found here.{more}"

    def _tell_detail(self) -> None:
        operation, place = self.operation, self.ladder.place
        if operation is None:
            self._tell_connection()
            return
        is_reply = place is not None and place.shows is Shows.REPLY
        key = f"{operation.conn}.{operation.request}"
        moment = self.moment
        facts = [
            f"{safe(operation.op)} {fields_text(operation.fields)}",
            result_text(operation),
            *(f"{safe(name)}={value}" for name, value in sorted((operation.reply or {}).items())),
            *(f"doubt: {name}" for name in operation.anomalies),
        ]
        word = "reply" if is_reply else "request"
        if moment is None or moment.row != operation.row:
            reached = operation.row < self._followed[0] or self._followed[1]
            wait = "" if reached else "its bytes and the guest's state: once the diagnosis is here"
            layout = self.recording.operations.layout(operation.row)
            ours = operation.msg_type is not None
            fields = [] if ours else told_fields(operation, layout, is_reply)
            self.detail.tell(f"{word} {key}", fields, [*facts, wait], None)
            self.state.say("" if reached else "The diagnosis has not come here yet.")
            return
        message = moment.reply if is_reply else moment.request
        fields = []
        if message is not None:
            arch = Arch.named(self.recording.header.arch) or Arch.X86_64
            layout = self.recording.operations.layout(operation.row)
            fields = (
                reply_fields(operation, layout, message, arch)
                if is_reply
                else request_fields(operation, layout, message)
            )
            if not is_reply and message.size < len(message.raw):
                facts.append(f"{message.size} bytes received, over those of the request before")
        self.detail.tell(f"{word} {key}", fields, facts, message)
        self.state.tell(key, moment.before, moment.after, is_reply)

    def _tell_connection(self) -> None:
        number = self.ladder.connection
        connection = None if number is None else self.recording.connection(number)
        if connection is None:
            self.detail.tell("", [], ["nothing to show"], None)
            self.state.say("")
            return
        facts = connection_facts(connection, self.recording.first_ns)
        self.detail.tell(f"connection {number}", [], facts, None)
        self.state.say("On an operation, this tells what the guest had.")

    def _align_log(self) -> None:
        offset = self.work.walk.clock_offset_ns if self.work.walk else None
        since = None if offset is None else offset - self.recording.first_ns
        self.log_pane.align(self.recording.wall_ns, since)
        self._see()

    # The lines at the top and the bottom.

    def say(self, text: str) -> None:
        """A sentence in the bottom line, until the next key."""
        self.said = safe(text)
        self.tell_bottom()

    def tell_top(self) -> None:
        recording = self.recording
        self.top.show(
            what_is_shown(recording, self.ladder.arranged)
            + how_it_grows(recording, self.paused, len(self.held), self.following)
            + what_lacks(recording, self.lacks)
            + how_far(recording, self.ladder.clock, self.walked)
        )

    def _tick(self) -> None:
        """What waits has waited longer now."""
        if self.recording.live and self.recording.waiting():
            self.ladder.refresh()
            self.tell_top()

    def tell_bottom(self) -> None:
        if self.said:
            self.bottom.show([Styled(f" {self.said}", "key")])
        else:
            self.bottom.show(hints(self.screen))
