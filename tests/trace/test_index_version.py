"""An index is of the reading that made it: its version goes up whenever decoding changes."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from tests.sources.test_pcap import cut_at
from tests.support import GOLDEN, has_index, run
from upcall_trace.errors import ExitCode
from upcall_trace.trace import indexing, opening
from upcall_trace.trace.indexing import INDEX_VERSION
from upcall_trace.trace.opening import load
from upcall_trace.views.json_objects import operation_object

READ = (4, "ee29d43a")
"""The index's version, and the beginning of a digest of how it reads these recordings."""
RECORDINGS = ("framing", "stale_results", "cpu_lifecycle", "pci_memory", "aarch64_lifecycle")
KEPT = (76 + 16, 76 + 24, 76 + 44, 1 << 16)
"""Bytes of each packet."""


def reading(folder: Path) -> str:
    """A digest of every column of the recordings, whole and with packets cut."""
    digest = hashlib.sha256()
    for name in RECORDINGS:
        for kept in KEPT:
            path = cut_at(GOLDEN / f"{name}.vsockmon.pcap", folder / "x.pcap", kept)
            operations = load(path).operations
            for column in sorted(operations.names()):
                digest.update(f"{column} {operations.column(column).dtype.str}".encode())
                digest.update(operations.column(column).tobytes())
    return digest.hexdigest()[:8]


def test_who_changes_decoding_raises_the_version_of_the_index(tmp_path: Path) -> None:
    """Where only the digest differs, raise INDEX_VERSION, and put both here."""
    assert (INDEX_VERSION, reading(tmp_path)) == READ


def test_a_capture_that_an_older_program_indexed_is_read_anew_and_nothing_is_said_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packets = cut_at(GOLDEN / "framing.vsockmon.pcap", tmp_path / "x.pcap", 76 + 16)
    capture, again = tmp_path / "old.upcap", tmp_path / "new.upcap"
    monkeypatch.setattr(indexing, "INDEX_VERSION", INDEX_VERSION - 1)
    run("import", packets, "-o", capture)
    monkeypatch.undo()
    monkeypatch.setattr(opening, "DECODED_SIZE", -1)
    assert not load(capture).indexed
    expected = [operation_object(each) for each in load(packets).operations]
    assert [operation_object(each) for each in load(capture).operations] == expected
    said = run("info", "--verify", capture)
    assert (said.code, said.err) == (ExitCode.LOST, run("info", packets).err.replace(
        str(packets), str(capture)))  # fmt: skip
    run("filter", capture, "request >= 0", "-o", again)
    assert has_index(again)
    assert load(again).indexed
