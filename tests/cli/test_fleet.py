"""`fleet`, as a user meets it."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path

import pytest
from pyarrow import parquet

from tests.dataset.fleets import captures
from tests.support import run


@pytest.fixture
def nodes(tmp_path: Path) -> Path:
    captures(tmp_path / "nodes", 3)
    return tmp_path / "nodes"


@pytest.fixture
def fleet(tmp_path: Path, nodes: Path) -> str:
    run("fleet", "add", "-j", "1", str(tmp_path / "set"), str(nodes))
    return str(tmp_path / "set")


def test_add_tells_what_it_did(tmp_path: Path, nodes: Path) -> None:
    added = run("fleet", "add", "-j", "1", str(tmp_path / "set"), str(nodes))
    assert added.code == 0
    assert "3 captures with" in added.err
    again = run("fleet", "add", "-j", "1", str(tmp_path / "set"), str(nodes))
    assert "0 captures with 0 operations added, 3 known already" in again.err


def test_a_bad_capture_ends_with_3_and_is_listed(tmp_path: Path, nodes: Path) -> None:
    (nodes / "bad.upcap").write_bytes(b"nothing")
    added = run("fleet", "add", "-j", "1", str(tmp_path / "set"), str(nodes))
    assert added.code == 3
    told = run("fleet", "query", str(tmp_path / "set"), "SELECT problem FROM problems")
    assert told.out.split() == ["problem", "unreadable"]


def test_no_capture_anywhere_ends_with_6(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert run("fleet", "add", str(tmp_path / "set"), str(tmp_path / "empty")).code == 6


def test_update_and_drop(fleet: str, nodes: Path) -> None:
    assert run("fleet", "update", "-j", "1", fleet).code == 0
    dropped = run("fleet", "drop", fleet, "--before", "2027-01-01")
    assert dropped.code == 0
    counted = run("fleet", "query", fleet, "SELECT count(*) AS n FROM operations")
    assert counted.out.split() == ["n", "0"]
    assert run("fleet", "drop", fleet, "--before", "yesterday").code == 2


def test_the_same_answer_in_every_form(fleet: str, tmp_path: Path) -> None:
    ask = ("fleet", "failures", fleet, "--by", "op")
    told = json.loads(run(*ask, "--format", "json").out)
    assert told["v"] == 1
    assert told["columns"] == ["op", "operations", "errors", "unanswered", "share"]
    text = run(*ask).out.splitlines()
    assert [line.split()[0] for line in text[1:]] == [row["op"] for row in told["rows"]]
    lines = run(*ask, "--format", "csv").out.splitlines()
    assert lines[0] == "op,operations,errors,unanswered,share"
    assert len(lines) == len(text)
    assert run(*ask, "-o", str(tmp_path / "a.parquet")).code == 0
    assert parquet.read_table(tmp_path / "a.parquet").to_pylist() == told["rows"]
    assert run(*ask, "-o", str(tmp_path / "a.parquet")).code == 2  # it exists


class _Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags.append(tag)


def test_the_page_has_a_plot_for_each_column_of_numbers(fleet: str, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    assert run("fleet", "latency", fleet, "-o", str(page)).code == 0
    tags = _Page(page.read_text()).tags
    assert tags.count("svg") == 5
    assert tags.count("rect") > 5
    assert "script" not in tags


def test_what_comes_from_a_guest_is_only_text(fleet: str, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    sql = "SELECT '<script>x</script>' || chr(27) || '[2J' AS a, 1 AS n"
    run("fleet", "query", fleet, sql, "-o", str(page))
    assert "<script" not in page.read_text()
    assert "\x1b" not in run("fleet", "query", fleet, sql).out


def test_latency_and_new(fleet: str) -> None:
    assert "p99_ns" in run("fleet", "latency", fleet, "--by", "kernel,op").out
    assert "UP301" in run("fleet", "new", fleet, "--since", "2026-09-21").out
    assert run("fleet", "failures", fleet, "--by", "nonsense").code == 2
    assert run("fleet", "query", fleet, "SELECT * FROM read_text('/etc/passwd')").code == 2
    assert run("fleet", "query", "/nowhere", "SELECT 1").code == 5


def test_show_leads_to_the_recording(fleet: str, nodes: Path) -> None:
    sql = "SELECT row FROM operations WHERE op = 'add_mmio' AND list_contains(codes, 'UP301')"
    row = json.loads(run("fleet", "query", fleet, sql, "--format", "json").out)["rows"][0]["row"]
    shown = run("fleet", "show", fleet, row)
    assert shown.code == 0
    assert str(nodes / "0000.upcap") in shown.out
    assert "UP301 mmio-overlap" in shown.out
    lead = shown.out.splitlines()[-1]
    assert lead.startswith("next: upcall-trace show ")
    told = json.loads(run("fleet", "show", fleet, row, "--json").out)
    assert told["operation"]["request"] == told["row"]["request"]

    (nodes / "0000.upcap").unlink()
    gone = run("fleet", "show", fleet, row)
    assert gone.code == 3
    assert "UP301" in gone.out
    assert run("fleet", "show", fleet, "12:1.1").code == 2
