"""`tui`: browse a capture in the terminal, also one that is being recorded."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from ..errors import ExitCode, WrongUsage
from .support.collecting import kept_to_the_end
from .support.files import CAPTURE
from .support.inputs import by_kind
from .support.options import given_world, world_options
from .support.output import out, talk
from .support.recorder_process import RecorderProcess
from .support.signals import stop_on_signals
from .support.times import WallMoment, in_span, span_options

if TYPE_CHECKING:
    from ..tui.app import Browser
    from ..tui.screens.work import Given
    from .support.browser_replays import FileReplays

# While the diagnosis works in the background, a key must not wait Python's default 5 ms for it.
_SWITCH_INTERVAL_S: Final = 0.0005
_NICE: Final = 10


@click.command("tui")
@click.argument("capture", type=CAPTURE, required=False)
@click.option(
    "--console", type=CAPTURE, metavar="FILE", help="The guest's console, dmesg or journal."
)
@click.option("--vmm-log", type=CAPTURE, metavar="FILE", help="Dragonball's or Kata's log.")
@span_options
@world_options
@click.option("--record", is_flag=True, help="Start a recording into CAPTURE, and follow it.")
@click.option(
    "--listen", type=CAPTURE, metavar="PATH", help="With --record: where clients connect."
)
@click.option("--upstream", metavar="ADDRESS", help="With --record: the VMM's socket.")
@click.option(
    "--memory", metavar="PID", help="Watch this VMM's memory (or a sandbox's), and follow it."
)
@click.pass_context
def tui_command(
    ctx: click.Context,
    capture: Path | None,
    console: Path | None,
    vmm_log: Path | None,
    since: WallMoment | None,
    until: WallMoment | None,
    world_file: Path | None,
    machine: str | None,
    record: bool,
    listen: Path | None,
    upstream: str | None,
    memory: str | None,
) -> ExitCode:
    """Browse a capture: sessions, a ladder of what crossed, bytes, findings, the guest's state.

    CAPTURE may be a log instead: then its findings and its lines are shown.

    A capture that is still growing is followed. Without CAPTURE you choose from recent ones and
    from the samples that come with the program. With --record a proxy is started as its own
    process, with --memory a watch of a running VM's memory; CAPTURE is then the file to write. `?`
    lists the keys. Where the output is no terminal the operations are printed, as by show.
    """
    if record != (listen is not None and upstream is not None) or (listen is None) != (
        upstream is None
    ):
        raise WrongUsage("--record needs --listen and --upstream, and they need it")
    if memory is not None and record:
        raise WrongUsage("give --record or --memory: a capture has one source")
    world = given_world(world_file, machine)
    logs = _logs_alone(capture, console, vmm_log) if not (record or memory) else []
    if not all(stream.isatty() for stream in (sys.stdin, sys.stdout, sys.stderr)):
        if logs:
            return _print_logs(logs)
        return _print(ctx, capture, record or memory is not None, since, until)
    with kept_to_the_end():
        from ..diagnose.told_by_logs import Span
        from ..tui.app import Browser
        from ..tui.data.settings import user_settings
        from ..tui.screens.work import Given

    settings = user_settings()
    _use_the_terminals_size()
    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    if not record and memory is None:
        given = None
        if capture is not None and not logs:
            asked = in_span(capture, None, since, until)
            _check_logs(console, vmm_log)
            given = Given(_checked(capture), console, vmm_log, world, filter=asked)
        span = Span(since.ns if since else None, until.ns if until else None)
        _run(Browser(given, settings, replays=replays_of, logs=logs, span=span))
        return ExitCode.EXPECTED
    path = capture or Path(f"upcall-{time.strftime('%Y%m%d-%H%M%S')}.upcap")
    source = ["--memory", memory] if memory is not None else []
    if listen is not None and upstream is not None:
        source = ["--listen", os.fspath(listen), "--upstream", upstream]
    with RecorderProcess(source, path) as recorder:
        address = os.fspath(listen) if listen is not None else None
        given = Given(path, console, vmm_log, world, address)
        _give_way()
        app = Browser(given, settings, recording=True, replays=replays_of)
        return recorder.leave(stop=_run(app))


def _run(app: Browser) -> bool:
    """Browse until the user or a signal ends it; what the app ends with.

    An exception out of a handler would leave the threads of textual behind, which wait for keys
    for ever. So a signal is only noted, and the app looks for it.
    """
    put_back = stop_on_signals(app.interrupted, hurry=False)
    try:
        ended = app.run()
    finally:
        put_back()
    if app.interrupted.is_set():
        raise KeyboardInterrupt
    return bool(ended)


def _give_way() -> None:
    """While something is recorded, the recorder and the guest come first."""
    os.nice(_NICE)


def _use_the_terminals_size() -> None:
    """Some shells export the size that they had once; textual would draw for that one."""
    for name in ("COLUMNS", "LINES"):
        os.environ.pop(name, None)


def _logs_alone(capture: Path | None, console: Path | None, vmm_log: Path | None) -> list[Path]:
    """The logs that are to be browsed without a capture; empty where there is one."""
    if capture is not None and (not capture.is_file() or by_kind([capture])[0]):
        return []
    return [path for path in (capture, console, vmm_log) if path is not None]


def _print_logs(paths: list[Path]) -> ExitCode:
    from ..diagnose.log_inputs import read_logs
    from ..diagnose.report import as_text
    from ..diagnose.run import diagnose_logs

    talk("the output is no terminal: the findings follow as text")
    for line in as_text([diagnose_logs(read_logs(found=paths))], everything=True):
        out(line)
    return ExitCode.EXPECTED


def replays_of(given: Given) -> FileReplays:
    """What sends a capture again; imported when somebody asks for it."""
    from .support.browser_replays import FileReplays

    return FileReplays(given.path, given.world)


def _print(
    ctx: click.Context,
    capture: Path | None,
    record: bool,
    since: WallMoment | None,
    until: WallMoment | None,
) -> ExitCode:
    """What a pipe gets instead of a screen."""
    from .show import show_command

    if record or capture is None:
        raise WrongUsage("the output is no terminal: name a capture to print")
    talk("the output is no terminal: the operations follow as text")
    code: ExitCode = ctx.invoke(
        show_command, captures=(capture,), as_frames=False, with_hex=False, as_json=False,
        expression=None, since=since, until=until, verdicts=False, follow=False,
    )  # fmt: skip
    return code


def _check_logs(*paths: Path | None) -> None:
    """The same for logs. A log beside a recording may come later, and is told on the screen."""
    from ..logs.lines import read_lines

    for path in paths:
        if path is not None:
            next(read_lines(path), None)


def _checked(path: Path) -> Path:
    """Opens it once, so that what cannot be read is told before the screen is taken."""
    from ..sources import open_source

    with open_source(path) as source:
        if source.live:
            _give_way()
    return path
