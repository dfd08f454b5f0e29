"""One connection through the proxy: two directions that never wait, from first byte to end.

An upcall connection is copied receive by receive, so that each is recorded as it came. Every
other is spliced inside the kernel and only its beginning and its end are noted.
docs/protocol.md section 2.
"""

from __future__ import annotations

import array
import errno
import socket
import struct
import time
from collections.abc import Callable
from functools import partial
from select import EPOLLERR, EPOLLHUP, EPOLLIN, EPOLLOUT
from typing import Final

from dissectors.constants import CONNECT_LINE_LIMIT
from dissectors.hvsock import PASSFD_LINE, line_end, parse_connect

from ..capture.records import FAULT, MAX_CHUNK, Close, How, Mark
from ..sockets.addresses import (
    is_hung_up,
    shut_down,
)
from .arriving import Arriving, Phase
from .relay_host import Tamper, TamperStep, first_line, noted
from .ways import AGAIN, SinkBroken, Way

_DESCRIPTORS: Final = 16
_RIGHTS_ROOM: Final = socket.CMSG_SPACE(_DESCRIPTORS * array.array("i").itemsize)
_CREDENTIALS: Final = struct.Struct("3i")
_SPLICED_AT_ONCE: Final = 16
_ONE_WAY_OVER: Final = (errno.EPIPE, errno.ESHUTDOWN)


