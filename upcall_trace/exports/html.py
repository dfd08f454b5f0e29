"""A capture as one HTML file that needs no network: docs/report.md.

The page is static, so that it can be read, searched and printed without its script; the script
filters rows and shows messages. Styles and script are allowed by their digests and nothing else.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from importlib.resources import files
from itertools import islice
from typing import Any, BinaryIO, Final

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from .. import __version__
from ..codes import Severity
from ..dataset.schema import codes_by_request
from ..diagnose.headline import headline
from ..diagnose.lines_beside import BEFORE, LineBeside
from ..diagnose.report import place
from ..diagnose.state_over_time import COUNTED, counts_over_time
from ..diagnose.whole_capture import WholeCapture
from ..trace.operations import Operation
from ..views.charts import HEIGHT, RIGHT, WIDTH, latency_chart, steps
from ..views.frames import frames
from ..views.remarks import remarks_on
from ..views.text import LATE_NS, duration, fields_text, result_text, safe, seconds
from . import Loss
from .ladder import ladder

_CHUNK: Final = 200
"""Rows that the browser lays out together, and leaves alone while they are out of sight."""
_MOST_ROWS: Final = 200_000
_MOST_CHOICES: Final = 1000
_SCRIPTS: Final = ("ladder.js", "report.js")
_STATE_HEIGHT: Final = 60
_ZEROS: Final = re.compile(r"(?:00){9,}")


def write(capture: WholeCapture, out: BinaryIO) -> list[Loss]:
    """Write the report."""
    folder = files("upcall_trace.exports")
    style = folder.joinpath("report.css").read_text("utf-8")
    scripts = [folder.joinpath(name).read_text("utf-8") for name in _SCRIPTS]
    # autoescape: everything in the page that is not ours comes from a guest or a log.
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    template = environment.from_string(folder.joinpath("report.html.j2").read_text("utf-8"))
    operations = capture.operations
    shown = min(len(operations), _MOST_ROWS)
    codes = codes_by_request(capture.findings)
    beside, unplaced = _beside(capture)
    values = {
        "version": __version__,
        "policy": _policy(style, scripts),
        "style": Markup(style),  # noqa: S704  # a file of ours
        "scripts": [Markup(script) for script in scripts],  # noqa: S704  # files of ours
        "title": safe(capture.path.name),
        "facts": _facts(capture),
        "findings": [_finding(finding) for finding in _worst_first(capture)],
        "headline": safe(headline(capture.findings) or ""),
        "counts": _counts(capture),
        "codes": sorted({str(finding.code) for finding in capture.findings}),
        "chart": latency_chart(operations, capture.opened.duration_ns),
        "chart_size": (WIDTH, HEIGHT),
        "chart_right": RIGHT,
        "state": _state(capture),
        "state_size": (WIDTH, _STATE_HEIGHT),
        "before": [_line(line) for line in beside.get(BEFORE, ())],
        "chunks": _chunks(islice(iter(operations), shown), codes, beside),
        "unplaced": unplaced,
        "has_lines": bool(beside),
        "connections": _connections(capture),
        "ladder": _json(ladder(capture.opened, shown, beside)),
        "operations": len(operations),
        "shown": shown,
        "messages": _messages(capture, shown),
    }
    for piece in template.generate(values):
        out.write(piece.encode("utf-8"))
    if shown < len(operations):
        return [Loss(f"{len(operations) - shown} operations beyond the first {shown}", True)]
    return []


def _beside(capture: WholeCapture) -> tuple[dict[int, list[LineBeside]], list[str]]:
    """By row, the remarks on operations and the lines of logs, and what could not be placed."""
    lines = capture.lines_beside
    found = defaultdict(list) if lines is None else lines.rows
    remarks = remarks_on(capture.marks)
    for operation in capture.operations if remarks else ():
        said = remarks.get((operation.conn, operation.request), ())
        found[operation.row][:0] = [LineBeside("remark", 0, text, None, True) for text in said]
    for row, count in ({} if lines is None else lines.more).items():
        found[row].append(LineBeside("more", 0, f"{count} more lines", None, False))
    if lines is None:
        return found, []
    return found, [safe(each) for each in (capture.diagnosed.matched, *lines.sentences()) if each]


def _line(line: LineBeside) -> dict[str, Any]:
    return {
        "source": f"{line.source} {line.number}" if line.number else line.source,
        "time": "" if line.t_ns is None else seconds(line.t_ns),
        "text": line.text,
        "told": line.told,
    }


def _connections(capture: WholeCapture) -> list[int]:
    """Those to choose from, none where there is one only or more than anybody chooses from."""
    numbers = [each.number for each in capture.connections if each.requests]
    return numbers if 1 < len(numbers) <= _MOST_CHOICES else []


def _policy(style: str, scripts: Sequence[str]) -> str:
    """The content security policy: nothing is loaded, and only our own style and script run."""

    def digest(text: str) -> str:
        raw = hashlib.sha256(text.encode("utf-8")).digest()
        return f"'sha256-{base64.b64encode(raw).decode('ascii')}'"

    return (
        f"default-src 'none'; style-src {digest(style)}; "
        f"script-src {' '.join(map(digest, scripts))}; "
        "base-uri 'none'; form-action 'none'"
    )


def _facts(capture: WholeCapture) -> list[tuple[str, str]]:
    opened, header = capture.opened, capture.header
    started = opened.started.isoformat(sep=" ", timespec="seconds") if opened.started else "unknown"
    facts = [
        ("recorded from", header.source),
        ("host", header.host),
        ("architecture", header.arch or ""),
        ("started", started),
        ("lasted", duration(opened.duration_ns)),
        ("connections", str(len(opened.connections))),
        ("operations", str(len(opened.operations))),
        *header.notes.items(),
    ]
    return [(safe(name), safe(text)) for name, text in facts if text]


def _worst_first(capture: WholeCapture) -> list[Any]:
    return sorted(capture.findings, key=lambda finding: -finding.severity)


def _counts(capture: WholeCapture) -> list[tuple[str, int]]:
    found = [finding.severity for finding in capture.findings]
    counted = [(each.word, found.count(each)) for each in reversed(Severity) if each in found]
    return [(word if count == 1 else f"{word}s", count) for word, count in counted]


def _finding(finding: Any) -> dict[str, Any]:
    told = {name: safe(getattr(finding, name)) for name in ("what", "why", "so", "next")}
    return told | {
        "code": str(finding.code),
        "name": finding.name,
        "severity": finding.severity.word,
        "place": place(finding),
        "row": _row_id(finding.conn, finding.request),
        "inferred": finding.inferred,
        "evidence": [
            safe(f"{each.source} line {each.line}: {each.text}" if each.line else each.text)
            for each in finding.evidence
        ],
    }


def _row_id(conn: int | None, request: int | None) -> str:
    return "" if conn is None or request is None else f"r{conn}-{request}"


def _state(capture: WholeCapture) -> list[Any]:
    """A step line for each count that is ever above 0."""
    changes = list(counts_over_time(capture.header, capture.records()))
    length = capture.opened.duration_ns
    drawn = [
        steps(name, [(0, 0), *((t_ns, counts[name]) for t_ns, counts in changes)], length,
              _STATE_HEIGHT)
        for name in COUNTED
    ]  # fmt: skip
    return [each for each in drawn if each.most]


def _chunks(
    operations: Iterator[Operation],
    codes: dict[tuple[int, int], list[str]],
    beside: Mapping[int, Sequence[LineBeside]],
) -> Iterator[list[dict[str, Any]]]:
    while batch := list(islice(operations, _CHUNK)):
        yield [
            _row(operation, codes) | {"lines": [*map(_line, beside.get(operation.row, ()))]}
            for operation in batch
        ]


def _row(operation: Operation, codes: dict[tuple[int, int], list[str]]) -> dict[str, Any]:
    found = codes.get((operation.conn, operation.request), [])
    kinds = ["bad"] if operation.ret is None or operation.ret < 0 else []
    kinds += ["silent"] if operation.ret is None else []
    kinds += ["late"] if (operation.latency_ns or 0) > LATE_NS else []
    return {
        "id": _row_id(operation.conn, operation.request),
        "key": f"{operation.conn}.{operation.request}",
        "time": seconds(operation.t_ns),
        "op": safe(operation.op),
        "fields": fields_text(operation.fields, 80),
        "result": safe(result_text(operation)),
        "latency": "" if operation.latency_ns is None else duration(operation.latency_ns),
        "kind": " ".join(kinds or ["ok"]),
        "conn": operation.conn,
        "anomalies": operation.anomalies,
        "codes": found,
    }


def _messages(capture: WholeCapture, shown: int) -> Markup:
    """The bytes of every shown operation as JSON: key, then request and reply in hexadecimal."""
    found: dict[str, list[str]] = {}
    with _open(capture) as source:
        for frame in frames(source):
            if frame.request is None or not frame.raw:
                continue
            key = f"{frame.conn}.{frame.request}"
            if key not in found and len(found) >= shown:
                continue
            sides = found.setdefault(key, ["", ""])
            sides[0 if frame.direction == ">" else 1] = _short_hex(frame.raw)
    return _json(found)


def _json(value: Any) -> Markup:
    """JSON that no markup begins in."""
    text = json.dumps(value, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c"))  # noqa: S704


def _open(capture: WholeCapture) -> Any:
    from ..sources import open_source

    return open_source(capture.path)


def _short_hex(raw: bytes) -> str:
    """Hexadecimal, runs of zeros as `*N;`."""
    return _ZEROS.sub(lambda run: f"*{len(run.group()) // 2};", raw.hex())
