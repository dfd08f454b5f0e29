"""Answers from a fleet as text: a table, JSON, CSV, or one HTML page of plots. docs/fleet.md."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import json
from datetime import date, datetime
from importlib.resources import files
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from .. import __version__
from ..views.printable import safe
from .parquet import pyarrow_or_refuse
from .schema import as_json

if TYPE_CHECKING:
    import pyarrow

_CELL: Final = 60
_BARS: Final = 40
_ROWS: Final = 2_000
_WIDTH: Final = 520
_STYLE: Final = (
    "body{font:15px/1.4 sans-serif;margin:2em auto;max-width:60em;color:#222;background:#fff}"
    "table{border-collapse:collapse}td,th{padding:.2em .7em;border-bottom:1px solid #ccc;"
    "text-align:left}svg{width:100%}rect{fill:#2a6f97}text{font-size:12px;fill:#222}"
)


class PlotBar(NamedTuple):
    """A bar of a plot; `y` and `width` in SVG units."""

    label: str
    text: str
    y: int
    width: float


class Plot(NamedTuple):
    """One column of numbers, drawn."""

    name: str
    bars: list[PlotBar]
    height: int


def as_text(answer: pyarrow.Table) -> list[str]:
    """Lines of a table; long cells are cut."""
    names = [safe(name) for name in answer.schema.names]
    rows = [[_cell(value) for value in row.values()] for row in answer.to_pylist()]
    cells = [[_cut(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(names, *cells, strict=True)]
    right = [_is_number(field.type) for field in answer.schema]
    lines = []
    for row in [names, *cells]:
        padded = (
            cell.rjust(width) if number else cell.ljust(width)
            for cell, width, number in zip(row, widths, right, strict=True)
        )
        lines.append("  ".join(padded).rstrip())
    return lines


def as_object(answer: pyarrow.Table) -> dict[str, Any]:
    """`{"v":1,"columns":[…],"rows":[{…}]}`."""
    return {"v": 1, "columns": answer.schema.names, "rows": plain(answer.to_pylist())}


def as_csv(answer: pyarrow.Table) -> str:
    """A heading and a line a row; lists are joined by spaces, and null is an empty cell."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(answer.schema.names)
    for row in answer.to_pylist():
        table.writerow([_cell(value) for value in row.values()])
    return text.getvalue()


def as_parquet(answer: pyarrow.Table) -> bytes:
    """A Parquet file."""
    from pyarrow import parquet

    buffer = io.BytesIO()
    parquet.write_table(answer, buffer, compression="zstd")
    return buffer.getvalue()


def as_page(answer: pyarrow.Table, title: str) -> str:
    """One HTML page: a plot of bars for each column of numbers, and the table."""
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    digest = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
    # autoescape: everything in the page that is not ours comes from a guest.
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    template = environment.from_string(
        files("upcall_trace.dataset").joinpath("page.html.j2").read_text("utf-8")
    )
    shown = answer.slice(0, _ROWS)
    return template.render(
        policy=f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'",
        style=Markup(_STYLE),  # noqa: S704  # ours
        title=safe(title),
        version=__version__,
        count=len(answer),
        shown=len(shown),
        plots=_plots(shown),
        names=[safe(name) for name in answer.schema.names],
        rows=[[safe(_cell(value)) for value in row.values()] for row in shown.to_pylist()],
    )


def _plots(answer: pyarrow.Table) -> list[Plot]:
    rows = answer.slice(0, _BARS).to_pylist()
    numbers = [field.name for field in answer.schema if _is_number(field.type)]
    words = [name for name in answer.schema.names if name not in numbers]
    plots = []
    for name in numbers:
        most = max((row[name] or 0 for row in rows), default=0)
        bars = []
        for place, row in enumerate(rows):
            value = row[name] or 0
            width = round(_WIDTH * value / most, 1) if most > 0 and value > 0 else 0
            label = safe(" ".join(_cell(row[word]) or "-" for word in words)) or str(place + 1)
            bars.append(PlotBar(label[:_CELL], _cell(row[name]), 24 * place, width))
        plots.append(Plot(safe(name), bars, 24 * max(len(bars), 1)))
    return plots


def _is_number(kind: Any) -> bool:
    types = pyarrow_or_refuse().types
    return bool(types.is_integer(kind) or types.is_floating(kind) or types.is_decimal(kind))


def plain(value: Any) -> Any:
    """A value, or a row, as JSON holds it."""
    value = as_json(value)
    if isinstance(value, list):
        return [plain(each) for each in value]
    if isinstance(value, dict):
        return {name: plain(each) for name, each in value.items()}
    return value if value is None or isinstance(value, (bool, int, float, str)) else _cell(value)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, list):
        return " ".join(map(_cell, value))
    if isinstance(value, (datetime, date)):
        return str(as_json(value))
    if isinstance(value, dict):
        return json.dumps(value, default=str)
    return str(value)


def _cut(text: str) -> str:
    text = safe(text)
    return text if len(text) <= _CELL else text[: _CELL - 1] + "…"
