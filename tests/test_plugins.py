"""Finding what other packages add, and what it costs when that is broken."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.plugin_packages import plant
from upcall_trace import plugins
from upcall_trace.errors import UnreadableInput, UserError
from upcall_trace.plugins import SEAMS, BrokenPlugin, Plugin, installed, note, take_noted


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder where Python looks for packages."""
    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.syspath_prepend(site)
    plugins.forget()
    yield site
    monkeypatch.undo()
    plugins.forget()


def only(seam: str) -> Plugin:
    (plugin,) = installed(seam)
    return plugin


def test_what_is_installed_is_named_and_not_imported(site: Path) -> None:
    plant(site, "adder", {"rules.b": "adder_rule:B", "rules.a": "adder_rule:A"}, adder_rule="1 / 0")
    assert [(p.name, p.package, p.version, p.target) for p in installed("rules")] == [
        ("a", "adder", "1.0", "adder_rule:A"),
        ("b", "adder", "1.0", "adder_rule:B"),
    ]
    assert installed("sources") == ()
    assert "adder_rule" not in sys.modules


def test_without_plugins_the_packages_are_not_even_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.metadata

    def asked(**_: object) -> None:
        raise AssertionError("entry points were read")

    monkeypatch.setattr(sys, "path", ["/nowhere"])
    monkeypatch.setattr(importlib.metadata, "entry_points", asked)
    plugins.forget()
    assert all(installed(seam) == () for seam in SEAMS)
    plugins.forget()


def test_a_plugin_is_loaded_as_what_its_group_asks_for(site: Path) -> None:
    plant(site, "adder", {"rules.seven": "seven_rule:SEVEN"}, seven_rule="SEVEN = 7\n")
    assert only("rules").load(int) == 7
    with pytest.raises(BrokenPlugin) as raised:
        only("rules").load(str)
    assert str(raised.value) == (
        "the rule plugin 'seven' (adder 1.0) is no str but of type int; mend or uninstall adder"
    )


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("import no_such_module", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("raise ValueError('two\\n  lines')", "ValueError: two lines"),
        ("raise SystemExit(0)", "SystemExit: 0"),
        ("raise Exception", "Exception"),
        ("raise Exception('x' * 1000)", "Exception: " + "x" * 300),
        ("def f(:", "SyntaxError: invalid syntax (broken_plugin.py, line 1)"),
        ("", "AttributeError: module 'broken_plugin' has no attribute 'F'"),
    ],
)
def test_whatever_a_plugin_raises_when_loaded_is_one_sentence(
    site: Path, source: str, reason: str
) -> None:
    plant(site, "bad", {"exports.f": "broken_plugin:F"}, broken_plugin=source)
    sys.modules.pop("broken_plugin", None)
    with pytest.raises(BrokenPlugin) as raised:
        only("exports").load(object)
    assert str(raised.value) == (
        f"the export plugin 'f' (bad 1.0) cannot be loaded: {reason}; mend or uninstall bad"
    )


def test_what_it_raises_in_use_is_one_sentence_and_what_it_tells_the_user_stays(site: Path) -> None:
    plant(site, "adder", {"sources.s": "x:y"})
    (plugin,) = installed("sources")
    with pytest.raises(BrokenPlugin, match="failed: ValueError: no page; mend"), plugin.in_use():
        raise ValueError("no page")
    with pytest.raises(UnreadableInput, match=r"^page 3 is missing$"), plugin.in_use():
        raise UnreadableInput("page 3 is missing")
    with pytest.raises(KeyboardInterrupt), plugin.in_use():
        raise KeyboardInterrupt
    assert issubclass(BrokenPlugin, UserError)


def test_a_noted_trouble_is_told_once(site: Path) -> None:
    plant(site, "adder", {"sources.s": "x:y"})
    for _ in range(3):
        note(only("sources").broken("failed"))
    assert [str(trouble) for trouble in take_noted()] == [
        "the source plugin 's' (adder 1.0) failed; mend or uninstall adder"
    ]
    assert take_noted() == []
