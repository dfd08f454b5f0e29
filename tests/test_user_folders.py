"""Folders of a user who has none, and paths typed with a `~` of nobody's."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.support import golden, run
from upcall_trace.errors import ExitCode, WrongUsage
from upcall_trace.tui.data.settings import Settings, recent, remember, user_settings
from upcall_trace.user_folders import typed_path, user_folder


@pytest.fixture
def homeless(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container that runs under a number that no user has."""
    monkeypatch.setattr(os, "getuid", lambda: 54_321)
    for name in list(os.environ):
        if name == "HOME" or name.startswith("XDG_"):
            monkeypatch.delenv(name)


def test_a_path_in_the_environment_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    monkeypatch.setenv("XDG_CACHE_HOME", "/var/cache")
    assert user_folder("XDG_CACHE_HOME", ".cache") == Path("/var/cache")
    for relative in ("cache", "", "~/cache"):
        monkeypatch.setenv("XDG_CACHE_HOME", relative)
        assert user_folder("XDG_CACHE_HOME", ".cache") == Path("/home/somebody/.cache")


def test_a_typed_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    assert typed_path("~/x.upcap") == Path("/home/somebody/x.upcap")
    assert typed_path("x~.upcap") == Path("x~.upcap")
    with pytest.raises(WrongUsage, match=r"^~nosuchuser is not a user with a home folder here$"):
        typed_path("~nosuchuser/x.upcap")


@pytest.mark.usefixtures("homeless")
@pytest.mark.parametrize(
    "words",
    [["completion", "install", "bash"], ["wireshark", "install"], ["lab", "setup"]],
    ids=" ".join,
)
def test_what_needs_a_home_says_that_there_is_none(words: list[str]) -> None:
    ended = run(*words)
    assert (ended.code, ended.out) == (ExitCode.USAGE, "")
    assert ended.err == "upcall-trace: you have no home folder here: set HOME\n"


@pytest.mark.usefixtures("homeless")
def test_what_needs_none_goes_on_without(monkeypatch: pytest.MonkeyPatch) -> None:
    assert run("diagnose", golden("framing")).code in (ExitCode.EXPECTED, ExitCode.DIFFERENT)
    assert user_settings() == Settings()
    remember(golden("framing"))
    assert recent() == []
