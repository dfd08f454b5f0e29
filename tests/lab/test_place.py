"""Where labs are: names, locks that end with their process, and a directory of ours alone."""

from __future__ import annotations

import fcntl
import os
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest

from tests.guests import wait_until
from tests.vmm import descriptors_as_before
from upcall_trace.errors import Unreachable, UserError, WrongUsage
from upcall_trace.lab import place
from upcall_trace.lab.place import Place, find, labs
from upcall_trace.sockets.addresses import socket_folder

ROOT: Final = Path(__file__).parents[2]
_HOLDER: Final = """
import sys
from upcall_trace.errors import WrongUsage
from upcall_trace.lab.place import Place

print("started", flush=True)
sys.stdin.readline()
try:
    place = Place.take(sys.argv[1] or None, "pc")
except WrongUsage as error:
    print("refused:", error, flush=True)
else:
    place.publish({"name": place.name, "machine": "pc"})
    print(place.name, flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def directory(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The labs' directory, which is not made yet; a socket in it has a short path."""
    with socket_folder() as runtime:
        monkeypatch.setenv("XDG_RUNTIME_DIR", runtime)
        yield Path(runtime) / "upcall-trace"


def names(directory: Path) -> list[str]:
    """What is in there, but for the registry's own lock."""
    return sorted(path.name for path in directory.iterdir() if path.name != ".lock")


