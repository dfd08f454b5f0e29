"""Holds what `diagnose` says of a case against the case's `expected.json`."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest

from tests.support import Outcome, run

CASES = Path(__file__).parents[1] / "cases"


@dataclass(frozen=True, slots=True)
class Told:
    """What the command said; `text` is everything, in small letters."""

    codes: tuple[int, ...]
    findings: list[dict[str, Any]]
    text: str


def names() -> list[str]:
    """Every case there is."""
    return sorted(path.parent.name for path in CASES.glob("*/expected.json"))


def judge(name: str, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is not as `expected.json` says; empty for a case that is right."""
    folder = CASES / name
    expected = json.loads((folder / "expected.json").read_text())
    monkeypatch.chdir(folder)
    told = _told(expected["args"], expected.get("stdin"), monkeypatch)
    wrong = [*_wrong(expected, told.findings, told.text)]
    exits = expected["exit"] if isinstance(expected["exit"], list) else [expected["exit"]]
    wrong += [f"ended with {code}, not {exits}" for code in told.codes if code not in exits]
    for key, of_guest in expected.get("sandboxes", {}).items():
        theirs = [f for f in told.findings if (f["sandbox"] or "").startswith(key)]
        text = json.dumps(theirs).lower()
        wrong += [f"{key}: {each}" for each in _wrong(of_guest, theirs, text)]
    if "either" in expected:
        tries = [[*_wrong(each, told.findings, told.text)] for each in expected["either"]]
        wrong += sorted(tries, key=len)[0]
    if "same_as" in expected:
        same = _told(expected["same_as"], None, monkeypatch)
        if _places(same) != _places(told):
            wrong.append(f"{_places(told) ^ _places(same)} differ from {expected['same_as']}")
    for also in (
        [expected["also"]] if isinstance(expected.get("also"), dict) else expected.get("also", [])
    ):
        outcome = run(*also["command"])
        wrong += _said(also, (outcome.out + outcome.err).lower())
    return wrong


def _told(arguments: list[str], stdin: str | None, monkeypatch: pytest.MonkeyPatch) -> Told:
    outcomes: list[Outcome] = []
    for form in ("--json", "--all"):
        if stdin is not None:
            raw = io.TextIOWrapper(io.BufferedReader(io.BytesIO(Path(stdin).read_bytes())))
            monkeypatch.setattr("sys.stdin", raw)
        outcomes.append(run("diagnose", form, *arguments))
    findings = json.loads(outcomes[0].out)["findings"] if outcomes[0].out.strip() else []
    text = "\n".join(each.out + "\n" + each.err for each in outcomes)
    return Told(tuple(each.code for each in outcomes), findings, text.lower())


def _places(told: Told) -> set[tuple[Any, ...]]:
    return {(f["conn"], f["request"], f["code"], f["inferred"]) for f in told.findings}


def _wrong(expected: dict[str, Any], found: list[dict[str, Any]], text: str) -> Iterator[str]:
    codes = [f["code"] for f in found]
    for any_of in expected.get("must", []):
        if not set(any_of) & set(codes):
            yield f"none of {any_of} in {codes}"
    for pattern in expected.get("must_not", []):
        for f in found:
            harmless = "*" in pattern and f["severity"] == "note"
            if fnmatchcase(f["code"], pattern) and not harmless:
                yield f"{f['code']} is told"
    for code in expected.get("certain", []):
        if not any(f["code"] == code and not f["inferred"] for f in found):
            yield f"{code} is not certain"
    for pattern in expected.get("never_certain", []):
        for f in found:
            if fnmatchcase(f["code"], pattern) and not f["inferred"]:
                yield f"{f['code']} is certain"
    for code, most in expected.get("at_most", {}).items():
        if codes.count(code) > most:
            yield f"{code} is told {codes.count(code)} times"
    for code, sides in expected.get("side", {}).items():
        for f in found:
            if f["code"] == code and f["side"] not in sides:
                yield f"{code} is of {f['side']}"
    yield from _said(expected, text)


def _said(expected: dict[str, Any], text: str) -> Iterator[str]:
    for words in expected.get("says", []):
        any_of = words if isinstance(words, list) else [words]
        if not any(word.lower() in text for word in any_of):
            yield f"nothing says {any_of}"
    for word in expected.get("says_not", []):
        if word.lower() in text:
            yield f"it says {word!r}"
