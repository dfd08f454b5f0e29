"""The report of a run: medians, what became worse, the page."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest

from benchmarks.report import Report, as_json, compared, figures, page, read
from benchmarks.rows import Row, number


def report(
    *values: float, unit: str = "ms", loops: float = 1.0, ratio: float | None = None
) -> Report:
    """A run with one figure, of so many rounds."""
    rounds = [(loops, [Row("opened", value, unit, ratio, "socat" if ratio else "")])
              for value in values]  # fmt: skip
    return Report("2026-11-28", "here", figures("growth", rounds), {})


def worse(kept: Report, now: Report) -> list[float]:
    return [round(times, 2) for _, times in compared(kept, now)]


def test_a_figure_is_the_median_of_its_rounds() -> None:
    (figure,) = report(3, 1, 2).figures
    assert figure.row == Row("opened", 2, "ms")


def test_what_takes_longer_in_every_round_is_worse() -> None:
    assert worse(report(10, 11, 12), report(20, 21, 22)) == [1.91]
    assert worse(report(20, 21, 22), report(10, 11, 12)) == []


def test_what_one_round_contradicts_is_not_worse() -> None:
    assert worse(report(10, 11, 30), report(20, 21, 22)) == []


def test_fewer_a_second_is_worse() -> None:
    assert worse(report(100, unit="messages/s"), report(50, unit="messages/s")) == [2.0]
    assert worse(report(50, unit="messages/s"), report(100, unit="messages/s")) == []


def test_a_slower_machine_makes_nothing_worse() -> None:
    assert worse(report(10), report(20, loops=2.0)) == []
    assert worse(report(100, unit="messages/s"), report(50, unit="messages/s", loops=2.0)) == []
    assert worse(report(10, unit="MiB"), report(20, unit="MiB", loops=2.0)) == [2.0]


def test_a_ratio_counts_and_not_its_value() -> None:
    assert worse(report(10, ratio=1.0), report(90, ratio=1.0)) == []
    assert worse(report(10, ratio=1.0), report(10, ratio=1.5)) == [1.5]
    rate = report(10, unit="messages/s", ratio=2.0)
    assert worse(rate, report(10, unit="messages/s", ratio=1.0)) == [2.0]


def test_a_report_comes_back_as_it_was_kept(tmp_path: Path) -> None:
    whole = replace(report(1, 2, 3, ratio=2.0), skipped={"lab": "no QEMU"})
    path = tmp_path / "kept.json"
    path.write_text(as_json(whole), "utf-8")
    assert read(path) == whole
    path.write_text(as_json(whole).replace('"v": 1', '"v": 2'), "utf-8")
    with pytest.raises(ValueError, match="version 2"):
        read(path)


def test_the_page_has_a_line_for_what_grows_and_a_bar_for_what_is_a_ratio() -> None:
    rows = [Row(f"opened, {size:,} operations", size / 100, "ms", size=size)
            for size in (1000, 10_000, 100_000)]  # fmt: skip
    rows.append(Row("<record>", 20, "us", 1.5, "socat"))
    text = page(Report("now", "here", figures("growth", [(1.0, rows)]), {"lab": "no <QEMU>"}))
    tree = ElementTree.fromstring(re.sub(r"<!DOCTYPE html>|<meta[^>]*>", "", text))
    assert len(list(tree.iter("polyline"))) == 1
    assert len(list(tree.iter("circle"))) == 3
    assert "1.5 times socat" in "".join(tree.itertext())
    assert "lab was not measured: no <QEMU>" in "".join(tree.itertext())
    assert [len(row) for row in tree.iter("tr")] == [8] * 5


@pytest.mark.parametrize(
    ("value", "told"), [(0.01234, "0.0123"), (4.567, "4.57"), (45.67, "45.7"), (45678.9, "45,679")]
)
def test_numbers_have_three_digits(value: float, told: str) -> None:
    assert number(value) == told
