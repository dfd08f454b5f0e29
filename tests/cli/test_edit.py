"""`edit` as a user meets it: another capture, or a matcher in this one."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.replay.modelled import ADD_MEM, disk, file_of, overlapping, words
from tests.support import command, golden, records_of, run, without_privileges, write_capture
from upcall_trace.capture.records import Mark
from upcall_trace.compare.matchers import beside, read_matchers
from upcall_trace.errors import ExitCode
from upcall_trace.kernel.world import kata_pod
from upcall_trace.simulated.on_socket import SimulatedGuest
from upcall_trace.trace.opening import load


@pytest.fixture
def capture(tmp_path: Path) -> Path:
    return file_of(tmp_path / "in.upcap", disk(0), ADD_MEM, overlapping(0), disk(2))


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out.upcap"


def left(path: Path) -> list[str]:
    return words(load(path).operations)


def test_edits_compose_and_mean_the_numbers_of_the_input(capture: Path, out: Path) -> None:
    before = capture.read_bytes()
    told = run("edit", capture, "-o", out, "--drop", "1.1", "--set", "1.2 ret=-16",
               "--move", "1.3:before:1.2", "--set", "1.3 mmio_irq=7")  # fmt: skip
    assert told.code == ExitCode.EXPECTED
    assert told.err == f"{out}: 3 of 4 operations; {capture} is as it was\n"
    assert left(out) == ["1.0 add_mmio 0", "1.1 add_mmio 0", "1.2 add_mmio -16"]
    assert load(out).operations.operation(1).fields["mmio_irq"] == 7
    assert capture.read_bytes() == before


def test_the_header_says_what_was_done(capture: Path, out: Path) -> None:
    run("edit", capture, "-o", out, "--drop", "1.1", "--untie")
    notes = load(out).header.notes
    assert (notes["edited-from"], notes["edits"]) == ("in.upcap", "--drop 1.1 --untie")


@pytest.mark.parametrize(
    ("edits", "expected"),
    [
        (["--drop", "1.0-1.2"], ["1.0 add_mmio 0"]),
        (["--drop", "1.0", "--drop", "1.2-1.3"], ["1.0 add_mem -1"]),
        (["--cut", "1.1..1.2"], ["1.0 add_mem -1", "1.1 add_mmio -17"]),
        (["--cut", "1.1..1.3", "--drop", "1.2"], ["1.0 add_mem -1", "1.1 add_mmio 0"]),
        (["--cut", "1.3"], ["1.0 add_mmio 0"]),
    ],
)
def test_ranges(capture: Path, out: Path, edits: list[str], expected: list[str]) -> None:
    assert run("edit", capture, "-o", out, *edits).code == ExitCode.EXPECTED
    assert left(out) == expected


def test_what_was_edited_can_be_replayed_and_is_whole(capture: Path, out: Path) -> None:
    run("edit", capture, "-o", out, "--drop", "1.1")
    assert run("info", out, "--json").objects[0]["lost_bytes"] == 0
    with SimulatedGuest(kata_pod()) as guest:
        told = run("replay", out, "--to", guest.path, "--live")
    assert (told.code, told.err) == (ExitCode.EXPECTED, "")


def test_a_divergence_is_accepted_by_the_command_that_it_names(capture: Path, out: Path) -> None:
    run("edit", capture, "-o", out, "--set", "1.2 ret=-16")
    with SimulatedGuest(kata_pod()) as guest:
        told = run("replay", out, "--to", guest.path, "--live")
        assert told.code == ExitCode.DIFFERENT
        assert f"upcall-trace edit {out} --match '1.2 ret=-16|-17'" in told.out
        accepted = run("edit", out, "--match", "1.2 ret=-16|-17")
        assert (accepted.code, accepted.err) == (ExitCode.EXPECTED, f"{out}: 1 rule added\n")
        assert not beside(out).exists()
        guest.reset()
        assert run("replay", out, "--to", guest.path, "--live").code == ExitCode.EXPECTED
    assert run("edit", out, "--match", "1.2 ret=0").code == ExitCode.EXPECTED
    rules = read_matchers(out, load(out).marks)
    assert "ret=0" in str(rules)
    assert "-16" not in str(rules)


def test_what_cannot_take_a_mark_gets_a_file_beside_it(tmp_path: Path) -> None:
    foreign = tmp_path / "cpu.jsonl"
    shutil.copy(golden("cpu_lifecycle"), foreign)
    before = foreign.read_bytes()
    told = run("edit", foreign, "--match", "1.0 ret=any", "--match", "add_cpu apic_index=any")
    assert (told.code, told.err) == (ExitCode.EXPECTED, f"{beside(foreign)}: 2 rules added\n")
    run("edit", foreign, "--match", "1.1 ret=0")
    assert beside(foreign).read_text().splitlines() == [
        "[match]", '"1.0" = "ret=any"', '"add_cpu" = "apic_index=any"', '"1.1" = "ret=0"',
    ]  # fmt: skip
    assert foreign.read_bytes() == before


def test_a_rule_for_all_of_a_kind_goes_beside_a_capture_of_ours_too(capture: Path) -> None:
    before = capture.read_bytes()
    assert run("edit", capture, "--match", "* latency<=250ms").code == ExitCode.EXPECTED
    assert '"*" = "latency<=250ms"' in beside(capture).read_text()
    assert capture.read_bytes() == before


def test_a_capture_that_nobody_may_write_gets_a_file_too(capture: Path) -> None:
    capture.chmod(0o444)
    arguments = without_privileges(command("edit", capture, "--match", "1.0 ret=any"))
    ended = subprocess.run(arguments, capture_output=True, text=True, timeout=30, check=False)
    assert (ended.returncode, ended.stderr) == (0, f"{beside(capture)}: 1 rule added\n")


def test_a_torn_capture_gets_a_file_and_keeps_its_tear(capture: Path) -> None:
    torn = capture.read_bytes()[:-20]
    capture.write_bytes(torn)
    told = run("edit", capture, "--match", "1.0 ret=any")
    assert told.code == ExitCode.LOST
    assert beside(capture).exists()
    assert capture.read_bytes() == torn


def test_rules_go_with_their_operations_into_the_output(capture: Path, out: Path) -> None:
    run("edit", capture, "--match", "1.2 ret=any")  # a mark
    beside(capture).write_text('[match]\n"1.3" = "ret=0"\n"1.1" = "ret=any"\n"*" = "bytes=any"\n')
    told = run("edit", capture, "-o", out, "--drop", "1.1", "--match", "1.0 ret=0|-17")
    assert told.code == ExitCode.EXPECTED
    assert beside(out).read_text().splitlines() == [
        "[match]", '"1.2" = "ret=0"', '"*" = "bytes=any"']  # fmt: skip
    marks = {(m.conn, m.request): m.text for m in load(out).marks}
    assert marks == {(1, 1): "ret=any", (1, 0): "ret=0|-17"}


def test_tied_and_untied(capture: Path, out: Path, tmp_path: Path) -> None:
    assert run("edit", capture, "-o", out, "--tie", "name=ci-3").code == ExitCode.EXPECTED
    assert load(out).header.notes["tied-to"] == "name=ci-3"
    with SimulatedGuest(kata_pod()) as guest:
        refused = run("replay", out, "--to", guest.path, "--live")
        assert refused.code == ExitCode.USAGE
        assert run("edit", out, "-o", tmp_path / "free.upcap", "--untie").code == ExitCode.EXPECTED
        freed = run("replay", tmp_path / "free.upcap", "--to", guest.path, "--live")
    assert freed.code == ExitCode.EXPECTED
    assert load(tmp_path / "free.upcap").header.notes["edits"] == "--untie"


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ([], "nothing to change"),
        (["--drop", "1.0"], "a change needs an output"),
        (["--match", "1.0 ret=any", "--untie"], "a change needs an output"),
        (["--match", "1.9 ret=any"], "has no operation 1.9"),
        (["--match", "1.0 irq=any"], "irq is no field"),
        (["-o", "{out}", "--match", "1.9 ret=any"], "there is no operation 1.9"),
        (["-o", "{out}", "--drop", "1.9"], "there is no operation 1.9"),
        (["-o", "{out}", "--drop", "one"], "'one' is no operation"),
        (["-o", "{out}", "--drop", "1.2-1.0"], "1.2 was sent after 1.0"),
        (["-o", "{out}", "--move", "1.2"], "'1.2' moves nothing"),
        (["-o", "{out}", "--set", "1.2 slot=3"], "1.2 is add_mmio, which has no slot"),
        (["-o", "{out}", "--tie", "colour=red"], "no fingerprint"),
        (["-o", "{out}", "--tie", "name=a", "--untie"], "exclude each other"),
        (["-o", "{in}", "--drop", "1.0"], "is the input"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(
    capture: Path, out: Path, arguments: list[str], complaint: str
) -> None:
    told = run("edit", capture, *(a.format(out=out, **{"in": capture}) for a in arguments))
    assert told.code == ExitCode.USAGE
    assert complaint in told.err
    assert told.err.count("\n") == 1
    assert not out.exists()


def test_nothing_left_is_nothing_written(capture: Path, out: Path) -> None:
    told = run("edit", capture, "-o", out, "--drop", "1.0-1.3")
    assert told.code == ExitCode.NOTHING_RUN
    assert not out.exists()


def test_comments_stay_with_their_operations(tmp_path: Path, out: Path) -> None:
    capture = file_of(tmp_path / "in.upcap", disk(0), ADD_MEM)
    header, records = records_of(capture)
    write_capture(capture, [*records[:-1], Mark(5, 1, 1, "comment", "no handler")], header)
    run("edit", capture, "-o", out, "--drop", "1.0")
    assert [(m.request, m.text) for m in load(out).marks] == [(0, "no handler")]


def test_a_moved_request_whose_reply_finds_another_one_is_refused(
    tmp_path: Path, out: Path
) -> None:
    told = run("edit", golden("guest_oops"), "-o", out, "--move", "1.0:after:1.1")
    assert told.code == ExitCode.USAGE
    assert "nothing that is answered can follow" in told.err
