"""`diagnose` as a user meets it: how it ends, what it prints, what it refuses."""

from __future__ import annotations

import gzip
import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final
from xml.etree import ElementTree

import pytest

from tests.support import GOLDEN, completed, connect, golden, run, write_capture
from upcall_trace.capture.records import Chunk
from upcall_trace.diagnose.rules.registry import rules
from upcall_trace.errors import ExitCode

CAPTURES: Final = Path(__file__).parents[2] / "captures"
CONSOLE: Final = GOLDEN / "guest_oops.console.log"
WORLDS: Final = GOLDEN / "worlds.toml"


def sample(name: str) -> Path:
    return CAPTURES / f"{name}.upcap"


def codes(*arguments: str | Path) -> set[str]:
    """The codes that `diagnose --json` finds."""
    told = run("diagnose", "--json", *arguments)
    return {finding["code"] for finding in json.loads(told.out)["findings"]}


@pytest.fixture
def quiet(tmp_path: Path) -> Path:
    """A capture without anything to find."""
    return write_capture(tmp_path / "quiet.upcap", connect())


@pytest.fixture
def torn(tmp_path: Path) -> Path:
    path = tmp_path / "torn.upcap"
    path.write_bytes(sample("mmio_lifecycle").read_bytes()[:1000])
    return path


# How it ends.


def test_findings_are_no_failure_of_the_command() -> None:
    told = run("diagnose", sample("guest_oops"))
    assert told.code == ExitCode.EXPECTED
    assert told.err.endswith("--world FILE tells, and makes causes certain\n")
    assert "UP206" in told.out


def test_a_capture_without_findings(quiet: Path) -> None:
    told = run("diagnose", "--fail-on", "note", quiet)
    assert (told.code, told.err) == (ExitCode.EXPECTED, "")
    assert told.out == "0 operations on 1 connections: nothing found.\n"


SEVERITIES: Final = ["note", "warning", "error", "fatal"]


@pytest.mark.parametrize("limit", SEVERITIES)
@pytest.mark.parametrize("name", ["quiet", "mmio_lifecycle", "guest_oops", "real_client_simple"])
def test_fail_on_ends_with_1_from_that_severity_on(quiet: Path, name: str, limit: str) -> None:
    path = quiet if name == "quiet" else sample(name)
    found = json.loads(run("diagnose", "--json", path).out)["findings"]
    worst = max((SEVERITIES.index(each["severity"]) for each in found), default=-1)
    told = run("diagnose", "--fail-on", limit, path)
    bad = worst >= SEVERITIES.index(limit)
    assert told.code == (ExitCode.DIFFERENT if bad else ExitCode.EXPECTED)


def test_the_captures_above_differ_in_how_bad_they_are(quiet: Path) -> None:
    worst = set()
    for path in (quiet, sample("mmio_lifecycle"), sample("guest_oops")):
        told = [run("diagnose", "--fail-on", limit, path).code for limit in SEVERITIES]
        worst.add(tuple(told))
    assert worst == {(0, 0, 0, 0), (1, 1, 1, 0), (1, 1, 1, 1)}


def test_fail_on_looks_at_every_capture(quiet: Path) -> None:
    told = run("diagnose", "--fail-on", "fatal", sample("guest_oops"), quiet)
    assert told.code == ExitCode.DIFFERENT


def test_a_torn_capture_is_diagnosed_and_ends_with_3(torn: Path) -> None:
    told = run("diagnose", torn)
    assert told.code == ExitCode.LOST
    assert "operations on 1 connections" in told.out
    assert f"\n{torn} is not complete: what is missing in it cannot be judged\n" in told.err
    assert run("diagnose", "--fail-on", "error", torn).code == ExitCode.DIFFERENT


def test_a_torn_capture_without_a_bad_finding_does_not_pass(tmp_path: Path) -> None:
    whole = write_capture(tmp_path / "c.upcap", connect())
    whole.write_bytes(whole.read_bytes()[:-1])
    told = run("diagnose", "--fail-on", "error", whole)
    assert told.code == ExitCode.LOST


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "give a capture"),
        (["--world", str(WORLDS), str(sample("guest_oops"))], "--machine"),
        (["--world", str(WORLDS), "--machine", "nobody", str(sample("guest_oops"))], "nobody"),
        (["--machine", "pc", str(sample("guest_oops"))], "--world"),
        (["--fail-on", "terrible", str(sample("guest_oops"))], "terrible"),
        (["--format", "html", str(sample("guest_oops"))], "html"),
        (["--explain", "UP999"], "UP999"),
        (["--follow", str(sample("guest_oops")), str(sample("framing"))], "--follow"),
        (["--follow", "--format", "junit", str(sample("guest_oops"))], "--follow"),
        (["--follow", str(GOLDEN / "framing.jsonl")], "only captures grow"),
    ],
    ids=lambda value: (
        " ".join(Path(word).name for word in value) if isinstance(value, list) else ""
    ),
)
def test_wrong_usage_is_told_and_ends_with_2(arguments: list[str], words: str) -> None:
    told = run("diagnose", *arguments)
    assert told.code == ExitCode.USAGE
    assert words in told.err
    assert told.out == ""


