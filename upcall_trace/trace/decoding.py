"""A capture's records become connections and operations: the one place where bytes get meaning."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from dissectors.constants import MAGIC_VERSION, PCI_TYPES, REPLY_LOAD_OFFSET, Arch
from dissectors.events import (
    ConnectLine,
    Event,
    Hello,
    Lost,
    OkLine,
    Opaque,
    PassFd,
    ReplyReceived,
    RequestReceived,
    ServiceByte,
)
from dissectors.messages import Reply, Request
from dissectors.observer import Observer, Start
from dissectors.services import DEVICE_MANAGER, ServiceRequest, service_for

from ..capture.records import (
    CUT_OFF,
    LEFT_OUT,
    Begins,
    Chunk,
    Close,
    End,
    Gap,
    GaveUp,
    Header,
    How,
    Mark,
    Open,
    Origin,
    Record,
    Vmm,
)
from ..errors import UnreadableInput
from .operation_table import FREE_ROWS, OperationTable, rows_in
from .operations import ANOMALY_BIT

_START = {
    Begins.LINE: Start.LINE,
    Begins.SERVICE: Start.SERVICE,
    Begins.MIDDLE: Start.MIDDLE,
    Begins.OTHER: Start.OTHER,
}
MOST_LOST = (1 << 63) - 1
"""Gaps say how large they are, and may lie: their sum stays a number that a file can hold."""
_ZEROS = bytes(1024)
_KEPT_OVER = 1024
"""Connections that are over and still remembered, the last ones."""
_BAD_MAGIC = ANOMALY_BIT["bad-magic"]
_STALE_SUCCESS = ANOMALY_BIT["stale-success"]
_STALE_ERROR = ANOMALY_BIT["stale-error"]
_STALE_LOAD = ANOMALY_BIT["stale-load"]
_SPLIT = ANOMALY_BIT["split-request"]
_SHORT = ANOMALY_BIT["short-request"]
_OVERLAPPING = ANOMALY_BIT["overlapping-requests"]
_OVER_LONG = ANOMALY_BIT["over-long-request"]
_MISMATCH = ANOMALY_BIT["reply-mismatch"]


class TooManyOperations(UnreadableInput):
    """A few hostile bytes can stand for very many requests: there is a limit to how many."""


@dataclass(slots=True)
class Connection:
    """One connection: how it began, what crossed it, how it ended.

    Times are the capture's own clock in nanoseconds. `port` is None until a line tells it, and for
    a malformed one. `payload` counts upcall bytes of both ways, without CONNECT and OK lines.
    """

    number: int
    opened_ns: int
    begins: Begins
    port: int | None
    accepted: bool | None
    peer: tuple[int, int, int] | None
    line: bytes = b""
    answer: bytes = b""
    service: int | None = None
    read_as: str = ""
    """What its messages were taken for: the service and its table, empty for none that is known."""
    hello: bool | None = None
    """True for a valid CONNECT message, False for a bad one, None while there is none."""
    requests: int = 0
    replies: int = 0
    failures: int = 0
    payload: int = 0
    lost: int = 0
    unsolicited: int = 0
    closed_ns: int | None = None
    closed_by_guest: bool = False
    how: How | None = None
    reason: str = ""
    """Why the recorder ended it, where it did."""
    source: int = 0
    gave_up_ns: int | None = None


def read_as(service: int | None) -> str:
    """What messages behind a service byte are taken for here; empty when nobody knows the byte.

    Without a byte, after a gap for example, they are taken for the device manager's.
    """
    found = DEVICE_MANAGER if service is None else service_for(service)
    return found.identity if found else ""


class OpenRow(NamedTuple):
    """What a reply has to be compared with; a tuple, because every request makes one."""

    row: int
    sent_ns: int
    magic_version: int | None
    msg_type: int


@dataclass(slots=True)
class Watch:
    """What the session remembers of a connection while it decodes it."""

    observer: Observer
    connection: Connection
    open_rows: dict[int, OpenRow] = field(default_factory=dict)
    short: tuple[int, int] | None = None
    last_ret: int | None = 0
    file_gaps: int = 0
    """How many of the session's gaps of no connection this one was told of."""

    def wait(self, number: int, row: int, t_ns: int, request: ServiceRequest) -> None:
        """A request was sent, and its reply is to come."""
        self.open_rows[number] = (
            OpenRow(row, t_ns, request.magic_version, request.msg_type)
            if isinstance(request, Request)
            else OpenRow(row, t_ns, None, 0)
        )


