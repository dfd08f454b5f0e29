"""Moments of the wall clock on a command line: `2026-09-01T10:00`, `-10m`, `yesterday`."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar

import click

from ...errors import WrongUsage
from ...sources import open_source

_Command = TypeVar("_Command", bound=Callable[..., Any])
_SPAN: Final = re.compile(r"-(\d{1,9}(?:\.\d{1,9})?) ?(s|sec|m|min|h|d)?\Z")
_UNITS: Final = {"s": 1, "sec": 1, "m": 60, "min": 60, "h": 3600, "d": 86400, None: 1}


class WallMoment(NamedTuple):
    """A moment in nanoseconds since 1970, and how the user wrote it."""

    ns: int
    text: str


class _MomentType(click.ParamType[WallMoment]):
    name = "time"

    def convert(self, value: Any, param: Any, ctx: Any) -> WallMoment:
        if isinstance(value, WallMoment):
            return value
        moment = parse_moment(str(value), time.time())
        if moment is None:
            self.fail(f"{value!r} is no time: write 2026-09-01T10:00, -10m, today", param, ctx)
        return WallMoment(moment, str(value))


def parse_moment(text: str, now_s: float) -> int | None:
    """Nanoseconds since 1970; None for what is no time. Without a zone it is this machine's."""
    if found := _SPAN.match(text):
        return round((now_s - float(found[1]) * _UNITS[found[2]]) * 1e9)
    today = datetime.fromtimestamp(now_s).astimezone().replace(
        hour=0, minute=0, second=0, microsecond=0
    )  # fmt: skip
    match text:
        case "now":
            return round(now_s * 1e9)
        case "today":
            return round(today.timestamp() * 1e9)
        case "yesterday":
            return round((today - timedelta(days=1)).timestamp() * 1e9)
    try:
        moment = datetime.fromisoformat(text)
        return round(moment.timestamp() * 1e9)
    except (ValueError, OverflowError, OSError):
        return None


def span_options(command: _Command) -> _Command:
    """`--since TIME` and `--until TIME`."""
    since = click.option(
        "--since", type=_MomentType(), metavar="TIME", help="Nothing before: a time, or -10m."
    )
    until = click.option("--until", type=_MomentType(), metavar="TIME", help="Nothing after.")
    return since(until(command))


def in_span(
    path: Path, expression: str | None, since: WallMoment | None, until: WallMoment | None
) -> str | None:
    """A filter expression that also asks for the time of a capture's operations.

    Raises UnreadableInput, and WrongUsage for a capture that does not know the wall clock.
    """
    if since is None and until is None:
        return expression
    with open_source(path) as source:
        first_ns = next((getattr(record, "t_ns", 0) for _, record in source.records()), 0)
        if source.header.wall_ns is None:
            raise WrongUsage(f"{path} does not tell its wall clock: --since and --until need it")
        begins = source.header.wall_ns + first_ns
    parts = [] if expression is None else [f"({expression})"]
    for sign, moment in ((">=", since), ("<=", until)):
        if moment is not None:
            t_ns = moment.ns - begins
            before = "t >= 0ns" if sign == ">=" else "t < 0ns"
            parts.append(f"t {sign} {t_ns}ns" if t_ns >= 0 else before)
    return " and ".join(parts)
