"""The way from a test's own client to a guest: a socket behind which all that passes is kept."""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

from ..capture.records import Header, Vmm
from ..control.order_socket import give_order
from ..errors import NothingRun, SomethingLost, WrongUsage
from ..kernel.noted_world import world_notes
from ..kernel.vmm_actions import words_of
from ..replay.run import Recording, read_recording
from ..replay.target import dangers
from ..sockets.addresses import socket_folder
from ..sockets.listening import Listener
from ..vantage.proxy import Proxy
from ..vantage.recorder import Recorder, live_header
from ..vantage.store import OnStoreError
from ..views.text import safe
from .comparing import compare, comparison_lines
from .failing import ReplayFailed
from .guests import Choice, guest_for, told

_ORDER_S: Final = 60.0


class Keep(StrEnum):
    """What becomes of the traffic."""

    NOTHING = "nothing"
    """It is compared with the recording that is there."""
    GOOD = "good"
    """It becomes the recording if the test passes."""
    ALL = "all"
    """It becomes the recording in any case."""


@dataclass(frozen=True, slots=True)
class Expected:
    """The recording at `path`, which is None when it is yet to be made.

    `extra` says whether requests fail that it does not have, `unused` whether those do that it has
    and the test did not send.
    """

    path: Path
    recording: Recording | None
    extra: bool = True
    unused: bool = True


class ChannelUnderTest:
    """A socket at `path` behind which the chosen guest answers.

    `settle` is for a test that has passed so far, and raises ReplayFailed if the traffic is not as
    recorded; `close` ends everything in any case. What passes is in the capture `traffic`.
    """

    def __init__(
        self,
        choice: Choice,
        expected: Expected,
        keep: Keep,
        traffic: Path,
        talk: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._expected = expected
        self._keep = keep
        self._settled = self._ended = False
        self._running = ExitStack()
        self._stack = ExitStack()
        self.traffic = traffic
        try:
            self._start(choice, talk)
        except BaseException:
            self._discard()
            raise

    def _start(self, choice: Choice, talk: Callable[[str], None]) -> None:
        recording = self._expected.recording
        header = recording.capture.header if recording else Header("proxy")
        self.target = target = self._stack.enter_context(guest_for(choice, header))
        choice.check(dangers(target, header), target)
        notes = world_notes(target.world, choice.machine) if target.world_known else {}
        begins = live_header("proxy", target.world.arch.value, header.port, notes)
        if self._keep is not Keep.NOTHING:
            self.traffic = _beside(self._expected.path)
        self._recorder = Recorder(
            self.traffic, begins, OnStoreError.PASS, threading.Event(), overwrite=True
        )
        self._running.callback(self._recorder.close)
        directory = self._stack.enter_context(socket_folder())
        self.path = Path(directory) / "upcall"
        listener = Listener(self.path)
        self._running.callback(listener.close)
        proxy = Proxy(target.address, self._recorder, talk, header.port)
        self._running.callback(proxy.stop)
        proxy.listen(listener.socket)

    def __fspath__(self) -> str:
        return str(self.path)

    def order(self, order: Mapping[str, Any]) -> dict[str, Any]:
        """Have the VMM's side do something, such as `{"start_vcpu": 1}`; it is recorded too.

        Raises BadOrder when it is refused, and WrongUsage for a guest without a VMM's side.
        """
        if self.target.control is None:
            raise WrongUsage(f"{self.target.address} has no VMM's side that is known of")
        answer = give_order(self.target.control, dict(order), _ORDER_S)
        words = words_of(order)
        if words is not None:
            self._recorder.record(Vmm(self._recorder.now(), words))
        return answer

    def settle(self) -> None:
        """End the traffic, and compare or keep it; raises ReplayFailed and UserError."""
        self._end_traffic()
        sent = read_recording(self.traffic)
        if self._keep is Keep.NOTHING:
            self._compare(sent)
        elif not sent.script.asked:
            raise NothingRun(f"nothing was asked, so {self._expected.path} was not recorded")
        self._settled = True

    def close(self) -> None:
        """End the traffic; a new recording takes its place now, or goes."""
        try:
            self._end_traffic()
            if self._is_kept():
                self.traffic.replace(self._expected.path)
                self.traffic = self._expected.path
        finally:
            self._discard()

    def _is_kept(self) -> bool:
        if self._recorder.failure:
            return False
        if self._keep is Keep.ALL and not self._settled:
            return bool(read_recording(self.traffic).script.asked)
        return self._settled and self._keep is not Keep.NOTHING

    def _discard(self) -> None:
        self._running.close()
        self._stack.close()
        if self._keep is not Keep.NOTHING and self.traffic != self._expected.path:
            self.traffic.unlink(missing_ok=True)

    def _end_traffic(self) -> None:
        if self._ended:
            return
        self._ended = True
        self._running.close()
        failure = self._recorder.failure
        if failure:
            raise SomethingLost(f"{self.traffic} could not be written: {failure}")

    def _compare(self, sent: Recording) -> None:
        expected = self._expected
        assert expected.recording is not None
        found = compare(expected.recording, sent)
        extra, unused = expected.extra and found.extra, expected.unused and found.unused
        if not (extra or unused or found.divergences):
            return
        lines = comparison_lines(found, self.target, expected.extra, expected.unused)
        traffic = safe(str(self.traffic))
        whom = f"the test spoke to {told(self.target)}; all that passed is in {traffic}"
        raise ReplayFailed([*lines, whom])


def _beside(path: Path) -> Path:
    """A new file in the recording's directory, which is made if need be; raises WrongUsage."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(prefix=f".{path.stem}.", dir=path.parent)
    except OSError as error:
        raise WrongUsage(f"{path} cannot be written: {error.strerror}") from None
    os.close(descriptor)
    return Path(name)
