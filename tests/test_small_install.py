"""An installation for nodes: only the packages of requirements/node.txt, and what it can do."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.support import DISK
from tests.vmm import Upcall, Vmm
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
IMAGE = ROOT / "tests" / "memory" / "kata_5_10.img"


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
        ["peek", IMAGE],
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


def test_it_records(node: Path, tmp_path: Path) -> None:
    written = tmp_path / "x.upcap"
    words = ["--listen", tmp_path / "proxy", "--upstream", tmp_path / "vmm", "-o", written]
    with Vmm(tmp_path / "vmm"):
        recorder = subprocess.Popen(
            [sys.executable, "-S", "-m", "upcall_trace", "record", *map(str, words)],
            cwd=node.parent, env={**os.environ, "PYTHONPATH": str(node)}, stderr=subprocess.PIPE,
        )  # fmt: skip
        with recorder:
            assert recorder.stderr is not None
            assert recorder.stderr.readline().startswith(b"recording ")
            with Upcall(tmp_path / "proxy") as client:
                assert client.ask(DISK).ret == 0
            recorder.send_signal(signal.SIGTERM)
            recorder.stderr.read()
            assert recorder.wait(30) == 0
    shown = on_node(node, "show", "--json", written)
    assert [json.loads(line)["op"] for line in shown.stdout.splitlines()] == ["add_mmio"]


def test_what_it_cannot_do_is_a_sentence(node: Path) -> None:
    said = on_node(node, "show", "--filter", "ret < 0", CAPTURE)
    assert said.returncode == 2
    assert said.stderr == (
        b"upcall-trace: this installation is without lark: pip install upcall-trace\n"
    )


def told_packages() -> dict[str, tuple[str, float]]:
    """Licence and megabytes of each package, as the page on installing has them."""
    page = (ROOT / "docs" / "install.md").read_text("utf-8")
    rows = re.findall(r"^\| ([\w.-]+) +\| ([\w. -]+?) +\| ([\d.]+) +\|$", page, re.MULTILINE)
    return {name.lower(): (licence, float(size)) for name, licence, size in rows}


def test_the_page_tells_its_packages_licences_and_size() -> None:
    told = told_packages()
    names, whole = set(), 0
    for found in closure(named_in(ROOT / "requirements" / "node.txt")):
        name = found.metadata["Name"]
        names.add(name.lower())
        words = " ".join(
            text
            for field in ("License-Expression", "License", "Classifier")
            for text in found.metadata.get_all(field) or ()
            if field != "Classifier" or text.startswith("License")
        )
        for part in told[name.lower()][0].split(" AND "):
            assert part.split("-")[0] in words, (name, words)
        whole += sum(
            file.locate().stat().st_size  # type: ignore[attr-defined]
            for file in found.files or ()
            if file.suffix != ".pyc" and ".." not in file.parts
        )
    assert names <= told.keys()
    assert names >= told.keys() - {"backports.zstd"}  # part of Python from 3.14 on
    sizes = sum(size for _, size in told.values())
    assert abs(whole / 1e6 - sizes) < 15, "the table of docs/install.md is far from the truth"


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
