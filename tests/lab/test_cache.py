"""The lab's cache: what root leaves in it is the user's, what a kill leaves in it goes."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from upcall_trace.lab.cache import cache, held, work_folder

SOMEBODY = 12_345
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")


@pytest.fixture
def home(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The home of another user, who cannot look into pytest's folders."""
    folder = Path(tempfile.mkdtemp(prefix="home-", dir="/tmp"))
    folder.chmod(0o755)
    if os.geteuid() == 0:
        os.chown(folder, SOMEBODY, SOMEBODY)
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    yield folder
    shutil.rmtree(folder)


def owners(folder: Path) -> set[int]:
    return {path.lstat().st_uid for path in [folder, *folder.rglob("*")]}


@as_root
def test_what_root_makes_in_a_users_cache_is_the_users(home: Path) -> None:
    with held(), work_folder() as work:
        (work / "tree" / "boot").mkdir(parents=True)
        (work / "tree" / "boot" / "vmlinuz").write_bytes(b"a kernel")
        (work / "tree").rename(cache() / "kernel")
    assert owners(home) == {SOMEBODY}
    done = subprocess.run(
        ["sh", "-ec", 'cd "$0"; : >>.lock; cat kernel/boot/vmlinuz; rm -r kernel', cache()],
        user=SOMEBODY, group=SOMEBODY, capture_output=True, text=True,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "a kernel", "")


@as_root
def test_what_an_earlier_root_left_there_is_given_back_too(home: Path) -> None:
    cache().mkdir(parents=True)
    (cache() / "old").write_text("left by root")
    with held():
        pass
    assert owners(home) == {SOMEBODY}


@as_root
def test_nothing_outside_is_given_away(home: Path, tmp_path: Path) -> None:
    ours = tmp_path / "passwd"
    ours.write_text("root's")
    folder = tmp_path / "etc"
    folder.mkdir()
    cache().mkdir(parents=True)
    (cache() / "link").symlink_to(ours)
    (cache() / "folder").symlink_to(folder)
    outside = home / "outside"
    outside.write_text("root's, with two names")
    os.link(outside, cache() / "second")
    with held():
        pass
    assert [path.stat().st_uid for path in (ours, folder, outside)] == [0, 0, 0]


def test_ones_own_cache_stays_as_it_is(home: Path) -> None:
    os.chown(home, os.geteuid(), os.getegid())
    with held():
        pass
    assert owners(home) == {os.geteuid()}


def test_what_was_killed_in_the_middle_is_cleared_away(home: Path) -> None:
    left = cache() / ".work-abc"
    left.mkdir(parents=True)
    (left / "half").write_text("of a kernel")
    with held(), work_folder() as work:
        assert not left.exists()
        assert work.parent == cache()
    assert [path.name for path in cache().iterdir()] == [".lock"]
