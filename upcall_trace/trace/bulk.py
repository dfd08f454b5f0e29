"""Whole messages decoded by columns: thousands at once, with the results of one by one.

A run of a capture's records (`capture.runs`) holds whole messages and nothing else. As long as each
connection's are one request and its reply after the other, what `Session.feed` would make of them
follows from columns alone: `take_run` works it out, writes the rows of the table, and tells
sessions and observers where they then are. From the first message on that is anything else, the
observer decides what messages mean. docs/developing.md.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from dissectors.constants import MAGIC_VERSION, PCI_TYPES, REPLY_LOAD_OFFSET, Arch
from dissectors.events import Event
from dissectors.layouts import DEVICE_MANAGER_TABLE as TABLE
from dissectors.services import DEVICE_MANAGER
from dissectors.tables import FieldRow, Layout

from ..capture.records import CONN_LIMIT, Chunk, Record
from ..capture.runs import SHORTEST, MessageRun
from .decoding import Session, Watch
from .operation_table import FREE_ROWS, ROWS, rows_in
from .operations import ANOMALY_BIT
from .rows import store_of

Places = NDArray[np.int64]
_WINDOW: Final = 512
"""Messages that are looked at together at first; more where they are as they should be."""
_CAREFUL: Final = 32
_MOST_CAREFUL: Final = 4096
"""Records that are fed one by one where a run does not go on as it should: more each time."""
_U32_LIMIT: Final = 0xFFFFFFFF
_UNKNOWN: Final = 1 << 40
"""For a `ret` that nobody knows; no message has it."""
_NO_ROW: Final = -1


def feed(session: Session, item: Record | MessageRun, offset: int = 0) -> None:
    """Take a record that stands at `offset`, or a run; nobody is told which rows are finished."""
    if isinstance(item, MessageRun):
        take_run(session, item)
        session.finished_rows.clear()
    else:
        session.feed(item, offset)


def take_run(session: Session, run: MessageRun) -> None:
    """Take a run of whole messages: the same as to feed each of its records.

    Where they are one request and its reply after the other they are decoded by columns. The
    observers are asked about the others.
    """
    for _ in pieces(session, run):
        pass


def pieces(
    session: Session, run: MessageRun
) -> Iterator[MessageRun | tuple[Chunk, Sequence[Event]]]:
    """Take a run, and tell of each part how: by columns, or a record with what came of it."""
    done, window, careful = 0, _WINDOW, _CAREFUL
    while done < len(run):
        part = run.part(done, done + window)
        taken = _take(session, part)
        done += taken
        if taken:
            yield part.part(0, taken)
        if taken == len(part):
            window *= 4
            continue
        window = _WINDOW
        careful = _CAREFUL if taken else min(2 * careful, _MOST_CAREFUL)
        for offset, chunk in run.part(done, done + careful).records():
            yield chunk, session.feed(chunk, offset)
        done += careful


def _take(session: Session, run: MessageRun) -> int:
    """Take as many messages of the run as are as they should be; returns how many."""
    groups = _groups(session, run)
    if groups is None:
        return 0
    while (limit := groups.limit) < len(run):
        if limit < SHORTEST:
            return 0
        run = run.part(0, limit)
        known = _groups(session, run)
        assert known is not None  # it is a part of the same
        groups = known
    rows, offset = len(session.table) + len(run), int(run.offset[0])
    if offset and rows >= FREE_ROWS and rows >= rows_in(offset):
        return 0  # one by one it is told which is too many
    if session.first_ns is None:
        session.first_ns = session.last_ns = int(run.t_ns[0])
    session.last_ns = max(session.last_ns, int(run.t_ns.max()))
    for group in groups.begun:  # answers to what was asked before
        offset, chunk = run.record(group)
        session.feed(chunk, offset)
    _decode(session, run, groups)
    return len(run)


@dataclass(slots=True)
class _Groups:
    """The messages of a run by their connections.

    `order` sorts them by connection, and within one as they come; `starts` are where in it each
    connection's begin. `limit` is the first message that is not as it should be, `begun` are the
    replies to requests from before the run.
    """

    watches: list[Watch]
    order: Places
    starts: Places
    group: Places
    """Of each message in that order: which connection."""
    limit: int
    begun: list[int]

    def first_of(self, wanted: NDArray[np.bool_]) -> Places:
        """For each connection, where among the wanted messages its first one is."""
        counted = np.concatenate(([0], np.cumsum(wanted)))
        found: Places = counted[self.starts]
        return found


def _groups(session: Session, run: MessageRun) -> _Groups | None:
    """None where not even the first message is as it should be."""
    count = len(run)
    order = np.arange(count)
    starts = np.zeros(1, np.int64)
    conns = run.conn
    if (conns != conns[0]).any():
        order = np.argsort(conns, kind="stable")
        conns = conns[order]
        starts = np.concatenate(([0], np.flatnonzero(conns[1:] != conns[:-1]) + 1))
    watches: list[Watch] = []
    open_at: list[int] = []
    limit = count
    for place, conn in zip(order[starts].tolist(), conns[starts].tolist(), strict=True):
        watch = session.watched.get(conn)
        waiting = None
        if watch is not None and watch.file_gaps == session.file_gaps and conn < CONN_LIMIT:
            waiting = watch.observer.whole_in_flight
            if waiting is not None and (
                waiting > 1 or [*watch.open_rows] != [*watch.observer.open_requests]
            ):
                waiting = None
        if watch is None or waiting is None:
            if place == 0:
                return None
            limit, waiting = min(limit, place), 0
        if watch is not None:
            watches.append(watch)
        open_at.append(waiting)
    sizes = np.diff(np.append(starts, count))
    group = np.repeat(np.arange(len(starts)), sizes)
    turn = np.arange(count) - starts[group] + np.array(open_at)[group]
    wrong = run.to_guest[order] != (turn % 2 == 0)
    if wrong.any():
        limit = min(limit, int(order[wrong].min()))
    for number in _special_replies():
        special = ~run.to_guest & (run.numbers(np.arange(count), 8, 4) == number)
        if special.any():
            limit = min(limit, int(np.argmax(special)))
    begun = order[starts][np.array(open_at) == 1]
    return _Groups(watches, order, starts, group, limit, begun.tolist())


@cache
def _special_replies() -> tuple[int, ...]:
    """Types of replies whose load is more than one number: they have to be kept one by one."""
    return tuple(
        message.number
        for message in TABLE.messages
        for layout in TABLE.layouts_of(message.number)
        if layout.reply and not store_of(TABLE, layout, True).in_columns
    )


def _decode(session: Session, run: MessageRun, groups: _Groups) -> None:
    order, group = groups.order, groups.group
    asks = run.to_guest[order]
    answers = ~asks
    begun = np.zeros(len(run), np.bool_)
    begun[groups.starts] = answers[groups.starts]
    answers &= ~begun
    requests, replies = order[asks], order[answers]
    # The row of each request, in the order of the recording; and with a reply goes the one before.
    rank = np.empty(len(run), np.int64)
    rank[np.sort(requests)] = np.arange(len(requests))
    row_of_request = rank[requests]
    row_of_reply = rank[order[np.flatnonzero(answers) - 1]]
    rows = np.zeros(len(requests), ROWS)
    extra = _fill_requests(session.arch, run, np.sort(requests), rows)
    numbers = np.array([watch.observer.next_number for watch in groups.watches], np.int64)
    nth = np.arange(len(requests)) - groups.first_of(asks)[group[asks]]
    numbers = np.minimum(numbers[group[asks]] + nth, _U32_LIMIT)
    rows["request"][row_of_request] = numbers
    ret = _fill_replies(session.arch, run, replies, rows, row_of_reply)
    before = np.array(
        [_UNKNOWN if w.last_ret is None else w.last_ret for w in groups.watches], np.int64
    )
    _doubt(run, replies, rows, row_of_reply, ret, _shifted(ret, group[answers], before))
    first = session.table.extend(rows, extra)
    session.finished_rows += (first + row_of_reply[np.argsort(replies)]).tolist()
    _account(session, run, groups, (asks, answers), ret, first + row_of_request)


def _shifted(ret: NDArray[Any], group: Places, before: NDArray[Any]) -> NDArray[Any]:
    """Of each reply the `ret` of the one before it on its connection."""
    last = np.empty_like(ret)
    last[1:] = ret[:-1]
    firsts = np.ones(len(ret), np.bool_)
    firsts[1:] = group[1:] != group[:-1]
    last[firsts] = before[group[firsts]]
    return last


def _field(run: MessageRun, places: Places, row: FieldRow) -> NDArray[Any]:
    """The numbers of a field in these messages, of the field's own type."""
    found = run.numbers(places, row.offset, row.size)
    typed: NDArray[Any] = found.astype(f"<u{row.size}").view(np.dtype("<" + row.code))
    return typed


