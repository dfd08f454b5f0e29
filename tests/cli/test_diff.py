"""`diff` as a user meets it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dissectors.messages import cpu_request
from tests.replay.modelled import ADD_MEM, TWO_CPUS, T, disk, file_of, overlapping
from tests.support import DISK, answer, ask, connect, golden, run, write_capture
from upcall_trace.errors import ExitCode
from upcall_trace.trace.opening import build_index


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """One that adds a disk and meets it again, and one that left that disk out."""
    a = file_of(tmp_path / "a.upcap", ADD_MEM, disk(0), overlapping(0), disk(1, irq=9))
    b = file_of(tmp_path / "b.upcap", ADD_MEM, overlapping(0), disk(1, irq=7))
    return a, b


def test_what_only_one_has_and_what_was_answered_otherwise(pair: tuple[Path, Path]) -> None:
    told = run("diff", *pair)
    assert (told.code, told.err) == (ExitCode.DIFFERENT, "")
    assert told.out.splitlines() == [
        "connection 1 in A, 1 in B",
        "  1 alike",
        "-    1.1         add_mmio 0xd0000000+0x2000 irq=5: ok",
        "!    1.2    1.1  add_mmio 0xd0001000+0x2000 irq=5",
        "                 ret: EEXIST (-17) window or IRQ already taken -> ok",
        "-    1.3         add_mmio 0xd0010000+0x2000 irq=9: ok",
        "+           1.2  add_mmio 0xd0010000+0x2000 irq=7: ok",
        "1 alike, 2 only in A, 1 only in B, 1 answered otherwise",
    ]


def test_a_rule_for_one_operation_is_not_for_others_with_its_answers(tmp_path: Path) -> None:
    a = file_of(tmp_path / "a.upcap", disk(0), disk(1))
    b = tmp_path / "b.upcap"
    write_capture(
        b, [*connect(1), *(r for n in (0, 1) for r in (
            ask(disk(n), 10 * n + 5), answer(disk(n), 10 * n + 6, ret=-17)))]
    )  # fmt: skip
    told = run("diff", a, b, "--json", "--match", "1.0 ret=any")
    assert [each["a"]["request"] for each in json.loads(told.out)["differences"]] == [1]
    told = run("diff", a, b, "--json", "--match", "add_mmio ret=any")
    assert json.loads(told.out)["differences"] == []


def test_the_same_as_an_object(pair: tuple[Path, Path]) -> None:
    told = run("diff", *pair, "--json")
    (found,) = told.objects
    assert told.code == ExitCode.DIFFERENT
    assert (found["v"], found["a"], found["same"], found["changed"]) == (1, str(pair[0]), 1, 1)
    assert [each["kind"] for each in found["differences"]] == [
        "only_a", "changed", "only_a", "only_b"]  # fmt: skip
    changed = found["differences"][1]
    assert changed["differing"] == ["ret"]
    assert (changed["a"]["request"], changed["b"]["request"]) == (2, 1)
    assert (changed["a"]["reply"]["ret"], changed["b"]["reply"]["ret"]) == (-17, 0)
    assert found["differences"][0]["b"] is None


def test_without_a_difference_it_says_so(tmp_path: Path) -> None:
    told = run("diff", golden("cpu_lifecycle"), "captures/cpu_lifecycle.upcap")
    assert (told.code, told.out) == (ExitCode.EXPECTED, "11 alike: no difference\n")


def test_fields_can_be_ignored(pair: tuple[Path, Path]) -> None:
    told = run("diff", *pair, "--ignore", "mmio_irq", "--ignore", "ret")
    assert told.out.splitlines()[-1] == "3 alike, 1 only in A, 0 only in B, 0 answered otherwise"
    told = run("diff", *pair, "--ignore", "irq")
    assert told.code == ExitCode.USAGE
    assert "'irq' is no field; there are" in told.err


def test_silence_is_told_in_words(tmp_path: Path) -> None:
    kill = cpu_request(T.DEL_CPU, [9])
    silent = file_of(tmp_path / "a.upcap", kill, world=TWO_CPUS)
    told = run("diff", silent, file_of(tmp_path / "b.upcap", kill))
    assert told.out.splitlines()[2].split("answer: ")[1] == (
        "no answer -> EINVAL (-22) would remove all, or the boot CPU"
    )


def test_a_torn_capture_is_told_and_what_cannot_be_read_is_5(
    tmp_path: Path, pair: tuple[Path, Path]
) -> None:
    whole = golden("mmio_lifecycle")
    torn = tmp_path / "torn.upcap"
    run("import", whole, "-o", torn)
    build_index(torn)
    torn.write_bytes(torn.read_bytes()[:1500])
    told = run("diff", torn, torn)
    assert told.code == ExitCode.LOST
    assert "torn" in told.err
    assert run("diff", torn, whole).code == ExitCode.DIFFERENT
    assert run("diff", tmp_path / "none", whole).code == ExitCode.UNREADABLE
    (tmp_path / "text").write_text("no capture\n")
    assert run("diff", whole, tmp_path / "text").code == ExitCode.UNREADABLE


def test_two_empty_captures_compare_nothing(tmp_path: Path) -> None:
    empty = write_capture(tmp_path / "empty.upcap", [])
    told = run("diff", empty, empty)
    assert told.code == ExitCode.NOTHING_RUN
    assert "has an operation" in told.err


def timed(path: Path, latency_ns: int) -> Path:
    """One operation that took so long."""
    return write_capture(path, [*connect(1), ask(DISK, 0), answer(DISK, latency_ns)])


def test_a_deadline_that_one_of_them_missed_is_a_difference(tmp_path: Path) -> None:
    quick, late = timed(tmp_path / "a.upcap", 5_000_000), timed(tmp_path / "b.upcap", 300_000_000)
    told = run("diff", quick, late)
    assert told.code == ExitCode.DIFFERENT
    assert "latency: 5ms -> 300ms" in told.out
    assert "latency: 300ms -> 5ms" in run("diff", late, quick).out
    assert run("diff", late, late).code == ExitCode.EXPECTED
    assert run("diff", quick, late, "--ignore", "latency").code == ExitCode.EXPECTED


def test_latency_by_a_rule(tmp_path: Path) -> None:
    one, other = timed(tmp_path / "a.upcap", 5_000_000), timed(tmp_path / "b.upcap", 12_000_000)
    assert run("diff", one, other).code == ExitCode.EXPECTED
    assert run("diff", one, other, "--match", "* latency<=2x").code == ExitCode.DIFFERENT
    assert run("diff", one, other, "--match", "* latency<=3x").code == ExitCode.EXPECTED
    assert run("diff", one, other, "--match", "* latency<=3y").code == ExitCode.USAGE
