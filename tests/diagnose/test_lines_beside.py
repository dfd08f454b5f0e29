"""Lines of logs beside requests: by content and order first, by the clocks else, or counted."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.diagnose.test_joining import SECOND, adds, console
from tests.support import GOLDEN, write_capture
from upcall_trace.capture.records import Header
from upcall_trace.diagnose.lines_beside import BEFORE, LinesBeside
from upcall_trace.diagnose.whole_capture import WholeCapture
from upcall_trace.sources import open_source

CONSOLES = sorted(path for path in GOLDEN.glob("*.console.log"))
NINE = 1_790_000_000
"""A wall clock in seconds."""


def beside(
    capture: Path, consoles: Sequence[Path] = (), vmm_logs: Sequence[Path] = ()
) -> LinesBeside:
    found = WholeCapture(capture, consoles, vmm_logs).lines_beside
    assert found is not None
    return found


def texts(found: LinesBeside, row: int) -> list[str]:
    return [line.text for line in found.rows.get(row, ())]


def dated(path: Path, capture: Path) -> Path:
    """A capture whose wall clock is known."""
    with open_source(capture) as source:
        records = [record for _, record in source.records()]
    return write_capture(path, records, Header("proxy", arch="x86_64", wall_ns=NINE * SECOND))


def vmm_log(path: Path, lines: Sequence[tuple[float, str]]) -> Path:
    """Lines at these seconds of the recording."""
    told = []
    for second, text in lines:
        at = datetime.fromtimestamp(NINE + second, UTC)
        told.append(f"{at:%Y-%m-%dT%H:%M:%S.%f}Z {text}\n")
    path.write_text("".join(told))
    return path


@pytest.mark.parametrize("log", CONSOLES, ids=lambda path: path.name.partition(".")[0])
def test_every_line_stands_somewhere_or_is_counted(log: Path) -> None:
    name = log.name.partition(".")[0]
    found = beside(Path("captures") / f"{name}.upcap", [log])
    shown = sum(map(len, found.rows.values())) + found.more.total()
    nowhere = found.timeless + found.of_others + found.far
    assert shown + nowhere == sum(bool(line.strip()) for line in log.read_bytes().splitlines())
    told = [line for lines in found.rows.values() for line in lines]
    assert len({line.number for line in told}) == len(told)


def test_a_line_that_names_what_was_asked_stands_beside_that_request() -> None:
    found = beside(Path("captures") / "cpu_lifecycle.upcap", [GOLDEN / "cpu_lifecycle.console.log"])
    refused = [line for line in found.rows[2] if line.told]
    assert [line.number for line in refused] == [23, 24, 25]
    assert "apci_id 1 is already been used" in refused[1].text
    # By its clock alone, line 61 would be beside the request before, whose lines it follows.
    assert [line.number for line in found.rows[9]] == [60, 61, 62, 63]
    (before,) = texts(found, BEFORE)
    assert before.startswith("[    1.282542] input: ImExPS/2 Generic Explorer Mouse")


def test_without_a_clock_a_line_with_a_time_stands_nowhere(tmp_path: Path) -> None:
    capture = adds(tmp_path / "x.upcap", [(1, 1.0, 0), (2, 2.0, 0)])
    log = console(tmp_path / "console", [(1, 100.0, 0)])
    with log.open("a") as file:
        file.write("[  500.000000] something much later\nand a line without a time\n")
    found = beside(capture, [log])
    assert "something much later" not in " ".join(texts(found, 0) + texts(found, 1))
    assert found.timeless >= 1
    assert "1 lines have no time" in " ".join(found.sentences()) or found.timeless > 1


def test_lines_of_another_boot_are_not_put_on_the_first_boots_clock(tmp_path: Path) -> None:
    steps = [(n, float(n), 0) for n in range(1, 5)]
    capture = adds(tmp_path / "x.upcap", steps)
    log = console(tmp_path / "console", [(n, 100.0 + n, 0) for n, _, _ in steps])
    with log.open("a") as file:
        file.write("[    0.000000] Linux version 6.1.62 (root@builder) #1 SMP\n")
        file.write("[  102.500000] some line of the second boot\n")
    found = beside(capture, [log])
    shown = [line.text for lines in found.rows.values() for line in lines]
    assert not any("second boot" in text for text in shown)
    assert found.timeless == 2


def test_a_clock_that_stood_still_does_not_move_what_follows(tmp_path: Path) -> None:
    guest = [(n, 100.0 + n, 0) for n in range(1, 9)]
    host = [(n, float(n) + (20 if n > 4 else 0), 0) for n in range(1, 9)]
    capture = adds(tmp_path / "x.upcap", host)
    log = console(tmp_path / "console", guest)
    lines = log.read_text().splitlines(keepends=True)
    for number, second in ((7, 107.5), (2, 102.5)):
        at = next(i for i, each in enumerate(lines) if f"apic_id {number}" in each) + 2
        lines.insert(at, f"[{second:12.6f}] beside number {number}\n")
    log.write_text("".join(lines))
    found = beside(capture, [log])
    for number in (2, 7):
        assert any(f"beside number {number}" in text for text in texts(found, number - 1))


def test_a_vmms_lines_stand_at_their_time_and_far_ones_nowhere(tmp_path: Path) -> None:
    capture = dated(
        tmp_path / "dated.upcap", adds(tmp_path / "x.upcap", [(1, 1.0, 0), (2, 2.0, 0)])
    )
    log = vmm_log(
        tmp_path / "vmm.log",
        [(-3600, "an hour before"), (-0.5, "just before"), (1.2, "between"), (9, "after")],
    )
    found = beside(capture, vmm_logs=[log])
    assert [t.split("Z ")[1] for t in texts(found, BEFORE)] == ["just before"]
    assert [t.split("Z ")[1] for t in texts(found, 0)] == ["between"]
    assert [t.split("Z ")[1] for t in texts(found, 1)] == ["after"]
    assert found.far == 1
    assert [*found.sentences()] == ["1 lines are more than 30 s away from every request"]


def test_without_a_wall_clock_a_vmms_lines_stand_nowhere(tmp_path: Path) -> None:
    capture = adds(tmp_path / "x.upcap", [(1, 1.0, 0)])
    found = beside(capture, vmm_logs=[vmm_log(tmp_path / "vmm.log", [(1.1, "when?")])])
    assert not found.rows
    assert found.timeless == 1


def test_a_console_that_contradicts_the_recording_is_beside_nothing(tmp_path: Path) -> None:
    capture = adds(tmp_path / "x.upcap", [(n, float(n), 0) for n in range(1, 5)])
    log = console(tmp_path / "console", [(n, 50.0 + n, -22) for n in range(21, 27)])
    found = beside(capture, [log])
    assert not found.rows
    assert found.of_others == len(log.read_text().splitlines())


def test_of_many_lines_at_one_time_the_first_are_kept_and_the_rest_counted(tmp_path: Path) -> None:
    capture = dated(tmp_path / "dated.upcap", adds(tmp_path / "x.upcap", [(1, 1.0, 0)]))
    log = vmm_log(tmp_path / "vmm.log", [(1.5, f"line {n}") for n in range(500)])
    found = beside(capture, vmm_logs=[log])
    assert len(found.rows[0]) + found.more[0] == 500
    assert len(found.rows[0]) < 50