def _fill_requests(arch: Arch, run: MessageRun, places: Places, rows: NDArray[Any]) -> bytes:
    """Everything that a request tells; returns what goes into `extra`."""
    head = run.numbers(places, 0, 8)
    msg_size = (head >> np.uint64(32)).astype(np.int64)
    msg_type = run.numbers(places, 8, 4).astype(np.int64)
    rows["conn"], rows["t_ns"] = run.conn[places], run.t_ns[places]
    rows["offset"], rows["size"] = run.offset[places], run.whole
    rows["service"], rows["msg_type"], rows["msg_size"] = TABLE.byte, msg_type, msg_size
    rows["reply_load"] = rows["latency_ns"] = rows["reply_offset"] = -1
    bad = (head & np.uint64(_U32_LIMIT)) != MAGIC_VERSION
    rows["anomalies"] = np.where(bad, ANOMALY_BIT["bad-magic"], 0)
    layouts = np.zeros(len(places), np.uint8)
    for number in TABLE.by_number:
        chosen = msg_type == number
        layouts[chosen] = TABLE.layout(number, arch).number
        for told in TABLE.layouts_of(number) if TABLE.depends_on_arch(number) else ():
            if TABLE.told_arch(number, TABLE.load_size(told)) is told.arch:
                layouts[chosen & (msg_size == TABLE.load_size(told))] = told.number
    rows["layout"] = layouts
    pieces: list[_Pieces] = []
    for layout in TABLE.layouts:
        rows_of_it = np.flatnonzero(layouts == layout.number)
        if layout.request and len(rows_of_it):
            for row in store_of(TABLE, layout, False).in_columns:
                rows[row.name][rows_of_it] = _field(run, places[rows_of_it], row)
            pieces += _arrays(layout, run, places, rows_of_it)
    return _copy_arrays(run, rows, places, pieces)


