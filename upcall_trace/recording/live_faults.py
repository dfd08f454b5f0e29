"""Faults on the live path: the rules of a simulated guest, committed between client and guest.

A request that is answered by a rule never reaches the guest. For the other faults the guest
executes it, and its reply is delayed, cut, spoilt or kept back. docs/guest.md has the language.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Iterable
from typing import Final

from dissectors.constants import MESSAGE_SIZE, Arch
from dissectors.messages import Request
from dissectors.services import DEVICE_MANAGER

from ..kernel.faults import Fault, Faults, parse_fault
from ..vantage.relay_host import Remark, TamperStep

_TYPE: Final = struct.Struct("<8xI")
_APART_S: Final = 0.02


class _Spoilt:
    """What is known of one connection."""

    def __init__(self) -> None:
        self.before_hello = True
        self.requests = 0
        self.awaited: deque[Fault | None] = deque()
        """For each request that the guest has, the fault that its reply meets."""
        self.begun = b""


class LiveFaults:
    """Commits `rules`; they can be changed while it runs. Raises WrongUsage for a bad one."""

    def __init__(self, rules: Iterable[str], seed: int = 0) -> None:
        self._seed = seed
        self._connections: dict[int, _Spoilt] = {}
        self.faults = Faults([], seed)
        self.change(rules)

    def change(self, rules: Iterable[str]) -> None:
        """Other rules from now on, which count from their beginning."""
        self.faults = Faults([parse_fault(text) for text in rules], self._seed)

    def over(self, conn: int) -> None:
        """The connection has ended."""
        self._connections.pop(conn, None)

    def received(
        self, conn: int, to_guest: bool, received: bytes, remark: Remark
    ) -> list[TamperStep]:
        """What becomes of bytes that came."""
        spoilt = self._connections.setdefault(conn, _Spoilt())
        if to_guest:
            return self._asked(spoilt, received, remark)
        return self._answered(spoilt, received)

    def _asked(self, spoilt: _Spoilt, received: bytes, remark: Remark) -> list[TamperStep]:
        """Only whole requests are struck: of others nobody knows what they will be."""
        if len(received) % MESSAGE_SIZE or not received:
            if len(received) > 1:
                spoilt.requests += 1
                spoilt.awaited.append(None)
            return [TamperStep(True, received)]
        steps = []
        for begin in range(0, len(received), MESSAGE_SIZE):
            raw = received[begin : begin + MESSAGE_SIZE]
            number, spoilt.requests = spoilt.requests, spoilt.requests + 1
            fault = self.faults.strike(_TYPE.unpack_from(raw)[0])
            if fault is not None:
                remark(number, fault.text)
            request = DEVICE_MANAGER.decode_request(raw, Arch.X86_64)
            if fault is not None and fault.action == "ret" and isinstance(request, Request):
                steps.append(TamperStep(False, request.reply(fault.value).encode()))
            else:
                spoilt.awaited.append(fault)
                steps.append(TamperStep(True, raw))
        return steps

    def _answered(self, spoilt: _Spoilt, received: bytes) -> list[TamperStep]:
        if spoilt.before_hello and not spoilt.awaited:
            return [TamperStep(False, received)]  # OK and the CONNECT message
        spoilt.before_hello = False
        spoilt.begun += received
        steps: list[TamperStep] = []
        while len(spoilt.begun) >= MESSAGE_SIZE:
            reply, spoilt.begun = spoilt.begun[:MESSAGE_SIZE], spoilt.begun[MESSAGE_SIZE:]
            fault = spoilt.awaited.popleft() if spoilt.awaited else None
            steps += self._spoil(reply, fault)
        return steps

    def _spoil(self, reply: bytes, fault: Fault | None) -> list[TamperStep]:
        if fault is None:
            return [TamperStep(False, reply)]
        match fault.action:
            case "drop":
                return []
            case "delay":
                return [TamperStep(False, reply, after_s=fault.value / 1e9)]
            case "split":
                rest = TamperStep(False, reply[fault.value :], after_s=_APART_S)
                return [TamperStep(False, reply[: fault.value]), rest]
            case "close":
                return [TamperStep(False, close=fault.text)]
            case _:
                return [TamperStep(False, self.faults.garbage(MESSAGE_SIZE))]