class Holder:
    """A process that takes a place when it is told to, and keeps it until it ends."""

    def __init__(self, wanted: str = "") -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", _HOLDER, wanted],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._line() == "started"

    def begin(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def outcome(self) -> str:
        """The name it got, or why it got none."""
        return self._line()

    def kill(self) -> None:
        self.process.kill()
        with self.process:
            assert self.process.wait() == -signal.SIGKILL

    def _line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().rstrip("\n")


@contextmanager
def holders(*wanted: str) -> Iterator[list[Holder]]:
    started: list[Holder] = []
    try:
        for name in wanted:
            started.append(Holder(name))
        yield started
    finally:
        for holder in started:
            with holder.process:
                holder.process.kill()


# The directory of all labs.


def test_the_directory_is_for_us_alone(directory: Path) -> None:
    umask = os.umask(0)
    try:
        assert place.root() == directory
        taken = Place.take("mine", "pc")
    finally:
        os.umask(umask)
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert stat.S_IMODE(taken.path.stat().st_mode) == 0o700
    assert place.root() == directory
    taken.close()


def test_without_a_runtime_directory_there_is_one_for_each_user(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    with socket_folder() as folder:
        monkeypatch.setattr(tempfile, "tempdir", folder)
        assert place.root() == Path(folder) / f"upcall-trace-{os.geteuid()}"
        assert stat.S_IMODE(place.root().stat().st_mode) == 0o700


@pytest.mark.parametrize("mode", [0o710, 0o701, 0o740, 0o720, 0o755, 0o777])
def test_a_directory_that_others_may_enter_is_refused(directory: Path, mode: int) -> None:
    directory.mkdir()
    directory.chmod(mode)
    refused(directory, f"{directory} is not a directory of yours alone; remove it")
    assert stat.S_IMODE(directory.stat().st_mode) == mode


def test_a_directory_of_somebody_else_is_refused(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory.mkdir(0o700)
    monkeypatch.setattr(os, "geteuid", lambda: directory.stat().st_uid + 1)
    refused(directory, f"{directory} is not a directory of yours alone; remove it")


def test_a_link_to_a_directory_of_ours_is_refused(directory: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir(0o700)
    directory.symlink_to(elsewhere)
    refused(directory, f"{directory} is not a directory of yours alone; remove it")
    assert list(elsewhere.iterdir()) == []


def test_a_link_to_nowhere_or_a_file_in_its_place_is_refused(directory: Path) -> None:
    directory.symlink_to("nowhere")
    refused(directory, f"{directory} cannot be made: File exists")
    directory.unlink()
    directory.write_text("precious")
    refused(directory, f"{directory} cannot be made: File exists")
    assert directory.read_text() == "precious"


def test_a_runtime_directory_that_is_missing_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "none"))
    directory = tmp_path / "none" / "upcall-trace"
    refused(directory, f"{directory} cannot be made: No such file or directory")
    assert not (tmp_path / "none").exists()


def refused(directory: Path, why: str) -> None:
    """Everything that would look into the directory says the same."""
    for attempt in (place.root, labs, lambda: find(None), lambda: Place.take(None, "pc")):
        with pytest.raises(WrongUsage) as told:
            attempt()
        assert str(told.value) == why


# Names.


def test_the_first_free_name_is_taken(directory: Path) -> None:
    first, second, third = (Place.take(None, "pc") for _ in range(3))
    other = Place.take(None, "microvm")
    assert [p.name for p in (first, second, third, other)] == ["pc", "pc-2", "pc-3", "microvm"]
    second.close()
    again = Place.take(None, "pc")
    assert again.name == "pc-2"
    for taken in (first, again, third, other):
        taken.close()
    assert names(directory) == []


def test_a_name_is_taken_once_and_free_again_afterwards(directory: Path) -> None:
    mine = Place.take("mine", "pc")
    (mine / "vsock").touch()
    with pytest.raises(WrongUsage) as told:
        Place.take("mine", "pc")
    assert str(told.value) == ("a lab called mine is running; choose another --name, or end it")
    assert (mine / "vsock").exists()
    mine.close()
    assert not mine.path.exists()
    again = Place.take("mine", "pc")
    assert names(again.path) == ["lab.json", "lock"]
    again.close()


@pytest.mark.parametrize("name", ["a", "x" * 32, "my-lab_2", "7"])
def test_a_name_is_short_and_plain(directory: Path, name: str) -> None:
    taken = Place.take(name, "pc")
    assert taken.path == directory / name
    taken.close()


@pytest.mark.parametrize("name", ["", "x" * 33, ".", "..", ".lock", "a/b", "a b", "a\n", "\x1b"])
def test_other_names_are_refused_and_nothing_is_made(directory: Path, name: str) -> None:
    with pytest.raises(WrongUsage, match="a lab's name is 1 to 32 letters, digits, - and _"):
        Place.take(name, "pc")
    assert not directory.exists()


def test_of_processes_that_want_one_name_one_gets_it(directory: Path) -> None:
    registry = os.open(place.root() / ".lock", os.O_RDWR | os.O_CREAT, 0o600)
    with holders("same", "same", "same") as rivals:
        fcntl.flock(registry, fcntl.LOCK_EX)
        for rival in rivals:
            rival.begin()
        wait_until(lambda: all(waits_for_a_lock(rival.process.pid) for rival in rivals))
        assert names(directory) == []
        os.close(registry)
        outcomes = sorted(rival.outcome() for rival in rivals)
    assert (
        outcomes[:2]
        == ["refused: a lab called same is running; choose another --name, or end it"] * 2
    )
    assert outcomes[2] == "same"


def waits_for_a_lock(process: int) -> bool:
    lines = Path("/proc/locks").read_text("ascii").splitlines()
    return any("-> FLOCK" in line and f" {process} " in line for line in lines)


def test_processes_that_want_any_name_get_different_ones(directory: Path) -> None:
    with holders("", "", "") as rivals:
        for rival in rivals:
            rival.begin()
        assert sorted(rival.outcome() for rival in rivals) == ["pc", "pc-2", "pc-3"]
        assert [lab["name"] for lab in labs()[0]] == ["pc", "pc-2", "pc-3"]


# Alive and dead.


def test_a_lab_of_another_process_is_seen_and_left_alone(directory: Path) -> None:
    with holders("theirs") as (holder,):
        holder.begin()
        assert holder.outcome() == "theirs"
        for _ in range(2):
            assert labs() == ([{"name": "theirs", "machine": "pc"}], [])
        assert find("theirs") == find(None) == {"name": "theirs", "machine": "pc"}
        assert names(directory / "theirs") == ["lab.json", "lock"]


def test_a_lab_whose_process_was_killed_is_told_once_and_cleared_away(directory: Path) -> None:
    with holders("killed", "alive") as (killed, alive):
        for holder in (killed, alive):
            holder.begin()
            holder.outcome()
        (directory / "killed" / "console.log").write_text("it was booting")
        killed.kill()
        assert names(directory) == ["alive", "killed"]
        running, dead = labs()
        assert [lab["name"] for lab in running] == ["alive"]
        assert dead == [{"name": "killed", "reason": "its process was killed"}]
        assert names(directory) == ["alive"]
        assert labs()[1] == []


def test_the_name_of_a_killed_lab_is_free_and_its_files_are_gone(directory: Path) -> None:
    with holders("") as (killed,):
        killed.begin()
        assert killed.outcome() == "pc"
        (directory / "pc" / "vsock").touch()
        killed.kill()
    successor = Place.take(None, "pc")
    assert successor.name == "pc"
    assert names(successor.path) == ["lab.json", "lock"]
    successor.close()


def test_a_lab_killed_before_it_had_a_lock_is_cleared_away(directory: Path) -> None:
    (place.root() / "early").mkdir()
    assert labs() == ([], [{"name": "early", "reason": "its process was killed"}])
    assert names(directory) == []


def test_looking_leaves_no_lock_behind(directory: Path) -> None:
    alive = Place.take("alive", "pc")
    with descriptors_as_before():
        for _ in range(3):
            Place.take("dead", "pc").close("it ended")
            labs()
        with pytest.raises(WrongUsage):
            Place.take("alive", "pc")
    alive.close()


def test_what_a_lab_published_last_is_what_others_read(directory: Path) -> None:
    mine = Place.take("mine", "pc")
    assert find("mine") == {"name": "mine", "phase": "starting", "pid": os.getpid()}
    mine.publish({"name": "mine", "phase": "booting"})
    mine.publish({"name": "mine", "phase": "ready", "pids": {"qemu": 1}})
    assert find("mine") == {"name": "mine", "phase": "ready", "pids": {"qemu": 1}}
    assert names(mine.path) == ["lab.json", "lock"]
    mine.close()


@pytest.mark.parametrize("status", [b"", b'{"name": "mi', b"\xff\xfe", b"[1, 2]"])
def test_a_lab_whose_status_cannot_be_read_is_starting(directory: Path, status: bytes) -> None:
    mine = Place.take("mine", "pc")
    (mine / "lab.json").write_bytes(status)
    assert labs() == ([{"name": "mine", "phase": "starting"}], [])
    mine.close()


def test_a_lab_that_ends_with_a_reason_leaves_it_for_whoever_looks_next(directory: Path) -> None:
    mine = Place.take("mine", "pc")
    mine.close("qemu was killed by SIGKILL")
    with pytest.raises(Unreachable) as told:
        find("mine")
    assert str(told.value) == "the lab mine is gone: qemu was killed by SIGKILL"
    assert names(directory) == []
    with pytest.raises(Unreachable, match="no lab called mine is running"):
        find("mine")


def test_a_file_among_the_labs_is_no_lab(directory: Path) -> None:
    (place.root() / "notes").write_text("precious")
    assert labs() == ([], [])
    assert (directory / "notes").read_text() == "precious"


@pytest.mark.parametrize(
    ("running", "name", "told"),
    [
        ([], None, Unreachable("no lab is running; start one with lab up")),
        ([], "a", Unreachable("no lab called a is running; start one with lab up")),
        (["a", "b"], "c", Unreachable("no lab called c is running; running: a, b")),
        (["b", "a"], None, WrongUsage("several labs are running; name one of a, b")),
        (["a", "b"], "b", "b"),
        (["a"], None, "a"),
    ],
)
def test_finding_a_lab(
    directory: Path, running: list[str], name: str | None, told: UserError | str
) -> None:
    taken = [Place.take(wanted, "pc") for wanted in running]
    if isinstance(told, UserError):
        with pytest.raises(type(told)) as error:
            find(name)
        assert str(error.value) == str(told)
    else:
        assert find(name)["name"] == told
    for each in taken:
        each.close()


def test_one_that_is_alive_is_found_though_another_has_died(directory: Path) -> None:
    Place.take("dead", "pc").close("its kernel panicked")
    alive = Place.take("alive", "pc")
    assert find(None)["name"] == "alive"
    alive.close()
