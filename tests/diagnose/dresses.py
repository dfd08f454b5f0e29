"""The same journal in every dress in which people have it."""

from __future__ import annotations

import gzip
import json
import lzma
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import Any, Final

Record = dict[str, Any]


def records(raw: bytes) -> list[Record]:
    """A journal's entries, as `journalctl -o json` prints them."""
    return [json.loads(line) for line in raw.splitlines() if line.startswith(b"{")]


def _time(record: Record) -> datetime:
    return datetime.fromtimestamp(int(record["__REALTIME_TIMESTAMP"]) / 1e6, UTC)


def _lines(records: Iterable[Record], prefix: Callable[[Record], str], more: str) -> bytes:
    """Text that has its prefix on the first line of a message alone."""
    out = []
    for record in records:
        first, *rest = record["MESSAGE"].split("\n")
        out += [prefix(record) + first, *(more + line for line in rest)]
    return ("\n".join(out) + "\n").encode()


def _who(record: Record) -> str:
    return f"{record['_HOSTNAME']} {record['SYSLOG_IDENTIFIER']}[{record['_PID']}]: "


def short(records: Iterable[Record]) -> bytes:
    """`journalctl`: what follows a message's first line is indented below it."""
    return _lines(records, lambda r: f"{_time(r):%b %d %H:%M:%S} {_who(r)}", " " * 30)


def short_iso(records: Iterable[Record]) -> bytes:
    """`journalctl -o short-iso-precise`."""
    return _lines(records, lambda r: f"{_time(r):%Y-%m-%dT%H:%M:%S.%f}+0000 {_who(r)}", " " * 46)


def short_full(records: Iterable[Record]) -> bytes:
    """`journalctl -o short-full`."""
    return _lines(records, lambda r: f"{_time(r):%a %Y-%m-%d %H:%M:%S} UTC {_who(r)}", " " * 40)


def short_unix(records: Iterable[Record]) -> bytes:
    """`journalctl -o short-unix`."""
    return _lines(records, lambda r: f"{_time(r).timestamp():.6f} {_who(r)}", " " * 40)


def syslog(records: Iterable[Record]) -> bytes:
    """rsyslog's file, where the causes have lost their indent."""
    return _lines(records, lambda r: f"{_time(r):%Y-%m-%dT%H:%M:%S.%f}+00:00 {_who(r)}", "")


def export(records: Iterable[Record]) -> bytes:
    """`journalctl -o export`: text with newlines stands behind its length."""
    out = b""
    for number, record in enumerate(records):
        out += b"__CURSOR=s=%032x;i=%x\n" % (number, number)
        for name, value in record.items():
            raw = value.encode()
            if b"\n" in raw:
                out += name.encode() + b"\n" + len(raw).to_bytes(8, "little") + raw + b"\n"
            else:
                out += name.encode() + b"=" + raw + b"\n"
        out += b"\n"
    return out


def verbose(records: Iterable[Record]) -> bytes:
    """`journalctl -o verbose`."""
    out = []
    for number, record in enumerate(records):
        out.append(
            f"{_time(record):%a %Y-%m-%d %H:%M:%S.%f} UTC [s={number:032x};i=1;b=2;m=3;t=4;x=5]"
        )
        for name, value in record.items():
            out.append(f"    {name}=" + value.replace("\n", "\n" + " " * (len(name) + 5)))
    return ("\n".join(out) + "\n").encode()


def pretty(records: Iterable[Record]) -> bytes:
    """`journalctl -o json-pretty`."""
    return "".join(json.dumps(each, indent="\t") + "\n" for each in records).encode()


def sse(records: Iterable[Record]) -> bytes:
    """`journalctl -o json-sse`."""
    return "".join(f"data: {json.dumps(each)}\n\n" for each in records).encode()


def numbers(records: Iterable[Record]) -> bytes:
    """Messages as numbers, as the journal writes what is no text."""
    return json_lines({**each, "MESSAGE": list(each["MESSAGE"].encode())} for each in records)


def json_lines(records: Iterable[Any]) -> bytes:
    """An object a line."""
    return "".join(json.dumps(each) + "\n" for each in records).encode()


