"""The pages about diagnosis, bundles and the doctor against what the program really does."""

from __future__ import annotations

import json
import re
import tarfile
from pathlib import Path
from typing import Any, Final

import pytest

from tests.support import GOLDEN, run
from tools.generate_docs import ROOT
from upcall_trace.bundle.archive import FOLDER
from upcall_trace.diagnose.rules.registry import rules
from upcall_trace.kernel.world import load_worlds

DOCS: Final = ROOT / "docs"
OOPS: Final = ROOT / "captures" / "guest_oops.upcap"
CHEATS: Final = (DOCS / "cheat-sheet.md").read_text("utf-8")
FINDINGS: Final = (DOCS / "findings.md").read_text("utf-8")


def keys(page: str, heading: str) -> list[str]:
    """The names in the first column of the table that `heading` stands over."""
    (rows,) = re.findall(rf"^\| {re.escape(heading)} \|.*\n((?:\|.*\n)*)", page, re.MULTILINE)
    return re.findall(r"^\| `(\w+)` \|", rows, re.MULTILINE)


def section(page: str, heading: str) -> str:
    return re.split(r"^#+ ", page.partition(f"# {heading}\n")[2], maxsplit=1, flags=re.MULTILINE)[0]


@pytest.mark.parametrize("page", sorted(DOCS.glob("*.md")), ids=lambda page: page.name)
def test_every_code_that_a_page_names_exists(page: Path) -> None:
    assert set(re.findall(r"\bUP\d{3}\b", page.read_text("utf-8"))) <= set(rules())


def test_the_cheat_sheet_is_a_page_that_links_its_codes() -> None:
    linked = re.findall(r"\[(UP\d{3})\]\(codes\.md#([\w-]+)\)", CHEATS)
    assert len(linked) > 30
    for code, anchor in linked:
        assert anchor == f"{code.lower()}-{rules()[code].name}"
    assert set(re.findall(r"UP\d{3}", CHEATS)) == {code for code, _ in linked}
    assert len(CHEATS.splitlines()) < 60


@pytest.mark.parametrize(
    "symptom",
    [
        "timed out waiting on channel", "VcpuIsHotplugging", "vcpu is in hotplug process",
        "UpcallServerNotReady", "upcall server's max reconnect time exceed",
        "After 500 attempts, it still doesn't work.", "Wrong magic value", "db_dev_mgr",
    ],
)  # fmt: skip
def test_the_cheat_sheet_has_the_words_that_people_search_for(symptom: str) -> None:
    rows = [row for row in CHEATS.splitlines() if row.startswith("|") and symptom in row]
    assert rows
    assert all("(codes.md#" in row for row in rows)


def test_every_code_has_its_page_and_its_row() -> None:
    pages = (DOCS / "codes.md").read_text("utf-8")
    for rule in rules().values():
        assert f"\n## {rule.code} {rule.name}\n\nSeverity: {rule.severity.word}.\n" in pages
        assert re.search(rf"^\| \[{rule.code}\]\(codes\.md#", pages, re.MULTILINE)


def test_the_page_has_every_key_of_a_finding() -> None:
    two = json.loads(run("diagnose", "--json", OOPS, OOPS).out)["findings"]
    json_keys = keys(section(FINDINGS, "JSON"), "key")
    assert json_keys == [*two[0]]
    told = run("diagnose", "--json", OOPS, "--console", GOLDEN / "guest_oops.console.log")
    findings = json.loads(told.out)["findings"]
    assert json_keys[1:] == [*findings[0]]
    evidence = [each for finding in findings for each in finding["evidence"]]
    assert evidence
    for each in evidence:
        assert sorted(keys(FINDINGS, "key of `evidence`")) == sorted(each)


def test_the_page_has_every_key_of_a_manifest(tmp_path: Path) -> None:
    run("bundle", OOPS, "--redact", "-o", tmp_path / "a")
    with tarfile.open(tmp_path / "a") as tar:
        content = tar.extractfile(f"{FOLDER}/MANIFEST.json")
        assert content is not None
        manifest: dict[str, Any] = json.load(content)
    (rows,) = re.findall(r"^\| key of `MANIFEST.json` \|.*\n((?:\|.*\n)*)", FINDINGS, re.MULTILINE)
    told = {match[1]: match[0] for match in re.finditer(r"^\| `(\w+)` \|.*$", rows, re.MULTILINE)}
    assert [*told] == [*manifest]
    for key in ("files", "redacted"):
        assert set(re.findall(r"`([a-z0-9]+)`", told[key])) - {"null", key} == set(manifest[key][0])


def test_the_page_has_every_key_of_the_doctor() -> None:
    page = section((DOCS / "json.md").read_text("utf-8"), "Doctor")
    (examined,) = run("doctor", "--json").objects
    assert keys(page, "key") == [*examined]
    assert keys(page, "key of a point") == [*examined["points"][0]]
    for name in (point["name"] for point in examined["points"]):
        assert f"`{name}`" in page
    for name in examined["capabilities"]:
        assert f"`{name}`" in page


def test_the_world_on_the_page_is_one(tmp_path: Path) -> None:
    page = (DOCS / "find-the-cause.md").read_text("utf-8")
    (toml,) = re.findall(r"^```toml\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    (tmp_path / "pod.toml").write_text(toml)
    world = load_worlds(tmp_path / "pod.toml")["pod"]
    assert world.vcpus_running == (0, 1, 2, 3)
    assert world.mmio[1].role == "vsock"
