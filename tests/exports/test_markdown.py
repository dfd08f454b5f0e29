"""Markdown for an issue: what failed, and the messages around it as a diagram."""

from __future__ import annotations

from pathlib import Path

from tests.support import connect, each_recording, run, write_capture
from upcall_trace.capture.records import Header

STARTS = (
    "sequenceDiagram", "    participant ", "    V->>G: ", "    G-->>V: ", "    G--xV: ",
    "    Note over G: no answer",
)  # fmt: skip


def diagram_of(text: str) -> list[str]:
    return text.partition("```mermaid\n")[2].partition("\n```")[0].split("\n")


def test_the_failures_and_what_came_before_them_are_drawn(tmp_path: Path) -> None:
    written = tmp_path / "x.md"
    assert run("export", "captures/cpu_lifecycle.upcap", "-o", written).code == 0
    text = written.read_text("utf-8")
    assert "UP201" in text
    lines = diagram_of(text)
    assert lines[:4] == [
        "sequenceDiagram",
        "    participant V as VMM",
        "    participant G as guest",
        "    V->>G: 1.0 add_cpu apic_ids=1",
    ]
    assert lines[4].startswith("    G--xV: EIO (-5) vCPU did not start")


@each_recording
def test_every_line_of_the_diagram_is_one_that_mermaid_knows(golden: Path, tmp_path: Path) -> None:
    written = tmp_path / "x.md"
    assert run("export", golden, "-o", written).code in (0, 3)
    for line in diagram_of(written.read_text("utf-8")):
        assert line.startswith(STARTS), line
        assert not set(line) & set("#;%<`\x1b"), line


def test_nothing_of_a_hostile_capture_ends_the_fence(tmp_path: Path) -> None:
    header = Header("test", notes={"name": "```\n# owned"})
    capture = write_capture(tmp_path / "x.upcap", connect(), header)
    written = tmp_path / "x.md"
    assert run("export", capture, "-o", written).code == 0
    assert written.read_text("utf-8").count("```") == 2
