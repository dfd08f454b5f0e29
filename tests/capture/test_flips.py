"""One wrong bit anywhere in a capture: no command calls it complete, and none ends with 0."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.support import Outcome, run
from upcall_trace.capture.reader import CaptureReader, NotACapture
from upcall_trace.capture.records import Chunk
from upcall_trace.errors import ExitCode

CAPTURES = Path(__file__).parents[2] / "captures"
TWO = ["real_client_simple", "cpu_lifecycle"]
CLAIMED = (ExitCode.LOST, ExitCode.UNREADABLE)


def flipped(whole: bytes, bit: int) -> bytes:
    raw = bytearray(whole)
    raw[bit // 8] ^= 1 << bit % 8
    return bytes(raw)


def is_called_complete(path: Path) -> bool:
    """What every command asks that reads a capture."""
    try:
        with CaptureReader(path) as reader:
            for _ in reader.records():
                pass
            return reader.complete or not reader.damage
    except NotACapture:
        return False


def commands(path: Path, output: Path) -> list[list[str | Path]]:
    """Every command that reads one capture."""
    return [
        ["info", path], ["info", "--json", path], ["info", "--verify", path], ["show", path],
        ["show", "--json", path], ["show", "--frames", path], ["show", "--hex", path],
        ["diagnose", path], ["diagnose", "--json", path], ["state", path, "--at", "1"],
        ["export", path, "--format", "transcript", "-o", output], ["recover", path, "-o", output],
        ["filter", path, "op == add_cpu", "-o", output], ["merge", path, "-o", output],
        ["edit", path, "--drop", "1.0", "-o", output], ["diff", path, path],
        ["bundle", path, "-o", output],
    ]  # fmt: skip


@pytest.mark.parametrize("name", TWO)
def test_one_bit_in_every_hundred(tmp_path: Path, name: str) -> None:
    whole = (CAPTURES / f"{name}.upcap").read_bytes()
    path = tmp_path / "x.upcap"
    for bit in range(0, len(whole) * 8, 97):
        path.write_bytes(flipped(whole, bit))
        assert not is_called_complete(path), bit


@pytest.mark.torture
@pytest.mark.parametrize("name", TWO)
def test_every_bit(tmp_path: Path, name: str) -> None:
    every_so_many(tmp_path, name, 1)


@pytest.mark.parametrize("name", TWO)
def test_commands_at_one_bit_in_every_thousand(tmp_path: Path, name: str) -> None:
    every_so_many(tmp_path, name, 997)


def every_so_many(directory: Path, name: str, step: int) -> None:
    """Two commands for each bit that is flipped: `info`, and all the others in turn."""
    whole = (CAPTURES / f"{name}.upcap").read_bytes()
    path, output = directory / "x.upcap", directory / "out"
    others = commands(path, output)
    for number, bit in enumerate(range(0, len(whole) * 8, step)):
        path.write_bytes(flipped(whole, bit))
        assert not is_called_complete(path), bit
        for command in (["info", "--json", path], others[number % len(others)]):
            output.unlink(missing_ok=True)
            outcome = run(*command)
            # An operation may be lost that is asked for by its number; and without its first bytes
            # it is no capture, and then no log either.
            claimed = (*CLAIMED, ExitCode.USAGE, ExitCode.NOTHING_RUN)
            assert outcome.code in claimed, (bit, command, outcome)
            assert '"complete": true' not in outcome.out, (bit, command)


@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.95, 0.999], ids=lambda share: f"{share:.1%}")
def test_every_command_says_so_and_ends_with_3(tmp_path: Path, share: float) -> None:
    """In the header, the records, the index and the end."""
    whole = (CAPTURES / "cpu_lifecycle.upcap").read_bytes()
    path, output = tmp_path / "x.upcap", tmp_path / "out"
    path.write_bytes(flipped(whole, int(len(whole) * 8 * share)))
    for command in commands(path, output):
        output.unlink(missing_ok=True)
        outcome = run(*command)
        assert outcome.code in CLAIMED, (command, outcome)
        assert_says_where(outcome, path)


def assert_says_where(outcome: Outcome, path: Path) -> None:
    assert str(path) in outcome.err
    if outcome.code == ExitCode.LOST:
        assert "offset" in outcome.err


def test_what_is_whole_ends_with_0(tmp_path: Path) -> None:
    """So that the others fail for the right reason."""
    path, output = tmp_path / "x.upcap", tmp_path / "out"
    shutil.copy(CAPTURES / "cpu_lifecycle.upcap", path)
    for command in commands(path, output):
        output.unlink(missing_ok=True)
        assert run(*command).code in (0, 2), command


@pytest.mark.parametrize("name", ["cpu_lifecycle", "framing", "handshake", "mmio_lifecycle"])
def test_one_lost_line_does_not_derail_the_rest(tmp_path: Path, name: str) -> None:
    """Every operation is still there with its result, and nothing is said of the handshake."""
    whole = (CAPTURES / f"{name}.upcap").read_bytes()
    path = tmp_path / "x.upcap"
    path.write_bytes(whole)
    with CaptureReader(path) as reader:
        lines = [o for o, r in reader.records() if isinstance(r, Chunk) and r.data[:3] == b"OK "]
    asked = run("show", "--json", path).objects
    expected = [(op["conn"], op["request"], op["op"], op["ret"]) for op in asked]
    before = {found["code"] for found in run("diagnose", "--json", path).objects[0]["findings"]}
    for line in lines:
        path.write_bytes(flipped(whole, (line + 12) * 8))
        shown = run("show", "--json", path)
        assert shown.code == ExitCode.LOST
        told = [(op["conn"], op["request"], op["op"], op["ret"]) for op in shown.objects]
        assert told == expected
        found = run("diagnose", "--json", path)
        assert found.code == ExitCode.LOST
        codes = {finding["code"] for finding in found.objects[0]["findings"]}
        assert not {code for code in codes - before if code.startswith("UP1")}
