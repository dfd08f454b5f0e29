"""`show` and `info` of several files: each by itself, and the worst of their exit codes."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support import PCAPS, run
from upcall_trace.errors import ExitCode

ONE, OTHER = Path("captures/cpu_lifecycle.upcap"), PCAPS[0]


@pytest.mark.parametrize("words", [["show"], ["show", "--hex"], ["info"], ["show", "--limit", "2"]])
def test_each_is_told_below_its_name(words: list[str]) -> None:
    both = run(*words, ONE, OTHER)
    assert both.out == f"== {ONE}\n{run(*words, ONE).out}\n== {OTHER}\n{run(*words, OTHER).out}"


@pytest.mark.parametrize("words", [["show"], ["show", "--frames"], ["info"]])
def test_objects_name_their_file(words: list[str]) -> None:
    both = run(*words, "--json", ONE, OTHER).objects
    alone = [(path, each) for path in (ONE, OTHER) for each in run(*words, "--json", path).objects]
    assert both == [each | {"file": str(path)} for path, each in alone]


def test_a_file_that_cannot_be_read_hides_no_other(tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    outcome = run("info", "--json", ONE, missing, OTHER)
    assert outcome.code == ExitCode.UNREADABLE
    assert f"{missing}: No such file or directory" in outcome.err
    assert [each["file"] for each in outcome.objects] == [str(ONE), str(OTHER)]


def test_only_one_can_be_followed() -> None:
    outcome = run("show", "--follow", ONE, OTHER)
    assert (outcome.code, outcome.err) == (
        ExitCode.USAGE,
        "upcall-trace: --follow goes with one capture\n",
    )
