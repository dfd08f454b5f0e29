"""The options of `record` that are about how it runs: rings, faults, findings, metrics, its log."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import click

from ...codes import Severity
from ...durations import UNITS_NS, nanoseconds
from ...errors import WrongUsage
from ...vantage.store import Rotation

_SIZE: Final = re.compile(r"(\d{1,12}) ?([kMGT]?)i?B?")
_SIZE_UNITS: Final = {"": 0, "k": 10, "M": 20, "G": 30, "T": 40}
_TIME: Final = re.compile(r"(\d{1,9}(?:\.\d{1,9})?) ?(ns|us|ms|s|m|min|h|d)")
_LONG_NS: Final = {"m": 60, "min": 60, "h": 3600, "d": 86400}
_PATH: Final = click.Path(path_type=Path)


@dataclass(frozen=True, slots=True)
class RunOptions:
    """What was asked for, as it stands on the command line."""

    rotate_size: str | None
    rotate_time: str | None
    rotate_count: int | None
    keep: int | None
    faults: tuple[str, ...]
    seed: int
    allow: bool
    control: Path | None
    on_finding: str | None
    finding_severity: str
    snapshot: str | None
    snapshot_on: str
    metrics: Path | None
    log_format: str
    sync: str

    def sync_s(self) -> float | None:
        """How often what was written is put on the disk, as `CaptureStore` has it; WrongUsage."""
        return parse_sync(self.sync)

    def rotation(self) -> Rotation | None:
        """The ring that is asked for, None for one file; raises WrongUsage."""
        size = None if self.rotate_size is None else parse_size(self.rotate_size)
        time_s = None if self.rotate_time is None else parse_time(self.rotate_time)
        if (size, time_s, self.rotate_count) == (None, None, None):
            if self.keep is not None:
                raise WrongUsage("--keep needs --rotate-size, --rotate-time or --rotate-count")
            return None
        return Rotation(size, time_s, self.rotate_count, self.keep)


def run_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """These options, as the parameters that `RunOptions` has."""
    severities = click.Choice([severity.word for severity in Severity])
    positive = click.IntRange(1)
    for option in reversed((
        click.option("--rotate-size", metavar="SIZE", help="A new file in -o DIR after so much."),
        click.option("--rotate-time", metavar="TIME", help="A new file after so long."),
        click.option("--rotate-count", type=positive, metavar="N",
                     help="A new file after so many messages."),
        click.option("--keep", type=positive, metavar="N", help="Keep the last N files only."),
        click.option("--snapshot", metavar="TIME",
                     help="Keep so much in memory only; write it to -o DIR when something is "
                     "found, with the minute after it, or on SIGUSR1."),
        click.option("--snapshot-on", type=severities, default="error", show_default=True,
                     help="What has to be found for that, at least."),
        click.option("--on-finding", metavar="COMMAND",
                     help="Run this for what is found; its JSON is on standard input."),
        click.option("--finding-severity", type=severities, default="warning", show_default=True,
                     help="What has to be found for that, at least."),
        click.option("--fault", "faults", multiple=True, metavar="SPEC",
                     help="Commit a fault on the way, such as add_cpu:delay=300ms."),
        click.option("--seed", type=int, default=0, help="For faults with a chance."),
        click.option("--allow", is_flag=True, help="Commit faults on what may be a real guest."),
        click.option("--control", type=_PATH, metavar="PATH",
                     help="A socket for orders: other faults, a new file, a snapshot."),
        click.option("--metrics", type=_PATH, metavar="PATH",
                     help="Prometheus metrics on this Unix socket."),
        click.option("--sync", metavar="WHEN", default="none", show_default=True,
                     help="How much a loss of power may take: always, a time such as 100ms, or "
                     "none for what the kernel has not written yet."),
        click.option("--log-format", type=click.Choice(["text", "json"]), default="text",
                     show_default=True, help="How remarks are written to stderr."),
    )):  # fmt: skip
        command = option(command)
    return command


def parse_size(text: str) -> int:
    """Bytes, of such as 64M; raises WrongUsage."""
    given = _SIZE.fullmatch(text)
    if given is None or int(given[1]) == 0:
        raise WrongUsage(f"{text!r} is no size such as 64M or 2G")
    return int(given[1]) << _SIZE_UNITS[given[2]]


def parse_sync(text: str) -> float | None:
    """Seconds between syncs, 0 for `always` and None for `none`; raises WrongUsage."""
    if text in ("always", "none"):
        return 0.0 if text == "always" else None
    try:
        return parse_time(text)
    except WrongUsage:
        raise WrongUsage(f"--sync is always, none, or a time such as 100ms, not {text!r}") from None


def parse_time(text: str) -> float:
    """Seconds, of such as 10m; raises WrongUsage."""
    given = _TIME.fullmatch(text)
    if given is None:
        raise WrongUsage(f"{text!r} is no time such as 30s, 10m or 1h")
    number, unit = given.groups()
    found = (
        float(number) * _LONG_NS[unit]
        if unit in _LONG_NS
        else (nanoseconds(number, unit) / UNITS_NS["s"])
    )
    if found <= 0:
        raise WrongUsage(f"{text!r} is no time: it has to be more than nothing")
    return found
