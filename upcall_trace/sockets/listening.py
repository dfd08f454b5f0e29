"""Sockets to listen on: made privately, stale ones taken over, and only our own removed again."""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path
from typing import Final

from ..errors import Unreachable, WrongUsage
from .addresses import answers, check_socket_path, is_alive

_BACKLOG: Final = 1024


class Listener:
    """A Unix socket that listens at `path`; `close` unlinks the path if it is still ours."""

    def __init__(self, path: Path, mode: int = 0o600) -> None:
        """Raises WrongUsage when the path is taken, too long, or cannot be bound."""
        self.path = check_socket_path(path)
        _clear_stale(path)
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        umask = os.umask(0o177)
        try:
            self.socket.bind(str(path))
            path.chmod(mode)
            self.socket.listen(_BACKLOG)
        except OSError as error:
            self.socket.close()
            raise WrongUsage(f"cannot listen on {path}: {error.strerror}") from None
        finally:
            os.umask(umask)
        self._identity = _identity(path)

    def close(self) -> None:
        """Stop listening."""
        self.socket.close()
        if self._identity is not None and _identity(self.path) == self._identity:
            self.path.unlink(missing_ok=True)
        self._identity = None  # another's socket may get the same inode


class InPlace:
    """Takes a VMM's listening socket's place, and gives it back.

    The VMM's socket gets the second name `aside` before ours is renamed over the first, so at no
    moment is there no socket to connect to; giving it back is one rename too.
    """

    def __init__(self, path: Path) -> None:
        """Raises Unreachable when no VMM listens at `path`, WrongUsage when it cannot be moved."""
        self.path = check_socket_path(path)
        self.aside = check_socket_path(path.with_name(f"{path.name}.vmm"))
        self.recovered = self._recover()
        try:
            status = path.lstat()
            if not stat.S_ISSOCK(status.st_mode):
                raise WrongUsage(f"{path} is not a socket")
            if not is_alive(path):
                raise Unreachable(f"{path} is a socket, but nobody listens on it")
            fresh = check_socket_path(path.with_name(f"{path.name}.new"))
            self.listener = Listener(fresh, stat.S_IMODE(status.st_mode))
            try:
                if (status.st_uid, status.st_gid) != (os.geteuid(), os.getegid()):
                    os.chown(fresh, status.st_uid, status.st_gid)
                os.link(path, self.aside)
                fresh.rename(path)
            except BaseException:
                self.listener.close()
                self.aside.unlink(missing_ok=True)
                raise
        except OSError as error:
            raise WrongUsage(f"cannot take the place of {path}: {error.strerror}") from None
        self.listener.path = path
        self._identity = _identity(path)

    @property
    def way_back(self) -> str:
        """The command that undoes this by hand."""
        return f"mv {self.aside} {self.path}"

    def is_replaced(self) -> bool:
        """Whether somebody, most likely the VMM, listens on a new socket at our place."""
        return _identity(self.path) not in (self._identity, None) and answers(self.path)

    def close(self) -> None:
        """Give the VMM's socket its name back, unless the VMM has gone or made a new one."""
        if _identity(self.path) == self._identity and answers(self.aside):
            self.aside.rename(self.path)
        else:
            self.aside.unlink(missing_ok=True)
        self.listener.close()

    def _recover(self) -> bool:
        """Undo what a killed proxy left behind; True when there was something."""
        if not self.aside.exists():
            return False
        if answers(self.path):
            if answers(self.aside) and _identity(self.path) != _identity(self.aside):
                raise WrongUsage(f"another proxy seems to be in place: {self.aside} exists")
            self.aside.unlink()
            return False
        self.aside.rename(self.path)
        return True


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        status = path.lstat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _clear_stale(path: Path) -> None:
    """Unlink a socket that nobody holds any more; raises WrongUsage for anything else there."""
    try:
        mode = path.lstat().st_mode
    except OSError:
        return
    if not stat.S_ISSOCK(mode):
        raise WrongUsage(f"{path} exists and is not a socket")
    try:
        alive = is_alive(path)
    except OSError as error:
        raise WrongUsage(f"cannot tell whether {path} is in use: {error.strerror}") from None
    if alive:
        raise WrongUsage(f"{path} is in use: somebody listens on it")
    path.unlink()
