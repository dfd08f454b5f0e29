"""A lab guest's console: recorded ones, hostile ones, and what is told of a guest that is stuck."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.kernel.recordings import console_samples
from tests.support import GOLDEN
from upcall_trace.lab.console import (
    Console,
    SeenState,
    has_begun,
    is_ready,
    last_words,
    release_of,
    states,
    trouble,
)

CONSOLES = sorted(GOLDEN.glob("*.console.log"))
STATE: Final = "STATE cpus=0,2-3 present=0-3 blk=vda,vdb, virtio=virtio0,virtio1, mem=503592\n"
ONE_CPU: Final = "STATE cpus=0 present=0 blk= virtio=virtio0, mem=503612\n"
READY: Final = "[    2.427798] READY vsock=yes upcall=yes\n"
PANIC: Final = "[    1.5] Kernel panic - not syncing: VFS: Unable to mount root fs\r\n"


def cpus_of(text: str) -> list[tuple[int, ...]]:
    return [state.cpus_online for state in states(text)]


def test_a_state_has_numbers_and_names() -> None:
    (state,) = states(STATE)
    assert state == SeenState(
        (0, 2, 3), (0, 1, 2, 3), ("vda", "vdb"), ("virtio0", "virtio1"), 503592
    )
    assert json.loads(json.dumps(state.as_json())) == {
        "cpus_online": [0, 2, 3],
        "cpus_present": [0, 1, 2, 3],
        "disks": ["vda", "vdb"],
        "virtio": ["virtio0", "virtio1"],
        "memory_kib": 503592,
    }
    (bare,) = states(ONE_CPU)
    assert bare == SeenState((0,), (0,), (), ("virtio0",), 503612)


@pytest.mark.parametrize("log", CONSOLES, ids=lambda path: path.name.split(".")[0])
def test_a_recorded_console_gives_every_state_and_the_last_one_is_the_newest(log: Path) -> None:
    found = list(states(log.read_text("utf-8", "replace")))
    samples = console_samples(log.name.split(".")[0])
    assert samples
    assert [
        (frozenset(state.cpus_online), len(state.virtio), len(state.disks)) for state in found
    ] == samples
    lost = [state for state in found if not set(state.cpus_online) <= set(state.cpus_present)]
    assert bool(lost) == (log.name == "cpu_lookup_5_10.console.log")  # one runs without its id
    assert Console(log).state() == found[-1]


# A console that grows.


def test_a_console_that_is_not_there_yet_says_nothing(tmp_path: Path) -> None:
    console = Console(tmp_path / "console.log")
    console.mark()
    assert console.text() == ""
    assert console.state() is None
    console.path.write_text(STATE)
    assert console.text() == STATE


def test_the_newest_whole_state_counts(tmp_path: Path) -> None:
    console = Console(tmp_path / "console.log")
    console.path.write_text(ONE_CPU + STATE[:-1])
    newest = console.state()
    assert newest is not None
    assert newest.cpus_online == (0,)
    with console.path.open("a") as log:
        log.write("\n")
    newest = console.state()
    assert newest is not None
    assert newest.cpus_online == (0, 2, 3)


def test_after_a_reset_only_what_the_new_boot_says_counts(tmp_path: Path) -> None:
    console = Console(tmp_path / "console.log")
    console.path.write_text(STATE + READY)
    console.mark()
    assert console.text() == ""
    assert console.state() is None
    with console.path.open("a") as log:
        log.write("booting\n" + ONE_CPU)
    assert console.text() == "booting\n" + ONE_CPU
    assert not is_ready(console.text())
    newest = console.state()
    assert newest is not None
    assert newest.cpus_online == (0,)


@pytest.mark.parametrize("noise", [1 << 16, 256 << 10, 3 << 20])
def test_a_state_long_ago_is_found_in_this_boot_but_not_in_the_one_before(
    tmp_path: Path, noise: int
) -> None:
    console = Console(tmp_path / "console.log")
    console.path.write_text(STATE + "x" * noise + "\n")
    newest = console.state()
    assert newest is not None
    assert newest.cpus_online == (0, 2, 3)
    console.mark()
    with console.path.open("a") as log:
        log.write("x" * noise)
    assert console.state() is None


def test_wherever_the_search_begins_no_half_of_a_state_is_taken_for_one(tmp_path: Path) -> None:
    console = Console(tmp_path / "console.log")
    (whole,) = states(STATE)
    for begin in range(len(STATE) + 1):
        tail = "\n".rjust((256 << 10) - begin, "x")
        console.path.write_text(STATE + tail)
        assert console.state() == whole


# Hostile text: the guest's console is written by whatever runs in the guest.


@pytest.mark.parametrize(
    ("cpus", "numbers"),
    [
        ("0-4294967295", 8192),
        ("99999999999999999999-99999999999999999999999", 8192),
        (",".join(["0-8191"] * 100), 8192),
        ("3-1", 0),
        ("-", 0),
        ("-5", 0),
        ("1--2", 0),
        ("1-2-3", 0),
        (",,7,,", 1),
    ],
)
def test_a_range_of_cpus_is_never_longer_than_a_kernel_could_have(cpus: str, numbers: int) -> None:
    (found,) = cpus_of(STATE.replace("cpus=0,2-3", f"cpus={cpus}"))
    assert len(found) == numbers


@pytest.mark.parametrize(
    "text",
    [
        STATE[:-1],
        STATE.replace(" mem=", "\n mem="),
        STATE.replace("cpus=0,2-3", "cpus="),
        STATE.replace("mem=503592", "mem="),
        STATE.replace("mem=503592", "mem=-1"),
        STATE.replace("STATE", "STA\0TE"),
        STATE.replace("present", "\x1b[31mpresent"),
        STATE.replace("vda,", "vda\t"),
    ],
)
def test_a_line_that_was_cut_or_written_into_is_no_state(text: str) -> None:
    assert list(states(text)) == []


def test_a_state_is_found_behind_a_prompt_a_time_or_bytes_that_are_no_text(tmp_path: Path) -> None:
    prefixes = [b"/ # \x1b[6n", b"[    2.427798] ", b"\xff\xfe\x00\x1b]0;", b"STATE STATE "]
    (tmp_path / "log").write_bytes(b"".join(prefix + STATE.encode() for prefix in prefixes))
    assert cpus_of(Console(tmp_path / "log").text()) == [(0, 2, 3)] * len(prefixes)


PIECES = [
    "STATE ", "cpus=", "present=", "blk=", "virtio=", "mem=", "0-3", "7", ",", "-", " ", "\n",
    "\r", "\0", "\x1b[6n", "READY vsock=", "upcall=", "yes", "no", "Kernel panic - not syncing: ",
    "[    1.5] ", "\ufffd", "\u0663", "\u2028",
]  # fmt: skip


@given(st.lists(st.sampled_from(PIECES), max_size=40).map("".join))
def test_no_text_at_all_is_too_much(text: str) -> None:
    for state in states(text):
        json.dumps(state.as_json())
    is_ready(text)
    trouble(text)
    assert "\n" not in last_words(text)


# What is told of a guest that does not come up.


@pytest.mark.parametrize(
    ("text", "ready"),
    [
        ("", False),
        (READY, True),
        (READY.partition("] ")[2], True),
        (READY.replace("]", "][   T41]", 1), True),
        ("/ # \x1b[6n" + READY, True),
        ("booting\n" + ONE_CPU + READY, True),
        ("READY\n", False),
        (READY.replace("vsock=yes", "vsock=no"), False),
        (READY.replace("upcall=yes", "upcall=no"), False),
        (READY.replace("upcall=yes", "upcall="), False),
    ],
)
def test_a_guest_is_ready_when_it_has_vsock_and_upcall(text: str, ready: bool) -> None:
    assert is_ready(text) is ready


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", None),
        ("booting\n", None),
        (READY, None),
        ("a panic may come\n", None),
        (
            PANIC,
            "the guest's kernel panicked: VFS: Unable to mount root fs",
        ),
        (
            "insmod: failed\nLAB module upcall_lab failed\n",
            "the lab's module did not load",
        ),
        (READY.replace("vsock=yes", "vsock=no"), "has no virtio vsock device"),
        ("READY vsock=no upcall=no\n", "has no virtio vsock device"),
        (READY.replace("upcall=yes", "upcall=no"), "has no upcall server"),
        # The earliest cause is told, whatever else came of it.
        ("LAB module upcall_lab failed\nREADY vsock=yes upcall=no\n", "module did not load"),
        ("READY vsock=no upcall=no\n" + PANIC, "panicked"),
        # Others of the stock kernel's modules may be built into it.
        ("LAB module virtio_blk failed\n", None),
    ],
)
def test_why_a_guest_will_never_answer(text: str, why: str | None) -> None:
    told = trouble(text)
    if why is None:
        assert told is None
    else:
        assert told is not None
        assert why in told
        assert told.isprintable()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "its console printed nothing: is it an x86-64 kernel"),
        (" \r\n\t\n", "its console printed nothing"),
        ("one\ntwo\n\n \n", "its console ends with: two"),
        ("one\n  Booting the ker", "its console ends with: Booting the ker"),
    ],
)
def test_how_far_a_guest_came(text: str, words: str) -> None:
    assert last_words(text).startswith(words)


@pytest.mark.parametrize("told", [trouble, is_ready])
def test_what_is_told_is_of_the_current_boot(tmp_path: Path, told: Callable[[str], object]) -> None:
    console = Console(tmp_path / "console.log")
    console.path.write_text(READY + PANIC)
    assert told(console.text())
    console.mark()
    assert not told(console.text())


@pytest.mark.parametrize(
    ("text", "release"),
    [
        ("[    0.000000] Linux version 6.12.117+deb12-cloud-amd64 (debian) #1\n", (6, 12)),
        ("Linux version 5.10.223 (x@y)\n[ 1.0] Linux version 9.9\n", (5, 10)),
        ("Linux version of something\n", None),
        ("", None),
    ],
)
def test_the_console_tells_which_kernel_booted(text: str, release: tuple[int, int] | None) -> None:
    assert release_of(text) == release


def test_a_guest_has_begun_when_its_init_runs() -> None:
    assert has_begun("[    2.1] Run /init as init process\n")
    assert has_begun("Run /sbin/init as init process\n")
    assert not has_begun("[    2.1] Freeing unused kernel image\n")
