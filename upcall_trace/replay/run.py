"""From a recording and a target to a verdict: the steps of a replay in their order.

What a command, a test and the minimiser share. docs/replay.md.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np

from ..capture.records import End, Header, Mark, Origin, Record
from ..compare.matchers import Matchers, read_matchers
from ..control.order_socket import check_control, give_order
from ..control.orders import BadOrder
from ..diagnose.engine import Diagnosis
from ..diagnose.finding import Finding
from ..diagnose.judged import judging
from ..diagnose.successes import feed
from ..errors import PeerDied, SomethingLost, Unreachable, WrongUsage
from ..kernel.model import Guest
from ..kernel.noted_world import world_notes
from ..kernel.world import World
from ..sources import open_source
from ..trace.decoding import Session
from ..trace.filters import Filter
from ..trace.opening import Capture, capture_of
from ..trace.script import Act, Asked, Key, Script
from ..trace.scripting import Scripter
from ..trace.streams import distinct_records, with_dependencies
from ..vantage.recorder import Recorder, live_header
from ..vantage.store import OnStoreError
from .happening import Happening
from .plan import Plan, make_plan
from .player import Player
from .rebase import Rebase
from .target import Target, dangers
from .tempo import Patience, Tempo
from .verdict import Divergence, Verdict, judge

_ORDER_S = 60.0
_SIMULATED_SILENCE_S = 1.0
"""A simulated guest answers at once or never, but for a delay that somebody asked for."""
_CONSEQUENCE = "UP7"
"""Codes about what VMM and guest make of a failure later."""
_KEPT = 200_000
"""Records of what happened before the first difference, for saying why there is one."""


@dataclass(frozen=True)
class Recording:
    """A capture that can be replayed; `world` is what its guest looked like, where somebody said.

    Without one that is what its header notes.
    """

    path: Path
    capture: Capture
    script: Script
    matchers: Matchers
    world: World | None = None

    @cached_property
    def findings(self) -> list[Finding]:
        """What is wrong in it already; whoever asks first has the file read once more."""
        with open_source(self.path) as source:
            diagnosis = Diagnosis(source.header, self.world)
            found = []
            for item in distinct_records(self.path, source):
                found += feed(diagnosis, item)
            return found + diagnosis.finish()


def read_recording(
    path: Path,
    keep_splits: bool = False,
    port: int | None = None,
    match: Path | None = None,
    choose: Callable[[Header], World | None] = lambda _: None,
) -> Recording:
    """Read what `show` reads, for replaying; raises UnreadableInput.

    `choose` is asked for the world of the recording's guest, which decides what was wrong in it;
    without an answer it is the one that the header notes.
    """
    with open_source(path) as source:
        world = choose(source.header)
        session = Session(source.header)
        scripter = Scripter(session, keep_splits, port)
        for item in distinct_records(path, source):
            scripter.feed(item)
        session.finish()
        capture = capture_of(session, source)
        script = scripter.finish()
    capture.operations.judge = judging(path)
    return Recording(path, capture, script, read_matchers(path, capture.marks, match), world)


def select(
    recording: Recording, wanted: Filter | None, first: Key | None, last: Key | None
) -> Script:
    """The script of the operations that match, from `first` to `last`.

    If the guest executed a chosen one over the bytes of others, those are sent too. Raises
    WrongUsage for a first or last one that is not in the recording.
    """
    script, operations = recording.script, recording.capture.operations
    if wanted is None and first is None and last is None:
        return script
    mask = np.ones(len(operations), bool) if wanted is None else wanted.mask(operations).copy()
    if first is not None:
        mask[: _place(recording, first)] = False
    if last is not None:
        mask[_place(recording, last) + 1 :] = False
    return script.only(with_dependencies(operations, mask))


def _place(recording: Recording, key: Key) -> int:
    asked = recording.script.asked.get(key)
    if asked is None:
        raise WrongUsage(f"{recording.path} has no operation {key[0]}.{key[1]}")
    return asked.place


def patience_with(target: Target, reply_s: float, silence_s: float | None) -> Patience:
    """How long a user waits who did not say; a simulated guest is not watched for long."""
    simulated = target.kind == "simulated"
    if silence_s is None and simulated:
        silence_s = _SIMULATED_SILENCE_S
    return Patience(reply_s, silence_s, simulated)


@dataclass(frozen=True, slots=True)
class Terms:
    """How a replay goes; `output` is a capture of what happens in it.

    `allow` are the codes of the dangers to begin in spite of. `keep_going` goes on after a
    difference on a guest that may be a real one, too. `rounds` is how often it will be played.
    """

    pace: Tempo = field(default_factory=Tempo)
    patience: Patience = field(default_factory=Patience)
    whole_bytes: bool = False
    reset: bool = False
    output: Path | None = None
    overwrite: bool = False
    allow: Collection[str] = ()
    keep_going: bool = False
    rounds: int = 1


class Replay:
    """A recording, a target and a plan; each `play` is a round with a verdict of its own.

    A context manager: leaving it ends the capture of what happened.
    """

    def __init__(
        self,
        recording: Recording,
        target: Target,
        script: Script | None = None,
        rebase: Rebase | None = None,
        terms: Terms | None = None,
    ) -> None:
        self.recording = recording
        self.target = target
        self.rebase = rebase
        self.terms = terms or Terms()
        chosen = recording.script if script is None else script
        self.script = rebase.apply(chosen) if rebase else chosen
        self.plan: Plan = make_plan(
            self.script,
            target.world,
            target.guessed,
            lambda: recording.findings,
            dangers(target, recording.capture.header),
            1 if self.terms.reset else self.terms.rounds,
        )
        self.verdict = Verdict()
        self.happened: list[Record] = []
        """What happened up to the first difference of the last round."""
        self.late_ns: list[int] = []
        self._rounds = 0
        self._stack = ExitStack()
        self._recorder: Recorder | None = None

    def __enter__(self) -> Self:
        if self.terms.output is not None and not self.plan.refused(self.terms.allow):
            notes = {"replay-of": self.recording.path.name}
            if self.target.world_known:
                notes |= world_notes(self.target.world)
            header = live_header("replay", self.script.header.arch, self.script.header.port, notes)
            recorder = Recorder(
                self.terms.output,
                header,
                OnStoreError.PASS,
                threading.Event(),
                self.terms.overwrite,
            )
            self._recorder = recorder
            self._stack.callback(recorder.close)
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self._stack.close()
        recorder = self._recorder
        if kind is None and recorder and (recorder.failure or recorder.unwritten):
            why = recorder.failure or "the disk is slow"
            raise SomethingLost(f"{recorder.path} does not have all of what happened: {why}")

    def play(
        self,
        before: Callable[[Asked], None] = lambda _: None,
        stopped: Callable[[], bool] = lambda: False,
    ) -> Iterator[Happening]:
        """Play one round; `verdict` is that round's.

        Raises WrongUsage, and sends nothing, when the plan has a danger that the terms do not
        allow, and Unreachable when nobody is there.
        """
        self.verdict, self.happened = Verdict(), []
        refused = self.plan.refused(self.terms.allow)
        if refused:
            raise WrongUsage(f"refused: {refused[0]}")
        conns = {step.conn for step in self.script.steps if not isinstance(step, Act)}
        keep = _Keeper(self._recorder, self._rounds * (max(conns, default=0) + 1), self._remember)
        control = self.target.control
        if self._rounds == 0 and control is not None:
            check_control(control)
        self._rounds += 1

        def over() -> bool:
            # What follows a difference was planned for another guest than this has shown to be.
            ours = self.target.kind is not None or self.terms.keep_going
            return stopped() or (not ours and bool(self.verdict.divergences))

        player = Player(
            self.target.address, self.script, self.terms.pace, self.terms.patience,
            keep, self._order if self.target.control else None, before, over,
            self.target.is_still_there,
        )  # fmt: skip
        matchers = self.recording.matchers
        self.verdict.connections = len(conns)
        try:
            if self.terms.reset:
                self.reset()
            yield from judge(player.play(), self.verdict, matchers, self.terms.whole_bytes)
        except PeerDied as error:
            self.verdict.ended = str(error)
        except Unreachable as error:
            if self._rounds == 1:
                raise
            self.verdict.ended = str(error)
        self.verdict.interrupted = stopped()
        if player.interrupted and not stopped():
            self.verdict.ended = (
                "the first difference is the end on a guest that may be real, but for --keep-going"
            )
        self.late_ns = player.late_ns

    def is_as_booted(self) -> bool | None:
        """Whether a simulated guest has what it had at its boot; None where nobody can tell."""
        control = self.target.control
        if self.target.kind != "simulated" or control is None or not self.target.world_known:
            return None
        try:
            state = give_order(control, {"state": True}, _ORDER_S)["state"]
        except (BadOrder, Unreachable):
            return None
        return bool(state == Guest(self.target.world).state())

    def reset(self) -> None:
        """Have the target's VMM boot it anew; raises Unreachable and WrongUsage."""
        if self.target.control is None:
            raise WrongUsage("a reset needs the VMM's side: give --control")
        refused = self._order({"reset": True})
        if refused:
            raise WrongUsage(f"the VMM's side does not reset the guest: {refused}")

    def reasons(self, divergence: Divergence) -> tuple[list[Finding], list[Finding]]:
        """What was wrong at this request in the recording, and now."""
        key = divergence.asked.key
        then = [
            f for f in self.recording.findings
            if (f.conn, f.request) == key and not f.code.startswith(_CONSEQUENCE)
        ]  # fmt: skip
        return then, self._found_now(key)

    def _found_now(self, key: Key) -> list[Finding]:
        world = None if self.target.guessed else self.target.world
        # What the recording notes is about its own guest.
        diagnosis = Diagnosis(replace(self.script.header, notes={}), world)
        findings = [f for record in self.happened for f in diagnosis.feed(record)]
        findings += diagnosis.finish()
        sent = [asked.request for asked in self.script.asked.values() if asked.conn == key[0]]
        place = sent.index(key[1])
        # Consequences rest on what comes later, and that was not looked at.
        return [
            f for f in findings
            if (f.conn, f.request) == (key[0], place) and not f.code.startswith(_CONSEQUENCE)
        ]  # fmt: skip

    def _order(self, order: Mapping[str, Any]) -> str | None:
        assert self.target.control is not None
        try:
            give_order(self.target.control, dict(order), _ORDER_S)
        except (BadOrder, Unreachable) as error:
            return str(error)
        return None

    def _remember(self, record: Record) -> None:
        if not self.verdict.divergences and len(self.happened) < _KEPT:
            self.happened.append(record)


class _Keeper:
    """Gives each record to the capture of the replay, with times and numbers of its own there."""

    def __init__(
        self, recorder: Recorder | None, renumber: int, remember: Callable[[Record], None]
    ) -> None:
        self._recorder = recorder
        self._renumber = renumber
        self._remember = remember
        self._begin_ns = recorder.now() if recorder else 0

    def __call__(self, record: Record) -> None:
        self._remember(record)
        if self._recorder is None or isinstance(record, (Header, Origin, Mark, End)):
            return
        conn = record.conn + self._renumber if record.conn else 0
        self._recorder.record(replace(record, t_ns=record.t_ns + self._begin_ns, conn=conn))