class Relay(Arriving):
    """A client and what is behind the VMM's socket for it, and two ways between them."""

    def _connected(self, answer: bytes, phase: Phase, rest: bytes) -> None:
        self._paired(phase)
        to_guest, from_guest = self._ways
        self._send(from_guest, answer)
        if rest and not self._is_over:
            self._send(to_guest, rest)

    @property
    def _is_over(self) -> bool:
        return self.phase is Phase.OVER

    def _paired(self, phase: Phase) -> None:
        assert self.guest is not None
        self.phase = phase
        self._ways = (
            Way(self.client, self.guest, True, self._proxy),
            Way(self.guest, self.client, False, self._proxy),
        )
        self._update()

    # While both ends are there.

    def _update(self) -> None:
        """Wait for exactly what can go on now."""
        to_guest, from_guest = self._ways
        for stream, source, sink in (
            (to_guest.source, to_guest, from_guest), (from_guest.source, from_guest, to_guest),
        ):  # fmt: skip
            events = 0
            if not source.over and not source.is_full:
                events = EPOLLIN
            if sink.is_full:
                events |= EPOLLOUT
            # A side that has said its last is watched for leaving altogether.
            self._watch(stream, events, self._handler(source, sink), idle=not source.over)

    def _handler(self, source: Way, sink: Way) -> Callable[[int], None]:
        def ready(events: int) -> None:
            if source.over and events & (EPOLLHUP | EPOLLERR):
                self._ended(not source.to_guest, How.CLOSE)
                self.finish()
                return
            if events & EPOLLOUT and sink.is_full:
                self._drain(sink)
            if not events & ~EPOLLOUT or self.phase is Phase.OVER:
                return
            if not source.over and not source.is_full:
                self._forward(source)

        if self.phase is not Phase.UPCALL:
            return ready
        return self._quick(source, ready) if self._proxy.tamper is None else ready

    def _quick(self, way: Way, otherwise: Callable[[int], None]) -> Callable[[int], None]:
        """What nearly every event of an upcall connection is: bytes, and room for them."""
        receive, send, buffer = way.source.recv_into, way.sink.send, self._proxy.buffer
        remember, settle = self._recorder.chunk, self._recorder.settle
        number, to_guest = self.number, way.to_guest

        def ready(events: int) -> None:
            if events != EPOLLIN or way.unsent or way.over:
                otherwise(events)
                return
            try:
                size = receive(buffer)
            except OSError as error:
                self._failed(way, error)
                return
            if not size:
                self._half_closed(way)
                return
            received = bytes(buffer[:size])
            remember(number, to_guest, received)
            try:
                sent = send(received)
            except OSError as error:
                if error.errno not in AGAIN:
                    self._broken(way, error)
                    return
                sent = 0
            if sent < size:
                way.unsent = received[sent:]
                self._update()
            settle()

        return ready

    def _forward(self, way: Way) -> None:
        if way.to_guest and self.phase in (Phase.LINE, Phase.DESCRIPTOR):
            self._first_line(way)
        elif not way.to_guest and not self._answered:
            self._first_answer(way)
        elif self.phase is Phase.OTHER:
            self._splice(way)
        else:
            self.copy(way)

    def copy(self, way: Way) -> None:
        """Receive, remember, send on."""
        try:
            size = way.source.recv_into(self._proxy.buffer)
        except OSError as error:
            self._failed(way, error)
            return
        if not size:
            self._half_closed(way)
            return
        received = bytes(self._proxy.buffer[:size])
        if self._proxy.tamper is not None:
            self._tampered(self._proxy.tamper, way, received)
            return
        self._recorder.chunk(self.number, way.to_guest, received)
        self._send(way, received)
        self._recorder.settle()

    def _tampered(self, tamper: Tamper, way: Way, received: bytes) -> None:
        """Have it done to the connection what was asked for; the capture has what was done."""

        def remark(request: int, text: str) -> None:
            mark = Mark(time.time_ns(), self.number, request, FAULT, text)
            self._recorder.record(mark)

        if way.to_guest:
            self._recorder.chunk(self.number, True, received)
        for step in tamper.received(self.number, way.to_guest, received, remark):
            if step.after_s:
                self._proxy.call_later(step.after_s, partial(self._take, step))
            else:
                self._take(step)

    def _take(self, step: TamperStep) -> None:
        if self.phase is Phase.OVER:
            return
        to_guest, from_guest = self._ways
        if step.sent:
            if not step.to_guest:
                self._recorder.chunk(self.number, False, step.sent)
            self._send(to_guest if step.to_guest else from_guest, step.sent)
        if step.close and not self._is_over:
            self.refuse(How.FAULT, step.close)
        self._recorder.settle()

    def _first_line(self, way: Way) -> None:
        try:
            received, control, _, _ = self.client.recvmsg(
                MAX_CHUNK, _RIGHTS_ROOM, socket.MSG_CMSG_CLOEXEC
            )
        except OSError as error:
            self._failed(way, error)
            return
        rights = array.array("i")
        for level, kind, payload in control:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                rights.frombytes(payload[: len(payload) // 4 * 4])
        if not received:
            self._half_closed(way)
            return
        way.rights = rights.tolist()
        if self.phase is Phase.DESCRIPTOR:  # Dragonball's passfd: one message with a descriptor
            self._recorder.chunk(self.number, True, received[:CONNECT_LINE_LIMIT])
            self.phase = Phase.OTHER
        else:
            self._settle_line(received, bool(rights))
        self._send(way, received)
        if self.phase is not Phase.OVER:
            self._update()

    def _settle_line(self, received: bytes, has_rights: bool) -> None:
        begun = len(self._line)
        self._line += received
        end = line_end(self._line)
        is_upcall = end > 0 and parse_connect(self._line[:end]) == self._proxy.upcall_port
        kept = received if is_upcall else received[: noted(end, len(self._line)) - begun]
        self._recorder.chunk(self.number, True, kept)
        if end == 0:
            return
        if self._line[:end] == PASSFD_LINE and not has_rights and end == len(self._line):
            self.phase = Phase.DESCRIPTOR
        else:
            self.phase = Phase.UPCALL if is_upcall else Phase.OTHER
            if is_upcall:
                self._proxy.is_upcall()

    def _first_answer(self, way: Way) -> None:
        received = self._receive(way.source, by_guest=True)
        if received is None:
            return
        if not received:
            self.finish()
            return
        self._answered = True
        upcall = self.phase is Phase.UPCALL
        self._recorder.chunk(self.number, False, received if upcall else first_line(received))
        self._send(way, received)

    def _send(self, way: Way, received: bytes) -> None:
        """Send on what can be sent; the rest waits until the sink has room."""
        try:
            way.send(received)
        except OSError as error:
            self._broken(way, error)
            return
        if way.is_full:
            self._update()

    def _drain(self, way: Way) -> None:
        """The sink has room again."""
        try:
            way.drain()
        except OSError as error:
            self._broken(way, error)
            return
        if not way.is_full:
            self._update()

    def _splice(self, way: Way) -> None:
        try:
            for _ in range(_SPLICED_AT_ONCE):  # what comes meanwhile goes with it
                moved = way.splice(self._proxy.buffer)
                if not moved or way.is_full:
                    break
        except SinkBroken as error:
            self._broken(way, error)
        except OSError as error:
            self._failed(way, error)
        else:
            if moved == 0:
                self._half_closed(way)
            elif way.is_full:
                self._update()

    # How it ends.

    def _failed(self, way: Way, error: OSError) -> None:
        """The source could not be read."""
        if error.errno in AGAIN:
            return
        self._ended(not way.to_guest, How.RESET)
        self.finish()

    def _broken(self, way: Way, error: OSError) -> None:
        """The sink could not be written."""
        if error.errno not in _ONE_WAY_OVER:
            self._ended(way.to_guest, How.RESET)
            self.finish()
            return
        # The sink closed. What it said before still has to reach the source, so only this
        # direction ends; the other one comes to its end by itself.
        shut_down(way.source, socket.SHUT_RD)
        self._one_over(way)

    def _half_closed(self, way: Way) -> None:
        """The end of the source was read: pass it on."""
        by_guest = not way.to_guest
        if is_hung_up(way.source):
            self._ended(by_guest, How.CLOSE)
            self.finish()
            return
        if not self._closed:
            now = self._recorder.now()
            self._recorder.record(Close(now, self.number, by_guest, How.HALF))
        shut_down(way.sink, socket.SHUT_WR)
        self._one_over(way)

    def _one_over(self, way: Way) -> None:
        way.end()
        if all(each.over for each in self._ways):
            self.finish()
        else:
            self._update()

    def cut(self) -> None:
        """The recording ends before the connection does: nobody closed it."""
        self._closed = True
        self.finish()

    def finish(self) -> None:
        """Let go of both ends."""
        if self.phase is Phase.OVER:
            return
        self.phase = Phase.OVER
        for descriptor in list(self._watched):
            self._proxy.unwatch(descriptor)
        self._watched.clear()
        for way in self._ways:
            way.end()
        for stream in (self.client, self.guest):
            if stream is not None:
                shut_down(stream)
                stream.close()
        self._ways = ()
        self._recorder.settle()
        if self._proxy.tamper is not None:
            self._proxy.tamper.over(self.number)
        self._proxy.forget(self)
