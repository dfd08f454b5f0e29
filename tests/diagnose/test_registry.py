"""The rules: what is picked up, what each listens to, and their pages."""

from __future__ import annotations

import importlib
import pickle
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.diagnose.test_engine import MS, found, told
from tests.support import DISK, answer, ask, connect
from upcall_trace import codes
from upcall_trace.diagnose.rules import registry
from upcall_trace.diagnose.rules.registry import Cue, listening_to, rules

HEADS = ["What it says", "Why it matters", "On the wire", "Example", "Limits", "What to do"]
NEW_RULE = '''
"""A rule that is new."""

from upcall_trace.codes import Code, Severity, Side
from upcall_trace.diagnose.finding import Told
from upcall_trace.diagnose.rules.registry import POSSIBLY, Cue, rule

SLOW = Code("UP698", "slow-for-us", Severity.WARNING, Side.GUEST)


@rule(SLOW, {Cue.REPLY: lambda at: at.latency_ns > 5_000_000 and POSSIBLY})
def slow(at):
    """An answer took longer than 5 ms."""
    return Told("It was slow.", "Nobody knows why.", "Somebody waits.", "Look.")
'''


@pytest.fixture
def new_rule(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """One more file with one function beside the rules."""
    from upcall_trace.diagnose import rules as package

    path = tmp_path / "brand_new.py"
    path.write_text(NEW_RULE)
    monkeypatch.setattr(package, "__path__", [*package.__path__, str(tmp_path)])
    importlib.invalidate_caches()
    registry._built_in.cache_clear()
    yield path
    sys.modules.pop("upcall_trace.diagnose.rules.brand_new", None)
    registry._built_in.cache_clear()


def test_a_new_rule_is_one_function_in_one_file(new_rule: Path) -> None:
    assert rules()["UP698"].page == "An answer took longer than 5 ms."
    records = [*connect(), ask(DISK, MS), answer(DISK, 9 * MS), ask(DISK, 10 * MS),
               answer(DISK, 11 * MS, ret=-17)]  # fmt: skip
    assert told(f for f in found(records) if f.code == "UP698") == "1.0 UP698?"


def test_two_rules_of_one_code_are_a_mistake(new_rule: Path) -> None:
    new_rule.write_text(NEW_RULE.replace("UP698", "UP301"))
    registry._built_in.cache_clear()
    importlib.reload(importlib.import_module("upcall_trace.diagnose.rules.brand_new"))
    with pytest.raises(ValueError, match="two rules for UP301"):
        rules()


def test_every_rule_has_a_row_in_the_table_of_codes() -> None:
    table = {str(code): code for code in codes.table()}
    assert all(table[number] is rule.code for number, rule in rules().items())
    assert list(rules()) == sorted(rules())


def test_every_code_has_a_rule_and_so_a_page() -> None:
    assert set(rules()) == set(codes.table())


def test_nearly_every_cue_has_somebody_who_listens() -> None:
    for cue in Cue:
        assert listening_to(cue, rules()) or cue in (Cue.LOG, Cue.REQUEST)
    assert rules()["UP102"].listens == "refused"
    assert rules()["UP702"].listens == "refusal, silence"


def test_a_rule_is_itself_again_after_a_pickle() -> None:
    """A browser keeps its place in a recording by pickling the diagnosis."""
    assert pickle.loads(pickle.dumps(rules()["UP301"])) is rules()["UP301"]


@pytest.mark.parametrize("code", rules())
def test_a_page_has_its_paragraphs_in_order(code: str) -> None:
    rule = rules()[code]
    assert re.findall(r"^\*\*(.+?)\.\*\*", rule.page, re.MULTILINE) == HEADS
    assert rule.page.splitlines()[0].endswith(".")
    assert all(len(line) <= 100 for line in rule.page.splitlines())
