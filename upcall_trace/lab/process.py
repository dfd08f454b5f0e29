"""A lab from Python: started as a process of its own, so that whatever ends it ends all of it."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Self

from ..control.order_socket import give_order
from ..errors import PeerDied, Unreachable
from .parts import dies_with_this_thread
from .place import find
from .shell import Ran, run

_END_S: Final = 10.0
_LOOK_UP_S: Final = 0.05


class LiveGuest:
    """A booted guest; a context manager. `options` are those of `lab up`, without `--detach`.

    Raises Unreachable with what `lab up` said when the guest does not come up.

        with LiveGuest("--machine", "microvm", "--auto") as guest:
            connect(guest.address)
            guest.wait_for(lambda state: "vdb" in state["disks"])
    """

    def __init__(self, *options: str | Path) -> None:
        command = [sys.executable, "-m", "upcall_trace", "lab", "up", *map(str, options)]
        self.process = subprocess.Popen(
            [*dies_with_this_thread(signal.SIGTERM), *command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._said: str | None = None
        assert self.process.stdout is not None
        address = self.process.stdout.readline().rstrip("\n")
        if not address:
            _, said = self.process.communicate()
            raise Unreachable(said.strip().rsplit("\n", 1)[-1].removeprefix("upcall-trace: "))
        self.address = Path(address)
        """Where requests go."""
        self.name = self.address.parent.name
        self.control = self.address.parent / "control"
        self.status = find(self.name)

    def order(self, order: dict[str, Any], timeout_s: float = 60.0) -> dict[str, Any]:
        """Give an order to the VMM's side; raises BadOrder and Unreachable."""
        return give_order(self.control, order, timeout_s)

    def state(self) -> dict[str, Any]:
        """What the guest's init saw last, and what the VMM has plugged."""
        state: dict[str, Any] = self.order({"state": True})["state"]
        return state

    def wait_for(
        self, wanted: Callable[[dict[str, Any]], bool], timeout_s: float = 15.0
    ) -> dict[str, Any]:
        """The first state that is as wanted; raises TimeoutError with the last one."""
        deadline = time.monotonic() + timeout_s
        while not wanted(state := self.state()):
            if time.monotonic() > deadline:
                raise TimeoutError(f"the guest did not come to that state; it is {state}")
            time.sleep(_LOOK_UP_S)
        return state

    def shell(self, command: str) -> Ran:
        """Run a command in the guest; raises Unreachable."""
        return run(Path(self.status["vsock"]), command)

    def close(self) -> str:
        """End it and wait until nothing is left; what it said. Raises PeerDied if it had died."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.wait()

    def wait(self) -> str:
        """Wait until it has ended by itself; what it said.

        Raises PeerDied, once, unless all went well.
        """
        if self._said is None:
            try:
                _, self._said = self.process.communicate(timeout=_END_S)
            except subprocess.TimeoutExpired:
                self.process.kill()
                _, self._said = self.process.communicate()
                raise PeerDied(f"the lab {self.name} did not end, and was killed") from None
            if self.process.returncode:
                last = self._said.strip().rsplit("\n", 1)[-1]
                raise PeerDied(last.removeprefix("upcall-trace: "))
        return self._said

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            self.close()
        except PeerDied:
            if kind is None:
                raise
