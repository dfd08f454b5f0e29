"""docs/pytest.md, docs/ci.md and the example workflow, done as they say."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import click
import pytest

from dissectors.constants import MessageType
from dissectors.messages import cpu_request, mmio_request
from tests.support import DISK, answer, ask, command, connect, run, write_capture
from tests.test_docs import blocks, first_cells, section, text_of
from tests.test_imports import ROOT
from upcall_trace import pytest_plugin
from upcall_trace.capture.records import Close, Header
from upcall_trace.cli import cli
from upcall_trace.client import UpcallClient
from upcall_trace.errors import EXIT_MEANINGS, ExitCode
from upcall_trace.guest import SimulatedGuest
from upcall_trace.kernel.world import load_worlds
from upcall_trace.testing import settings
from upcall_trace.transport import UnixAddress

UNPLUG = mmio_request(MessageType.DEL_MMIO, 0xE0006000, 0x2000, 5)
CRASH = cpu_request(MessageType.DEL_CPU, [77])
WORKFLOW = text_of("example-workflow.yml")


def program(directory: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """A program in a directory, with this package and its `upcall-trace` to be found there."""
    shims = directory / "bin"
    shims.mkdir(exist_ok=True)
    (shims / "upcall-trace").write_text(f'#!/bin/sh\nexec {shlex.join(command())} "$@"\n')
    (shims / "upcall-trace").chmod(0o755)
    environment = {
        **os.environ,
        "PATH": os.pathsep.join([str(shims), str(Path(sys.executable).parent), os.environ["PATH"]]),
        "PYTHONPATH": str(ROOT),
        "PYTEST_PLUGINS": "upcall_trace.pytest_plugin",
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
    }
    return subprocess.run(
        list(map(str, arguments)), cwd=directory, env=environment, capture_output=True, text=True,
        check=False, timeout=60,
    )  # fmt: skip


def add_the_disk_twice(path: Path) -> None:
    """What went wrong in production."""
    with UpcallClient(UnixAddress(path)) as client:
        for _ in range(2):
            client.ask(DISK.encode(), timeout_s=5)


# pytest.md


def test_the_page_has_every_fixture_and_its_exit_codes_are_those_of_the_program() -> None:
    told = text_of("pytest.md")
    fixtures = {name for name in vars(pytest_plugin) if name.startswith("upcall_")}
    assert first_cells(told, "fixture") == fixtures
    codes = re.findall(r"^\| (\d) \|", section(told, "Exit codes"), re.MULTILINE)
    assert [int(code) for code in codes] == [code for code in EXIT_MEANINGS if code < 10]


def test_the_examples_for_tests_are_a_project_that_passes(tmp_path: Path) -> None:
    tests, conftest = blocks("pytest.md", "python")
    (tmp_path / "test_hotplug.py").write_text(tests)
    (tmp_path / "conftest.py").write_text(conftest)
    captures = tmp_path / "captures"
    captures.mkdir()
    (captures / "worlds.toml").write_text("[pod]\nnr_cpu_ids = 2\ncpus_online = [0, 1]\n")
    plugged = [*connect(), ask(DISK, 10), answer(DISK, 20), ask(UNPLUG, 30), answer(UNPLUG, 40)]
    write_capture(captures / "disks.upcap", [*plugged, Close(50, 1, by_guest=False)])
    silence = [*connect(), ask(CRASH, 10), Close(5_000_000_000, 1, by_guest=False)]
    write_capture(captures / "oops.upcap", silence, Header("test", notes={"machine": "pod"}))
    pytest_ = [sys.executable, "-m", "pytest", "--upcall-captures"]
    ended = program(tmp_path, *pytest_, "--upcall-record", "once")
    assert (ended.returncode, "7 passed" in ended.stdout) == (0, True), ended.stdout
    assert (captures / "test_hotplug" / "test_my_client_plugs_two_cpus.upcap").exists()
    assert program(tmp_path, *pytest_).returncode == ExitCode.EXPECTED


# ci.md


def test_the_way_from_a_failure_to_a_test_is_as_its_page_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    lines = [line for block in blocks("ci.md", "sh") for line in block.splitlines()]
    steps = {tuple(shlex.split(line)[:2]): shlex.split(line)[1:] for line in lines}
    worlds, matchers = blocks("ci.md", "toml")
    captures = Path("captures")
    captures.mkdir()
    (captures / "worlds.toml").write_text(worlds)
    (world,) = load_worlds(captures / "worlds.toml").values()
    # 1. and 2.
    with SimulatedGuest(world, path=Path("vmm.sock")):
        arguments = command(*steps["upcall-trace", "record"])
        with subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True) as recorder:
            assert recorder.stderr is not None
            while not recorder.stderr.readline().startswith("recording "):
                assert recorder.poll() is None
            add_the_disk_twice(Path("vmm.sock"))
            recorder.send_signal(signal.SIGINT)
            recorder.communicate(timeout=20)
    assert run(*steps["upcall-trace", "bundle"]).code == 0
    Path("failure.upcap").unlink()
    subprocess.run(["tar", *steps["tar", "-xzf"]], check=True)
    # 3.
    for name in ("show", "diagnose", "filter"):
        assert run(*steps["upcall-trace", name]).code == 0
    # 5. and 6.
    replays = [shlex.split(line)[1:] for line in lines if line.startswith("upcall-trace replay")]
    plan, live, matching = replays
    assert steps["upcall-trace", "guest"][1:5] == [
        "--listen", "guest.sock", "--control", "control.sock"
    ]  # fmt: skip
    with SimulatedGuest(world, path=Path("guest.sock"), control=Path("control.sock")) as guest:
        assert run(*plan).code == 0
        assert len(guest.state()["mmio"]) == 1  # nothing was sent
        assert run(*live).out.endswith("all as recorded\n")
        assert run(*matching).code == 0
    # 6. and 7.
    (captures / "disk-twice.match.toml").write_text(matchers)
    ended = program(tmp_path, "python", "-m", "pytest", *steps["pytest", "--upcall-captures"])
    assert (ended.returncode, "1 passed" in ended.stdout) == (0, True), ended.stdout


# The workflow.


def step(name: str) -> str:
    """What a step runs."""
    after = WORKFLOW.partition(f"- name: {name}\n")[2].partition("run: |\n")[2]
    found = re.match(r"( +).*\n(?:\1.*\n)*", after)
    assert found, name
    return textwrap.dedent(found[0])


def test_every_command_of_the_workflow_is_understood() -> None:
    lines = [line.strip() for line in WORKFLOW.splitlines()]
    commands = [line for line in lines if line.startswith("upcall-trace ")]
    assert {shlex.split(line)[1] for line in commands} >= {"guest", "replay", "diagnose", "lab"}
    for line in commands:
        words = re.sub(r" (&|> \w+)$", "", line.replace('"$(cat address)"', "address"))
        _, name, *arguments = shlex.split(words)
        found: click.Command | None = cli
        found = cli.get_command(click.Context(cli), name)
        while isinstance(found, click.Group):
            name, *arguments = arguments
            found = found.get_command(click.Context(found), name)
        assert found is not None, line
        found.make_context(name, arguments)
    used = set(re.findall(r"--upcall-[a-z]+", WORKFLOW))
    assert used <= set(settings.OPTIONS)


def test_the_workflow_does_what_it_says(tmp_path: Path) -> None:
    captures = tmp_path / "captures"
    captures.mkdir()
    twice = [ask(DISK, 10), answer(DISK, 20), ask(DISK, 30), answer(DISK, 40, ret=-17)]
    write_capture(captures / "disk.upcap", [*connect(), *twice, Close(50, 1, by_guest=False)])
    for name in ("Each capture as a test", "The same with the command line, against one guest"):
        ended = program(tmp_path, "bash", "-e", "-c", step(name))
        assert ended.returncode == 0, ended.stdout + ended.stderr
    assert (tmp_path / "disk.upcap.replayed").exists()
    assert (tmp_path / "upcall.xml").exists()
    ended = program(tmp_path, "bash", "-e", "-c", step("Why, if something differs"))
    assert "UP301" in ended.stdout
