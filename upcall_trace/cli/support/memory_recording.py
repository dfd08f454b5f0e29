"""`record --memory`: watch the memory of one running VM, or of every one on the node."""

from __future__ import annotations

import re
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import click

from ...durations import UNITS_NS, nanoseconds
from ...errors import ExitCode, SomethingLost, Unreachable, UserError, WrongUsage
from ...vantage.guest_memory.as_capture import SOURCE
from ...vantage.guest_memory.processes import RunningVmm
from ...vantage.guest_memory.sandboxes import VmmProcess, process_of, vmm_processes
from ...vantage.guest_memory.watching import DEFAULT_SHARE, Watcher, account
from ...vantage.recorder import Recorder, live_header
from ...vantage.store import OnStoreError
from .output import talk
from .signals import stop_on_signals
from .standard_output import named

EVERY: Final = ""
"""`--memory` without a process, for `--watch`."""
_SWITCH_INTERVAL_S: Final = 0.0005
_TIME: Final = re.compile(rf"(\d{{1,12}}(?:\.\d{{1,9}})?) ?({'|'.join(UNITS_NS)})")
_LOOK_ROUND_S: Final = 1.0
_LEAST_NS, _MOST_NS = 20_000, 10_000_000_000


@dataclass(frozen=True, slots=True)
class MemoryWish:
    """What was asked for on the command line."""

    interval_ns: int
    share: float
    port: int
    arch: str | None
    notes: dict[str, str]
    policy: OnStoreError
    overwrite: bool
    sync_s: float | None = None


def memory_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options of `record` that are about a VM's memory."""
    for option in reversed((
        click.option("--memory", is_flag=False, flag_value=EVERY, metavar="[PID]",
                     help="Watch the memory of this VMM's process, or Kata sandbox."),
        click.option("--interval", default="200us", show_default=True, metavar="TIME",
                     help="With --memory: the time from one look to the next."),
        click.option("--cpu-share", type=click.FloatRange(0.1, 100), default=100 * DEFAULT_SHARE,
                     show_default=True, metavar="PERCENT",
                     help="With --memory: of one processor, for each VM at most."),
        click.option("--watch", is_flag=False, flag_value="*", metavar="[GLOB]",
                     help="Record all there are and come, each into its own capture in -o DIR."),
    )):  # fmt: skip
        command = option(command)
    return command


def parse_interval(text: str) -> int:
    """An interval in nanoseconds; raises WrongUsage."""
    given = _TIME.fullmatch(text)
    if given is None:
        raise WrongUsage(f"{text!r} is no time such as 200us or 1ms")
    interval_ns = nanoseconds(*given.groups())
    if not _LEAST_NS <= interval_ns <= _MOST_NS:
        raise WrongUsage(f"an interval is from 20us to 10s, not {text}")
    return interval_ns


def record_memory(named: str, output: Path, wish: MemoryWish) -> ExitCode:
    """Watch one VM until a signal comes or it is gone; raises UserError."""
    stop = threading.Event()
    stop_on_signals(stop)
    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    running = vmm_processes()
    pid = int(named) if named.isdecimal() else process_of(named, running).pid
    sandbox = {each.pid: each.sandbox for each in running}.get(pid)
    with RunningVmm(pid) as memory:
        return _watch_one(memory, sandbox, output, wish, stop, talk)


def _watch_one(
    memory: RunningVmm,
    sandbox: str | None,
    output: Path,
    wish: MemoryWish,
    stop: threading.Event,
    tell: Callable[[str], None],
) -> ExitCode:
    notes = {"memory": memory.name} | wish.notes
    header = replace(live_header(SOURCE, wish.arch, wish.port, notes), sandbox=sandbox)
    recorder = Recorder(
        output, header, wish.policy, stop, wish.overwrite, tell=tell, sync_s=wish.sync_s
    )
    watcher = Watcher(memory, recorder, wish.port, wish.interval_ns, wish.share)
    try:
        count = watcher.begin()
        tell(f"recording {memory.name} into {named(output)}: {count} connections there now")
        watcher.watch(stop)
    finally:
        recorder.close()
    report = watcher.report
    if report.ended:
        tell(f"{report.ended}: the recording is closed")
    tell(f"{named(output)}: {report.connections} connections; {account(report)}")
    if recorder.failure:
        lost = f"{recorder.account.lost} bytes were not recorded"
        raise SomethingLost(f"{output} could not be written ({recorder.failure}): {lost}")
    missed = report.tally.missed_requests + report.tally.missed_replies
    return ExitCode.LOST if missed else ExitCode.EXPECTED


class NodeWatch:
    """Every VM of this machine as it comes and goes, each in a thread and a capture of its own."""

    def __init__(self, directory: Path, wish: MemoryWish, stop: threading.Event) -> None:
        self._directory = directory
        self._wish = wish
        self._stop = stop
        self._threads: dict[int, threading.Thread] = {}
        self._refused: set[int] = set()
        self._codes: list[ExitCode] = []

    def run(self) -> ExitCode:
        """Until told to stop; the worst of what the recordings ended with."""
        while True:
            self._start_new(vmm_processes())
            if self._stop.wait(_LOOK_ROUND_S):
                break
        for thread in self._threads.values():
            thread.join()
        return max(self._codes, default=ExitCode.EXPECTED)

    def _start_new(self, running: list[VmmProcess]) -> None:
        here = {each.pid for each in running}
        self._refused &= here  # a process id may come again
        for pid in [pid for pid, thread in self._threads.items() if not thread.is_alive()]:
            if pid not in here:
                del self._threads[pid]
        for each in running:
            seen = each.pid in self._threads or each.pid in self._refused
            # A VMM that has just begun has no memory for its guest yet.
            if not seen and (each.holds_a_guest or each.mappings is None):
                self._start(each)

    def _start(self, vmm: VmmProcess) -> None:
        try:
            memory = RunningVmm(vmm.pid)
        except Unreachable as error:
            self._refused.add(vmm.pid)
            talk(str(error))
            return
        thread = threading.Thread(
            target=self._watch, args=(memory, vmm), name=f"watch-{vmm.pid}", daemon=True
        )
        self._threads[vmm.pid] = thread
        thread.start()

    def _watch(self, memory: RunningVmm, vmm: VmmProcess) -> None:
        with memory:
            try:
                output = self._free_name(vmm)
                code = _watch_one(memory, vmm.sandbox, output, self._wish, self._stop, talk)
                self._codes.append(code)
            except UserError as error:
                talk(str(error))
                self._codes.append(error.exit_code)
            except Exception:  # the other VMs are still to be watched
                self._codes.append(ExitCode.LOST)
                raise

    def _free_name(self, vmm: VmmProcess) -> Path:
        """A new capture for each life of a sandbox."""
        stem = vmm.sandbox or f"{vmm.kind.lower().replace(' ', '-')}-{vmm.pid}"
        output = self._directory / f"{stem}.upcap"
        count = 1
        while output.exists():
            count += 1
            output = self._directory / f"{stem}-{count}.upcap"
        return output


def record_node(directory: Path, wish: MemoryWish) -> ExitCode:
    """Watch every VM of this machine until a signal comes; raises WrongUsage."""
    stop = threading.Event()
    stop_on_signals(stop)
    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise WrongUsage(f"{directory} cannot be made: {error.strerror}") from None
    talk(f"recording the memory of every VM of this machine into {directory}")
    return NodeWatch(directory, wish, stop).run()
