"""Watches both directions of one connection: any bytes in, events out, nothing raised.

The real peers break their own rules (docs/protocol.md section 4), so here a violation is a fact on
an event, not an error. Bytes from the guest are a stream and give the same events however they are
sliced. Bytes to the guest are not: each recorded send, cut every `request_size` bytes, is one
receive in the guest, laid over the bytes of the one before.

How it works. Each direction goes through phases of its own, because neither can tell where the
other is: to the guest LINE, SERVICE, MESSAGES; from the guest LINE, HELLO, MESSAGES. OPAQUE is for
another port, or a service that nobody knows. A recording that begins in the MIDDLE finds its phase
by what it sees: a CONNECT line, a single byte, or the magic of a first message.

A reply names no request, so requests are paired with replies by order. `_open` is the queue of
requests that wait: each receive enters it, each whole reply takes the oldest out. Three things
would break that order for good, and each has its own remedy:

- A short receive is executed over the bytes of the one before. `_request_buffer` is the guest's
  buffer as far as the recording shows it, and `_split_number` the request that a later piece may
  continue: two requests to the guest, though the client meant one.
- Bytes that are known to be missing (`lost`) are counted in whole messages: requests without
  content enter the queue, replies take theirs out, and `_skip` is what is left of a message whose
  beginning is gone.
- Bytes that are missing in an unknown number (`resync`) cannot be counted. The next request settles
  it: a client asks again only when it has its answer, so everything in the queue lost its reply.
"""

from __future__ import annotations

from collections import deque
from dataclasses import replace
from itertools import islice

from .constants import (
    CONNECT_LINE_LIMIT,
    MAGIC_VERSION,
    OK_LINE_LIMIT,
    UPCALL_PORT,
    Arch,
)
from .events import (
    ConnectLine,
    Event,
    Hello,
    Incomplete,
    Lost,
    OkLine,
    Opaque,
    PassFd,
    ReplyReceived,
    RequestReceived,
    ServiceByte,
)
from .hvsock import PASSFD_LINE, line_end, ok_line_end, parse_connect, parse_ok
from .messages import REPLY_MEANS, Request, decode_reply
from .open_requests import KEPT_OPEN, OpenRequests, due_numbers, take_due, take_oldest
from .phases import FIRST_PHASE, StreamPhase
from .phases import Start as Start
from .services import DEVICE_MANAGER, Service, ServiceRequest, service_for
from .slots import positional

_LOST_OPEN = 1 << 16
"""Open requests that gaps can account for; a gap's size is only a number, and may be any."""
_request_received = positional(RequestReceived)
_reply_received = positional(ReplyReceived)
_MAGIC = MAGIC_VERSION.to_bytes(4, "little")
_CONNECT = b"CONNECT "
_OK = b"OK "


