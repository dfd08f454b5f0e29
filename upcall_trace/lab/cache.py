"""The user's cache of what a lab is made of; one process at a time changes it.

Root may fill it (`sudo upcall-trace lab setup`). What is in it belongs to the user afterwards.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from ..errors import WrongUsage
from ..user_folders import user_folder

_WORK: Final = ".work-"


def _caches() -> Path:
    return user_folder("XDG_CACHE_HOME", ".cache")


def cache() -> Path:
    """Where the lab's pieces are kept between runs; raises WrongUsage."""
    return _caches() / "upcall-trace" / "lab"


@contextmanager
def held() -> Iterator[None]:
    """Nobody else changes the cache meanwhile; raises WrongUsage."""
    try:
        cache().mkdir(parents=True, exist_ok=True)
        lock = os.open(cache() / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise WrongUsage(f"the cache {cache()} cannot be written: {error.strerror}") from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for left in cache().glob(f"{_WORK}*"):  # by who was killed in the middle
            shutil.rmtree(left, ignore_errors=True)
        yield
    finally:
        try:
            _give_back()
        except OSError:
            pass  # a file system that root may not do that on
        os.close(lock)


@contextmanager
def work_folder() -> Iterator[Path]:
    """A folder in the cache for what is being made, while it is held."""
    with tempfile.TemporaryDirectory(dir=cache(), prefix=_WORK) as work:
        yield Path(work)


def _give_back() -> None:
    """What root made in a user's cache becomes the user's: else only root could go on there."""
    if os.geteuid() != 0:
        return
    caches = _caches()
    owners = [status for path in (caches, caches.parent) if (status := path.stat()).st_uid]
    if not owners:
        return
    owner = (owners[0].st_uid, owners[0].st_gid)
    # The user can change what is in there while we walk, so no link is followed.
    for _, folders, files, here in os.fwalk(caches / "upcall-trace"):
        for name in (".", *folders, *files):
            found = os.stat(name, dir_fd=here, follow_symlinks=False)
            one = stat.S_ISDIR(found.st_mode) or found.st_nlink == 1
            if found.st_uid == 0 and one:  # a second name may be that of a file of root's
                os.chown(name, *owner, dir_fd=here, follow_symlinks=False)
    if caches.stat().st_uid == 0:
        os.chown(caches, *owner)
