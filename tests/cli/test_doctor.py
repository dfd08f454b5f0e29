"""`doctor` as a user meets it."""

from __future__ import annotations

import re

import pytest

from tests.support import run
from upcall_trace.cli import doctor
from upcall_trace.errors import ExitCode
from upcall_trace.vantage.doctor import Examination, Point, VmmSocket

EXAMINATION = Examination(
    points=[
        Point("socket", "the proxy", ("/vm\x1b]0;owned\x07: fine",), None, "record it"),
        Point("vsock", "the kernel's", ("a fact", "another"), "it is \x1b[31mnot there", "load it"),
    ],
    sockets=[VmmSocket("/vm", True, None), VmmSocket("/old", None, "gone")],
    capabilities={"net_raw": False},
    tools={"tshark": None, "other": "1.2"},
)


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "examine", lambda _: EXAMINATION)


def test_the_text_says_what_works_and_what_to_do() -> None:
    told = run("doctor")
    assert (told.code, told.err) == (ExitCode.EXPECTED, "")
    assert told.out.splitlines() == [
        "works    socket: the proxy",
        "         /vm\\x1b]0;owned\\x07: fine",
        "         now: record it",
        "",
        "not now  vsock: the kernel's",
        "         a fact",
        "         another",
        "         because it is \\x1b[31mnot there",
        "         way out: load it",
        "",
        "tshark: not installed (optional)",
        "other: 1.2 (optional)",
        "Logs and captures from elsewhere can be read on any machine: upcall-trace diagnose --help",
    ]


def test_json_has_its_keys_and_is_ascii() -> None:
    told = run("doctor", "--json")
    assert (told.code, told.err) == (ExitCode.EXPECTED, "")
    assert told.out.isascii()
    (examined,) = told.objects
    assert [*examined] == ["v", "points", "sockets", "capabilities", "tools"]
    assert examined["v"] == 1
    assert examined["points"][1] == {
        "name": "vsock", "title": "the kernel's", "works": False, "found": ["a fact", "another"],
        "why": "it is \x1b[31mnot there", "way": "load it",
    }  # fmt: skip
    assert examined["points"][0]["works"] is True
    assert examined["points"][0]["why"] is None
    assert examined["sockets"] == [
        {"path": "/vm", "alive": True, "obstacle": None},
        {"path": "/old", "alive": None, "obstacle": "gone"},
    ]
    assert examined["capabilities"] == {"net_raw": False}
    assert examined["tools"] == {"tshark": None, "other": "1.2"}


def test_it_ends_with_0_when_nothing_works(monkeypatch: pytest.MonkeyPatch) -> None:
    nothing = Examination([EXAMINATION.points[1]], [], {}, {})
    monkeypatch.setattr(doctor, "examine", lambda _: nothing)
    told = run("doctor")
    assert told.code == ExitCode.EXPECTED
    assert not re.search("^works", told.out, re.MULTILINE)


def test_wrong_usage_ends_with_2() -> None:
    assert run("doctor", "everything").code == ExitCode.USAGE
