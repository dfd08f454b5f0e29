"""Findings as text, JSON, Markdown, JUnit and annotations, hostile words included."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Final
from xml.etree import ElementTree

import pytest

from upcall_trace.codes import Severity
from upcall_trace.diagnose.finding import Finding
from upcall_trace.diagnose.headline import headline
from upcall_trace.diagnose.report import as_text
from upcall_trace.diagnose.report_formats import (
    as_github,
    as_json,
    as_junit,
    as_markdown,
    finding_object,
)
from upcall_trace.diagnose.rules.registry import rules
from upcall_trace.diagnose.run import Diagnosed, diagnose
from upcall_trace.logs.evidence import Evidence

ROOT: Final = Path(__file__).parents[2]
CAPTURES: Final = sorted((ROOT / "captures").glob("*.upcap"))
HOSTILE: Final = (
    "\x1b]0;owned\x07 \x9b31m \u202e %0A a|b `c` *d* [e](f) <g> &h\r\n::error::i, \\| \ud800"
)


def finding(
    code: str = "UP301",
    request: int | None = 0,
    words: str = "words",
    inferred: bool = False,
    severity: Severity | None = None,
    evidence: tuple[Evidence, ...] = (),
    conn: int | None = 1,
) -> Finding:
    rule = rules()[code]
    return Finding(
        rule.code, rule.name, severity or rule.severity, conn, request, inferred,
        f"what {words}.", f"why {words}.", f"so {words}.", f"next {words}.", evidence,
    )  # fmt: skip


def diagnosed(*findings: Finding, name: str = "a.upcap") -> Diagnosed:
    return Diagnosed(Path(name), list(findings), 7, 2, complete=True)


NASTY: Final = diagnosed(
    finding(words=HOSTILE, evidence=(Evidence("console", HOSTILE, line=3),)),
    finding("UP503", 1, HOSTILE),
    name="a\x1b[31m,b:c%|`.upcap",
)
FORMATS: Final[dict[str, Callable[[Diagnosed], str]]] = {
    "text": lambda each: "\n".join(as_text([each])),
    "all": lambda each: "\n".join(as_text([each], everything=True)),
    "json": lambda each: as_json([each]),
    "markdown": lambda each: "\n".join(as_markdown([each])),
    "junit": lambda each: as_junit([each]),
    "github": lambda each: "\n".join(as_github([each])),
}


# Text.


@pytest.mark.parametrize("path", CAPTURES, ids=lambda path: path.stem)
def test_text_about_a_recording_fits_on_a_screen(path: Path) -> None:
    lines = [*as_text([diagnose(path)])]
    assert lines
    assert len(lines) <= 24
    assert max(map(len, lines)) <= 100


@pytest.mark.parametrize("others", [0, 1, 5, 9, 10, 11, 500])
def test_text_fits_on_a_screen_and_counts_what_it_leaves_out(others: int) -> None:
    seen = tuple(Evidence("console", "x " * 90, line=n) for n in range(9))
    first = finding(words="many words " * 30, evidence=seen)
    lines = [*as_text([diagnosed(first, *(finding(request=n + 1) for n in range(others)))])]
    assert len(lines) <= 24
    listed = sum(re.match(r" +1\.\d+ error   UP301", line) is not None for line in lines)
    left_out = [int(n) for line in lines for n in re.findall(r"^… and (\d+) more$", line)]
    assert listed + sum(left_out) == others
    assert lines[-1 if not others else -2] == f"7 operations on 2 connections: {others + 1} error."


def test_the_first_failure_comes_first_and_in_full() -> None:
    lines = [
        *as_text(
            [
                diagnosed(
                    finding("UP701", 0),
                    finding("UP302", 1, "first", inferred=True),
                    finding("UP206", 2),
                )
            ]
        )
    ]
    assert lines[0].startswith("First failure: what first. Possibly UP302 irq-conflict, ")
    assert "Then: " in " ".join(lines[:3])
    lines = lines[lines.index("") + 1 :]
    assert lines[0] == "    1.1 error: possibly UP302 irq-conflict"
    assert lines[1].split()[:2] == ["who", "unknown:"]
    assert [line.split() for line in lines[2:6]] == [
        [label, label, "first."] for label in ("what", "why", "so", "next")
    ]
    assert lines[7].startswith("    1.2 fatal   UP206 ")
    assert lines[8] == "7 operations on 2 connections: 1 fatal, 1 error, 1 warning."
    assert not any("UP701" in line for line in lines)


def test_all_tells_every_finding_with_its_evidence() -> None:
    seen = (Evidence("request", "was added", 1, 4), Evidence("console", "a line", line=12))
    text = FORMATS["all"](
        diagnosed(finding("UP503"), finding(evidence=seen), finding("UP704", None))
    )
    assert "    1.0 note: UP503" in text
    assert " conn 1 warning: UP704" in text
    assert "see    request 1.4: was added" in text
    assert "see    console line 12: a line" in text
    assert "--all" not in text


@pytest.mark.parametrize(
    ("findings", "last"),
    [
        ([], ["7 operations on 2 connections: nothing found."]),
        ([finding()], ["7 operations on 2 connections: 1 error."]),
        ([finding("UP503")], [
            "7 operations on 2 connections: 1 note.",
            "--all tells every finding in full, --explain CODE what a code means.",
        ]),
    ],
    ids=["none", "one error", "a note"],
)  # fmt: skip
def test_the_summary_points_at_what_is_not_shown(findings: list[Finding], last: list[str]) -> None:
    assert [*as_text([diagnosed(*findings)])][-len(last) :] == last


def test_logs_alone_have_no_connections() -> None:
    alone = Diagnosed(Path("console.log"), [finding(conn=None, request=None)], 3, 0, complete=True)
    lines = [*as_text([alone])]
    assert "      - error: UP301 mmio-overlap" in lines
    assert lines[-1] == "3 operations: 1 error."


def test_several_captures_have_a_heading_and_a_screen_each() -> None:
    lines = [*as_text([diagnosed(finding(), name="a"), diagnosed(name="b\x1b")])]
    assert lines[0] == "a:"
    assert lines[-2:] == ["b\\x1b:", "7 operations on 2 connections: nothing found."]


# Every format.


@pytest.mark.parametrize("form", FORMATS)
def test_no_format_lets_a_control_byte_out(form: str) -> None:
    told = FORMATS[form](NASTY)
    assert "owned" in told
    assert [c for c in told if not c.isprintable() and c != "\n"] == []


@pytest.mark.parametrize("form", FORMATS)
def test_every_format_tells_nothing_as_nothing(form: str) -> None:
    told = FORMATS[form](diagnosed())
    assert "UP" not in told
    assert bool(told) == (form != "github")


# JSON.

KEYS: Final = [
    "code", "name", "severity", "conn", "request", "inferred", "side", "sandbox", "time", "group",
    "what", "why", "so", "next", "evidence",
]  # fmt: skip
FIRST_KEYS: Final = [key for key in KEYS if key not in ("side", "sandbox", "time", "group")]


def test_json_has_its_keys_in_order_and_is_ascii() -> None:
    raw = as_json([NASTY])
    assert raw.isascii()
    assert "\n" not in raw
    told = json.loads(raw)
    assert [*told] == ["v", "headline", "inputs", "findings"]
    assert told["v"] == 2
    assert told["headline"].startswith("First failure: ")
    assert [each["kind"] for each in told["inputs"]] == ["capture"]
    first = told["findings"][0]
    assert [*first] == KEYS
    assert (first["code"], first["name"], first["severity"]) == ("UP301", "mmio-overlap", "error")
    assert (first["conn"], first["request"], first["inferred"]) == (1, 0, False)
    assert first["what"] == f"what {HOSTILE}."
    assert first["evidence"] == [
        {"source": "console", "conn": None, "request": None, "file": None, "line": 3,
         "text": HOSTILE}
    ]  # fmt: skip


def test_the_first_version_of_the_json_is_still_there() -> None:
    told = json.loads(as_json([NASTY], version=1))
    assert [*told] == ["v", "findings"]
    assert told["v"] == 1
    assert [*told["findings"][0]] == FIRST_KEYS
    assert "file" not in told["findings"][0]["evidence"][0]


def test_json_says_which_of_several_captures() -> None:
    several = [diagnosed(finding(), name="x/a"), diagnosed(finding("UP102", None), name="x/b")]
    told = json.loads(as_json(several))["findings"]
    assert [[*each] for each in told] == [["capture", *KEYS]] * 2
    assert [each["capture"] for each in told] == ["x/a", "x/b"]
    assert told[1]["request"] is None
    assert "capture" not in finding_object(finding())


# JUnit.


def test_junit_is_xml_that_counts_failures() -> None:
    raw = as_junit(
        [diagnosed(finding("UP701"), finding(), finding("UP206", 3)), diagnosed(name="b.upcap")]
    )
    broken, fine = ElementTree.fromstring(raw)
    assert (broken.get("name"), broken.get("tests"), broken.get("failures")) == (
        "a.upcap",
        "2",
        "2",
    )
    properties, *cases = broken
    assert (properties[0].get("value") or "").startswith("First failure: ")
    assert [case.get("classname") for case in cases] == [
        "UP301 mmio-overlap", "UP206 remove-unfindable-cpu",
    ]  # fmt: skip
    assert [case[0].get("type") for case in cases] == ["UP301", "UP206"]
    assert cases[1].get("name") == "1.3 what words."
    assert cases[0][0].text == "why words. so words. next words. Side: unknown."
    assert (fine.get("tests"), fine.get("failures")) == ("1", "0")
    assert [len(case) for case in fine] == [0]


def test_junit_stays_xml_with_hostile_words() -> None:
    (suite,) = ElementTree.fromstring(as_junit([NASTY]))
    assert suite[1].get("name") == (
        "1.0 what \\x1b]0;owned\\x07 \\x9b31m \\u202e %0A a|b `c` *d* [e](f) <g> &h"
        "\\r\\n::error::i, \\| \\ud800."
    )


# GitHub Actions.


def test_github_has_a_line_and_a_level_for_each_finding() -> None:
    four = diagnosed(finding("UP503"), finding("UP701"), finding(), finding("UP206"), name="d/a")
    head, *lines = as_github([four])
    assert head.startswith("::notice title=upcall-trace::First failure: ")
    assert [line.split(" ")[0] for line in lines] == [
        "::notice", "::warning", "::error", "::error",
    ]  # fmt: skip
    assert lines[2] == (
        "::error file=d/a,title=UP301 mmio-overlap at 1.0::"
        "what words. why words. so words. next words. Side: unknown."
    )


def test_github_properties_cannot_be_left_by_their_values() -> None:
    _, first, second = as_github([NASTY])
    command, properties, _ = first.split("::", 2)[1].partition(" ")
    assert (command, properties) == ("error", " ")
    file, title = first.split("::")[1].removeprefix("error ").split(",")
    assert file == "file=a\\x1b[31m%2Cb%3Ac%25|`.upcap"
    assert title == "title=UP301 mmio-overlap at 1.0"
    assert "%250A" in first
    assert "\n" not in first + second


# Markdown.


def test_markdown_has_a_table_of_all_and_the_errors_in_full() -> None:
    lines = [*as_markdown([diagnosed(finding("UP701"), finding("UP302", 2, inferred=True))])]
    assert lines[0] == "## Findings in a.upcap"
    rows = [line for line in lines if line.startswith("| 1.")]
    assert rows == [
        "| 1.0 | warning | UP701 device-silently-lost | unknown |  | what words. |",
        "| 1.2 | error | possibly UP302 irq-conflict | unknown |  | what words. |",
    ]
    assert [line for line in lines if line.startswith("#### ")] == [
        "#### 1.0: UP701 device-silently-lost", "#### 1.2: possibly UP302 irq-conflict",
    ]  # fmt: skip
    assert lines[-2] == "- **next**: next words."


def test_markdown_keeps_evidence_and_times() -> None:
    seen = Evidence("console", "cpu up failed: -5", line=12, file="a.log")
    timed = replace(finding(evidence=(seen,)), time_ns=1_788_256_800_000_000_000)
    told = "\n".join(as_markdown([diagnosed(timed)]))
    assert "- **see**: a.log:12: cpu up failed: -5" in told
    assert "- **when**: 2026-09-01T10:00:00.000Z" in told


def test_alternatives_of_one_failure_count_once() -> None:
    two = [replace(finding(code, inferred=True), group=1) for code in ("UP301", "UP302")]
    lines = [*as_text([diagnosed(*two)])]
    assert "    1.0 error: possibly UP301 mmio-overlap or UP302 irq-conflict" in lines
    assert "7 operations on 2 connections: 1 error." in lines
    (suite,) = ElementTree.fromstring(as_junit([diagnosed(*two)]))
    assert suite.get("failures") == "1"


def test_the_first_in_time_is_first_and_the_worst_guest_leads() -> None:
    late, early = (
        replace(finding("UP604", words=words), time_ns=ns, sandbox="b" * 64)
        for words, ns in (("late", 2_000_000_000), ("early", 1_000_000_000))
    )
    other = replace(finding("UP601", words="other"), sandbox="a" * 64)
    told = headline([other, late, early]) or ""
    assert told.startswith("First failure at 1970-01-01T00:00:01.000Z: what early. UP604 not-ready")
    assert "Guest bbbbbbbbbbbb." in told
    assert told.endswith("1 more guest has findings.")
    lines = [*as_text([diagnosed(other, late, early)], everything=True)]
    guests = [line for line in lines if line.startswith("guest ")]
    assert guests == [f"guest {'b' * 64}: 2 error", f"guest {'a' * 64}: 1 warning"]


def test_markdown_from_outside_stays_words() -> None:
    lines = [*as_markdown([NASTY])]
    assert lines[0] == "## Findings in a\\\\x1b\\[31m,b:c%\\|\\`.upcap"
    (row,) = (line for line in lines if line.startswith("| 1.0 "))
    assert re.sub(r"\\.", "", row).count("|") == 7
    bare = re.sub(r"\\.", "", "\n".join(lines[4:]))
    assert not re.search(r"[`\[\]<>]", bare)
    assert "&lt;g&gt; &amp;h" in row