@dataclass(slots=True)
class _Pieces:
    """An array's bytes in some rows: where they begin in the message, and how many are meant."""

    rows: Places
    begin: int
    sizes: Places


def _arrays(layout: Layout, run: MessageRun, places: Places, rows: Places) -> list[_Pieces]:
    found = []
    for array in store_of(TABLE, layout, False).arrays:
        count = np.full(len(rows), array.count)
        if array.length:
            length = next(row for row in layout.request if row.name == array.length)
            count = np.minimum(_field(run, places[rows], length).astype(np.int64), array.count or 0)
        found.append(_Pieces(rows, array.offset, count * array.item_size))
    return found


def _copy_arrays(
    run: MessageRun, rows: NDArray[Any], places: Places, pieces: list[_Pieces]
) -> bytes:
    """The bytes of all arrays, row by row, and where in them each row's are."""
    if not pieces:
        return b""
    row = np.concatenate([piece.rows for piece in pieces])
    begin = np.repeat([piece.begin for piece in pieces], [len(piece.rows) for piece in pieces])
    size = np.concatenate([piece.sizes for piece in pieces])
    order = np.argsort(row, kind="stable")
    row, begin, size = row[order], begin[order], size[order]
    first = np.cumsum(size) - size
    at = np.repeat(begin - first, size) + np.arange(int(size.sum()))
    np.add.at(rows["extra_size"], row, size.astype(np.uint32))
    rows["extra_end"] = np.cumsum(rows["extra_size"].astype(np.uint64))
    return run.gathered(places[np.repeat(row, size)], at).tobytes()


