"""Files that were given without an option: what each is, is found out by looking."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from ...errors import UserError
from ...logs.opening import sniff
from ...sources import capture_kind


def sandboxes(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """For completion: the guests of the logs that are on the command line so far."""
    from ...diagnose.log_inputs import read_logs

    params = ctx.params
    given = [*(params.get("files") or ()), *(params.get("console") or ())]
    paths = [path for path in [*given, *(params.get("vmm_log") or ())] if Path(path).is_file()]
    try:
        logs = read_logs(found=by_kind(list(dict.fromkeys(paths)))[1])
    except (UserError, OSError):
        return []  # it is told when the command runs
    named = [guest.sandbox for guest in logs.guests if guest.sandbox is not None]
    return [name for name in named if name.startswith(incomplete)]


def by_kind(files: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """(captures, logs); what can be read as a capture is one. Raises UnreadableInput."""
    captures: list[Path] = []
    logs: list[Path] = []
    for path in files:
        is_capture = path.is_dir() or capture_kind(sniff(path))
        (captures if is_capture else logs).append(path)
    return captures, logs
