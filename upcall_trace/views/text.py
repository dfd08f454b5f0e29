"""Text that people read: one operation a line, bytes as hex, and nothing that steers a terminal.

Shared by the command line and the terminal browser; everything here is plain text without colour.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

from dissectors.constants import NOT_A_RESULT, errno_name

from .printable import safe as safe
from .values import in_words

if TYPE_CHECKING:  # numpy is behind it, and every command imports this module
    from ..trace.operations import Operation
    from ..trace.provenance import Run

WIDTH: Final = 100
_INDENT: Final = " " * 30
_RESULT_COLUMN: Final = 59
_HEX_ROW: Final = 16
_SLOW_NS: Final = 50_000_000
LATE_NS: Final = 250_000_000
"""What Kata waits for most answers."""


def duration(nanoseconds: int) -> str:
    """A short reading of a time span: `850ns`, `12.3us`, `1.81ms`, `10.06s`."""
    value = float(nanoseconds)
    for unit in ("ns", "us", "ms"):
        if abs(value) < 999.5:
            return f"{value:.3g}{unit}"
        value /= 1000
    return f"{value:.2f}s"


def seconds(t_ns: int) -> str:
    """A time since the capture's first record in seconds, to the microsecond."""
    return f"{t_ns / 1e9:.6f}"


def fields_text(fields: Mapping[str, Any], room: int = 60) -> str:
    """An operation's key fields in a few words: `0xe0006000+0x2000 irq=5`, `apic_ids=1-3`.

    A list of ids is cut to end within `room` columns.
    """
    told = in_words(
        fields, lambda text: text if len(text) <= room else f"{text[: max(room, 12) - 1]}…"
    )
    return safe(" ".join(f"{n}={value}" for n, value in fields.items())) if told is None else told


def answer_text(
    ret: int | None, meaning: str = "", load: Mapping[str, object] | None = None
) -> str:
    """What came back: `ok apic_index=2`, `EEXIST (-17) window or IRQ already taken`, `no answer`.

    `load` is what a success carries; `meaning` says what another result means here.
    """
    if ret is None:
        return "no answer"
    if ret == 0 and not meaning:
        if not load:
            return "ok"
        return " ".join(["ok", *(f"{name}={safe(str(value))}" for name, value in load.items())])
    name = errno_name(ret)
    return f"{f'{name} ({ret})' if name else f'ret {ret}'} {meaning}".rstrip()


def result_text(operation: Operation) -> str:
    """What an operation's answer says, doubts about it included."""
    meaning = operation.meaning if operation.ret else ""
    if "bad-magic" in operation.anomalies:
        meaning = "left over, not executed"
    elif operation.ret and "stale-error" in operation.anomalies:
        stale = operation.meaning == NOT_A_RESULT
        meaning = "left over from an earlier reply" if stale else f"{meaning}, or stale"
    return answer_text(operation.ret, meaning, operation.reply_load)


def operation_text(operation: Operation, width: int = WIDTH, when: str | None = None) -> str:
    """One operation in lines of at most `width` columns, nearly always one line.

    Where there is little room the fields are cut, and the errno never. A latency that is late for
    Dragonball has a mark. `when` is shown instead of the seconds since the first record.
    """
    key = f"{operation.conn}.{operation.request}"
    latency = "" if operation.latency_ns is None else duration(operation.latency_ns)
    result = result_text(operation)
    t = seconds(operation.t_ns) if when is None else when
    line = f"{key:>6} {t:>9} {latency:>7}{lateness(operation.latency_ns)} {safe(operation.op)} "
    column = _RESULT_COLUMN - (WIDTH - width)
    room = width - len(line) - len(result) - 1
    line += fields_text(operation.fields, room=room)
    if len(line) + 1 + len(result) > width and width < WIDTH:
        line = line[: max(width - len(result) - 1, len(line.partition(operation.op)[0]) + 8)]
    column = min(column, width - len(result))
    lines = [line.ljust(column - 1)]
    shown = meant_anomalies(operation)
    tags = f"[{', '.join(shown)}]" if shown else ""
    for piece in filter(None, (result, tags)):
        if len(lines[-1]) + 1 + len(piece) <= width:
            lines[-1] += f" {piece}"
        else:
            lines.append(_INDENT[: max(2, 30 - (WIDTH - width))] + piece)
    return "\n".join(line.rstrip()[:width] for line in lines)


def lateness(latency_ns: int | None) -> str:
    """A mark behind a latency: `!` beyond what Dragonball's client waits for, `*` beyond 50 ms."""
    if latency_ns is None or latency_ns <= _SLOW_NS:
        return " "
    return "!" if latency_ns > LATE_NS else "*"


def meant_anomalies(operation: Operation) -> tuple[str, ...]:
    """Its anomalies for people: a stale load counts only where the reply means one."""
    means_load = operation.op in ("add_cpu", "del_cpu")
    return tuple(name for name in operation.anomalies if name != "stale-load" or means_load)


HEADING: Final = f"{'req':>6} {'seconds':>9} {'latency':>7}  {'operation':<32} result"


def hex_lines(raw: bytes) -> Iterator[str]:
    """A hex dump, sixteen bytes a line; lines of zeros are folded into one `*`."""
    folded = False
    for offset in range(0, len(raw), _HEX_ROW):
        row = raw[offset : offset + _HEX_ROW]
        last = offset + _HEX_ROW >= len(raw)
        if offset and not any(row) and not last:
            if not folded:
                yield "      *"
            folded = True
            continue
        folded = False
        text = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in row)
        yield f"  {offset:04x}  {row[:8].hex(' '):<23}  {row[8:].hex(' '):<23}  {text}"


def provenance_lines(runs: Iterable[Run], conn: int, direction: str) -> Iterator[str]:
    """A legend below a dump: which bytes are whose. Nothing for bytes that are all fresh."""
    told = list(runs)
    if all(run.kind == "fresh" for run in told):
        return
    what = "reply" if direction == "<" else "request"
    for run in told:
        whose = "an earlier one" if run.request is None else f"{what} {conn}.{run.request}"
        kind = {
            "fresh": "fresh",
            "stale": f"stale, of {whose}",
            "padding": "padding, never written",
            "unknown": "not known",
        }[run.kind]
        yield f"  {run.offset:04x}..{run.offset + run.length - 1:04x}  {kind}"
