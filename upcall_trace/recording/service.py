"""Being a service of systemd: sockets that it opened for us, and telling it how we are."""

from __future__ import annotations

import os
import socket
from typing import Final

from ..errors import WrongUsage

_FIRST: Final = 3


def handed_sockets() -> list[socket.socket]:
    """The sockets of systemd's socket activation, in the order of the unit."""
    if os.environ.get("LISTEN_PID") != str(os.getpid()):
        return []
    count = os.environ.pop("LISTEN_FDS", "0")
    os.environ.pop("LISTEN_PID", None)
    found = []
    for number in range(int(count) if count.isdecimal() else 0):
        handed = socket.socket(fileno=_FIRST + number)
        os.set_inheritable(handed.fileno(), False)
        if handed.family != socket.AF_UNIX or handed.type != socket.SOCK_STREAM:
            raise WrongUsage(f"socket {number + 1} that systemd handed over is no Unix stream")
        found.append(handed)
    return found


class Notifier:
    """Tells systemd's NOTIFY_SOCKET; without one, nobody."""

    def __init__(self) -> None:
        self._address = os.environ.get("NOTIFY_SOCKET", "").replace("@", "\0", 1)
        microseconds = os.environ.get("WATCHDOG_USEC", "")
        ours = os.environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        self.watchdog_s = int(microseconds) / 2e6 if microseconds.isdecimal() and ours else None
        """How often to say that we live, twice as often as is asked for; None for never."""

    def tell(self, *states: str) -> None:
        """Such as `READY=1`; never raises."""
        if not self._address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as to:
                to.setblocking(False)
                to.sendto("\n".join(states).encode(), self._address)
        except OSError:
            pass  # a manager that does not listen
