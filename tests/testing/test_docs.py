"""docs/pytest.md, docs/ci.md and the example workflow, done as they say."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import textwrap
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import click
import pytest

from dissectors.constants import MessageType
from dissectors.messages import cpu_request, mmio_request
from tests.support import DISK, answer, ask, command, connect, run, write_capture
from tests.test_docs import blocks, first_cells, section, text_of
from tests.test_imports import ROOT
from tests.testing.test_plugin import plugin_from_the_checkout, pytest_of  # noqa: F401
from upcall_trace.capture.records import Close, Header
from upcall_trace.cli import cli
from upcall_trace.control.order_socket import give_order
from upcall_trace.errors import EXIT_MEANINGS, ExitCode
from upcall_trace.kernel.noted_world import world_notes
from upcall_trace.kernel.world import Window, World, load_worlds
from upcall_trace.simulated.on_socket import SimulatedGuest
from upcall_trace.sockets.addresses import UnixAddress, answers, socket_folder
from upcall_trace.sockets.client import UpcallClient
from upcall_trace.testing import plugin as pytest_plugin
from upcall_trace.testing import settings

pytest_plugins = ["pytester"]
DISK_BASE = 0xE0006000
UNPLUG = mmio_request(MessageType.DEL_MMIO, 0xE0006000, 0x2000, 5)
CRASH = cpu_request(MessageType.DEL_CPU, [77])
WORKFLOW = text_of("example-workflow.yml")


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A directory for sockets: a worker's tmp_path may be longer than the kernel takes."""
    with socket_folder() as directory:
        yield Path(directory)


def wait_for(path: Path) -> None:
    """Until somebody listens there."""
    until = time.monotonic() + 20
    while not answers(path):  # it is there before it can be connected to
        assert time.monotonic() < until
        time.sleep(0.02)


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


def test_the_examples_for_tests_are_a_project_that_passes(pytester: pytest.Pytester) -> None:
    tests, conftest = blocks("pytest.md", "python")
    pytester.makepyfile(test_hotplug=tests, conftest=conftest)
    captures = pytester.path / "captures"
    captures.mkdir()
    (captures / "worlds.toml").write_text("[pod]\nnr_cpu_ids = 2\ncpus_online = [0, 1]\n")
    plugged = [*connect(), ask(DISK, 10), answer(DISK, 20), ask(UNPLUG, 30), answer(UNPLUG, 40)]
    write_capture(captures / "disks.upcap", [*plugged, Close(50, 1, by_guest=False)])
    silence = [*connect(), ask(CRASH, 10), Close(5_000_000_000, 1, by_guest=False)]
    write_capture(captures / "oops.upcap", silence, Header("test", notes={"machine": "pod"}))
    for mode in ("once", "none"):
        result = pytest_of(pytester, "--upcall-captures", "--upcall-record", mode)
        assert result.ret == ExitCode.EXPECTED
        result.assert_outcomes(passed=7 if mode == "once" else 8)
    assert (captures / "test_hotplug" / "test_my_client_plugs_two_cpus.upcap").exists()


# ci.md


def test_the_way_from_a_failure_to_a_test_is_as_its_page_says(
    pytester: pytest.Pytester, short_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.chdir(short_path)
    lines = [line for block in blocks("ci.md", "sh") for line in block.splitlines()]
    steps = {tuple(shlex.split(line)[:2]): shlex.split(line)[1:] for line in lines}
    worlds, matchers = blocks("ci.md", "toml")
    captures = Path("captures")
    captures.mkdir()
    (captures / "worlds.toml").write_text(worlds)
    (world,) = load_worlds(captures / "worlds.toml").values()
    # 1. and 2.
    with SimulatedGuest(world, path=Path("vmm.sock")):
        Path("vmm.sock.target").unlink()  # a real VMM leaves no note of its guest
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
    # 4.
    assert run(*steps["upcall-trace", "edit"]).code == 0
    subprocess.run(["rm", *steps["rm", "captures/disk-twice.upcap"]], check=True)
    Path("captures/worlds.toml").unlink()
    # 5. and 6.
    replays = [shlex.split(line)[1:] for line in lines if line.startswith("upcall-trace replay")]
    plan, live, matching = replays
    with subprocess.Popen(command(*steps["upcall-trace", "guest"])) as guest, ExitStack() as end:
        end.callback(guest.terminate)
        wait_for(Path("control.sock"))
        assert run(*plan).code == 0
        state = give_order(Path("control.sock"), {"state": True}, 10)["state"]
        assert len(state["mmio"]) == 1  # nothing was sent
        assert run(*live).out.endswith("all as recorded\n")
        assert run(*matching).code == 0
    # 6. and 7.
    (captures / "disk.match.toml").write_text(matchers)
    result = pytest_of(pytester, *steps["pytest", "--upcall-captures"])
    assert result.ret == ExitCode.EXPECTED
    result.assert_outcomes(passed=1)


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
    # click keeps the names of the help option that it meets first, so they have to be ours.
    root = click.Context(cli, **cli.context_settings)
    for line in commands:
        words = re.sub(r" (&|> \w+)$", "", line.replace('"$(cat address)"', "address"))
        _, name, *arguments = shlex.split(words)
        found, context = cli.get_command(root, name), root
        while isinstance(found, click.Group):
            context = click.Context(found, parent=context)
            name, *arguments = arguments
            found = found.get_command(context, name)
        assert found is not None, line
        found.make_context(name, arguments, parent=context)
    used = set(re.findall(r"--upcall-[a-z]+", WORKFLOW))
    assert used <= set(settings.OPTIONS)


def test_the_workflow_replays_each_capture_with_the_command_line(
    short_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (short_path / "upcall-trace").write_text(f'#!/bin/sh\nexec {shlex.join(command())} "$@"\n')
    (short_path / "upcall-trace").chmod(0o755)
    monkeypatch.setenv("PATH", str(short_path), prepend=os.pathsep)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    twice = [ask(DISK, 10), answer(DISK, 20), ask(DISK, 30), answer(DISK, 40, ret=-17)]
    (short_path / "captures").mkdir()
    capture = short_path / "captures" / "disk.upcap"
    write_capture(capture, [*connect(), *twice, Close(50, 1, by_guest=False)])
    # One of a guest that is no default pod, and in which the same request gets another answer.
    taken = World(mmio=(Window(DISK_BASE, 0x2000, 7),))
    refused = [ask(DISK, 10), answer(DISK, 20, ret=-17)]
    other = Header("test", notes=world_notes(taken, "taken"))
    write_capture(short_path / "captures" / "taken.upcap",
                  [*connect(), *refused, Close(50, 1, by_guest=False)], other)  # fmt: skip
    script = step("The same with the command line, each against a guest like its own")
    subprocess.run(["bash", "-e", "-c", script], cwd=short_path, check=True, timeout=60)
    for name in ("disk", "taken"):
        replayed = short_path / f"{name}.upcap.replayed"
        assert "UP301" in run("diagnose", replayed, "--format", "github").out
