"""Packed files and standard input: the same answers as for the plain file."""

from __future__ import annotations

import contextlib
import gzip
import lzma
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support import GOLDEN, command, records_of, run
from upcall_trace.sources import spooled

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

CAPTURE = Path("captures/cpu_lifecycle.upcap")
PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "gz": gzip.compress,
    "xz": lzma.compress,
    "zst": zstd.compress,
}
SOURCES = [CAPTURE, GOLDEN / "framing.jsonl", GOLDEN / "framing.vsockmon.pcap"]


@pytest.mark.parametrize("name", PACKERS)
@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.suffix)
def test_a_packed_file_reads_as_the_plain_one(source: Path, name: str, tmp_path: Path) -> None:
    packed = tmp_path / f"x.{name}"
    packed.write_bytes(PACKERS[name](source.read_bytes()))
    assert records_of(packed) == records_of(source)
    assert run("show", packed).out == run("show", source).out
    assert run("info", "--json", packed).out == run("info", "--json", source).out


@pytest.mark.parametrize("arguments", [["show"], ["info", "--json"], ["export", "--format", "csv"]])
def test_standard_input_reads_as_the_file(arguments: list[str]) -> None:
    tail = ["-o", "-"] if arguments[0] == "export" else []
    with CAPTURE.open("rb") as file:
        piped = subprocess.run(
            command(*arguments, "-", *tail), stdin=file, capture_output=True, check=True, timeout=60
        )
    assert piped.stdout.decode() == run(*arguments, CAPTURE, *tail).out
    assert piped.stderr == b""


@pytest.mark.parametrize("name", PACKERS)
def test_of_a_torn_archive_what_is_there_is_shown(name: str, tmp_path: Path) -> None:
    """Every cut gives a part of the operations and exit code 3, or a sentence and 5."""
    source = Path("tests/golden/mmio_edges_5_10.jsonl")
    whole = PACKERS[name](source.read_bytes())
    everything = run("show", "--json", source).out.splitlines()
    packed = tmp_path / "x"
    seen = set()
    for cut in range(20, len(whole) - 9, len(whole) // 7):
        packed.write_bytes(whole[:cut])
        outcome = run("show", "--json", packed)
        seen.add(outcome.code)
        assert outcome.code in (3, 5), cut
        shown = outcome.out.splitlines()
        assert [line.split('"ret"')[0] for line in shown] == [
            line.split('"ret"')[0] for line in everything[: len(shown)]
        ]
    # zstd packs so little into one block, and gives nothing of a block that is not whole.
    assert 3 in seen or name == "zst"


def test_what_stands_for_too_much_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spooled, "_FREE", 1 << 20)
    monkeypatch.setattr(spooled, "_RATIO", 2)
    packed = tmp_path / "x.gz"
    packed.write_bytes(gzip.compress(bytes(4 << 20)))
    outcome = run("show", packed)
    assert (outcome.code, outcome.out) == (5, "")
    assert "stands for more than 1 MiB" in outcome.err


def test_nothing_of_the_copy_stays_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    packed = tmp_path / "x.gz"
    packed.write_bytes(gzip.compress(CAPTURE.read_bytes()))
    subprocess.run(command("show", packed), capture_output=True, check=True, timeout=60)
    assert list((tmp_path / "temporary").iterdir()) == []


def test_ctrl_c_lets_what_feeds_the_pipe_finish(monkeypatch: pytest.MonkeyPatch) -> None:
    """It goes to both programs, and the last words of the other are read; a second ends that."""

    def copied(said: list[bytes | KeyboardInterrupt]) -> bytes:
        def read_block(*_: object) -> bytes:
            word = said.pop(0)
            if isinstance(word, KeyboardInterrupt):
                raise word
            return word

        monkeypatch.setattr(spooled, "read_block", read_block)
        monkeypatch.setattr(spooled, "unpacked", lambda _: contextlib.nullcontext())
        monkeypatch.setattr(spooled, "_known", {})
        return spooled.plain(Path("-")).read_bytes()

    stop = KeyboardInterrupt()
    assert copied([b"begun ", stop, b"and ended", b""]) == b"begun and ended"
    assert copied([b"begun", stop, stop, b"more"]) == b"begun"


def test_many_packed_files_take_few_descriptors(tmp_path: Path) -> None:
    """A fleet has thousands; whoever still has a path can read it."""
    packed = gzip.compress(CAPTURE.read_bytes())
    before = len(list(Path("/proc/self/fd").iterdir()))
    first = tmp_path / "first.gz"
    first.write_bytes(packed)
    kept = spooled.plain(first)
    for number in range(200):
        path = tmp_path / f"{number}.gz"
        path.write_bytes(packed)
        assert records_of(path) == records_of(CAPTURE)
    assert len(list(Path("/proc/self/fd").iterdir())) < before + 100
    assert kept.read_bytes() == CAPTURE.read_bytes()
    assert records_of(first) == records_of(CAPTURE)
