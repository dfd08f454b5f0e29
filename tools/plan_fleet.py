"""What it takes to keep the captures of very many hosts: sizes, cost, time.

`python -m tools.plan_fleet [--hosts 1000000 …]` prints the plan; every assumption is an option.
docs/million-hosts.md shows the plan of the default ones. Days are simulated minute by minute: load
follows the hours, and now and then many hosts start everything anew at once.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Final, NamedTuple

import numpy as np

from .markdown import code, table

_MINUTES: Final = 1440
_GB: Final = 1e9


def _told(default: float, unit: str, about: str, measured: bool = False) -> Any:
    return field(default=default, metadata={"unit": unit, "about": about, "measured": measured})


@dataclass(frozen=True, slots=True)
class Assumptions:
    """What the plan rests on. Each is an option of the command, and a row of the page."""

    hosts: float = _told(1_000_000, "", "hosts that record")
    pods: float = _told(50, "a day", "guests that start on a host")
    operations: float = _told(8, "", "operations of a guest in its life")
    uploaded: float = _told(1.0, "", "share of the operations that goes to the object store")
    captures: float = _told(1, "a day", "captures that a host uploads")
    host_days: float = _told(3, "days", "a host keeps its own ring")
    capture_days: float = _told(30, "days", "the object store keeps captures")
    dataset_days: float = _told(400, "days", "the dataset keeps rows")
    peak: float = _told(2.0, "", "load of the busiest hour, beside the mean")
    restarts: float = _told(0.1, "a day", "chance that hosts start everything anew at once")
    restarted: float = _told(0.2, "", "share of the hosts in such a restart")
    headroom: float = _told(2.0, "", "processors for conversion, beside the mean load")
    commits: float = _told(10_000, "", "batches in one dataset before you begin another")
    disk_price: float = _told(0.08, "$/GB/month", "price of a host's disk")
    store_price: float = _told(0.023, "$/GB/month", "price of the object store")
    put_price: float = _told(5.0, "$/million", "price of writing objects")
    get_price: float = _told(0.4, "$/million", "price of reading objects")
    core_price: float = _told(0.04, "$/hour", "price of a processor")
    message_bytes: float = _told(47, "bytes", "a message in a capture with its index", True)
    row_bytes: float = _told(3, "bytes", "an operation in the dataset, all tables", True)
    convert_us: float = _told(23, "us", "of a processor to convert an operation", True)
    capture_ms: float = _told(2.6, "ms", "of a processor to convert a capture, beside that", True)
    batch: float = _told(256, "", "captures in a batch of the dataset at most", True)
    batch_mib: float = _told(64, "MiB", "a batch at most", True)


class Day(NamedTuple):
    """What some simulated days were like; waits in minutes from upload to row."""

    median_wait: float
    longest_wait: float
    busiest_mb_s: float
    left: float
    """Core seconds of work that the last day left undone."""
    came: float
    done: float


class Line(NamedTuple):
    """A row of the plan."""

    what: str
    where: str
    kept: str
    size: str
    cost: str


def operations_a_day(a: Assumptions) -> float:
    """Operations of all hosts in a day."""
    return a.hosts * a.pods * a.operations


def core_seconds_a_day(a: Assumptions) -> float:
    """Work of conversion."""
    captures = a.hosts * a.captures
    return (operations_a_day(a) * a.uploaded * a.convert_us / 1e6) + captures * a.capture_ms / 1e3


def cores(a: Assumptions) -> int:
    """Processors for conversion."""
    return max(1, math.ceil(core_seconds_a_day(a) / 86_400 * a.headroom))


def batches_a_day(a: Assumptions) -> int:
    """Batches, each a commit and a Parquet file a table and day."""
    captures = a.hosts * a.captures
    size = operations_a_day(a) * a.uploaded * 2 * a.message_bytes
    return max(1, math.ceil(max(captures / a.batch, size / (a.batch_mib * (1 << 20)))))


def simulate(a: Assumptions, days: int = 100, seed: int = 1) -> Day:
    """So many days, minute by minute."""
    chance = np.random.default_rng(seed)
    minute = np.arange(_MINUTES)
    wave = 1 + (a.peak - 1) * np.cos(2 * np.pi * minute / _MINUTES)
    wave = np.maximum(wave, 0)
    wave /= wave.mean()
    work = core_seconds_a_day(a) / _MINUTES
    size = operations_a_day(a) * a.uploaded * 2 * a.message_bytes / 1e6 / _MINUTES / 60
    capacity = cores(a) * 60.0
    waits, backlog, busiest, came, done = [], 0.0, 0.0, 0.0, 0.0
    for _ in range(days):
        load = wave * chance.gamma(50, 1 / 50, _MINUTES)
        if chance.random() < a.restarts:
            # What those hosts start in a whole day, they start within ten minutes.
            begin = int(chance.integers(0, _MINUTES - 10))
            load[begin : begin + 10] += a.restarted * _MINUTES / 10
        busiest = max(busiest, float(load.max()) * size)
        for arriving in (load * work).tolist():
            came += arriving
            ready = backlog + arriving
            worked = min(ready, capacity)
            done += worked
            backlog = ready - worked
            waits.append(backlog / capacity)
    longest = max(waits)
    return Day(float(np.median(waits)), longest, busiest, backlog, came, done)


def plan(a: Assumptions) -> list[Line]:
    """What is kept where and how long, and what it costs in a month."""
    daily = operations_a_day(a)
    ring = a.pods * a.operations * 2 * a.message_bytes * a.host_days
    store = daily * a.uploaded * 2 * a.message_bytes * a.capture_days
    rows = daily * a.uploaded * a.row_bytes * a.dataset_days
    number = cores(a)
    batches = batches_a_day(a)
    datasets = math.ceil(batches * a.dataset_days / a.commits)
    days = max(1, math.floor(a.commits / batches))
    return [
        Line("ring of captures", "each host", _days(a.host_days), _size(ring),
             _cost(ring / _GB * a.disk_price * a.hosts)),
        Line("captures", "object store", _days(a.capture_days), _size(store),
             _cost(store / _GB * a.store_price)),
        Line("dataset", "object store", _days(a.dataset_days), _size(rows),
             _cost(rows / _GB * a.store_price)),
        Line("uploads", "object store", "", f"{a.hosts * a.captures:,.0f} captures a day",
             _cost(a.hosts * a.captures * 30.4 / 1e6 * (a.put_price + a.get_price))),
        Line("conversion", "1 processor" if number == 1 else f"{number:,} processors", "", "",
             _cost(number * a.core_price * 730)),
        Line("datasets", f"a new one every {days} days" if datasets > 1 else "one", "",
             f"{datasets} in all, {batches:,} batches a day", ""),
    ]  # fmt: skip


def _days(days: float) -> str:
    return f"{days:g} days"


def _size(size: float) -> str:
    for unit in ("bytes", "kB", "MB", "GB", "TB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:,.3g} PB"


def _cost(dollars: float) -> str:
    return f"${dollars:,.0f}"


def plan_table(a: Assumptions) -> str:
    """The plan as Markdown."""
    return table(("what", "where", "how long", "size", "a month"), plan(a))


def simulation_table(a: Assumptions) -> str:
    """What the simulated days show, as Markdown."""
    day = simulate(a)
    return table(
        ("of 100 simulated days", ""),
        [
            ("operations a day", f"{operations_a_day(a):,.0f}"),
            ("work of conversion a day", f"{core_seconds_a_day(a) / 3600:,.1f} processor hours"),
            ("from upload to row, median", f"{day.median_wait:.1f} minutes"),
            ("from upload to row, longest", f"{day.longest_wait:,.0f} minutes"),
            ("uploads in the busiest minute", f"{day.busiest_mb_s:,.1f} MB/s"),
        ],
    )


def assumptions_table(a: Assumptions) -> str:
    """Every assumption as Markdown."""
    return table(
        ("option", "value", "unit", "what", "measured"),
        [
            (code(option(each.name)), f"{getattr(a, each.name):,.10g}", each.metadata["unit"],
             each.metadata["about"], "yes" if each.metadata["measured"] else "")
            for each in fields(a)
        ],
    )  # fmt: skip


def option(name: str) -> str:
    """The option of an assumption."""
    return f"--{name.replace('_', '-')}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the plan, the simulation and the assumptions."""
    parser = argparse.ArgumentParser(prog="python -m tools.plan_fleet", description=__doc__)
    for each in fields(Assumptions):
        about = f"{each.metadata['about']} ({each.default:,.10g} {each.metadata['unit']})"
        parser.add_argument(
            option(each.name), type=_number, default=each.default, help=about.replace("%", "%%")
        )
    a = Assumptions(**vars(parser.parse_args(arguments)))
    for told in (plan_table(a), simulation_table(a), assumptions_table(a)):
        sys.stdout.write(f"{told}\n\n")


def _number(text: str) -> float:
    value = float(text)
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is below 0, or no number")
    return value


if __name__ == "__main__":
    main()
