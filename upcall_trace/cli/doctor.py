"""`doctor`: what can be captured on this host, and why the rest cannot."""

from __future__ import annotations

from typing import Any, Final

import click

from ..errors import ExitCode
from ..vantage.doctor import Examination, Host, Point, examine
from ..views.text import safe
from .support.options import color_option
from .support.output import out, out_json

VERSION: Final = 1


@click.command("doctor")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead.")
@color_option
def doctor_command(as_json: bool) -> ExitCode:
    """List the places from which you can watch upcall on this host, and what prevents the others.

    It changes nothing and connects to nobody. It only reports, so it ends with 0 whatever it finds.
    """
    examination = examine(Host())
    if as_json:
        out_json(_object(examination))
        return ExitCode.EXPECTED
    for point in examination.points:
        _show(point)
    for tool, version in examination.tools.items():
        out(f"{tool}: {version or 'not installed'} (optional)")
    out("Logs and captures from elsewhere can be read on any machine: upcall-trace diagnose --help")
    return ExitCode.EXPECTED


def _show(point: Point) -> None:
    out(f"{'works' if point.works else 'not now':<8} {point.name}: {point.title}",
        "green" if point.works else "yellow")  # fmt: skip
    for fact in point.found:
        out(f"         {safe(fact)}")
    if point.why is not None:
        out(f"         because {safe(point.why)}")
    out(f"         {'now' if point.works else 'way out'}: {safe(point.way)}")
    out("")


def _object(examination: Examination) -> dict[str, Any]:
    return {
        "v": VERSION,
        "points": [
            {
                "name": point.name,
                "title": point.title,
                "works": point.works,
                "found": list(point.found),
                "why": point.why,
                "way": point.way,
            }
            for point in examination.points
        ],
        "sockets": [
            {"path": each.path, "alive": each.alive, "obstacle": each.obstacle}
            for each in examination.sockets
        ],
        "capabilities": examination.capabilities,
        "tools": examination.tools,
    }
