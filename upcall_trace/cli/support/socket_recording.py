"""`record` on VMMs' sockets: one recording of some, or one for each that a pattern finds."""

from __future__ import annotations

import glob
import re
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from socket import socket
from typing import Any, Final

from ...capture.records import Header
from ...codes import Severity
from ...control.target_note import read_target_note
from ...errors import ExitCode, SomethingLost, UserError, WrongUsage
from ...recording.live_faults import LiveFaults
from ...recording.running import STOP_S, RunningRecording, commanding, for_findings
from ...recording.saying import Sayer
from ...recording.service import handed_sockets
from ...recording.snapshot import Snapshots
from ...recording.sockets import SocketRecording
from ...sockets.addresses import answers
from ...vantage.apart import ApartRecorder
from ...vantage.recorder import Recorder
from ...vantage.store import OnStoreError, RecordingAccount
from .output import talk
from .recording_options import RunOptions, parse_time
from .signals import stop_on_signals
from .standard_output import named

_LOOK_ROUND_S: Final = 0.5
_SANDBOX: Final = re.compile(r"[0-9a-f]{32,64}|[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_MOST_FILES: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class WantedSockets:
    """Which sockets are to be recorded."""

    listen: tuple[Path, ...]
    upstream: tuple[str, ...]
    in_place: tuple[Path, ...]
    guest_ports: tuple[int, ...]
    port: int


@dataclass(frozen=True, slots=True)
class Keeping:
    """Where a recording goes, and how it runs."""

    output: Path
    overwrite: bool
    policy: OnStoreError
    header: Header
    ways: RunOptions


@dataclass(frozen=True, slots=True)
class RunningStore:
    """A recording that runs."""

    recorder: ApartRecorder
    say: Callable[[str], None]


@contextmanager
def recorded(
    kept: Keeping, stop: threading.Event, snapshots: Snapshots | None = None
) -> Iterator[RunningStore]:
    """A recorder with a log of its own; at the end the capture is closed and summed up.

    With `snapshots` it records into their ring. Raises SomethingLost when traffic crossed that is
    not in it.
    """
    sayer = Sayer(talk, kept.ways.log_format == "json")
    rotation = kept.ways.rotation() if snapshots is None else snapshots.rotation
    path = kept.output if snapshots is None else snapshots.ring
    recorder = ApartRecorder(
        path,
        kept.header,
        kept.policy,
        stop,
        kept.overwrite,
        rotation,
        sayer.say,
        kept.ways.sync_s(),
    )
    if snapshots is not None:
        snapshots.say = sayer.say
    try:
        yield RunningStore(recorder, sayer.say)
    finally:
        recorder.close()
        if snapshots is not None:
            snapshots.say = talk  # what it says from now on comes behind our own end
        account = recorder.account
        if not account.stopped:
            sayer.say(
                _summary(kept.output, account), "ended",
                connections=account.connections, operations=account.operations,
                files=account.files, lost_bytes=account.lost,
            )  # fmt: skip
        sayer.close()
    check_lost(kept.output, account)


def _summary(output: Path, account: RecordingAccount) -> str:
    files = f", {account.files} files" if account.files > 1 else ""
    counted = f"{account.connections} connections, {account.operations} operations"
    return f"{named(output)}: {counted}{files}" + ("" if account.indexed else ", no index")


def check_lost(output: Path, account: RecordingAccount) -> None:
    """Raises SomethingLost, with how much, when traffic crossed that is not in the capture."""
    if account.stopped:
        raise SomethingLost(
            f"{named(output)} could not be written ({account.failure}), so the recording ended; "
            f"{account.lost} bytes of traffic went by unrecorded; --on-store-error pass would "
            "have let the traffic go on"
        )
    if account.failure or account.lost:
        why = f" ({account.failure})" if account.failure else ""
        raise SomethingLost(
            f"{named(output)}: {account.lost} bytes of traffic were not recorded{why}"
        )


def record_sockets(wanted: WantedSockets, kept: Keeping, stop: threading.Event) -> ExitCode:
    """Until a signal comes; raises UserError."""
    ways = kept.ways
    handed = handed_sockets()
    if len(wanted.listen) + len(handed) != len(wanted.upstream):
        raise WrongUsage("give as many --listen as --upstream, or --in-place")
    faults = _faults(wanted, ways)
    beside: list[RunningRecording] = []

    def each(work: Callable[[RunningRecording], None]) -> Callable[[], None]:
        def do() -> None:
            for running in beside:
                work(running)

        return do

    stop_on_signals(stop, hang_up=each(RunningRecording.reopen))
    with ExitStack() as stack:
        sockets = stack.enter_context(SocketRecording(talk, wanted.port))
        ways_in: list[Path | socket] = [*handed, *wanted.listen]
        for listen, upstream in zip(ways_in, wanted.upstream, strict=True):
            sockets.between(listen, upstream, wanted.guest_ports)
        for path in wanted.in_place:
            sockets.in_place(path, wanted.guest_ports)
        snapshots = None
        if ways.snapshot is not None:
            snapshots = Snapshots(kept.output, parse_time(ways.snapshot), talk)
            stack.callback(snapshots.close)
            signal.signal(signal.SIGUSR1, lambda *_: snapshots.note_signal())
        stack.callback(each(RunningRecording.close))
        run = stack.enter_context(recorded(kept, stop, snapshots))
        sockets.begin(run.recorder, faults)
        stack.callback(sockets.stop, STOP_S)
        running = RunningRecording(sockets, run.recorder, run.say, faults, snapshots)
        beside.append(running)
        _beside(running, ways, run.say)
        for tapped, upstream in zip(
            sockets.tapped, [*wanted.upstream, *map(str, wanted.in_place)], strict=True
        ):
            name = upstream if tapped.place is None else tapped.address
            run.say(f"recording {tapped.name} -> {name} into {named(kept.output)}")
        run.say(sockets.capacity)
        running.run(stop)
    for listener in handed:
        listener.close()
    return ExitCode.EXPECTED


def _beside(running: RunningRecording, ways: RunOptions, say: Callable[[str], None]) -> None:
    if ways.metrics is not None:
        running.serve_metrics(ways.metrics)
    if ways.control is not None:
        running.take_orders(ways.control)
    words = [severity.word for severity in Severity]
    hear = []
    if ways.on_finding is not None:
        hear.append(for_findings(ways.finding_severity, words, commanding(ways.on_finding, say)))
    if running.snapshots is not None:
        hear.append(for_findings(ways.snapshot_on, words, running.snapshots.heed))
    if hear:

        def each(finding: dict[str, Any]) -> None:
            for listener in hear:
                listener(finding)

        running.heed_findings(each)


def _faults(wanted: WantedSockets, ways: RunOptions) -> LiveFaults | None:
    """The faults to commit; raises WrongUsage for what may be a real guest."""
    if not ways.faults:
        return None
    faults = LiveFaults(ways.faults, ways.seed)
    for behind in [*wanted.in_place, *map(Path, wanted.upstream)]:
        if read_target_note(behind) is None and not ways.allow:
            raise WrongUsage(
                f"{behind} may be a real guest: nothing beside the socket says otherwise; "
                "--allow commits faults on it all the same"
            )
    return faults


def watch_sockets(
    pattern: str, wanted: WantedSockets, kept: Keeping, stop: threading.Event
) -> ExitCode:
    """Every socket that the pattern finds, as it comes and goes, each into a capture of its own.

    Raises WrongUsage.
    """
    stop_on_signals(stop)
    try:
        kept.output.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise WrongUsage(f"{kept.output} cannot be made: {error.strerror}") from None
    sayer = Sayer(talk, kept.ways.log_format == "json")
    talk(f"recording every socket that {pattern} finds into {kept.output}")
    lives: dict[str, _Life] = {}
    lost = False
    try:
        while not stop.wait(_LOOK_ROUND_S if lives else _LOOK_ROUND_S / 5):
            lost |= _look_round(pattern, wanted, kept, lives, sayer.say, stop)
    finally:
        for life in lives.values():
            lost |= life.end()
        sayer.close()
    return ExitCode.LOST if lost else ExitCode.EXPECTED


class _Life:
    """One socket that is recorded, for as long as its VMM lives."""

    def __init__(
        self, path: Path, wanted: WantedSockets, kept: Keeping, say: Callable[[str], None],
        stop: threading.Event,
    ) -> None:  # fmt: skip
        self._say = say
        self.sockets = SocketRecording(say, wanted.port)
        self.tapped = self.sockets.in_place(path, wanted.guest_ports)
        found = _SANDBOX.search(str(path))
        sandbox = found[0] if found else None
        header = replace(kept.header, sandbox=sandbox)
        self.output = _free_name(kept.output, sandbox or path.stem)
        try:
            self.recorder = Recorder(
                self.output, header, kept.policy, stop, tell=say, sync_s=kept.ways.sync_s()
            )
        except BaseException:
            self.sockets.__exit__()
            raise
        self.sockets.begin(self.recorder)
        say(f"recording {path} into {self.output}")

    def is_over(self) -> bool:
        """Whether the VMM is gone."""
        return not answers(self.tapped.address.path)  # type: ignore[union-attr]

    def end(self) -> bool:
        """Give the socket back and close the capture; whether something was lost."""
        self.sockets.stop(STOP_S)
        self.sockets.__exit__()
        self.recorder.close()
        self._say(_summary(self.output, self.recorder.account))
        try:
            check_lost(self.output, self.recorder.account)
        except SomethingLost as error:
            self._say(str(error))
            return True
        return False


def _look_round(
    pattern: str, wanted: WantedSockets, kept: Keeping, lives: dict[str, _Life],
    say: Callable[[str], None], stop: threading.Event,
) -> bool:  # fmt: skip
    lost = False
    for name, life in list(lives.items()):
        life.sockets.look()
        if life.is_over():
            lost |= life.end()
            del lives[name]
    for name in glob.glob(pattern):  # noqa: PTH207  # Path.glob takes no absolute pattern
        path = Path(name)
        if name in lives or path.suffix in (".vmm", ".new") or not answers(path):
            continue
        try:
            lives[name] = _Life(path, wanted, kept, say, stop)
        except UserError as error:
            say(f"{name}: {error}")
    return lost


def _free_name(directory: Path, stem: str) -> Path:
    for count in range(1, _MOST_FILES):
        output = directory / (f"{stem}.upcap" if count == 1 else f"{stem}-{count}.upcap")
        if not output.exists():
            return output
    raise WrongUsage(f"{directory} is full of captures of {stem}")
