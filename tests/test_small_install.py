"""An installation for nodes: only the packages of requirements/node.txt, and what it can do."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from upcall_trace.cli import NOT_IN_A_SMALL_INSTALLATION

ROOT = Path(__file__).parents[1]
LEFT_OUT = {"lark", "qemu.qmp", "scapy", "textual"}


def named_in(path: Path) -> list[Requirement]:
    lines = path.read_text("ascii").splitlines()
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


def closure(wanted: list[Requirement]) -> Iterator[Distribution]:
    """The installed distributions that some requirements stand for, with what they need."""
    waiting, seen = list(wanted), set()
    while waiting:
        requirement = waiting.pop()
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        if requirement.name.lower() in seen:
            continue
        seen.add(requirement.name.lower())
        found = distribution(requirement.name)
        yield found
        waiting += [Requirement(text) for text in found.requires or ()]


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with those packages and ours, and nothing else, for a Python without site."""
    folder = tmp_path_factory.mktemp("node")
    tops: set[Path] = set()
    for found in closure(named_in(ROOT / "requirements" / "node.txt")):
        for file in found.files or ():
            if ".." not in file.parts:
                tops.add(Path(str(found.locate_file(file.parts[0]))))
    for top in [*tops, ROOT / "upcall_trace", ROOT / "dissectors"]:
        if not (folder / top.name).exists():
            (folder / top.name).symlink_to(top)
    return folder


def on_node(node: Path, *arguments: str | Path) -> subprocess.CompletedProcess[bytes]:
    environment = {**os.environ, "PYTHONPATH": str(node)}
    return subprocess.run(
        [sys.executable, "-S", "-m", "upcall_trace", *map(str, arguments)],
        cwd=node.parent, env=environment, capture_output=True, check=False, timeout=60,
    )  # fmt: skip


def test_the_list_is_what_the_program_needs_without_some() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    needed = {str(Requirement(text)) for text in project["dependencies"]}
    small = {str(each) for each in named_in(ROOT / "requirements" / "node.txt")}
    assert {Requirement(text).name for text in needed - small} == LEFT_OUT
    assert small < needed
    assert {name.partition(".")[0] for name in LEFT_OUT} <= set(NOT_IN_A_SMALL_INSTALLATION)


@pytest.mark.parametrize("name", ["lark", "scapy", "textual", "qemu"])
def test_what_is_left_out_is_not_there(node: Path, name: str) -> None:
    code = f"import importlib.util, sys; sys.exit(importlib.util.find_spec('{name}') is not None)"
    environment = {**os.environ, "PYTHONPATH": str(node)}
    assert not subprocess.run([sys.executable, "-S", "-c", code], env=environment).returncode


PCAP = ROOT / "tests" / "golden" / "framing.vsockmon.pcap"
CAPTURE = ROOT / "captures" / "cpu_lifecycle.upcap"


@pytest.mark.parametrize(
    "arguments",
    [
        ["show", CAPTURE],
        ["show", "--json", PCAP],
        ["info", CAPTURE],
        ["diagnose", CAPTURE],
        ["diagnose", PCAP],
        ["export", PCAP, "--format", "pcapng", "-o", "-"],
        ["export", CAPTURE, "--format", "csv", "-o", "-"],
        ["export", CAPTURE, "--format", "html", "-o", "-"],
        ["doctor"],
    ],
    ids=lambda arguments: " ".join(str(part).rpartition("/")[2] for part in arguments),
)
def test_it_says_the_same_as_the_whole_program(node: Path, arguments: list[str | Path]) -> None:
    small = on_node(node, *arguments)
    whole = subprocess.run(
        [sys.executable, "-m", "upcall_trace", *map(str, arguments)],
        cwd=ROOT, capture_output=True, check=False, timeout=60,
    )  # fmt: skip
    assert (small.returncode, small.stderr) == (whole.returncode, whole.stderr)
    if "doctor" not in arguments:
        assert small.stdout == whole.stdout


def test_what_it_cannot_do_is_a_sentence(node: Path) -> None:
    said = on_node(node, "show", "--filter", "ret < 0", CAPTURE)
    assert said.returncode == 2
    assert said.stderr == (
        b"upcall-trace: this installation is without lark: pip install upcall-trace\n"
    )


def test_no_package_of_it_is_under_the_gpl() -> None:
    for found in closure(named_in(ROOT / "requirements" / "node.txt")):
        try:
            told = [
                text
                for name in ("Classifier", "License", "License-Expression")
                for text in found.metadata.get_all(name) or ()
            ]
        except PackageNotFoundError:
            continue
        assert not any(re.search(r"(?<!L)GPL|General Public", text) for text in told), found.name
