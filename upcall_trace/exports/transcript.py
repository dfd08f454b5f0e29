"""Records written as a transcript. docs/formats.md."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable
from typing import IO, Any, BinaryIO

from dissectors.constants import UPCALL_PORT

from ..capture.records import Begins, Chunk, Close, End, Gap, GaveUp, Header, How, Open, Record, Vmm
from ..diagnose.whole_capture import WholeCapture
from ..sources.transcript import _HEADER_KEYS, _NANOSECONDS, FORMAT, VERSION
from . import Loss


def write(capture: WholeCapture, out: BinaryIO) -> list[Loss]:
    """Write a capture as a transcript."""
    text = io.TextIOWrapper(out, encoding="ascii", newline="\n", write_through=True)
    gaps, others = write_records(capture.header, capture.records(), text)
    text.detach()
    losses = []
    if others:
        losses.append(Loss(f"{others} marks and half-closes have no place in a transcript"))
    if gaps:
        what = f"{gaps} gaps have no place in a transcript; requests are numbered anew"
        losses.append(Loss(what, serious=True))
    return losses


def write_records(header: Header, records: Iterable[Record], file: IO[str]) -> tuple[int, int]:
    """Write records as a transcript.

    Returns how many records had no place in it: gaps, without which it reads differently, and
    others (half-closes, marks), which it can do without.
    """
    notes = {key: text for key, text in header.notes.items() if key not in _HEADER_KEYS}
    if header.arch:
        notes.setdefault("arch", header.arch)
    port = {} if header.port == UPCALL_PORT else {"port": header.port}
    _line(file, {"kind": "header", "format": FORMAT, "version": VERSION, **notes, **port})
    gaps = others = 0
    for record in records:
        values = _values(record)
        if values:
            _line(file, values)
        elif isinstance(record, Gap):
            gaps += 1
        elif not isinstance(record, End):
            others += 1
    return gaps, others


def _line(file: IO[str], values: dict[str, Any]) -> None:
    file.write(json.dumps(values) + "\n")


def _values(record: Record) -> dict[str, Any]:
    match record:
        case Chunk(t_ns=t_ns, conn=conn):
            literal = record.data.rstrip(b"\0")
            return {
                "kind": "bytes", "t_ns": t_ns, "conn": conn, "dir": ">" if record.to_guest else "<",
                "hex": literal.hex(), "zeros": len(record.data) - len(literal),
            }  # fmt: skip
        case Open(t_ns=t_ns, conn=conn):
            values: dict[str, Any] = {"kind": "open", "t_ns": t_ns, "conn": conn}
            if record.begins is not Begins.LINE:
                values["begins"] = str(record.begins)
                values |= {"port": record.port} if record.port is not None else {}
                values |= {"accepted": record.accepted} if record.accepted is not None else {}
            return values
        case Close(t_ns=t_ns, conn=conn, how=How.HALF):
            return {}
        case Close(t_ns=t_ns, conn=conn, by_guest=True):
            kind = "reset_by_guest" if record.how is How.RESET else "closed_by_guest"
            return {"kind": kind, "t_ns": t_ns, "conn": conn}
        case Close(t_ns=t_ns, conn=conn):
            how = {} if record.how is How.CLOSE else {"how": str(record.how)}
            return {"kind": "close", "t_ns": t_ns, "conn": conn, **how}
        case GaveUp(t_ns=t_ns, conn=conn):
            return {
                "kind": "gave_up", "t_ns": t_ns, "conn": conn,
                "after_s": record.after_ns / _NANOSECONDS,
            }  # fmt: skip
        case Vmm(t_ns=t_ns, conn=conn):
            return {"kind": "vmm", "t_ns": t_ns, "conn": conn, "action": record.action}
        case Gap() | _:
            return {}
