"""A little of the fuzzing that `make torture` does, and everything that it ever found."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import pytest

from tests.fuzz import campaign
from tests.fuzz.differing import compare_three, compare_with_lua
from tests.fuzz.mutating import mutations
from tests.fuzz.targets import Target, take, targets
from tests.support import records_of
from upcall_trace.diagnose.log_inputs import read_logs
from upcall_trace.errors import UnreadableInput

NAMES = list(targets(Path()))
FOUND = sorted(path for path in campaign.CRASHERS.glob("*/*") if path.is_file())
SEED = 219


@pytest.mark.parametrize("name", NAMES)
def test_a_parser_raises_only_errors_of_ours(name: str, tmp_path: Path) -> None:
    target = targets(tmp_path)[name]
    most = 60 if target.limit_s >= 1 else 400
    account = campaign.run(name, target, SEED, most, time.monotonic() + 60, tmp_path / "found")
    assert account.finds == {}
    assert account.inputs == most


HEAPS = [name for name, target in targets(Path()).items() if target.join is not None]


@pytest.mark.parametrize("name", HEAPS)
def test_a_part_of_a_heap_is_read_whatever_became_of_others(name: str, tmp_path: Path) -> None:
    """Or a heap would be worth one input."""
    target = targets(tmp_path)[name]
    assert target.join is not None
    parts = list(target.known())
    few, many = (target.join([b"", b"\xff" * 30, *parts[:count]]) for count in (2, len(parts)))
    assert len(read(few, tmp_path)) < len(read(many, tmp_path))


def read(raw: bytes, folder: Path) -> list[object]:
    """Records of a capture or what can be imported, else lines of a log that are understood."""
    path = folder / "x"
    path.write_bytes(raw)
    try:
        return list(records_of(path)[1])
    except UnreadableInput:
        return [None] * read_logs(found=[path]).inputs[0].understood


def test_struct_construct_and_scapy_read_the_same() -> None:
    assert compare_three(SEED, 1000, time.monotonic() + 60) == 1000


@pytest.mark.skipif(not shutil.which("tshark"), reason="there is no tshark here")
def test_lua_reads_the_same() -> None:
    assert compare_with_lua(SEED, 1, time.monotonic() + 60) >= 100


@pytest.mark.parametrize("path", FOUND, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_what_was_found_once_stays_mended(path: Path, tmp_path: Path) -> None:
    target = targets(tmp_path)[path.parent.name]
    begun = time.thread_time()
    take(target, path.read_bytes())
    assert time.thread_time() - begun < 10 * target.limit_s


def test_every_folder_of_crashers_is_of_a_target() -> None:
    assert {path.parent.name for path in FOUND} <= set(NAMES)


def test_the_same_seed_makes_the_same_inputs() -> None:
    one, other = (mutations([b"some", b"samples"], 7) for _ in range(2))
    assert [next(one) for _ in range(200)] == [next(other) for _ in range(200)]


def test_a_parser_that_raises_or_is_slow_is_found(tmp_path: Path) -> None:
    def wrong(raw: bytes) -> None:
        if b"9" in raw:
            raise IndexError("found")
        if b"s" in raw:
            until = time.thread_time() + 0.02
            while time.thread_time() < until:
                pass

    target = Target(wrong, lambda: [b"99999", b"slow", b"good"], 0.010)
    account = campaign.run("wrong", target, SEED, 3, time.monotonic() + 60, tmp_path)
    assert {what.partition(" ")[0] for what in account.finds} == {"IndexError", "TimeoutError"}
    assert len(list(tmp_path.glob("wrong/*"))) == 2