@pytest.mark.parametrize("option", ["", "--console", "--vmm-log", "--world"])
def test_a_file_that_cannot_be_read_ends_with_5(tmp_path: Path, option: str) -> None:
    for missing in (tmp_path / "none", tmp_path):
        given = [option, missing] if option else [missing]
        told = run("diagnose", sample("framing"), *given)
        assert told.code == ExitCode.UNREADABLE
        assert str(missing) in told.err
        assert told.out == ""


def test_what_says_nothing_about_upcall_ends_with_6(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no capture\n")
    told = run("diagnose", tmp_path / "text")
    assert told.code == ExitCode.NOTHING_RUN
    assert "text that says nothing about upcall" in told.err


# What it prints.


@pytest.mark.parametrize("code", rules())
def test_explain_prints_the_page_of_every_code(code: str) -> None:
    rule = rules()[code]
    told = run("diagnose", "--explain", code.lower())
    assert told.code == ExitCode.EXPECTED
    assert told.out.startswith(f"{code} {rule.name} ({rule.severity.word})\n\n")
    page = re.sub(r"`upcall-trace docs ([a-z-]+)`", r"docs/\1.md", told.out)
    assert page.endswith(f"\n\n{rule.page}\n")
    assert "docs/" not in told.out  # whoever installed the wheel has no such folder
    assert run("diagnose", "--explain", rule.name.upper()) == told


@pytest.mark.parametrize("word", ["UP201", "up201", "vcpu-not-started"])
def test_a_code_in_place_of_a_file_is_explained(word: str) -> None:
    assert run("diagnose", word) == run("diagnose", "--explain", "UP201")


def test_several_codes_are_explained_one_after_the_other() -> None:
    both = run("diagnose", "UP201", "UP301")
    assert both.out == run("diagnose", "UP201").out + run("diagnose", "UP301").out


def test_a_code_beside_files_or_one_that_nobody_knows_is_wrong_usage() -> None:
    beside = run("diagnose", "UP201", sample("guest_oops"))
    assert (beside.code, beside.out) == (ExitCode.USAGE, "")
    assert beside.err == (
        "upcall-trace: UP201 is a code and no file; explain it without the files\n"
    )
    unknown = run("diagnose", "UP999")
    assert unknown.code == ExitCode.USAGE
    assert unknown.err.startswith("upcall-trace: 'UP999' is no code; ")


def test_a_file_that_is_called_as_a_code_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("UP201").write_bytes(sample("guest_oops").read_bytes())
    assert "UP206" in run("diagnose", "UP201").out


def test_codes_are_completed_by_number_and_by_name() -> None:
    assert completed("upcall-trace diagnose --explain up30") == [
        code for code in rules() if code.startswith("UP30")
    ]
    assert completed("upcall-trace diagnose --explain mmio-ov") == ["mmio-overlap"]


def test_a_mistyped_code_is_answered_with_the_nearest() -> None:
    told = run("diagnose", "--explain", "mmio-overlpa")
    assert told.code == ExitCode.USAGE
    assert told.err == (
        "upcall-trace: 'mmio-overlpa' is no code; did you mean UP301 mmio-overlap?\n"
    )


def test_an_unknown_code_is_answered_with_the_known_ones() -> None:
    told = run("diagnose", "--explain", "\x1b[31m, what?")
    assert "known are UP101, " in told.err
    assert "\x1b" not in told.err


def test_another_vmm_has_no_consequences_of_dragonball() -> None:
    for name in ("mmio_lifecycle", "cpu_lifecycle"):
        found = codes(sample(name))
        assert found & {"UP701", "UP702"}
        assert codes("--vmm", "other", sample(name)) == found - {"UP701", "UP702"}


def test_a_world_makes_causes_certain() -> None:
    without = json.loads(run("diagnose", "--json", sample("mmio_lifecycle")).out)["findings"]
    told = run(
        "diagnose", "--json", "--world", WORLDS, "--machine", "microvm", sample("mmio_lifecycle")
    )
    known = json.loads(told.out)["findings"]
    assert any(finding["inferred"] for finding in without)
    assert not any(finding["inferred"] for finding in known)


def test_a_console_makes_causes_certain_and_is_named_as_evidence() -> None:
    told = run("diagnose", "--json", sample("guest_oops"), "--console", CONSOLE)
    (oops,) = (f for f in json.loads(told.out)["findings"] if f["code"] == "UP206")
    assert (oops["conn"], oops["request"], oops["inferred"]) == (1, 1, False)
    lines = CONSOLE.read_text("utf-8").splitlines()
    seen = [each for each in oops["evidence"] if each["source"] == "console"]
    assert seen
    for each in seen:
        assert each["text"] == lines[each["line"] - 1].strip()


def test_logs_alone_will_do() -> None:
    told = run("diagnose", "--console", CONSOLE)
    assert told.code == ExitCode.EXPECTED
    assert told.out.startswith("First failure: ")
    assert run("diagnose", "--console", CONSOLE, "--fail-on", "fatal").code == ExitCode.DIFFERENT


def test_a_vmm_log_alone_will_do(tmp_path: Path) -> None:
    log = tmp_path / "kata.log"
    log.write_text('{"msg":"upcall server\'s max reconnect time exceed","level":"ERRO"}\n')
    told = run("diagnose", "--vmm-log", log)
    assert told.code == ExitCode.EXPECTED
    assert "error: UP102" in told.out
    assert "kata.log:1:" in told.out


def test_json_and_format_json_are_the_same_line() -> None:
    short, long = (
        run("diagnose", *form, sample("framing")) for form in (["--json"], ["--format", "json"])
    )
    assert short.out == long.out
    assert short.out.count("\n") == 1
    assert short.out.isascii()


def test_all_tells_warnings_and_notes_too() -> None:
    told, everything = (run("diagnose", *form, sample("framing")).out for form in ([], ["--all"]))
    assert len(told.splitlines()) <= 24
    findings = json.loads(run("diagnose", "--json", sample("framing")).out)["findings"]
    heads = re.findall(r"^ +[\d.]+ \w+: (?:possibly )?(UP\d+)", everything, re.MULTILINE)
    assert heads == [finding["code"] for finding in findings]


def test_every_format_comes_out_whole() -> None:
    path = sample("guest_oops")
    assert run("diagnose", "--format", "markdown", path).out.startswith(
        "## Findings in guest\\_oops"
    )
    junit = run("diagnose", "--format", "junit", path).out
    assert ElementTree.fromstring(junit)[0].get("name") == "guest_oops.upcap"
    github = run("diagnose", "--format", "github", path).out
    assert all(line.startswith("::") for line in github.splitlines())
    assert run("diagnose", path).out == run("diagnose", "--format", "text", path).out


def test_several_captures_are_told_one_after_the_other() -> None:
    told = run("diagnose", sample("guest_oops"), sample("framing"))
    headings = [line for line in told.out.splitlines() if line.endswith(".upcap:")]
    assert headings == [f"{sample('guest_oops')}:", f"{sample('framing')}:"]


def test_a_foreign_format_has_the_findings_of_its_capture() -> None:
    assert codes(GOLDEN / "guest_oops.jsonl") == codes(sample("guest_oops"))


def test_following_a_finished_recording_tells_all_of_it() -> None:
    told = run("diagnose", "--follow", "--json", sample("guest_oops"))
    assert told.code == ExitCode.EXPECTED
    followed = sorted((f["code"], f["conn"], f["request"]) for f in told.objects)
    whole = json.loads(run("diagnose", "--json", sample("guest_oops")).out)["findings"]
    assert followed == sorted((f["code"], f["conn"], f["request"]) for f in whole)
    assert run("diagnose", "--follow", "--fail-on", "fatal", sample("guest_oops")).code == (
        ExitCode.DIFFERENT
    )


def test_control_bytes_of_a_client_and_of_a_name_do_not_come_out(tmp_path: Path) -> None:
    records = [record for record in connect() if not isinstance(record, Chunk)]
    line = Chunk(5, 1, True, b"CONNECT \x1b]0;owned\x07\n")
    path = write_capture(tmp_path / os.fsdecode(b"c\x1b[31m\xff.upcap"), [*records, line])
    for form in ("text", "json", "markdown", "junit", "github"):
        told = run("diagnose", "--all", "--format", form, path, path)
        assert told.code == ExitCode.EXPECTED
        assert [c for c in told.out + told.err if not c.isprintable() and c != "\n"] == []


def test_several_at_once_show_how_far_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [golden(name) for name in ("mmio_lifecycle", "cpu_lifecycle", "framing")]
    told: list[tuple[str, int]] = []
    reported: list[int] = []

    @contextmanager
    def progress(what: str, size: int) -> Iterator[Callable[[int], None]]:
        told.append((what, size))
        yield reported.append

    monkeypatch.setattr("upcall_trace.cli.diagnose.progress", progress)
    run("diagnose", *paths, "-j", "2")
    total = sum(path.stat().st_size for path in paths)
    assert told == [("diagnosing 3 captures", total)]
    assert len(reported) == 3
    assert reported == sorted(reported)
    assert reported[-1] == total


def test_several_at_once_say_the_same(tmp_path: Path) -> None:
    names = ("mmio_lifecycle", "cpu_lifecycle", "framing")
    paths = [golden(name) for name in names]
    packed = tmp_path / "packed.jsonl.gz"
    packed.write_bytes(gzip.compress(golden("guest_oops").read_bytes()))
    one = run("diagnose", *paths, packed, "--json")
    assert run("diagnose", *paths, packed, "--json", "-j", "2") == one
    bad = tmp_path / "bad.upcap"
    bad.write_bytes(b"\x89UPCAP\r\n")
    alone = run("diagnose", paths[0], bad, "--json")
    assert run("diagnose", paths[0], bad, "--json", "-j", "2") == alone
    assert alone.code == 5