class Session:
    """Feed it a capture's records in order; it fills `table` and `connections`.

    `feed` returns the events of the record, for whoever shows frames. No record makes it raise:
    what cannot be understood is counted or left out. Only their number is bounded, by the size of
    their file and TooManyOperations.
    """

    def __init__(self, header: Header, table: OperationTable | None = None) -> None:
        self.header = header
        self.table = OperationTable() if table is None else table
        self.connections: dict[int, Connection] = {}
        self.marks: list[Mark] = []
        self.vmm: list[Vmm] = []
        self.origins: list[Origin] = []
        self.first_ns: int | None = None
        self.last_ns = 0
        self.lost = 0
        self.finished_rows: list[int] = []
        """Rows that were answered or given up since the caller last emptied the list."""
        self.watched: dict[int, Watch] = {}
        self._over: OrderedDict[int, None] = OrderedDict()
        self.file_gaps = 0
        self._ended = False
        self.arch = Arch.named(header.arch) or Arch.X86_64

    def feed(self, record: Record, offset: int = 0) -> Sequence[Event]:
        """Take the record that stands at `offset` of its file."""
        if isinstance(record, Mark):
            self.marks.append(record)
            return ()
        if isinstance(record, Header):
            return ()
        t_ns = record.t_ns
        if self.first_ns is None:
            self.first_ns = self.last_ns = t_ns
        self.last_ns = max(self.last_ns, t_ns)
        if isinstance(record, Chunk):
            return self._chunk(record, offset)
        match record:
            case Open():
                self._open(record)
            case Close():
                return self._close(record)
            case GaveUp():
                self._watch(record.conn, t_ns).connection.gave_up_ns = t_ns
            case Gap():
                return self._gap(record, offset)
            case Vmm():
                self.vmm.append(record)
            case Origin():
                self.origins.append(record)
            case End() if not self._ended:
                self._ended = True
                self.finish()
        return ()

    def unfinished_rows(self) -> Iterator[int]:
        """The rows that something may still change."""
        for watch in self.watched.values():
            if watch.open_rows:
                for asked in watch.open_rows.values():
                    yield asked.row
            if watch.short is not None:
                yield watch.short[1]

    def let_go(self) -> list[Connection]:
        """Every connection that is known; those that are over are forgotten, and so is the rest.

        For whoever keeps what was decoded so far: memory then holds only what can still change.
        """
        known = list(self.connections.values())
        for connection in known:
            if connection.number not in self.watched:
                del self.connections[connection.number]
        self.marks, self.vmm, self.origins = [], [], []
        self.finished_rows.clear()
        return known

    def awaited(self, conn: int, size: int) -> list[tuple[int, int]]:
        """(request, bytes still to come) of each reply that `size` bytes from the guest are of."""
        watch = self.watched.get(conn)
        return watch.observer.awaited(size) if watch else []

    def finish(self) -> None:
        """No more records will come: what is still open stays unanswered."""
        for watch in self.watched.values():
            self._give_up(watch)

    def _watch(self, conn: int, t_ns: int) -> Watch:
        watch = self.watched.get(conn)
        if watch is None:  # the recording began after the connection did
            return self._open(Open(t_ns, conn, Begins.MIDDLE))
        if watch.file_gaps != self.file_gaps:
            watch.file_gaps = self.file_gaps
            watch.observer.resync()
            watch.last_ret = None
        return watch

    def _open(self, record: Open) -> Watch:
        previous = self.watched.get(record.conn)
        if previous is not None:
            self._give_up(previous)
        connection = self.connections[record.conn] = Connection(
            record.conn, record.t_ns, record.begins, record.port, record.accepted, record.peer,
            read_as=read_as(None), source=record.source,
        )  # fmt: skip
        self._over.pop(record.conn, None)
        observer = Observer(_START[record.begins], self.arch, self.header.port)
        watch = Watch(observer, connection, file_gaps=self.file_gaps)
        self.watched[record.conn] = watch
        if record.begins is Begins.MIDDLE:
            watch.last_ret = None
        return watch

    def _chunk(self, chunk: Chunk, offset: int) -> list[Event]:
        watch = self.watched.get(chunk.conn)
        if watch is None or watch.file_gaps != self.file_gaps:
            watch = self._watch(chunk.conn, chunk.t_ns)
        if chunk.to_guest:
            events = watch.observer.to_guest(chunk.data)
        else:
            events = watch.observer.from_guest(chunk.data)
        for event in events:
            if isinstance(event, RequestReceived):
                self._request(watch, event, chunk.t_ns, offset)
            elif isinstance(event, ReplyReceived):
                self._reply(watch, event, chunk.t_ns, offset)
            else:
                self._other(watch.connection, event)
        return events

    def _request(self, watch: Watch, event: RequestReceived, t_ns: int, offset: int) -> None:
        connection = watch.connection
        connection.requests += 1
        connection.payload += event.size
        anomalies = 0
        request = event.message
        if isinstance(request, Request) and request.magic_version != MAGIC_VERSION:
            anomalies |= _BAD_MAGIC
        if event.continues is not None:
            anomalies |= _SPLIT
            if watch.short is not None and watch.short[0] == event.continues:
                self.table.change_anomalies(watch.short[1], remove=_SHORT)
        elif event.rest_of is not None:
            anomalies |= _OVER_LONG
        else:
            if event.size < len(event.raw):
                anomalies |= _SHORT
            if event.overlaps is not None:
                anomalies |= _OVERLAPPING
        if offset and len(self.table) >= FREE_ROWS and len(self.table) >= rows_in(offset):
            raise TooManyOperations("it stands for more operations than a file of its size can")
        row = self.table.append(
            connection.number, event.number, t_ns, offset, event.position, event.size, request,
            anomalies,
        )  # fmt: skip
        if anomalies & _SHORT:
            watch.short = (event.number, row)
        watch.wait(event.number, row, t_ns, request)

    def _reply(self, watch: Watch, event: ReplyReceived, t_ns: int, offset: int) -> None:
        connection = watch.connection
        connection.payload += len(event.raw)
        reply = event.message
        ret = reply.ret
        asked = None if event.number is None else watch.open_rows.pop(event.number, None)
        if asked is None:
            if event.number is None:
                connection.unsolicited += 1
            watch.last_ret = ret
            return
        row = asked.row
        connection.replies += 1
        if ret < 0:
            connection.failures += 1
        self.table.answer(row, reply, t_ns - asked.sent_ns, offset)
        self.finished_rows.append(row)
        if isinstance(reply, Reply) and asked.magic_version is not None:
            anomalies = _reply_anomalies(asked, reply, event.raw, watch.last_ret)
            if anomalies:
                self.table.change_anomalies(row, add=anomalies)
        watch.last_ret = ret

    def _other(self, connection: Connection, event: Event) -> None:
        match event:
            case ConnectLine():
                connection.line, connection.port = event.raw, event.port
            case PassFd():
                connection.line = event.raw
            case OkLine():
                connection.answer = event.raw
                connection.accepted = event.port is not None
            case ServiceByte():
                connection.service = event.value
                connection.read_as = read_as(event.value)
                connection.payload += 1
            case Hello():
                connection.hello = event.valid
                if connection.accepted is None:
                    connection.accepted = True  # the line that said so is missing
                connection.payload += len(event.raw)
            case Opaque() if connection.port == self.header.port:
                connection.payload += len(event.raw)
            case Lost():
                connection.lost = min(connection.lost + event.size, MOST_LOST)

    def _close(self, record: Close) -> Sequence[Event]:
        watch = self._watch(record.conn, record.t_ns)
        connection = watch.connection
        if record.how is How.HALF:
            return ()
        if connection.closed_ns is None:
            connection.closed_ns = record.t_ns
            connection.closed_by_guest = record.by_guest
            connection.how = record.how
            connection.reason = record.reason
        self._give_up(watch)
        # What was on its way may still be recorded; a long time later it is another connection.
        self._over[record.conn] = None
        if len(self._over) > _KEPT_OVER:
            self.watched.pop(self._over.popitem(last=False)[0], None)
        return watch.observer.end()

    def _gap(self, record: Gap, offset: int) -> list[Event]:
        if record.reason != LEFT_OUT:
            self.lost = min(self.lost + record.size, MOST_LOST)
        if record.conn == 0:
            self.file_gaps += 1  # each connection learns of it when it is next seen
            return []
        watch = self._watch(record.conn, record.t_ns)
        before, watch.last_ret = watch.last_ret, None
        cut_off = record.reason == CUT_OFF
        events = watch.observer.lost(record.to_guest, record.size, rest_of_send=cut_off)
        if cut_off and watch.short is not None:
            self.table.change_anomalies(watch.short[1], remove=_SHORT)
            if record.to_guest:
                self.table.lacks_rest(watch.short[1])
        if cut_off and record.to_guest and len(events) == 1:
            watch.last_ret = before  # it was the rest of one request
        for event in events:
            if isinstance(event, ReplyReceived):  # what is left of it says all that it means
                watch.last_ret = before
                self._reply(watch, event, record.t_ns, offset)
            else:
                self._other(watch.connection, event)
        return events

    def _give_up(self, watch: Watch) -> None:
        """Nothing can answer the connection's open requests any more."""
        watch.connection.failures += len(watch.open_rows)
        self.finished_rows += [asked.row for asked in watch.open_rows.values()]
        watch.open_rows.clear()


def _reply_anomalies(request: OpenRow, reply: Reply, raw: bytes, last_ret: int | None) -> int:
    """Doubts about a reply; `last_ret` is what the guest's reply buffer held before, if known.

    docs/protocol.md section 4, stale load and stale result.
    """
    anomalies = 0
    if request.magic_version != MAGIC_VERSION:
        anomalies |= _STALE_SUCCESS if reply.ret == 0 else _STALE_ERROR
    elif request.msg_type in PCI_TYPES and reply.ret < 0 and last_ret in (reply.ret, None):
        anomalies |= _STALE_ERROR
    beyond = raw[REPLY_LOAD_OFFSET + reply.msg_size :]
    if beyond != _ZEROS[: len(beyond)]:
        anomalies |= _STALE_LOAD
    if reply.magic_version != MAGIC_VERSION or reply.msg_type != request.msg_type:
        anomalies |= _MISMATCH
    return anomalies
