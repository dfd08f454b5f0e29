"""The report of a run: every figure as a median of its rounds, what became slower, and a page."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from html import escape
from pathlib import Path
from typing import Any, Final

from .rows import Row, number

VERSION: Final = 1
SLOWER: Final = 1.1
"""So many times worse is worse, if all of the rounds are."""
_WIDTH, _HEIGHT = 640, 300
_COLOURS: Final = ("#1b6ca8", "#b5541c", "#2d7d46", "#7a4fa3", "#8a6d00", "#a3325a", "#46707a")


@dataclass(frozen=True, slots=True)
class Figure:
    """What the rounds of a run have of one row: `row` has the medians.

    `cost` is what is compared, one value a round: how much worse it was than its yardstick. For a
    row with a ratio that is the ratio, which the same round measured; else the value beside a plain
    loop that was timed right before and after. A high cost is bad.
    """

    benchmark: str
    row: Row
    cost: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Report:
    """A run of the benchmarks. `skipped` says what could not be measured, and why."""

    when: str
    machine: str
    figures: list[Figure]
    skipped: dict[str, str]


def figures(benchmark: str, rounds: Iterable[tuple[float, list[Row]]]) -> list[Figure]:
    """The figures of a benchmark's rounds; each has the seconds that the plain loop took."""
    by_name: dict[str, list[tuple[float, Row]]] = {}
    for loop_s, rows in rounds:
        for row in rows:
            by_name.setdefault(row.name, []).append((loop_s, row))
    return [_figure(benchmark, several) for several in by_name.values()]


def _figure(benchmark: str, several: list[tuple[float, Row]]) -> Figure:
    first = several[0][1]

    def middle(name: str) -> float | None:
        values = [getattr(row, name) for _, row in several]
        return statistics.median(values) if None not in values else None

    value = middle("value")
    assert value is not None
    row = Row(first.name, value, first.unit, middle("ratio"), first.against, first.size,
              middle("message_bytes"), middle("cpu_s"), middle("peak_mib"))  # fmt: skip
    return Figure(benchmark, row, tuple(_cost(loop_s, row) for loop_s, row in several))


def _cost(loop_s: float, row: Row) -> float:
    if row.ratio is not None:
        cost = row.ratio
    else:
        timed = row.unit in ("s", "ms", "us") or row.unit.endswith("/s")
        loops = loop_s if timed else 1.0
        cost = row.value * loops if row.more_is_better else row.value / loops
    return 1 / cost if row.more_is_better and cost else cost


def compared(kept: Report, now: Report) -> Iterator[tuple[Figure, float]]:
    """What became slower, larger or worse, and how many times.

    The median must be worse by a tenth, and every round of now worse than every one of then.
    """
    known = {(figure.benchmark, figure.row.name): figure for figure in kept.figures}
    for figure in now.figures:
        before = known.get((figure.benchmark, figure.row.name))
        if before is None or min(before.cost) <= 0 or before.row.unit != figure.row.unit:
            continue
        times = statistics.median(figure.cost) / statistics.median(before.cost)
        if times >= SLOWER and min(figure.cost) > max(before.cost):
            yield figure, times


def as_json(report: Report) -> str:
    """The report as it is kept."""
    return json.dumps({"v": VERSION, **asdict(report)}, indent=1) + "\n"


def read(path: Path) -> Report:
    """A report that was kept; raises ValueError for one of another version."""
    told: Mapping[str, Any] = json.loads(path.read_text("utf-8"))
    if told["v"] != VERSION:
        raise ValueError(f"{path} is a report of version {told['v']}, and not of {VERSION}")
    listed = [
        Figure(each["benchmark"], Row(**each["row"]), tuple(each["cost"]))
        for each in told["figures"]
    ]
    return Report(told["when"], told["machine"], listed, told["skipped"])


def page(report: Report) -> str:
    """One HTML page without scripts: for each benchmark its plots, and the table of its figures."""
    where = escape(f"{report.when}, {report.machine}")
    about = "Bars show how many times the value of the other it is."
    parts = [_HEAD, f"<h1>Measurements</h1><p>{where}. {about}</p>"]
    by_benchmark: dict[str, list[Row]] = {}
    for figure in report.figures:
        by_benchmark.setdefault(figure.benchmark, []).append(figure.row)
    for name, rows in by_benchmark.items():
        parts.append(f"<h2>{escape(name)}</h2>")
        parts += [_growth(unit, lines) for unit, lines in _grown(rows).items()]
        parts.append(_bars([row for row in rows if row.ratio is not None]))
        parts.append(_table(rows))
    for name, why in report.skipped.items():
        parts.append(f"<p>{escape(name)} was not measured: {escape(why)}</p>")
    return "\n".join([*filter(None, parts), "</body></html>\n"])


