"""Tables and examples about the capture file and the transcript, made by encoding some.

`tools.generate_docs` names them in its table of blocks.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass
from io import StringIO
from typing import Any, Final

from dissectors.constants import MessageType
from dissectors.layouts import DEVICE_MANAGER_TABLE
from dissectors.messages import mmio_request
from dissectors.tables import ARCH_NAMES
from upcall_trace.capture import frames, records
from upcall_trace.capture.encoding import encode
from upcall_trace.capture.frames import FRAME, MAGIC, Kind, unpack
from upcall_trace.capture.records import (
    Begins,
    Carry,
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
from upcall_trace.dataset.schema import FINDINGS, FLEET, OPERATIONS, WHOSE, Column
from upcall_trace.exports import transcript
from upcall_trace.trace.indexing import INDEX_VERSION, SEGMENT_BYTES
from upcall_trace.trace.opening import CHECKED_SIZE, DECODED_SIZE
from upcall_trace.trace.operation_table import COLUMN_TYPES, FREE_ROWS, ROW_BYTES
from upcall_trace.trace.rows import LOAD_COLUMNS
from upcall_trace.vantage.recorder import BACKLOG_LIMIT, FLUSH_S

from .markdown import code, fenced, table

_EXAMPLES: Final[tuple[Record, ...]] = (
    Header(
        "proxy", "upcall-trace", "host", "x86_64", 1_000, 1, 219, {"pod": "web"}, "f00d", 2, "5a5a"
    ),
    Open(1, 2, Begins.LINE, 219, True, (3, 4, 5), 6),
    Chunk(1, 2, True, b"d"),
    Close(1, 2, True, How.RESET, "why"),
    GaveUp(1, 2, 3),
    Vmm(1, "start vCPU 1", 2),
    Gap(1, 2, True, 3, "why"),
    Mark(1, 2, 3, "comment", "text"),
    End(1),
    Origin(1, 2, "proxy", "/run/vm.sock", "5a5a", {"pod": "web"}),
    Chunk(1, 2, True, b"d", 3),
    Carry(1, 2, Begins.LINE, 219, True, (3, 4, 5), 6),
)
"""One of every record, its fields all different as far as their types allow."""

_OTHER_KINDS: Final = {
    Kind.INDEX_ROWS: "The columns of one segment of the index.",
    Kind.INDEX: "The index of version 1; readers pass over it.",
    Kind.TAIL: "Where the last SEGMENT record stands.",
    Kind.SEEN: "A CHUNK that was seen only later, with how much.",
    Kind.SEGMENT: "What a stretch of the file sums up to, and where its columns stand.",
}
_FIELD_TEXTS: Final = {
    ("HEADER", "version"): "int: the format's version",
    ("HEADER", "source"): "str: `proxy`, `vsockmon`, `transcript` or `merge`",
    ("HEADER", "tool"): "str: the program that recorded, and its version",
    ("HEADER", "host"): "str: the machine that it ran on",
    ("HEADER", "arch"): "str or nil: the guest's, `x86_64` or `aarch64`",
    ("HEADER", "wall_ns"): "int or nil: the wall clock at `t_ns` 0, since 1970 in UTC",
    ("HEADER", "resolution_ns"): "int: the step of the clock behind `t_ns`, 0 when unknown",
    ("HEADER", "port"): "int: the guest's port whose connections carry upcall",
    ("HEADER", "notes"): "map of str to str",
    ("HEADER", "recording"): "str: the same in every part of one recording, empty for one file",
    ("HEADER", "part"): "int: which part of its recording it is, from 1; 0 for one file",
    ("HEADER", "sandbox"): "str or nil: the id of the sandbox, where it is known",
    ("ORIGIN", "number"): "int: what OPEN records name it by, from 1",
    ("ORIGIN", "kind"): "str: as `source` in the header",
    ("ORIGIN", "name"): "str: a socket's path, an address, or a process",
    ("ORIGIN", "sandbox"): "str or nil: as in the header",
    ("ORIGIN", "notes"): "map of str to str: as in the header",
    ("SEEN", "uncertainty_ns"): "int: it crossed at most so long before `t_ns`",
    ("", "data"): "the bytes, in parts, below",
    ("", "begins"): "str: what the recorded bytes begin with, below",
    ("", "port"): "int or nil: the guest's port, where no CONNECT line tells it",
    ("", "accepted"): "bool or nil: did the guest accept, where no OK line tells it",
    ("", "peer"): "array of pid, uid and gid of the client, or nil",
    ("", "source"): "int: the number of an ORIGIN record, 0 for what the header describes",
    ("CLOSE", "by_guest"): "bool: which side ended it",
    ("CLOSE", "how"): "str, below",
    ("CLOSE", "reason"): "str: why the recorder ended it, else empty",
    ("GAVE_UP", "after_ns"): "int: how long the client had waited",
    ("VMM", "action"): "str: what the VMM did",
    ("VMM", "conn"): "int: the connection it belongs to, 0 for none",
    ("GAP", "conn"): "int: the connection, 0 when it is not known",
    ("GAP", "size"): "int: how many bytes are missing",
    ("GAP", "reason"): "str: why; `left out on purpose` means that nothing was lost",
    ("MARK", "wall_ns"): "int: when it was made, since 1970 in UTC, 0 when unknown",
    ("MARK", "conn"): "int or nil: the connection that it is about",
    ("MARK", "request"): "int or nil: the request that it is about",
    ("MARK", "name"): "str: `comment` for a remark, else the user's own",
    ("MARK", "text"): "str",
    ("", "t_ns"): "int: when, on the recording's own clock",
    ("", "conn"): "int: the connection, from 1",
    ("", "to_guest"): "bool: true for bytes to the guest",
}


def _record_kinds() -> Iterator[tuple[Kind, Record]]:
    for record in _EXAMPLES:
        yield Kind(unpack(encode(record)[FRAME.size :])[0]), record


def capture_kinds() -> str:
    """The kinds of records."""
    texts = {kind: inspect.getdoc(type(record)) or "" for kind, record in _record_kinds()}
    texts |= _OTHER_KINDS
    rows = [(kind.value, kind.name, _sentence(texts[kind])) for kind in Kind]
    return table(("kind", "name", "what it says"), rows)


def _sentence(text: str) -> str:
    """The first sentence."""
    return " ".join(text.split()).partition(". ")[0].removesuffix(".")


def capture_fields() -> str:
    """What stands where in each record, found out by encoding one."""
    rows = []
    for kind, record in _record_kinds():
        for position, name in _positions(kind, record).items():
            text = _FIELD_TEXTS.get((kind.name, name)) or _FIELD_TEXTS["", name]
            rows.append((kind.name, position, code(name), text))
    return table(("record", "place", "field", "type and meaning"), rows)


def _positions(kind: Kind, record: Record) -> dict[int, str]:
    """Place in the array -> name of the field, places in order."""
    assert is_dataclass(record)
    values = unpack(encode(record)[FRAME.size :])
    names = [field.name for field in fields(record)]
    if isinstance(record, Header):  # the version comes first, whatever this program's class says
        names.insert(0, names.pop())
    if isinstance(record, Chunk):
        uncertain = names.pop()
        if kind is Kind.SEEN:
            names.insert(1, uncertain)
    positions = dict(enumerate(names, start=1))
    for position, name in positions.items():
        assert values[position] == _plain(getattr(record, name)), name
    return positions


def _plain(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value


def capture_limits() -> str:
    """How large things may get."""
    return table(
        ("limit", "value"),
        [
            ("format version", frames.FORMAT_VERSION),
            ("version of the index", INDEX_VERSION),
            ("bytes after which a new segment begins", f"{SEGMENT_BYTES >> 20} MiB"),
            (
                "a capture is decoded, not read through its index, up to",
                f"{DECODED_SIZE >> 20} MiB",
            ),
            ("every byte is summed up without --verify, up to", f"{CHECKED_SIZE >> 20} MiB"),
            ("payload of one frame", f"{frames.MAX_PAYLOAD >> 20} MiB"),
            ("bytes of one CHUNK; a longer send becomes several", f"{records.MAX_CHUNK >> 10} KiB"),
            ("operations in a capture of n bytes", f"{FREE_ROWS:,} + n / {ROW_BYTES}"),
            ("time until a recorder hands what it got to the kernel", f"{FLUSH_S * 1000:.0f} ms"),
            ("bytes that may wait for a slow disk", f"{BACKLOG_LIMIT >> 20} MiB"),
        ],
    )


def _layouts() -> str:
    told = []
    for layout in DEVICE_MANAGER_TABLE.layouts[1:]:
        names = " and ".join(message.name for message in layout.messages)
        arch = f" {ARCH_NAMES[layout.arch]}" if layout.arch else ""
        told.append(f"{layout.number} {names}{arch}")
    return ", ".join(told)


def _reply_numbers() -> str:
    names = (row.name for layout in DEVICE_MANAGER_TABLE.layouts for row in layout.reply)
    return " or ".join(f"`{name}`" for name in names)


_COLUMN_TEXTS: Final = {
    "conn": "connection",
    "request": "request of its connection",
    "t_ns": "when it was sent, on the recording's own clock",
    "offset": "where in the file the CHUNK of the request stands",
    "position": "where in that chunk the request begins",
    "size": "bytes of it that the guest received",
    "service": "the byte that picked the service; 0x64 is the device manager",
    "layout": f"what the load has; 0 nothing, then by service, of the device manager {_layouts()}",
    "msg_type": "of the request: its number in its service",
    "msg_size": "of the request",
    **dict.fromkeys(LOAD_COLUMNS, "of the load"),
    "anomalies": "one bit for each, in the order of docs/json.md",
    "extra_end": "where in `extra` the row's bytes end",
    "extra_size": "how many they are",
    "answered": "1 when a reply came",
    "ret": "of the reply",
    "reply_type": "`msg_type` of the reply",
    "reply_size": "`msg_size` of the reply",
    "reply_load": f"{_reply_numbers()} of the reply, -1 without; of another load its place in "
    "`extra`",
    "latency_ns": "from the end of the request to the end of its reply, -1 without",
    "reply_offset": "where in the file the CHUNK with the reply's end stands, -1 without",
    "extra": "bytes of all rows: numbers without a column, then what is meant of arrays",
}


def capture_columns() -> str:
    """The columns that the index keeps of operations."""
    rows = [(code(name), code(kind), _COLUMN_TEXTS[name]) for name, kind in COLUMN_TYPES.items()]
    return table(("column", "type", "meaning"), rows)


def capture_example() -> str:
    """A small capture, byte by byte."""
    request = mmio_request(MessageType.ADD_MMIO, 0xE0006000, 0x2000, 5).encode()
    rows: list[tuple[object, str, str]] = [(0, code(MAGIC.hex(" ")), "magic")]
    offset = len(MAGIC)
    for record in (
        Header(source="vsockmon", arch="x86_64", wall_ns=1_700_000_000_000_000_000),
        Open(0, 1, Begins.SERVICE, 219, True),
        Chunk(52_000, 1, True, b"d"),
        Chunk(7_000_000, 1, True, request),
        Close(9_000_000, 1, by_guest=False),
        End(9_500_000),
    ):
        framed = encode(record)
        length, _ = FRAME.unpack_from(framed)
        payload = framed[FRAME.size :]
        rows += [
            (offset, code(framed[:4].hex(" ")), f"length: {length}"),
            (offset + 4, code(framed[4:8].hex(" ")), "checksum"),
            (offset + 8, code(payload.hex(" ")), code(_array(unpack(payload)))),
        ]
        offset += len(framed)
    rows.append((offset, "", "end of the file, without an index"))
    return table(("offset", "bytes", "meaning"), rows)


def _array(values: list[Any]) -> str:
    """Unpacked values, bytes as hex."""
    shown = [f"h'{v.hex()}'" if isinstance(v, bytes) else json.dumps(v) for v in values]
    return f"[{', '.join(shown)}]"


def transcript_lines() -> str:
    """A transcript with a line of every kind, as `export` writes it."""
    file = StringIO()
    request = mmio_request(MessageType.ADD_MMIO, 0xE0006000, 0x2000, 5).encode()
    kept: list[Record] = [
        Open(0, 1),
        Chunk(44_000, 1, True, b"CONNECT 219\n"),
        Chunk(5_100_000, 1, False, b"OK 219\n"),
        Chunk(5_200_000, 1, True, b"d"),
        Chunk(16_000_000, 1, True, request),
        GaveUp(5_016_000_000, 1, 5_000_000_000),
        Close(5_016_100_000, 1, by_guest=False),
        Open(5_020_000_000, 2, Begins.SERVICE, 219, True),
        Close(5_030_000_000, 2, by_guest=True),
        Open(5_040_000_000, 3),
        Close(5_041_000_000, 3, by_guest=True, how=How.RESET),
        Vmm(5_050_000_000, "start vCPU 1", 1),
    ]
    header = Header(source="proxy", arch="x86_64", notes={"machine": "pc"})
    transcript.write_records(header, kept, file)
    return fenced(file.getvalue(), "json")


def operation_columns() -> str:
    """The columns of the table of operations."""
    return _columns(OPERATIONS)


def finding_columns() -> str:
    """The keys of a finding in NDJSON."""
    return _columns(FINDINGS)


def fleet_columns() -> str:
    """The tables of a fleet."""
    beside = {"operations": "the columns of [tables.md](tables.md)", "findings": "the same"}
    parts = []
    for name, columns in FLEET.items():
        parts.append(f"### {name}\n")
        if name in beside:
            parts.append(f"The five columns below, and {beside[name]} for {name}.\n")
            columns = WHOSE
        elif name != "problems":
            parts.append("The first five columns as in `operations`, and:\n")
            columns = columns[len(WHOSE) :]
        parts.append(_columns(columns) + "\n")
    return "\n".join(parts).rstrip("\n")


def _columns(columns: Sequence[Column]) -> str:
    rows = [(code(column.name), column.kind, column.meaning) for column in columns]
    return table(("column", "type", "meaning"), rows)
