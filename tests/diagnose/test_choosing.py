"""Findings by code, by time, and by what was known before; what a file is; the journal."""

from __future__ import annotations

import json
import shlex
import subprocess
from pathlib import Path

import pytest

from tests.diagnose.judging import CASES
from tests.diagnose.test_log_stories import INIT, READY, VMM, entries
from tests.support import golden, run
from upcall_trace.diagnose import journal
from upcall_trace.errors import ExitCode

MMIO = golden("mmio_lifecycle")
LOG = CASES / "src-cpu-refused" / "kata.log"


def codes(*arguments: str | Path) -> list[str]:
    return [f["code"] for f in json.loads(run("diagnose", "--json", *arguments).out)["findings"]]


def test_select_and_ignore_take_codes_and_beginnings() -> None:
    everything = codes(MMIO)
    assert codes("--select", "UP30*", MMIO) == [c for c in everything if c.startswith("UP30")]
    assert codes("--ignore", "up7*,UP503", MMIO) == [
        c for c in everything if not c.startswith("UP7") and c != "UP503"
    ]
    assert run("diagnose", "--fail-on", "error", "--ignore", "UP*", MMIO).code == 0
    assert run("diagnose", "--select", "UP999", MMIO).code == ExitCode.USAGE


def test_a_baseline_lets_only_what_is_new_fail(tmp_path: Path) -> None:
    known = tmp_path / "known.json"
    known.write_text(run("diagnose", "--json", MMIO).out)
    assert codes("--baseline", known, MMIO) == []
    assert run("diagnose", "--fail-on", "note", "--baseline", known, MMIO).code == 0
    told = json.loads(known.read_text())
    told["findings"] = [f for f in told["findings"] if f["code"] != "UP305"]
    known.write_text(json.dumps(told))
    assert codes("--baseline", known, MMIO) == ["UP305"]
    known.write_text("[]")
    assert run("diagnose", "--baseline", known, MMIO).code == ExitCode.UNREADABLE


def test_since_and_until_are_for_logs_too(tmp_path: Path) -> None:
    assert codes("--until", "2026-09-01T10:00:04Z", LOG) == []
    assert codes("--since", "2026-09-01T10:00:04Z", LOG) == ["UP702"]


def test_a_sandbox_by_the_beginning_of_its_id_and_a_wrong_one(tmp_path: Path) -> None:
    one, other = "a" * 64, "b" * 64
    raw = entries(VMM["n0"][1], one) + entries([*INIT, *VMM["exceed"][1][1:]], other)
    (tmp_path / "log").write_bytes(raw)
    assert codes("--sandbox", "aaaa", tmp_path / "log") == ["UP605"]
    assert codes("--sandbox", "bbbb", tmp_path / "log") == ["UP703"]
    told = run("diagnose", "--sandbox", "cccc", tmp_path / "log")
    assert told.code == ExitCode.USAGE
    assert one in told.err
    assert other in told.err


@pytest.mark.parametrize(
    ("option", "name", "words"),
    [
        ("--vmm-log", "con-x86-add-oops/console.log", "is a guest's console, not a VMM's log"),
        ("--console", "src-cpu-refused/kata.log", "is a VMM's log, not a guest's console"),
        ("--console", "unreadable-capture-as-log/guest.pcap", "is a packet capture, not a log"),
        ("--vmm-log", "firecracker-1253-no-answer/t.jsonl", "is a capture (a transcript)"),
    ],
)
def test_a_file_that_is_not_what_its_option_says(option: str, name: str, words: str) -> None:
    told = run("diagnose", option, CASES / name)
    assert told.code == ExitCode.UNREADABLE
    assert name in told.err
    assert words in told.err
    assert told.out == ""


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"", "empty"), (b"\n\n  \n", "blank"), (bytes(range(256)) * 20, "no text at all"),
        (b"hello\n", "says nothing about upcall"),
        (b"cloud-hypervisor: 12.3ms: <vmm> ERROR:vmm/src/lib.rs:500 -- failed\n", "Cloud Hyper"),
        (b"Running Firecracker v1.7.0\n", "Firecracker's log, a VMM without upcall"),
        (b"launching /usr/bin/qemu-system-x86_64 with: [-name x]\n", "QEMU's log"),
    ],
)  # fmt: skip
def test_a_log_in_which_nothing_was_understood_is_never_green(
    tmp_path: Path, raw: bytes, words: str
) -> None:
    (tmp_path / "log").write_bytes(raw)
    for form in ("text", "json", "markdown", "junit", "github"):
        told = run("diagnose", "--format", form, tmp_path / "log")
        assert told.code == ExitCode.NOTHING_RUN
        assert words in told.err
        assert "nothing found" not in told.out or form == "markdown"


def test_one_line_for_every_log(tmp_path: Path) -> None:
    told = run("diagnose", LOG, CASES / "con-x86-add-oops/console.log")
    assert (
        "kata.log: journal, 8 lines, 8 concern upcall; guests 6b76768740b5; VMM Dragonball; from"
        in told.err
    )
    assert "console.log: console, 5 lines, 2 concern upcall" in told.err
    inputs = json.loads(run("diagnose", "--json", LOG).out)["inputs"]
    assert [(i["kind"], i["lines"], i["understood"], i["vmms"]) for i in inputs] == [
        ("journal", 8, 8, ["Dragonball"])
    ]


# The journal of this machine.


def test_the_journals_command_has_the_times_and_the_identifiers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("shutil.which", lambda name: f"/bin/{name}")
    words = journal.command("-10m", "2026-09-01T10:00", follow=True)
    assert words[0] == "/bin/journalctl"
    assert {"--since=-10m", "--until=2026-09-01 10:00", "--follow", "--output=json"} <= {*words}
    assert "--identifier=kata" in words


def test_where_there_is_no_journal_that_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    told = run("diagnose", "--journal")
    assert (told.code, "no journalctl" in told.err) == (ExitCode.UNREADABLE, True)


def test_a_journal_is_read_and_followed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A program that prints a journal stands for journalctl, which needs a running journald."""
    (tmp_path / "journalctl").write_text(f"#!/bin/sh\nexec cat {shlex.quote(str(LOG))}\n")
    (tmp_path / "journalctl").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    told = json.loads(run("diagnose", "--journal", "--since", "-10m", "--json").out)
    assert [f["code"] for f in told["findings"]] == ["UP702"]
    assert told["inputs"][0]["kind"] == "journal"
    followed = run("diagnose", "--journal", "--follow", "--json", "--sandbox", "6b76")
    assert [each["code"] for each in followed.objects] == ["UP702"]
    assert run("diagnose", "--journal", LOG).code == ExitCode.USAGE


def test_following_tells_a_finding_once_and_before_the_end() -> None:
    refused = (5000, "get vcpu event, cpu_index 0 success Failed")
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as cat:
        assert cat.stdin is not None
        assert cat.stdout is not None
        found = journal.follow_stream(cat.stdout, None)
        cat.stdin.write(entries([*READY, refused]))
        cat.stdin.flush()
        assert next(found).code == "UP702"
        cat.stdin.close()
        assert list(found) == []