_HEAD: Final = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>Measurements</title><style>
body{font:15px/1.5 sans-serif;max-width:70em;margin:2em auto;padding:0 1em}
body{color:#222;background:#fff}table{border-collapse:collapse}
td,th{padding:.1em .8em;text-align:left;border-bottom:1px solid #ccc}
td.n{text-align:right}svg{max-width:100%}text{font-size:12px;fill:#222}
</style></head><body>"""


def _grown(rows: list[Row]) -> dict[str, dict[str, list[Row]]]:
    """By unit and name, what was measured on several sizes."""
    found: dict[str, dict[str, list[Row]]] = {}
    for row in rows:
        if row.size is not None and (told := f", {row.size:,} operations") in row.name:
            name = row.name.replace(told, "")
            found.setdefault(row.unit, {}).setdefault(name, []).append(row)
    several = {
        unit: {name: line for name, line in lines.items() if len(line) > 1}
        for unit, lines in found.items()
    }
    return {unit: lines for unit, lines in several.items() if lines}


def _growth(unit: str, lines: dict[str, list[Row]]) -> str:
    """A plot of the figures against the number of operations, both by powers of ten."""
    sizes = [row.size or 1 for line in lines.values() for row in line]
    values = [max(row.value, 1e-9) for line in lines.values() for row in line]
    left, right = math.log10(min(sizes)), math.log10(max(sizes))
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)) + 1e-9)

    def at(row: Row) -> tuple[float, float]:
        x = 70 + (math.log10(row.size or 1) - left) / (right - left) * (_WIDTH - 90)
        y = _HEIGHT - 30 - (math.log10(max(row.value, 1e-9)) - low) / (high - low) * (_HEIGHT - 50)
        return round(x, 1), round(y, 1)

    told = [f'<svg viewBox="0 0 {_WIDTH + 300} {_HEIGHT}" role="img" aria-label="{escape(unit)}">']
    for power in range(low, high + 1):
        y = _HEIGHT - 30 - (power - low) / (high - low) * (_HEIGHT - 50)
        told.append(f'<text x="62" y="{y + 4:.1f}" text-anchor="end">{10.0**power:g}</text>'
                    f'<path d="M70 {y:.1f}H{_WIDTH - 20}" stroke="#ddd"/>')  # fmt: skip
    for size in sorted(set(sizes)):
        x = 70 + (math.log10(size) - left) / (right - left) * (_WIDTH - 90)
        told.append(f'<text x="{x:.1f}" y="{_HEIGHT - 8}" text-anchor="middle">{size:,}</text>')
    told.append(f'<text x="6" y="12">{escape(unit)}</text>')
    for place, (name, line) in enumerate(lines.items()):
        colour = _COLOURS[place % len(_COLOURS)]
        points = [at(row) for row in line]
        drawn = " ".join(f"{x},{y}" for x, y in points)
        told.append(f'<polyline points="{drawn}" fill="none" stroke="{colour}" stroke-width="2"/>')
        told += [f'<circle cx="{x}" cy="{y}" r="3" fill="{colour}"/>' for x, y in points]
        y = 20 + 18 * place
        told.append(f'<rect x="{_WIDTH}" y="{y - 9}" width="10" height="10" fill="{colour}"/>'
                    f'<text x="{_WIDTH + 16}" y="{y}">{escape(name)}</text>')  # fmt: skip
    return "".join([*told, "</svg>"])


def _bars(rows: list[Row]) -> str:
    """A bar for each ratio; a line marks one time the other."""
    if not rows:
        return ""
    most = max(1.0, *(row.ratio or 0 for row in rows))
    height = 22 * len(rows) + 4
    told = [f'<svg viewBox="0 0 980 {height}" role="img" aria-label="ratios">']
    for place, row in enumerate(rows):
        width, y = 360 * (row.ratio or 0) / most, 22 * place
        told.append(
            f'<text x="420" y="{y + 14}" text-anchor="end">{escape(row.name[:64])}</text>'
            f'<rect x="428" y="{y + 2}" width="{width:.1f}" height="16" fill="#1b6ca8"/>'
            f'<text x="{434 + width:.1f}" y="{y + 14}">{number(row.ratio or 0)} times '
            f"{escape(row.against)}</text>"
        )
    one = 428 + 360 / most
    return "".join([*told, f'<path d="M{one:.1f} 0V{height}" stroke="#b5541c"/></svg>'])


def _table(rows: list[Row]) -> str:
    names = ("figure", "value", "unit", "ratio", "to", "bytes a message", "CPU s", "peak MiB")
    told = ["<table><tr>", *(f"<th>{name}</th>" for name in names), "</tr>"]
    for row in rows:
        cells = [row.value, row.ratio, row.message_bytes, row.cpu_s, row.peak_mib]
        value, ratio, on_disk, cpu, peak = (
            f'<td class="n">{"" if cell is None else number(cell)}</td>' for cell in cells
        )
        told.append(f"<tr><td>{escape(row.name)}</td>{value}<td>{escape(row.unit)}</td>{ratio}"
                    f"<td>{escape(row.against)}</td>{on_disk}{cpu}{peak}</tr>")  # fmt: skip
    return "".join([*told, "</table>"])
