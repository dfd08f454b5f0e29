"""Simulated guests whose kernel differs from the model in one byte of some answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from dissectors.constants import RET_OFFSET, MessageType
from dissectors.messages import Request, decode_reply, decode_request
from upcall_trace.kernel.model import Guest, ServiceThread
from upcall_trace.kernel.outcome import Outcome
from upcall_trace.kernel.world import World
from upcall_trace.simulated import machine
from upcall_trace.simulated.on_socket import SimulatedGuest

Change = Callable[[Request, bytes], int | None]
"""Which byte of a reply to a request is another one, if any."""


class _WrongThread(ServiceThread):
    def __init__(self, guest: Guest, change: Change) -> None:
        super().__init__(guest)
        self._change = change

    def receive(self, piece: bytes, meant: Request | None = None) -> Outcome:
        outcome = super().receive(piece, meant)
        if outcome.reply is None:
            return outcome
        place = self._change(decode_request(self._request), outcome.reply)
        if place is None:
            return outcome
        changed = bytearray(outcome.reply)
        changed[place] ^= 1
        return replace(outcome, reply=bytes(changed))


@contextmanager
def wrong_guest(change: Change, world: World, directory: Path) -> Iterator[SimulatedGuest]:
    """A guest at `guest` in a directory, with its VMM's side at `control`."""

    class WrongGuest(Guest):
        def connect(self) -> ServiceThread:
            return _WrongThread(self, change)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(machine, "Guest", WrongGuest)
        with SimulatedGuest(
            world, path=directory / "guest", control=directory / "control"
        ) as guest:
            yield guest


def of_every_window(request: Request, reply: bytes) -> int | None:
    """An ADD_MMIO that works has a msg_size."""
    added = request.msg_type == MessageType.ADD_MMIO and decode_reply(reply).ret == 0
    return 4 if added else None


def of_removed_windows(request: Request, reply: bytes) -> int | None:
    """A DEL_MMIO that works answers 1; it takes a window that can be removed."""
    removed = request.msg_type == MessageType.DEL_MMIO and decode_reply(reply).ret == 0
    return RET_OFFSET if removed and request.magic_version else None


def of_stale_loads(request: Request, reply: bytes) -> int | None:
    """A refused window clears what a CPU request has left over in the load."""
    refused = request.msg_type == MessageType.ADD_MMIO and decode_reply(reply).ret == -17
    return RET_OFFSET + 4 if refused and reply[RET_OFFSET + 4] == 1 else None


def of_nothing(request: Request, reply: bytes) -> int | None:
    return None
