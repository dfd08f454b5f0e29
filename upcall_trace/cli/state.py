"""`state`: what the guest had at one moment of a recording."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Final

import click
import numpy as np

from ..diagnose.state import GuestState, state_of
from ..diagnose.state_report import VERSION, as_text, state_object
from ..errors import ExitCode, WrongUsage
from ..sources.spooled import plain
from ..trace.opening import Capture
from ..trace.operations import Operation
from ..views.text import fields_text, safe, seconds
from .support.files import CAPTURE, open_capture, tell_losses
from .support.options import given_world, tell_lacking_world, vmm_option, world_options
from .support.output import out, out_json, progress

_NUMBER: Final = re.compile(r"[0-9]{1,18}")
_KEY: Final = re.compile(r"([0-9]{1,10})\.([0-9]{1,10})")


@click.command("state")
@click.argument("capture", type=CAPTURE)
@click.option("--at", metavar="N", help="Before operation N, or CONN.REQUEST; else at the end.")
@world_options
@vmm_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead.")
def state_command(
    capture: Path,
    at: str | None,
    world_file: Path | None,
    machine: str | None,
    vmm: str,
    as_json: bool,
) -> ExitCode:
    """Show what the guest had: CPUs, windows, PCI functions, locks and dead connections.

    N counts operations from 0, in the order in which show lists them. What the recording shows or
    the guest's world (--world) makes certain is known; the rest is inferred, and says from what.
    At the end, devices follow that VMM and guest may disagree about.
    """
    opened = open_capture(capture)
    notes = opened.header.notes
    world = given_world(world_file, machine, notes)
    if world is None:
        tell_lacking_world(capture, notes, "what the guest had at boot is not known")
    row = None if at is None else _row(opened, at)
    with progress(f"following {capture.name}", plain(capture).stat().st_size) as report:
        state = state_of(capture, opened, row, world, vmm == "dragonball", report)
    operation = None if row is None else opened.operations.operation(row)
    if as_json:
        out_json(_object(state, operation, len(opened.operations)))
    else:
        out(_heading(operation, len(opened.operations)))
        for line in as_text(state):
            out(line)
    return tell_losses(capture, opened)


def _row(capture: Capture, at: str) -> int:
    """The row of an operation by its number or key; raises WrongUsage when it is not there."""
    count = len(capture.operations)
    there_are = f"the capture has {count} operations" + (f", 0 to {count - 1}" if count else "")
    if _NUMBER.fullmatch(at):
        if int(at) < count:
            return int(at)
        raise WrongUsage(f"there is no operation {at}: {there_are}")
    key = _KEY.fullmatch(at)
    if key is None:
        raise WrongUsage(f"{safe(at)!r} is neither a number nor CONN.REQUEST, such as 1.4")
    conn, request = (capture.operations.column(name) for name in ("conn", "request"))
    rows = np.flatnonzero((conn == int(key[1])) & (request == int(key[2]))).tolist()
    if not rows:
        raise WrongUsage(f"there is no operation {at}: {there_are}")
    if len(rows) > 1:
        numbers = ", ".join(map(str, rows[:10]))
        raise WrongUsage(f"{at} is there {len(rows)} times; choose one by its number: {numbers}")
    return int(rows[0])


def _heading(operation: Operation | None, count: int) -> str:
    if operation is None:
        return f"at the end, after {count} operations"
    what = f"{safe(operation.op)} {fields_text(operation.fields)}".strip()
    when = f"{seconds(operation.t_ns)} s, operation {operation.row} of {count}"
    return f"before {operation.conn}.{operation.request} {what} ({when})"


def _object(state: GuestState, operation: Operation | None, count: int) -> dict[str, Any]:
    at = operation and {
        "operation": operation.row,
        "conn": operation.conn,
        "request": operation.request,
        "t_ns": operation.t_ns,
        "op": operation.op,
    }
    return {"v": VERSION, "operations": count, "at": at, **state_object(state)}
