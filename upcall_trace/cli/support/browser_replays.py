"""Replays for the terminal browser: the same plan and the same verdict as `replay`."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from ...kernel.noted_world import noted_world
from ...kernel.world import World
from ...replay.happening import Answered, NotSent
from ...replay.report import plan_lines, verdict_lines
from ...replay.run import Recording, Replay, Terms, patience_with, read_recording, select
from ...replay.target import arch_of, look_at
from ...replay.tempo import Patience
from ...sockets.addresses import check_reachable, parse_address
from ...trace.script import Asked
from ...views.messages import reply_text, request_text


class FilePlan:
    """A plan for one target."""

    def __init__(self, replay: Replay) -> None:
        self._replay = replay
        self.lines = list(plan_lines(replay, ()))
        self.requests = len(replay.script.asked)
        self.codes = list(dict.fromkeys(danger.code for danger in replay.plan.refused(())))

    @property
    def can_reset(self) -> bool:
        """Whether the target is a simulated guest whose VMM can boot it anew."""
        target = self._replay.target
        return target.kind is not None and target.control is not None

    def reset(self) -> None:
        """Have it booted anew; raises UserError."""
        self._replay.reset()

    def play(
        self,
        allowed: Sequence[str],
        before: Callable[[str], None],
        tell: Callable[[str], None],
        stopped: Callable[[], bool],
    ) -> None:
        """Send it and compare; raises UserError."""
        replay = self._replay
        check_reachable(replay.target.address)
        replay.terms = replace(replay.terms, allow=tuple(allowed))
        begun = time.monotonic()
        for happening in replay.play(lambda asked: before(_told(asked)), stopped):
            if isinstance(happening, Answered):
                asked = happening.asked
                tell(f"{_told(asked)}: {reply_text(asked.message, happening.got.reply)}")
            elif isinstance(happening, NotSent):
                tell(f"{happening.asked.name} not sent: {happening.why}")
        for line in verdict_lines(replay, time.monotonic() - begun):
            tell(line)


def _told(asked: Asked) -> str:
    return f"{asked.name} {request_text(asked.message)}"


class FileReplays:
    """Plans for one capture, which is read when the first plan is made."""

    def __init__(self, path: Path, world: World | None) -> None:
        self._path = path
        self._world = world
        self._recording: Recording | None = None

    def plan(self, address: str, conn: int, request: int) -> FilePlan:
        """A plan for everything from this operation on; raises UserError, and sends nothing."""
        if self._recording is None:
            self._recording = read_recording(self._path, choose=lambda _: self._world)
        recording = self._recording
        header = recording.capture.header
        arch = arch_of(header)
        check_reachable(parse_address(address))
        target = look_at(
            parse_address(address), self._world, arch=arch, recorded=noted_world(header.notes)
        )
        script = select(recording, None, (conn, request), None)
        terms = Terms(patience=patience_with(target, Patience().reply_s, None))
        return FilePlan(Replay(recording, target, script, terms=terms))
