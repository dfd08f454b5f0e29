"""The plan of a replay, and the replay itself, once it was asked for by name.

The browser opens no socket: what plans and plays comes along from outside, as `Replays`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Final, Protocol

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.content import Content
from textual.message import Message
from textual.screen import ModalScreen
from textual.widgets import Input, Static

from ...errors import UserError
from ...views.text import safe
from ..panes.line_view import LineView, TextLines, plain
from ..panes.styled import Line

SEND: Final = "send"
STEP: Final = "step"
Tell = Callable[[str], None]
"""Takes one line of what happens."""


class ShownPlan(Protocol):
    """A plan for one target."""

    @property
    def lines(self) -> Sequence[str]: ...

    @property
    def requests(self) -> int: ...

    @property
    def codes(self) -> Sequence[str]:
        """Of the dangers, each of which has to be named before anything is sent."""
        ...

    @property
    def can_reset(self) -> bool:
        """Whether the target is a simulated guest whose VMM can boot it anew."""
        ...

    def reset(self) -> None:
        """Have it booted anew; raises UserError."""
        ...

    def play(
        self, allowed: Sequence[str], before: Tell, tell: Tell, stopped: Callable[[], bool]
    ) -> None:
        """Send it and compare; `before` is told each request first. Raises UserError."""
        ...


class Replays(Protocol):
    """What can plan to send a capture again."""

    def plan(self, address: str, conn: int, request: int) -> ShownPlan:
        """A plan for everything from this operation on; raises UserError, and sends nothing."""
        ...


@dataclass(slots=True)
class _Pace:
    """Steps that were asked for and not taken yet; without `stepping` nobody has to ask."""

    stepping: bool
    steps: threading.Semaphore
    stop: threading.Event

    def wait(self) -> None:
        """Until the next request may go, or none may any more."""
        while self.stepping and not self.stop.is_set():
            if self.steps.acquire(timeout=0.05):
                return


class ReplayScreen(ModalScreen[None]):
    """Asks for the target, shows the plan, and sends only what was confirmed by typing it."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("s", "step", "Step", id="step", tooltip="Send the next request"),
        Binding(
            "ctrl+r", "reset", "Reset", id="reset_target", tooltip="Boot a simulated guest anew"
        ),
        Binding("escape", "stop", "Stop, or close", id="stop_replay"),
    ]
    DEFAULT_CSS = """
    ReplayScreen { align: center middle; }
    ReplayScreen Vertical {
        width: 90%; max-width: 130; height: 90%; border: round $text-accent; background: $surface;
    }
    ReplayScreen TextLines { height: 1fr; }
    ReplayScreen Static { height: auto; padding: 0 1; }
    """

    class Planned(Message):
        """There is a plan."""

        def __init__(self, plan: ShownPlan) -> None:
            super().__init__()
            self.plan = plan

    class Told(Message):
        """One more line; with `over` the last one."""

        def __init__(self, text: str, over: bool = False) -> None:
            super().__init__()
            self.text = text
            self.over = over

    class Waits(Message):
        """What it waits for now."""

        def __init__(self, text: str) -> None:
            super().__init__()
            self.text = text

    class Failed(Message):
        """There is no plan, and why."""

        def __init__(self, text: str) -> None:
            super().__init__()
            self.text = text

    def __init__(self, replays: Replays, conn: int, request: int, address: str, step: bool) -> None:
        super().__init__()
        self._replays = replays
        self._first = conn, request
        self._address = address
        self._stepping = step
        self._plan: ShownPlan | None = None
        self._pace: _Pace | None = None
        self._lines: list[Line] = []

    def compose(self) -> ComposeResult:
        conn, request = self._first
        box = Vertical(
            TextLines(id="plan"), Static("", id="replay-ask", markup=False), Input(id="replay-line")
        )
        box.border_title = f"replay from {conn}.{request} on"
        yield box

    def on_mount(self) -> None:
        self._ask("the guest's address, a socket or vsock://CID")
        self._line.value = self._address
        self.set_focus(self._line)

    @property
    def _line(self) -> Input:
        return self.query_one(Input)

    def _ask(self, text: str) -> None:
        self.query_one("#replay-ask", Static).update(Content(safe(text)))

    def _show(self, *texts: str) -> None:
        self._lines += [plain(safe(text)) for text in texts]
        lines = self.query_one(TextLines)
        lines.show(self._lines)
        lines.move_to(len(self._lines) - 1)

    @on(Input.Submitted)
    def _entered(self, event: Input.Submitted) -> None:
        event.stop()
        text = event.value.strip()
        if self._plan is None and text:
            self._ask("planning; nothing is sent")
            self.run_worker(partial(self._make_plan, text), thread=True, exit_on_error=False)
        elif self._plan is not None and self._pace is None:
            self._confirm(text, self._plan)

    def _make_plan(self, address: str) -> None:
        try:
            plan = self._replays.plan(address, *self._first)
        except UserError as error:
            self.post_message(self.Failed(str(error)))
        else:
            self.post_message(self.Planned(plan))

    @on(Failed)
    def _no_plan(self, event: Failed) -> None:
        self._ask(f"{event.text}. The guest's address?")

    @on(Planned)
    def _planned(self, event: Planned) -> None:
        self._plan = plan = event.plan
        self._lines = []
        self._show(*plan.lines)
        self.query_one(TextLines).move_to(0)
        self._line.value = ""
        named = " ".join(["", *plan.codes])
        word = STEP if self._stepping else SEND
        reset = "; ctrl+r boots it anew" if plan.can_reset else ""
        self._ask(
            f"to send {plan.requests} requests type {word}{named}; escape sends nothing{reset}"
        )

    def _confirm(self, text: str, plan: ShownPlan) -> None:
        word, *codes = text.split() or [""]
        if word not in (SEND, STEP) or set(codes) != set(plan.codes):
            named = " ".join(["", *plan.codes])
            self._ask(f"nothing was sent: that is neither {SEND}{named} nor {STEP}{named}")
            return
        self._pace = _Pace(word == STEP, threading.Semaphore(0), threading.Event())
        self._line.display = False
        self.set_focus(self.query_one(TextLines))
        self._show("")
        self._ask("s sends the next one, escape stops" if word == STEP else "escape stops")
        self.run_worker(
            partial(self._play, plan, codes, self._pace), thread=True, exit_on_error=False
        )

    def _play(self, plan: ShownPlan, allowed: Sequence[str], pace: _Pace) -> None:
        def tell(text: str) -> None:
            self.post_message(self.Told(text))

        def before(asked: str) -> None:
            if pace.stepping:
                self.post_message(self.Waits(f"s sends {asked}; escape stops"))
            pace.wait()
            self.post_message(self.Waits(f"waiting for the answer to {asked}; escape stops"))

        last = "escape closes"
        try:
            plan.play(allowed, before, tell, pace.stop.is_set)
        except UserError as error:
            last = str(error)
        self.post_message(self.Told(last, over=True))

    @on(Told)
    def _told(self, event: Told) -> None:
        if event.over:
            self._pace = None
            self._ask(event.text)
        else:
            self._show(event.text)

    @on(Waits)
    def _waits(self, event: Waits) -> None:
        if self._pace is not None and not self._pace.stop.is_set():
            self._ask(event.text)

    def action_reset(self) -> None:
        """Boot the target anew; not while it is replayed to."""
        if self._plan is None or not self._plan.can_reset:
            self._ask("only a simulated guest with --control is booted anew, once there is a plan")
        elif self._pace is not None:
            self._ask("the replay goes on; escape stops it")
        else:
            self.run_worker(partial(self._reset, self._plan), thread=True, exit_on_error=False)

    def _reset(self, plan: ShownPlan) -> None:
        try:
            plan.reset()
        except UserError as error:
            self.post_message(self.Told(str(error)))
        else:
            self.post_message(self.Told("the target was booted anew"))

    def action_step(self) -> None:
        if self._pace is not None:
            self._pace.steps.release()

    def action_stop(self) -> None:
        if self._pace is not None:
            self._pace.stop.set()
            self._ask("stopping")
        else:
            self.dismiss()

    def on_line_view_left(self, event: LineView.Left) -> None:
        self.action_stop()

    def on_unmount(self) -> None:
        if self._pace is not None:
            self._pace.stop.set()
