"""`info`: what a capture holds, and whether it is all there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ..errors import ExitCode
from ..views.json_objects import info_object
from ..views.text import duration, safe
from .support.files import CAPTURE, open_capture, tell_losses, verify_capture
from .support.many_files import each_of
from .support.output import out, out_json, talk


@click.command("info")
@click.argument("captures", type=CAPTURE, nargs=-1, required=True)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a capture instead.")
@click.option("--verify", is_flag=True, help="Check every record, however large the file.")
def info_command(captures: tuple[Path, ...], as_json: bool, verify: bool) -> ExitCode:
    """Counts, times, latencies and completeness of captures, one by one.

    A capture of more than 64 MiB is called complete only with --verify: every record is then
    read, and its index is compared with them. Of several, JSON objects name their file.
    """
    return each_of(captures, lambda path, name: _tell(path, as_json, verify, name), as_json)


def _tell(capture: Path, as_json: bool, verify: bool, shown_as: str | None) -> ExitCode:
    if verify:
        opened, wrong = verify_capture(capture)
    else:
        opened, wrong = open_capture(capture, check=False), None
    info = info_object(opened)
    if as_json:
        out_json(info if shown_as is None else info | {"file": shown_as})
    else:
        for name, text in _rows(info):
            out(f"{name:<12} {safe(text)}")
    code = tell_losses(capture, opened)
    if wrong is not None:
        talk(f"{capture}: its index says something else than its records: {wrong}; recover it")
        return ExitCode.LOST
    return code


def _rows(info: dict[str, Any]) -> list[tuple[str, str]]:
    state = {True: "complete", False: "torn", None: "not verified"}[info["complete"]]
    if info["recording"]:
        state = "still recording"
    elif any(not damage["at_end"] for damage in info["damage"]):
        state = "damaged"
    traffic = ", ".join(
        f"{info[name]} {name}" for name in ("connections", "requests", "replies", "bytes")
    )
    rows = [
        ("file", f"{state}, {info['lost_bytes']} bytes lost"),
        ("recorded", _origin(info)),
        ("started", f"{info['started'] or 'unknown'}, lasted {duration(info['duration_ns'])}"),
        ("traffic", traffic),
    ]
    for key, value in info["notes"].items():
        rows.append(("note", f"{key}: {value}"))
    if info["latency_ns"]:
        named = ", ".join(f"{name} {duration(ns)}" for name, ns in info["latency_ns"].items())
        rows.append(("latency", named))
    rows.append(
        ("results", f"{info['errors']} answered with an error, {info['unanswered']} not at all")
    )
    for op, counts in info["operations"].items():
        text = f"{counts['count']:>6} sent, {counts['errors']} errors"
        rows.append((op, f"{text}, {counts['unanswered']} unanswered"))
    for name, count in info["anomalies"].items():
        rows.append(("anomaly", f"{count:>6} {name}"))
    if info["marks"] or info["vmm"]:
        rows.append(("beside", f"{info['vmm']} VMM records, {info['marks']} marks"))
    return rows


def _origin(info: dict[str, Any]) -> str:
    arch = info["arch"] or "architecture not stated"
    host = f" on {info['host']}" if info["host"] else ""
    clock = f", clock steps of {duration(info['resolution_ns'])}" if info["resolution_ns"] else ""
    return f"from {info['source']}{host}, {arch}{clock}"
