"""Findings for tools that collect results: SARIF by its schema, GitLab by its keys."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from tests.support import each_recording, run

SCHEMA = json.loads((Path(__file__).parent / "sarif-2.1.0.subset.json").read_text("utf-8"))


def told(form: str, *arguments: str | Path) -> Any:
    return json.loads(run("diagnose", "--format", form, *arguments).out)


@each_recording
def test_sarif_is_valid_and_has_a_result_for_each_finding(golden: Path) -> None:
    found = told("sarif", golden)
    jsonschema.validate(found, SCHEMA)
    (made,) = found["runs"]
    findings = told("json", golden)["findings"]
    assert [result["ruleId"] for result in made["results"]] == [f["code"] for f in findings]
    rules = made["tool"]["driver"]["rules"]
    for result in made["results"]:
        assert rules[result["ruleIndex"]]["id"] == result["ruleId"]
    assert [r["properties"]["inferred"] for r in made["results"]] == [
        f["inferred"] for f in findings
    ]


def test_a_finding_of_a_log_is_at_its_line() -> None:
    log = "tests/cases/src-cpu-refused/kata.log"
    (result,) = [r for r in told("sarif", log)["runs"][0]["results"] if r["ruleId"] == "UP702"]
    place = result["locations"][0]["physicalLocation"]
    line = place["region"]["startLine"]
    assert place["artifactLocation"]["uri"].endswith("kata.log")
    assert "success Failed" in Path(log).read_text("utf-8").splitlines()[line - 1]


def test_gitlab_gets_an_array_with_one_fingerprint_for_each() -> None:
    capture = "captures/mmio_lifecycle.upcap"
    found = told("gitlab", capture)
    assert len(found) == len(told("json", capture)["findings"])
    assert len({each["fingerprint"] for each in found}) == len(found)
    for each in found:
        assert [*each] == ["description", "check_name", "fingerprint", "severity", "location"]
        assert each["severity"] in {"info", "minor", "major", "critical", "blocker"}
    assert told("gitlab", capture) == found


@pytest.mark.parametrize("form", ["sarif", "gitlab"])
def test_possibly_survives(form: str) -> None:
    text = run("diagnose", "--format", form, "captures/mmio_lifecycle.upcap").out
    assert "possibly The guest refused" in text