def _slog(record: Record) -> Record:
    return {
        "msg": record["MESSAGE"], "level": "INFO", "ts": f"{_time(record).isoformat()}",
        "source": record["SOURCE"], "subsystem": record["SUBSYSTEM"], "pid": record["_PID"],
        "name": "kata-runtime", "version": "0.1.0",
    }  # fmt: skip


def before_3_20(records: Iterable[Record]) -> bytes:
    """Kata's JSON under containerd's name and process."""
    lines = (
        f"{_time(r):%b %d %H:%M:%S} {r['_HOSTNAME']} containerd[812]: {json.dumps(_slog(r))}"
        for r in records
    )
    return ("\n".join(lines) + "\n").encode()


def journal_before_3_20(records: Iterable[Record]) -> bytes:
    """The same in the journal's JSON."""
    return json_lines(
        {**each, "SYSLOG_IDENTIFIER": "containerd", "_PID": "812", "SOURCE": "",
         "SUBSYSTEM": "", "MESSAGE": json.dumps(_slog(each))}
        for each in records
    )  # fmt: skip


def elastic(records: Iterable[Record]) -> bytes:
    """An index's documents, the journal's fields beside the text."""
    return json_lines(
        {"_index": "logs", "_source": {"@timestamp": _time(r).isoformat(),
         "message": r["MESSAGE"], "journald": {"pid": r["_PID"]}, "SOURCE": r["SOURCE"],
         "SUBSYSTEM": r["SUBSYSTEM"]}}
        for r in records
    )  # fmt: skip


def stackdriver(records: Iterable[Record]) -> bytes:
    """A cloud's log: the journal's entry as a payload."""
    return json_lines({"insertId": "x", "jsonPayload": r} for r in records)


def docker(records: Iterable[Record]) -> bytes:
    """Lines of text in the JSON of a container's log."""
    return json_lines(
        {"log": f"{_who(r)}{r['MESSAGE']}\n", "stream": "stdout", "time": _time(r).isoformat()}
        for r in records
    )


def cri(records: Iterable[Record]) -> bytes:
    """A container's log, every line with its prefix."""
    out = []
    for r in records:
        for line in (_who(r) + r["MESSAGE"]).split("\n"):
            out.append(f"{_time(r).isoformat()} stdout F {line}")
    return ("\n".join(out) + "\n").encode()


def utf16(records: Iterable[Record]) -> bytes:
    """What PowerShell makes of a pipe."""
    return ("\ufeff" + json_lines(records).decode()).encode("utf-16-le")


def nuls(records: Iterable[Record]) -> bytes:
    """A log after a crash."""
    return b"\x00" * 512 + b"\n" + json_lines(records) + b"\x00" * 512


def indented(records: Iterable[Record]) -> bytes:
    """Pasted into an issue as a block of code."""
    return b"".join(b"    " + line + b"\n" for line in short_iso(records).splitlines())


def numbered(records: Iterable[Record]) -> bytes:
    """As `cat -n` shows it."""
    lines = enumerate(short(records).splitlines(), 1)
    return b"".join(b"%6d\t%s\n" % (number, line) for number, line in lines)


def no_keys(records: Iterable[Record]) -> bytes:
    """`journalctl -o cat`: nothing says whose a line is."""
    return _lines(records, lambda r: "", "")


KEYED: Final[dict[str, Callable[[Iterable[Record]], bytes]]] = {
    "json": json_lines, "short": short, "short-iso": short_iso, "short-full": short_full,
    "short-unix": short_unix, "syslog": syslog, "export": export, "verbose": verbose,
    "pretty": pretty, "sse": sse, "numbers": numbers, "before-3.20": before_3_20,
    "journal-before-3.20": journal_before_3_20, "elastic": elastic, "stackdriver": stackdriver,
    "docker": docker, "cri": cri, "utf-16": utf16, "nuls": nuls, "indented": indented,
    "numbered": numbered,
    "gzip": lambda r: gzip.compress(json_lines(r)), "xz": lambda r: lzma.compress(json_lines(r)),
    "crlf": lambda r: short_iso(r).replace(b"\n", b"\r\n"),
}  # fmt: skip
"""Dresses in which a line says whose it is."""
