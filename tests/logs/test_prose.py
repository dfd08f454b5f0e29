"""A sentence that quotes a log's line is not the line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support import diagnosed_log, run
from upcall_trace.errors import ExitCode
from upcall_trace.logs.entries import LogEntry
from upcall_trace.logs.lines import lines_of
from upcall_trace.logs.prose import Stands, place
from upcall_trace.logs.table import ROWS, understand

SENTENCES = [
    '> then I saw "upcall response failed connection reset" in the log',
    "then I saw upcall response failed connection reset and the pod died",
    "The log has `upcall connect server check failed, x: connection reset` 501 times.",
    "Does `UpcallServerNotReady` mean that the guest is still booting?",
    '"upcall response failed" appears every time I resize the pod.',
    '\u201cupcall response failed\u201d appears every time I resize the pod.',
    "| `upcall response failed {error}` | the stream broke with a request open |",
    "- `upcall connect server check failed, {error}`: one refusal",
    'error!("upcall response failed {}", e);',
    '$ journalctl -t kata | grep "upcall response failed"',
    'I saw "[    2.22] db-dev-mgr: cpu 1 cannot be added, cpu up failed: -5" on the console',
    '2026-11-22 10:15:00 alice: I saw "upcall response failed" again',
    "[10:15] alice: we get upcall response failed all the time",
    "\u65e5\u5fd7\u91cc\u6709 upcall response failed connection reset",
    'After upgrading, "upcall response failed" shows up in dmesg.',
    'We hit the error "ResizeVcpu(VcpuIsHotplugging)" on 3.21.',
    "Kata reports UpcallServerNotReady when the guest has no upcall.",
    'What does "get vcpu event, cpu_index 0 success Failed" mean?',
    '(for example "Kernel panic - not syncing: Fatal exception" on the console)',
    'If dmesg has "db-upcall-srv: Init server err: -98" there is no upcall.',
    json.dumps({"title": "hotplug", "body": 'then I saw "upcall response failed" twice'}),
]  # fmt: skip
SAID = "upcall response failed upcall get response error: connection reset"
LINES = [
    "{}", "> {}", "  {}", "+{}", "12:{}", "kata.log:12:{}", "WARN {}", "[WARN] dbs_upcall: {}",
    "2026-11-22T15:14:47.123Z WARN {}", "Nov 22 15:14:47.123 WARN {}, subsystem: dbs_upcall",
    "Nov 22 15:14:47 node-1 kata[41]: {}", "<pre>{}", "`{}`", '"{}"', 'log: "{}"',
    'failed to start: Others("{}")', "  Warning  Failed  3s  kubelet  Error: {}",
    'time="2026-11-22T15:14:47Z" level=warning msg="{}"',
    json.dumps({"msg": "{}", "level": "WARN"}).replace("{}", "%").replace("%", "{}"),
    "2026-11-22T15:14:47.123456789Z stderr F {}",
]  # fmt: skip


@pytest.mark.parametrize("sentence", SENTENCES)
def test_a_line_that_a_sentence_quotes_is_only_mentioned(sentence: str, tmp_path: Path) -> None:
    log = tmp_path / "issue.txt"
    log.write_text(f"{sentence}\n", "utf-8")
    told, findings, code = diagnosed_log(log)
    assert (told["understood"], told["mentioned"], findings) == (0, 1, [])
    assert code == ExitCode.NOTHING_RUN
    assert "quotes lines of upcall (line 1), and no log" in run("diagnose", log).err


@pytest.mark.parametrize("around", LINES)
def test_a_line_is_one_whatever_its_source_puts_around_it(around: str, tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text(around.replace("{}", SAID) + "\n")
    told, (finding,), _ = diagnosed_log(log)
    assert (finding["code"], finding["inferred"]) == ("UP605", False)
    assert told["mentioned"] == 0


DATED = [
    '2026-09-01T10:00:05Z {app="kata", pod="x"} ',
    "09/01/2026 10:00:05.020 host=node1 source=kata ",
    "Sep 1, 2026 @ 10:00:05.020 ", "SEP 01 10:00:05.020 node1 kata ", "1788256805020 ",
]  # fmt: skip
HEADS = [
    *DATED, "kata-abc vmm ", "line 12: ", "1 sept. 10:00:05 noeud ", "\u4e3b\u673a: ",
    "9\u6708 01 10:00:05 \u8282\u70b9 ",
]  # fmt: skip


@pytest.mark.parametrize("head", DATED)
def test_a_line_that_begins_with_its_second_is_one(head: str, tmp_path: Path) -> None:
    (tmp_path / "log").write_text(f"{head}{SAID}\n")
    told, (finding,), _ = diagnosed_log(tmp_path / "log")
    assert (finding["code"], finding["inferred"], told["mentioned"]) == ("UP605", False, 0)


@pytest.mark.parametrize("head", HEADS)
def test_what_stands_before_several_lines_is_their_sources(head: str, tmp_path: Path) -> None:
    (tmp_path / "log").write_text(f"{head}upcall client init success\n{head}{SAID}\n", "utf-8")
    told, findings, _ = diagnosed_log(tmp_path / "log")
    assert ("UP605", False) in [(each["code"], each["inferred"]) for each in findings]
    assert told["mentioned"] == 0


def test_lines_wait_for_others_in_their_order(tmp_path: Path) -> None:
    """So many at most, and what is doubtful alone stays so."""
    doubtful = "Pod creation fails with upcall response failed\n"
    (tmp_path / "log").write_text(doubtful + "upcall client init success\n" * 200)
    told, findings, _ = diagnosed_log(tmp_path / "log")
    assert told["understood"] == 201
    (failed,) = (each for each in findings if each["code"] == "UP605")
    assert failed["inferred"] is True


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.example[:40])
@pytest.mark.parametrize("around", ["{}", "Nov 22 15:14:47 n1 kata[41]: {}"])
def test_no_row_of_the_table_is_taken_for_prose(row: Any, around: str) -> None:
    raw = around.replace("{}", row.example).encode()
    for line in lines_of(LogEntry(1, raw), None):
        assert place(line, understand(line)).stands is Stands.AS_A_LINE


def test_words_behind_other_words_are_possible_only(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("Pod creation fails with upcall response failed\n")
    _, (finding,), _ = diagnosed_log(log)
    assert (finding["code"], finding["inferred"]) == ("UP605", True)


def test_the_log_in_a_report_counts_and_its_sentences_do_not(tmp_path: Path) -> None:
    report = tmp_path / "issue.md"
    report.write_text(
        'Hello, my pod hangs and I saw "upcall server\'s max reconnect time exceed" once.\n\n'
        f"```\nNov 22 15:14:47 node-1 kata[41]: {SAID}\n```\n"
    )
    told, (finding,), _ = diagnosed_log(report)
    assert finding["code"] == "UP605"
    assert (told["understood"], told["mentioned"]) == (1, 1)
    said = run("diagnose", report).err
    assert "1 sentences mention a line and decide nothing, the first is line 1" in said


def test_a_mentioned_line_is_not_in_a_redacted_archive() -> None:
    from upcall_trace.bundle.allowed_lines import allowed_lines
    from upcall_trace.bundle.redaction import Redactor

    text = f"{SENTENCES[0]}\n".encode()
    assert [*allowed_lines([text], Redactor().placeholder)] == [1]
