"""A request that succeeded at once, in as few words as a situation can be made from again."""

from __future__ import annotations

from typing import NamedTuple

from dissectors.constants import Arch
from dissectors.events import RequestReceived
from dissectors.messages import Request, decode_reply, decode_request
from dissectors.services import DEVICE_MANAGER

from .finding import Ref
from .history import History
from .situation import Situation


class Buffer(NamedTuple):
    """What the guest's reply buffer held, and by which requests."""

    ret: int | None
    load: int | None
    ret_by: Ref | None
    load_by: Ref | None


class PlainSuccess(NamedTuple):
    """What is kept of it until the device that it added is removed; zeros at the ends of both
    messages are left out."""

    ref: Ref
    asked: bytes
    answered: bytes
    sent_ns: int
    replied_ns: int
    held: Buffer
    history: History
    arch: Arch | None
    seen_by_client: bool
    predicted: bool

    def situation(self) -> Situation:
        """The same as when each message had been looked at."""
        raw = self.asked.ljust(DEVICE_MANAGER.request_size, b"\0")
        reply = self.answered.ljust(DEVICE_MANAGER.reply_size, b"\0")
        arch = self.arch or Arch.X86_64
        request: Request = decode_request(raw, arch)
        return Situation(
            self.ref,
            RequestReceived(self.ref.request, len(raw), request, raw, 0),
            request,
            self.sent_ns,
            self.history,
            arch,
            last_ret=self.held.ret,
            last_load=self.held.load,
            last_ref=self.held.ret_by,
            load_ref=self.held.load_by,
            reply=decode_reply(reply, arch, request),
            reply_raw=reply,
            latency_ns=self.replied_ns - self.sent_ns,
            arch_told=self.arch is not None,
            replied_ns=self.replied_ns,
            seen_by_client=self.seen_by_client,
            predicted=self.predicted,
        )
