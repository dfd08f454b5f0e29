"""The published JSON Schemas, held against what the program prints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from tools.make_schemas import FOLDER, GOLDEN, LOGS, PCAPS, outputs

SCHEMAS: dict[str, Any] = {
    path.name.removesuffix(".schema.json"): json.loads(path.read_text("ascii"))
    for path in sorted(FOLDER.glob("*.schema.json"))
}
CAPTURES = sorted(Path("captures").glob("*.upcap"))
AGAIN = "; run `python -m tools.make_schemas`"


def check(name: str, values: list[Any]) -> None:
    assert values
    validator = jsonschema.Draft202012Validator(SCHEMAS[name])
    for value in values:
        for error in validator.iter_errors(value):
            raise AssertionError(f"{name}: {error.json_path}: {error.message[:200]}{AGAIN}")


@pytest.mark.parametrize("name", SCHEMAS)
def test_a_schema_is_one(name: str) -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMAS[name])
    assert SCHEMAS[name]["type"] == "object"


@pytest.mark.parametrize("path", [*CAPTURES, *GOLDEN[::3], *PCAPS[::3]], ids=lambda path: path.name)
def test_what_is_printed_of_a_recording_fits(path: Path) -> None:
    check("operation", outputs("show", "--json", path))
    check("frame", outputs("show", "--frames", "--json", path))
    check("info", outputs("info", "--json", path))
    check("findings", outputs("diagnose", "--json", path))
    check("state", outputs("state", "--json", path))


def test_what_is_printed_of_several_files_fits() -> None:
    check("operation", outputs("show", "--json", *CAPTURES[:2]))
    check("frame", outputs("show", "--frames", "--json", *CAPTURES[:2]))
    check("info", outputs("info", "--json", *CAPTURES[:2]))


@pytest.mark.parametrize("path", LOGS[1::2], ids=lambda path: path.parent.name)
def test_what_is_found_in_a_log_fits(path: Path) -> None:
    check("findings", outputs("diagnose", "--json", path))


def test_a_key_that_no_schema_has_is_refused() -> None:
    (value,) = outputs("info", "--json", CAPTURES[0])
    with pytest.raises(AssertionError, match="made_up"):
        check("info", [{**value, "made_up": 1}])
    with pytest.raises(AssertionError, match="connections"):
        check("info", [{key: each for key, each in value.items() if key != "connections"}])
