"""`-` for every command that reads or writes one file: the same as with the file's own name."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import click
import pytest

from tests.support import GOLDEN, records_of, run
from upcall_trace.capture.records import Mark
from upcall_trace.cli import cli
from upcall_trace.cli.support.files import CAPTURE as FILE
from upcall_trace.errors import ExitCode

CAPTURE = Path("captures/mmio_lifecycle.upcap").resolve()
OTHER = Path("captures/cpu_lifecycle.upcap").resolve()
TRANSCRIPT = (GOLDEN / "mmio_lifecycle.jsonl").resolve()
IMAGE = Path("tests/memory/kata_5_10.img").resolve()

Words = Sequence[str | Path]
READS: dict[str, tuple[Words, Path, Words]] = {
    "show": (["show", "--json"], CAPTURE, []),
    "show frames": (["show", "--frames"], CAPTURE, []),
    "info": (["info", "--verify", "--json"], CAPTURE, []),
    "diagnose": (["diagnose", "--format", "markdown"], CAPTURE, []),
    "state": (["state", "--json"], CAPTURE, []),
    "tui": (["tui"], CAPTURE, []),
    "replay": (["replay"], CAPTURE, ["--to", "/nowhere/guest.sock"]),
    "diff second": (["diff", OTHER], CAPTURE, []),
    "diff first": (["diff"], CAPTURE, [OTHER]),
    "export": (["export", "--format", "csv", "-o", "-"], CAPTURE, []),
    "export foreign": (["export", "--format", "csv", "-o", "-"], TRANSCRIPT, []),
    "import": (["import"], TRANSCRIPT, ["-o", "-"]),
    "filter": (["filter"], CAPTURE, ["ret < 0", "-o", "-"]),
    "merge": (["merge", OTHER], CAPTURE, ["-o", "-"]),
    "recover": (["recover"], CAPTURE, ["-o", "-"]),
    "edit": (["edit", "--drop", "1.2", "-o", "-"], CAPTURE, []),
    "minimise": (["minimise", "--operation", "1.3", "-o", "-"], CAPTURE, []),
    "bundle": (["bundle", "-o", "-"], CAPTURE, []),
    "peek": (["peek"], IMAGE, []),
}
"""The words before and behind a file. Each is run with the file and with `-`."""
WRITES: dict[str, Words] = {
    "import": ["import", TRANSCRIPT],
    "filter": ["filter", CAPTURE, "ret < 0"],
    "merge": ["merge", CAPTURE, OTHER],
    "recover": ["recover", CAPTURE],
    "edit": ["edit", CAPTURE, "--drop", "1.2"],
    "minimise": ["minimise", CAPTURE, "--operation", "1.3"],
    "export": ["export", CAPTURE, "--format", "pcapng"],
    "bundle": ["bundle", CAPTURE],
    "peek": ["peek", IMAGE],
}
"""The words before the output. Each is run with a file for it, and with `-`."""
OTHERWISE = {
    "split input": "its own test below",
    "split output": "several files",
    "replay output": "the comparison goes to standard output",
    "record output": "tests/cli/test_record_stdout.py",
    "guest replay": "it serves until a signal comes",
}
"""What is not in the tables above, and why."""


def program(folder: Path, words: Words, stdin: Path | None) -> subprocess.CompletedProcess[bytes]:
    """The program as a process of its own in `folder`, between two pipes."""
    return subprocess.run(
        [sys.executable, "-m", "upcall_trace", *words],
        input=b"" if stdin is None else stdin.read_bytes(),
        capture_output=True, check=False, timeout=60, cwd=folder,
        env=os.environ | {"PYTHONPATH": str(Path.cwd())},
    )  # fmt: skip


def readable(written: bytes, folder: Path) -> object:
    """What is to be the same in two outputs: not times, temporary names and recording numbers."""
    path = folder / "written"
    path.write_bytes(written)
    if written.startswith(b"\x1f\x8b"):
        with tarfile.open(path) as archive:
            return [len(archive.getnames()), "manifest.json" in " ".join(archive.getnames())]
    if b"UPCAP" not in written[:16]:
        for name in (str(CAPTURE), str(IMAGE), "mmio\\_lifecycle.upcap", "standard input"):
            written = written.replace(name.encode(), b"INPUT")
        return written
    header, recorded = records_of(path)
    return header.source, header.arch, [each for each in recorded if not isinstance(each, Mark)]


def file_parameters() -> Iterator[str]:
    """`command input` and `command output` for each place of one file that is no log or world."""
    for name in cli.list_commands(click.Context(cli)):
        command = cli.get_command(click.Context(cli), name)
        assert command is not None
        for parameter in command.params:
            if parameter.type is not FILE:
                continue
            if isinstance(parameter, click.Argument):
                yield f"{name} input"
            elif parameter.name == "output":
                yield f"{name} output"


def test_every_command_with_a_file_is_in_a_table() -> None:
    tables = {f"{name.split()[0]} input" for name in READS} | {f"{name} output" for name in WRITES}
    assert set(file_parameters()) <= tables | OTHERWISE.keys()


@pytest.mark.parametrize("name", READS)
def test_a_file_is_read_from_standard_input(name: str, tmp_path: Path) -> None:
    before, file, behind = READS[name]
    named = program(tmp_path, [*before, file, *behind], None)
    piped = program(tmp_path, [*before, "-", *behind], file)
    assert piped.returncode == named.returncode, piped.stderr
    assert readable(piped.stdout, tmp_path) == readable(named.stdout, tmp_path)
    assert b"Traceback" not in piped.stderr


@pytest.mark.parametrize("name", WRITES)
def test_a_file_is_written_to_standard_output(name: str, tmp_path: Path) -> None:
    to_file = run(*WRITES[name], "-o", tmp_path / "named")
    piped = program(tmp_path, [*WRITES[name], "-o", "-"], None)
    assert piped.returncode == to_file.code == ExitCode.EXPECTED, piped.stderr
    wanted = (tmp_path / "named").read_bytes()
    assert readable(piped.stdout, tmp_path) == readable(wanted, tmp_path)
    assert not (tmp_path / "-").exists()


def test_the_parts_of_standard_input_have_a_name(tmp_path: Path) -> None:
    ended = program(tmp_path, ["split", "-", "-o", "parts"], CAPTURE)
    assert ended.returncode == ExitCode.EXPECTED, ended.stderr
    assert [each.name for each in (tmp_path / "parts").iterdir()] == ["stdin.conn1.upcap"]


def test_what_several_files_are_made_of_does_not_go_to_standard_output(tmp_path: Path) -> None:
    split = program(tmp_path, ["split", CAPTURE, "-o", "-"], None)
    matched = program(tmp_path, ["edit", CAPTURE, "--match", "ret=any", "-o", "-"], None)
    both = program(tmp_path, ["peek", IMAGE, "--json", "-o", "-"], None)
    replay = program(tmp_path, ["replay", CAPTURE, "--to", "/nowhere", "-o", "-"], None)
    for ended in (split, matched, both, replay):
        assert ended.returncode == ExitCode.USAGE
        assert ended.stdout == b""


def test_after_a_failure_standard_output_is_empty(tmp_path: Path) -> None:
    torn = tmp_path / "torn"
    torn.write_bytes(b"no capture")
    ended = program(tmp_path, ["recover", torn, "-o", "-"], None)
    assert (ended.returncode, ended.stdout) == (ExitCode.UNREADABLE, b"")
