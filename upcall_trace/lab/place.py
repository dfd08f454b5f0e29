"""Where labs are while they run: a directory each, held by a lock that ends with its process.

A lab whose process was killed leaves its directory behind, and the lock free: whoever looks next
finds that and clears it away.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Self

from ..errors import Unreachable, WrongUsage
from ..sockets.addresses import check_socket_path, short_temporary

_STATUS: Final = "lab.json"
_LOCK: Final = "lock"
_NAME_LIMIT: Final = 32
_LONGEST: Final = "upcall_4294967295"
"""The longest of a lab's sockets: where the guest connects to a port of the host."""


def root() -> Path:
    """The directory of this user's labs, made if need be; raises WrongUsage if it is not ours."""
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    if runtime and Path(runtime).is_absolute():
        path = Path(runtime) / "upcall-trace"
    else:
        path = short_temporary() / f"upcall-trace-{os.geteuid()}"
    try:
        path.mkdir(mode=0o700, exist_ok=True)
        status = path.lstat()
    except OSError as error:
        raise WrongUsage(f"{path} cannot be made: {error.strerror}") from None
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o077:
        raise WrongUsage(f"{path} is not a directory of yours alone; remove it")
    return path


class Place:
    """A lab's directory, as its own process holds it; it goes with `close`."""

    def __init__(self, path: Path, lock: int) -> None:
        self.path = path
        self._lock = lock

    @classmethod
    def take(cls, wanted: str | None, machine: str) -> Self:
        """A place with this name, else with the first free one; raises WrongUsage."""
        if wanted is not None:
            _check(wanted)
        with _registry() as directory:
            for name in [wanted] if wanted else _numbered(machine):
                path = directory / name
                check_socket_path(path / _LONGEST)
                if path.is_file():
                    raise WrongUsage(f"{path} is in the way")
                if _clear_stale(path):
                    path.mkdir(mode=0o700)
                    lock = os.open(path / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
                    fcntl.flock(lock, fcntl.LOCK_EX)
                    place = cls(path, lock)
                    place.publish({"name": name, "phase": "starting", "pid": os.getpid()})
                    return place
        raise WrongUsage(f"a lab called {wanted} is running; choose another --name, or end it")

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    @property
    def name(self) -> str:
        """The lab's name."""
        return self.path.name

    def publish(self, status: dict[str, Any]) -> None:
        """Let others read what this lab is."""
        fresh = self.path / f"{_STATUS}.new"
        fresh.write_text(json.dumps(status), "utf-8")
        fresh.replace(self.path / _STATUS)

    def close(self, reason: str = "") -> None:
        """Leave nothing behind; with a reason, only that, for whoever looks next."""
        with _registry():
            if reason:
                self.publish({"name": self.name, "reason": reason})
            else:
                shutil.rmtree(self.path, ignore_errors=True)
            os.close(self._lock)


def labs() -> tuple[list[dict[str, Any]], list[dict[str, str]]]:
    """What every running lab published, by name; and `name` and `reason` of those found dead.

    The dead ones are cleared away.
    """
    alive: list[dict[str, Any]] = []
    dead: list[dict[str, str]] = []
    with _registry() as directory:
        for path in sorted(directory.iterdir()):
            if not path.is_dir():
                continue
            status = _status(path)
            if _clear_stale(path):
                reason = status.get("reason") or "its process was killed"
                dead.append({"name": path.name, "reason": str(reason)})
            else:
                alive.append(status)
    return alive, dead


def find(name: str | None) -> dict[str, Any]:
    """What the lab called `name`, or the only one, published; raises Unreachable, WrongUsage."""
    alive, dead = labs()
    names = [lab["name"] for lab in alive]
    for lab in alive:
        if name == lab["name"] or (name is None and len(alive) == 1):
            return lab
    if name is None and alive:
        raise WrongUsage(f"several labs are running; name one of {', '.join(names)}")
    for gone in dead:
        if name in (None, gone["name"]):
            raise Unreachable(f"the lab {gone['name']} is gone: {gone['reason']}")
    running = f"; running: {', '.join(names)}" if names else "; start one with lab up"
    raise Unreachable(f"no lab{f' called {name}' if name else ''} is running{running}")


def is_held(path: Path) -> bool:
    """True while a lab's process holds its directory."""
    try:
        lock = os.open(path / _LOCK, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(lock)
    return False


def _status(path: Path) -> dict[str, Any]:
    try:
        status = json.loads((path / _STATUS).read_text("utf-8"))
    except (OSError, ValueError):
        return {"name": path.name, "phase": "starting"}
    return status if isinstance(status, dict) else {"name": path.name, "phase": "starting"}


@contextmanager
def _registry() -> Iterator[Path]:
    """The labs' directory, with nobody else taking or clearing places meanwhile."""
    directory = root()
    try:
        lock = os.open(directory / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield directory
        finally:
            os.close(lock)
    except OSError as error:
        raise WrongUsage(f"{directory} cannot be used: {error.strerror}") from None


def _clear_stale(path: Path) -> bool:
    """Remove a place that nobody holds; True when the path is free then."""
    if is_held(path):
        return False
    shutil.rmtree(path, ignore_errors=True)
    return not path.exists()


def _check(name: str) -> None:
    if not 0 < len(name) <= _NAME_LIMIT or not all(c.isalnum() or c in "-_" for c in name):
        raise WrongUsage(f"a lab's name is 1 to {_NAME_LIMIT} letters, digits, - and _")


def _numbered(machine: str) -> Iterator[str]:
    yield machine
    number = 2
    while True:
        yield f"{machine}-{number}"
        number += 1
