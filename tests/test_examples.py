"""The examples for services are what systemd and Kubernetes take."""

from __future__ import annotations

import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import click
import pytest

from upcall_trace.cli import cli

SERVICE = Path(__file__).parents[1] / "examples" / "service"


def options(words: list[str]) -> None:
    """Parse a command line without running it; raises click's errors."""
    whole = click.Context(cli, help_option_names=["-h", "--help"])
    command = cli.get_command(whole, words[0])
    assert command is not None
    command.make_context(words[0], words[1:], parent=whole)


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="there is no systemd here")
def test_systemd_accepts_the_units(tmp_path: Path) -> None:
    for unit in SERVICE.glob("upcall-trace.*"):
        text = unit.read_text().replace("/usr/bin/upcall-trace", "/bin/true")
        (tmp_path / unit.name).write_text(text)
        (tmp_path / unit.name).chmod(0o644)
    done = subprocess.run(
        ["systemd-analyze", "verify", *map(str, sorted(tmp_path.iterdir()))],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "upcall-trace" not in done.stderr, done.stderr


def test_the_units_command_is_one_of_ours() -> None:
    text = (SERVICE / "upcall-trace.service").read_text().replace("\\\n", " ")
    (line,) = [line for line in text.splitlines() if line.startswith("ExecStart=")]
    words = shlex.split(line.partition("=")[2])
    assert words[0].endswith("/upcall-trace")
    options(words[1:])


def test_the_daemonset_is_one() -> None:
    yaml: Any = pytest.importorskip("yaml")
    wanted = yaml.safe_load((SERVICE / "daemonset.yaml").read_text())
    assert (wanted["apiVersion"], wanted["kind"]) == ("apps/v1", "DaemonSet")
    template = wanted["spec"]["template"]
    assert wanted["spec"]["selector"]["matchLabels"] == template["metadata"]["labels"]
    (container,) = template["spec"]["containers"]
    names = {mount["name"] for mount in container["volumeMounts"]}
    assert names == {volume["name"] for volume in template["spec"]["volumes"]}
    options([*container["command"][1:], *container["args"]])