def _fill_replies(
    arch: Arch, run: MessageRun, places: Places, rows: NDArray[Any], row_of: Places
) -> NDArray[np.int64]:
    """What the replies tell, into the rows of their requests; returns their `ret`."""
    ret = run.numbers(places, 16, 4).astype(np.uint32).view(np.int32).astype(np.int64)
    rows["answered"][row_of] = 1
    rows["ret"][row_of] = ret
    msg_type = run.numbers(places, 8, 4)
    rows["reply_type"][row_of] = msg_type
    rows["reply_size"][row_of] = run.numbers(places, 4, 4)
    rows["latency_ns"][row_of] = run.t_ns[places] - rows["t_ns"][row_of]
    rows["reply_offset"][row_of] = run.offset[places]
    asked = rows["layout"][row_of]
    for message in TABLE.messages:
        chosen = msg_type == message.number
        for layout in TABLE.layouts_of(message.number):
            loads = store_of(TABLE, layout, True).in_columns
            if not loads or not chosen.any():
                continue
            mine = chosen
            if layout.arch is not None:  # the request's architecture counts, if it tells one
                theirs = np.array([layout.arch is (each.arch or arch) for each in TABLE.layouts])
                mine = chosen & theirs[asked]
            found = np.flatnonzero(mine)
            rows["reply_load"][row_of[found]] = _field(run, places[found], loads[0])
    return ret


def _doubt(
    run: MessageRun,
    replies: Places,
    rows: NDArray[Any],
    row_of: Places,
    ret: NDArray[Any],
    last_ret: NDArray[Any],
) -> None:
    """Doubts about replies, as `decoding` has them one by one. docs/protocol.md section 4."""
    anomalies = rows["anomalies"][row_of]
    msg_type = rows["msg_type"][row_of]
    bad = (anomalies & ANOMALY_BIT["bad-magic"]) != 0
    pci = np.isin(msg_type, list(PCI_TYPES))
    left = ~bad & pci & (ret < 0) & ((last_ret == ret) | (last_ret == _UNKNOWN))
    anomalies[bad & (ret == 0)] |= ANOMALY_BIT["stale-success"]
    anomalies[(bad & (ret != 0)) | left] |= ANOMALY_BIT["stale-error"]
    # The last byte that is stored is never zero.
    load_end = REPLY_LOAD_OFFSET + rows["reply_size"][row_of].astype(np.int64)
    anomalies[run.size[replies] > load_end] |= ANOMALY_BIT["stale-load"]
    other = (run.numbers(replies, 0, 4) != MAGIC_VERSION) | (rows["reply_type"][row_of] != msg_type)
    anomalies[other] |= ANOMALY_BIT["reply-mismatch"]
    rows["anomalies"][row_of] = anomalies


def _account(
    session: Session,
    run: MessageRun,
    groups: _Groups,
    ways: tuple[NDArray[np.bool_], NDArray[np.bool_]],
    ret: NDArray[Any],
    rows: Places,
) -> None:
    """Tell each connection and its observer what went past them."""
    asks, answers = ways
    group, count = groups.group, len(groups.watches)
    requests = np.bincount(group[asks], minlength=count).tolist()
    replies = np.bincount(group[answers], minlength=count).tolist()
    failures = np.bincount(group[answers][ret < 0], minlength=count).tolist()
    last_request = (groups.first_of(asks) + requests - 1).tolist()
    last_reply = (groups.first_of(answers) + replies - 1).tolist()
    sent = groups.order[asks]
    ends = np.append(groups.starts[1:], len(run)) - 1
    waits = asks[ends].tolist()
    for place, watch in enumerate(groups.watches):
        connection = watch.connection
        connection.requests += requests[place]
        connection.replies += replies[place]
        connection.failures += failures[place]
        connection.payload += run.whole * (requests[place] + replies[place])
        if replies[place]:
            watch.last_ret = int(ret[last_reply[place]])
        if not requests[place]:
            continue
        at = int(sent[last_request[place]])
        raw = run.data(at)
        request: Any = None
        if waits[place]:
            request = DEVICE_MANAGER.decode_request(raw, session.arch)
            number = watch.observer.next_number + requests[place] - 1
            row = int(rows[last_request[place]])
            watch.wait(number, row, int(run.t_ns[at]), request)
        watch.observer.pass_over(requests[place], raw, request)