class Observer:
    """Give it what was recorded, in order; it returns what that means.

    `arch` is what the capture says of the guest, used for CPU messages that do not tell;
    `upcall_port` is the port whose connections carry upcall.
    """

    def __init__(
        self,
        start: Start = Start.LINE,
        arch: Arch = Arch.X86_64,
        upcall_port: int = UPCALL_PORT,
    ) -> None:
        self._arch = arch
        self._upcall_port = upcall_port
        self._to_phase, self._from_phase = FIRST_PHASE[start]
        self._service: Service | None = DEVICE_MANAGER if start is Start.MIDDLE else None
        self._accepted = start is not Start.LINE
        self._line = b""
        self._from = b""
        self._request_buffer = b""
        self._next_number = 0
        self._open: OpenRequests = deque()
        self._skip = 0
        self._resync = False
        self._line_in_doubt = self._answer_in_doubt = False
        self._split_number: int | None = None
        self._split_size = 0
        self._received_last = 0
        """Bytes of the guest's last receive."""

    def to_guest(self, sent: bytes) -> list[Event]:
        """Events of one send from the VMM's side, as it was recorded."""
        events: list[Event] = []
        if self._resync and sent:
            self._forget(events)
        if self._to_phase is StreamPhase.MESSAGES:
            return events + self._requests(sent, 0)
        if self._line_in_doubt and sent:
            self._line_in_doubt = False
            if not sent.upper().startswith(_CONNECT):
                self._to_phase = self._from_phase = StreamPhase.MIDDLE
                self._service, self._accepted = DEVICE_MANAGER, True
        position = 0
        while position < len(sent):
            match self._to_phase:
                case StreamPhase.LINE:
                    position = self._connect_line(sent, events)
                case StreamPhase.SERVICE:
                    position = self._service_byte(sent, position, events)
                case StreamPhase.MIDDLE if sent.upper().startswith(_CONNECT):
                    # Only its opening is missing.
                    self._to_phase = self._from_phase = StreamPhase.LINE
                    self._service, self._accepted = None, False
                case StreamPhase.MIDDLE:
                    self._to_phase = StreamPhase.SERVICE if len(sent) == 1 else StreamPhase.MESSAGES
                    if self._to_phase is StreamPhase.MESSAGES:
                        self._request_buffer = bytes(DEVICE_MANAGER.request_size)
                case StreamPhase.MESSAGES:
                    events += self._requests(sent, position)
                    position = len(sent)
                case _:
                    events.append(Opaque(True, sent[position:]))
                    position = len(sent)
        return events

    def from_guest(self, received: bytes) -> list[Event]:
        """Events of bytes from the guest's side, in any slicing."""
        service = self._service
        settled = self._from_phase is StreamPhase.MESSAGES and not (self._from or self._skip)
        if settled and service is not None and len(received) == service.reply_size:
            return [self._reply(service, received)]
        events: list[Event] = []
        if self._skip and received:
            skipped, received = received[: self._skip], received[self._skip :]
            self._skip -= len(skipped)
            events.append(Incomplete(False, skipped))
        self._from += received
        if self._answer_in_doubt and received:
            self._answer_in_doubt = False
            says_ok = received.startswith(_OK[: len(received)])
            if self._from_phase is StreamPhase.LINE and not says_ok:
                self._from_phase, self._accepted = StreamPhase.MIDDLE, True
        while self._from:
            before = (len(self._from), self._from_phase)
            match self._from_phase:
                case StreamPhase.LINE:
                    self._ok_line(events)
                case StreamPhase.HELLO | StreamPhase.MESSAGES if self._service is not None:
                    self._message(self._service, events)
                case StreamPhase.MIDDLE:
                    self._find_message(events)
                case _:
                    events.append(Opaque(False, self._from))
                    self._from = b""
            if (len(self._from), self._from_phase) == before:
                break
        return events

    def lost(self, to_guest: bool, size: int, rest_of_send: bool = False) -> list[Event]:
        """`size` bytes were on the wire here and were not recorded.

        Whole messages among them are counted, so that what follows is still paired rightly. With
        `rest_of_send` they belong to the send before them, whose last receive they complete.
        """
        if size <= 0:
            return []
        if to_guest and rest_of_send and self._to_phase is StreamPhase.MESSAGES and self._service:
            room = -self._received_last % self._service.request_size
            self._split_number = None
            if size <= room:
                return [Lost(True, size)]
            return [Lost(True, room), *self._lost_to_guest(size - room)]
        if to_guest:
            return self._lost_to_guest(size)
        if rest_of_send and self._service is DEVICE_MANAGER and self._means_all(size):
            raw = self._from
            made = self.from_guest(bytes(size))
            cut = [replace(each, raw=raw) for each in made if isinstance(each, ReplyReceived)]
            return [*cut, Lost(False, size)]
        return self._lost_from_guest(size)

    def end(self) -> list[Event]:
        """The connection is over: what either side had begun and not finished."""
        events: list[Event] = []
        if self._line:
            events.append(Incomplete(True, self._line))
        if self._from:
            events.append(Incomplete(False, self._from))
        self._line = self._from = b""
        return events

    def resync(self) -> None:
        """An unknown part of the recording is missing here.

        A client sends its next request only once the last was answered, so what is open when
        the next one comes has lost its reply, and bytes of an unfinished message their rest.
        """
        self._resync = True
        # A line that was not seen yet may be what is missing.
        self._line_in_doubt = self._to_phase is StreamPhase.LINE and not self._line
        self._answer_in_doubt = self._from_phase is StreamPhase.LINE and not self._from

    def awaited(self, size: int) -> list[tuple[int, int]]:
        """(request, bytes still to come) of each due reply that the next `size` bytes are of.

        The request is -1 for the rest of a message whose beginning was lost.
        """
        if self._service is None or self._from_phase is not StreamPhase.MESSAGES:
            return []
        whole = self._service.reply_size
        begun = len(self._from)
        due = [
            (number, whole - begun if place == 0 else whole)
            for place, number in enumerate(islice(due_numbers(self._open), size // whole + 2))
        ]
        return [(-1, self._skip), *due] if self._skip else due

    @property
    def whole_in_flight(self) -> int | None:
        """How many requests wait for a reply, each of them known; None where anything but whole
        requests and replies of the device manager could come next, or anything is in doubt."""
        settled = (
            self._to_phase is self._from_phase is StreamPhase.MESSAGES
            and self._service is DEVICE_MANAGER
            and not (self._from or self._skip or self._resync)
        )
        known = all(isinstance(message, Request) for _, message in self._open)
        return len(self._open) if settled and known else None

    def pass_over(self, requests: int, last: bytes, waiting: ServiceRequest | None) -> None:
        """`requests` whole ones were decoded elsewhere, each answered by a whole reply but the
        last, if it is `waiting`; `last` are the last one's bytes."""
        self._next_number += requests
        self._request_buffer, self._received_last, self._split_number = last, len(last), None
        if waiting is not None:
            self._open.append((self._next_number - 1, waiting))

    @property
    def next_number(self) -> int:
        """The number that the next request gets."""
        return self._next_number

    @property
    def open_requests(self) -> tuple[int, ...]:
        """Numbers of the requests that have no reply yet, oldest first."""
        return tuple(due_numbers(self._open))

    def _lost_to_guest(self, size: int) -> list[Event]:
        events: list[Event] = []
        if self._resync:
            self._forget(events)
        if self._line:
            events.append(Incomplete(True, self._line))
            self._line = b""
        if self._to_phase is StreamPhase.MIDDLE and size >= DEVICE_MANAGER.request_size:
            self._to_phase = StreamPhase.MESSAGES  # too much for a service byte
            self._request_buffer = bytes(DEVICE_MANAGER.request_size)
        if self._to_phase in (StreamPhase.LINE, StreamPhase.SERVICE):
            self._to_phase, self._service = StreamPhase.MIDDLE, DEVICE_MANAGER
        elif self._to_phase is StreamPhase.MESSAGES and self._service is not None:
            lost_requests = -(-size // self._service.request_size)
            if (count := min(lost_requests, _LOST_OPEN - len(self._open))) > 0:
                self._open.append((self._next_number, count))
                self._next_number += count
            self._split_number = None
        events.append(Lost(True, size))
        return events

    def _means_all(self, cut: int) -> bool:
        """Whether what came of a reply says all that it means, without its last `cut` bytes."""
        whole = len(self._from) + cut == DEVICE_MANAGER.reply_size
        settled = self._from_phase is StreamPhase.MESSAGES and not (self._skip or self._resync)
        return whole and settled and len(self._from) >= REPLY_MEANS

    def _lost_from_guest(self, size: int) -> list[Event]:
        events: list[Event] = []
        service = self._service
        begun = len(self._from)
        if begun:
            events.append(Incomplete(False, self._from))
            self._from = b""
        replies: list[int] = []
        if StreamPhase.OPAQUE in (self._to_phase, self._from_phase):
            pass
        elif self._from_phase is StreamPhase.LINE or service is None:
            self._from_phase = StreamPhase.MIDDLE
        elif self._from_phase is StreamPhase.MIDDLE:
            self._resync = True  # there is nothing to count from
        else:
            counted = min(size, self._skip)  # the message they are of was lost before
            self._skip -= counted
            missing = begun + size - counted
            if self._from_phase is StreamPhase.HELLO:
                self._from_phase = StreamPhase.MESSAGES
                self._skip = max(0, service.hello_size - missing)
                missing = max(0, missing - service.hello_size)
            whole, part = divmod(missing, service.reply_size)
            replies = take_due(self._open, whole + (part > 0))
            if part:
                self._skip = service.reply_size - part
        events.append(Lost(False, size, tuple(replies)))
        return events

    def _forget(self, events: list[Event]) -> None:
        self._resync = False
        service = self._service
        phases = (StreamPhase.MIDDLE, StreamPhase.HELLO, StreamPhase.MESSAGES)
        if service is None or self._from_phase not in phases:
            return
        if self._from_phase is StreamPhase.HELLO:
            if self._to_phase is not StreamPhase.MESSAGES:
                return
            # It asks, so it was told that the service is ready.
            self._from_phase = StreamPhase.MESSAGES
        self._skip = 0
        begun = len(self._from)
        if begun:
            events.append(Incomplete(False, self._from))
            self._from = b""
        if begun or self._open:
            due = sum(kept if type(kept) is int else 1 for _, kept in self._open)
            size = service.reply_size * max(1, due) - begun
            events.append(Lost(False, max(0, size), tuple(take_due(self._open, due))))

    def _find_message(self, events: list[Event]) -> None:
        """Pass over what comes before the first message; it may end in a part of the magic."""
        begin = self._from.find(_MAGIC)
        if begin < 0:
            begun = next((size for size in (3, 2, 1) if self._from.endswith(_MAGIC[:size])), 0)
            begin = len(self._from) - begun
        if begin:
            events.append(Opaque(False, self._from[:begin]))
            self._from = self._from[begin:]
        if len(self._from) >= DEVICE_MANAGER.reply_size:
            first = decode_reply(self._from[: DEVICE_MANAGER.reply_size])
            # A guest says hello before it is asked; a reply may look the same.
            hello = first.is_hello and not self._open
            self._from_phase = StreamPhase.HELLO if hello else StreamPhase.MESSAGES

    def _connect_line(self, sent: bytes, events: list[Event]) -> int:
        begun = len(self._line)
        self._line += sent
        end = line_end(self._line)
        if end == 0:
            return len(sent)
        line, self._line = self._line[: end if end > 0 else CONNECT_LINE_LIMIT], b""
        if line == PASSFD_LINE:
            events.append(PassFd(line))
            self._to_phase = StreamPhase.OPAQUE
        else:
            port = parse_connect(line)
            events.append(ConnectLine(line, port))
            self._to_phase = (
                StreamPhase.SERVICE if port == self._upcall_port else StreamPhase.OPAQUE
            )
        return len(line) - begun

    def _service_byte(self, sent: bytes, position: int, events: list[Event]) -> int:
        value = sent[position]
        self._service = service_for(value)
        events.append(
            ServiceByte(value, self._service, early=not (self._accepted or self._answer_in_doubt))
        )
        if self._service is None:
            self._to_phase = StreamPhase.OPAQUE
        else:
            self._to_phase = StreamPhase.MESSAGES
            self._request_buffer = bytes(self._service.request_size)
        return position + 1

    def _requests(self, sent: bytes, start: int) -> list[Event]:
        service = self._service
        assert service is not None  # the phase is MESSAGES only with a service
        size = service.request_size
        events: list[Event] = []
        for position in range(start, len(sent), size):
            piece = sent[position : position + size]
            number = self._next_number
            continues = rest_of = None
            if len(piece) == size:
                raw = piece
                self._split_number = None
            else:
                raw = piece + self._request_buffer[len(piece) :]
                fresh = piece.startswith(_MAGIC)
                first = self._split_number if position == start and not fresh else None
                if first is not None and self._split_size + len(piece) <= size:
                    continues = first
                    self._split_size += len(piece)
                    if self._split_size == size:
                        self._split_number = None
                elif position > start and not fresh:
                    rest_of = number - 1
                    self._split_number = None
                else:
                    self._split_number = number
                    self._split_size = len(piece)
            self._request_buffer = raw
            self._received_last = len(piece)
            message = service.decode_request(raw, self._arch)
            overlaps = self._open[0][0] if self._open else None
            events.append(
                _request_received(
                    number, len(piece), message, raw, position, continues, rest_of, overlaps
                )
            )
            self._open.append((number, message if len(self._open) < KEPT_OPEN else None))
            self._next_number = number + 1
        return events

    def _ok_line(self, events: list[Event]) -> None:
        end = ok_line_end(self._from)
        if end == 0:
            return
        line = self._from[: end if end > 0 else OK_LINE_LIMIT]
        self._from = self._from[len(line) :]
        port = parse_ok(line)
        events.append(OkLine(line, port))
        self._accepted = True
        expected = port is not None and self._to_phase is not StreamPhase.OPAQUE
        self._from_phase = StreamPhase.HELLO if expected else StreamPhase.OPAQUE

    def _message(self, service: Service, events: list[Event]) -> None:
        hello = self._from_phase is StreamPhase.HELLO and service.hello_size > 0
        size = service.hello_size if hello else service.reply_size
        if len(self._from) < size:
            return
        raw, self._from = self._from[:size], self._from[size:]
        if hello:
            ready = decode_reply(raw, self._arch) if service is DEVICE_MANAGER else None
            events.append(Hello(ready, raw, ready is None or ready.is_hello))
        else:
            events.append(self._reply(service, raw))
        self._from_phase = StreamPhase.MESSAGES

    def _reply(self, service: Service, raw: bytes) -> ReplyReceived:
        number, request = take_oldest(self._open)
        message = service.decode_reply(raw, self._arch, request)
        event: ReplyReceived = _reply_received(number, message, raw)
        return event
