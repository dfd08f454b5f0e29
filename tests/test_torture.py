"""`make torture`: its sections are those of the page, and what they find fails them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.fuzz import campaign
from tests.fuzz.targets import Target
from tools import torture

ROOT = Path(__file__).parents[1]


def test_the_page_names_every_section() -> None:
    page = (ROOT / "docs" / "robustness.md").read_text("utf-8")
    table = page.partition("## Torture")[2].partition("\n## ")[0]
    rows = dict(re.findall(r"^\| `(\w+)` \| ([^|]*) \|", table, re.MULTILINE))
    assert rows == {name: section.does for name, section in torture.SECTIONS.items()}


def run(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["torture", *words])
    return torture.main()


def test_a_section_has_its_share_of_the_time(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(torture.VARIABLE, "0.003")
    assert run(monkeypatch, "messages", "--seed", "7") == 0
    told = capsys.readouterr().out
    assert "messages: mutated messages through decode and encode; seed 7" in told
    assert "seed 7" in told.splitlines()[1]
    assert told.endswith("nothing was found\n")


def test_what_is_found_fails_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def wrong(raw: bytes) -> None:
        raise IndexError(raw)

    bad = {"wrong": Target(wrong, lambda: [b"x"], 1.0)}
    monkeypatch.setattr(torture, "targets", lambda _: bad)
    monkeypatch.setattr(torture, "ROOT", tmp_path)
    monkeypatch.setattr(campaign.run, "__defaults__", (tmp_path,))
    assert run(monkeypatch, "parsers", "--minutes", "0.001") == 1
    told = capsys.readouterr().out
    assert "1 FINDS" in told
    assert "IndexError at test_torture.py" in told
    assert told.endswith("FOUND something: parsers\n")
    assert len(list((tmp_path / "wrong").iterdir())) == 1


def test_hostile_files_go_on_where_they_stopped(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    ran: list[str] = []

    def check(name: str, hostile: str, folder: Path, place: Path) -> None:
        assert not (name == "bad" and len(ran) < 2), "too much"
        ran.append(f"{name} {hostile}")

    monkeypatch.setattr(torture, "COMMANDS", ["bad", "show"])
    monkeypatch.setattr(torture, "CORPUS", ["zeros"])
    monkeypatch.setattr(torture, "HOSTILE_RUN", tmp_path / "kept" / "hostile")
    monkeypatch.setattr(torture, "check", check)
    assert run(monkeypatch, "hostile") == 1
    told = capsys.readouterr().out
    assert "bad zeros: FOUND too much" in told
    assert "1 of 2 pairs" in told
    ran.append("since mended")
    assert run(monkeypatch, "hostile") == 0
    assert "1 of 1 pairs" in capsys.readouterr().out
    assert ran == ["show zeros", "since mended", "bad zeros"]
    assert run(monkeypatch, "hostile") == 0
    assert "2 of 2 pairs" in capsys.readouterr().out


def test_a_section_that_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit) as ended:
        run(monkeypatch, "nothing")
    assert ended.value.code == 2


def test_tests_that_fail_fail_their_section() -> None:
    until = time.monotonic() + 60
    assert torture._tests("-p", "no:cacheprovider", "no_such_test.py")(1, until) is False


STOPPED = """
import time

def test_first():
    assert {holds}

def test_that_is_stopped():
    open({gate!r}, "w")
    while True:
        time.sleep(0.01)
"""


@pytest.mark.parametrize("holds", [True, False])
def test_what_failed_before_the_time_was_over_fails_its_section(
    holds: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """The time is over when the second test says so."""
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    (tmp_path / "test_it.py").write_text(STOPPED.format(holds=holds, gate=str(gate)))

    class Tests(subprocess.Popen[bytes]):
        stopped = False

        def wait(self, timeout: float | None = None) -> int:
            if not self.stopped:
                self.stopped = True
                gate.read_bytes()
                raise subprocess.TimeoutExpired(self.args, timeout or 0)
            return super().wait(timeout)

    monkeypatch.setattr(subprocess, "Popen", Tests)
    # In their order, also where somebody has installed what shuffles tests.
    plugins = ("-p", "no:cacheprovider", "-p", "no:randomly")
    ran = torture._tests(*plugins, str(tmp_path / "test_it.py"))
    assert ran(1, time.monotonic() + 60) is holds
    assert "cut short" in capsys.readouterr().out
