"""Cases put to a guest: it is booted anew, asked step by step, and compared byte by byte."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ..control.order_socket import give_order
from ..control.orders import BadOrder
from ..errors import Interrupted, PeerDied, Unreachable
from ..kernel.world import World
from ..sockets.addresses import Address
from ..sockets.client import UpcallClient
from .cases import Ask, ModelAnswer, Step, rehearse

_ORDER_S: Final = 60.0
"""A live guest boots in seconds, on a busy host in more."""
_BOOT_S: Final = 60.0
_PAUSE_S: Final = 0.05


@dataclass(frozen=True, slots=True)
class Differs:
    """The first step of a case that was answered otherwise than the model says.

    `steps` end with it. `got` are the bytes that came, fewer than expected or more.
    """

    steps: tuple[Step, ...]
    expected: ModelAnswer
    got: bytes

    @property
    def step(self) -> Ask:
        """The write that was answered otherwise."""
        last = self.steps[-1]
        assert isinstance(last, Ask)  # orders are not answered
        return last


class Asker:
    """Asks one guest, again and again; `close` leaves it.

    `control` is the VMM's side: with it each case begins with a reset. `told` are refused orders,
    in words.
    """

    def __init__(
        self,
        address: Address,
        world: World,
        port: int,
        control: Path | None = None,
        reply_s: float = 15.0,
        silence_s: float = 1.0,
        stopped: Callable[[], bool] = lambda: False,
    ) -> None:
        self._address = address
        self._world = world
        self._port = port
        self._control = control
        self._reply_s = reply_s
        self._silence_s = silence_s
        self._stopped = stopped
        self.asked = 0
        self.told: dict[str, None] = {}

    @property
    def can_reset(self) -> bool:
        """Whether a case can be tried again."""
        return self._control is not None

    def play(self, steps: Sequence[Step]) -> Differs | None:
        """Ask a whole case of a fresh guest; None when it agrees.

        Raises Unreachable when the guest is not there at the beginning, PeerDied when it is lost
        on the way, and Interrupted.
        """
        self._reset()
        streams: dict[int, UpcallClient] = {}
        try:
            for place, (step, expected) in enumerate(
                zip(steps, rehearse(self._world, steps), strict=True)
            ):
                if self._stopped():
                    raise Interrupted("interrupted")
                if not isinstance(step, Ask):
                    self._order(step.order)
                    continue
                assert expected is not None  # the model has an answer to every write
                if step.conn not in streams:
                    streams[step.conn] = self._connect(first=not streams)
                got = self._exchange(streams[step.conn], step, expected)
                self.asked += len(step.pieces)
                if got != expected.replies:
                    return Differs(tuple(steps[: place + 1]), expected, got)
        finally:
            for stream in streams.values():
                stream.close()
        return None

    def _exchange(self, stream: UpcallClient, step: Ask, expected: ModelAnswer) -> bytes:
        """What came for a write; where silence is expected, what came in spite of it."""
        early = stream.exchange(b"", 1, 0.0)
        if early:  # more than was asked for before
            return early
        size, wait_s = len(expected.replies), self._reply_s + 1.5 * expected.delay_ns / 1e9
        got = stream.exchange(step.raw, size, wait_s) if size else b""
        if expected.silent and len(got) == size:
            got += stream.exchange(b"" if size else step.raw, 1, self._silence_s)
        return got

    def _reset(self) -> None:
        if self._control is None:
            return
        try:
            give_order(self._control, {"reset": True}, _ORDER_S)
        except BadOrder as error:
            raise Unreachable(f"the guest cannot be booted anew: {error}") from None

    def _order(self, order: dict[str, object]) -> None:
        if self._control is None:
            return
        try:
            give_order(self._control, order, _ORDER_S)
        except BadOrder as error:
            self.told[str(error)] = None

    def _connect(self, first: bool) -> UpcallClient:
        """A new connection; a guest that has just been booted may need a while for its first."""
        end = time.monotonic() + (_BOOT_S if first and self._control is not None else 0)
        while True:
            try:
                return UpcallClient(self._address, self._port, self._reply_s, self._world.arch)
            except Unreachable as error:
                if self._stopped():
                    raise Interrupted("interrupted") from None
                if time.monotonic() >= end:
                    if first and not self.asked:
                        raise
                    raise PeerDied(str(error)) from None
            time.sleep(_PAUSE_S)
