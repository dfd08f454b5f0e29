"""What the JSON of journals, runtimes and log shippers says: the text, the time, and whose it is.

A shipper wraps a line in its own object, and another wraps that: the text stands under one of many
keys, marks of the pod stand beside it at any depth. Where no key is known, the texts in the object
stand for the line.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from .times import parse_time

_JSON_LIMIT: Final = 1 << 20
_DEPTH: Final = 8
_MANY: Final = 10_000
"""Lines in one object at most."""
_TEXTS: Final = (
    "MESSAGE", "msg", "message", "Message", "log", "line", "content", "body", "Body", "text",
    "@message", "textPayload", "jsonPayload", "_source", "event", "record", "data", "raw", "_raw",
)  # fmt: skip
TIMES: Final = (
    "__REALTIME_TIMESTAMP", "_SOURCE_REALTIME_TIMESTAMP", "ts", "time", "timestamp", "@timestamp",
    "timeUnixNano", "Timestamp", "observedTimeUnixNano", "date", "datetime", "@t",
)  # fmt: skip
_SANDBOXES: Final = (
    "SOURCE",
    "sandbox",
    "sandbox_id",
    "sandboxID",
    "sandbox-id",
    "sandboxId",
    "sid",
)
_PODS: Final = (
    "k8s.pod.name", "pod_name", "podName", "kubernetes.pod.name", "kubernetes.pod_name", "pod",
    "k8s.pod.uid", "pod_id", "pod_uid", "container_id", "containerID", "container.id",
    "k8s.container.id", "cid",
)  # fmt: skip
_HOSTS: Final = ("_HOSTNAME", "hostname", "host", "k8s.node.name", "node", "nodeName")
_PROGRAMS: Final = ("SYSLOG_IDENTIFIER", "tag", "ident", "appname", "program", "_COMM")
_SUBSYSTEMS: Final = ("SUBSYSTEM", "subsystem")
_NO_SANDBOX: Final = frozenset(
    {"agent", "runtime-rs", "virtcontainers", "katautils", "containerd-kata-shim-v2", "shim",
     "kata-runtime", "dbs_upcall", "dragonball", "hypervisor", "runtime", "stdout", "stderr"}
)  # fmt: skip
_ID: Final = re.compile(r"[0-9a-f]{12,128}\Z")


@dataclass(slots=True)
class Fields:
    """One line as its object tells; `own_pid` when it is the speaker's word, not the journal's."""

    text: str
    wall_ns: int | None = None
    guest_ns: int | None = None
    sandbox: str | None = None
    pod: str | None = None
    pid: str | None = None
    own_pid: bool = False
    host: str | None = None
    program: str | None = None
    subsystem: str | None = None


def records(text: str, at: int = 0) -> list[Fields]:
    """The lines in the JSON that begins at `at`, or in an array before it; empty for no JSON."""
    if len(text) > _JSON_LIMIT:
        return []
    begins = at
    if text[:at].rstrip().endswith("["):
        begins = text.rfind("[", 0, at)
    whole = text.find("[", 0, at) if text.rstrip().endswith("]") else at
    for begin in {begins: None, at: None, whole: None}:
        value = _parse(text[begin:])
        if value is not None:
            return [*_records(value, {}, 0)][:_MANY]
    return []


def fields_of(entry: Mapping[str, Any]) -> Fields:
    """The line of one flat object, as a journal's entry is."""
    return _fields(_said(entry) or "", entry, {})


def _parse(text: str) -> Any:
    text = text.rstrip().rstrip(",")
    if not text.endswith(("}", "]")):
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, (dict, list)) else None


def _records(value: Any, around: dict[str, Any], depth: int) -> Iterator[Fields]:
    """Each line in a value; `around` are the marks of the objects that hold it."""
    if depth > _DEPTH:
        return
    if isinstance(value, list):
        if (when := _fluent_time(value)) is not None:
            around = around | {"timestamp": when}
        for each in value[:_MANY]:
            yield from _records(each, around, depth + 1)
        return
    if not isinstance(value, dict):
        return
    said = _said(value)
    if said is not None:
        yield _fields(said, value, around)
        return
    if isinstance(value.get("values"), list) and isinstance(value.get("stream"), dict):
        yield from _of_stream(value["stream"], value["values"])
        return
    nested = [each for each in value.values() if isinstance(each, (dict, list))]
    found = [f for each in nested for f in _records(each, around | _flat(value), depth + 1)]
    if not found and depth == 0:
        said = "\n".join(_strings(value, 0))
        found = [_fields(said, value, around)] if said else []
    yield from found


def _fluent_time(value: list[Any]) -> int | float | None:
    """The time of a pair of a time and a record, or of a time with options and a record."""
    if len(value) != 2 or not isinstance(value[1], dict):
        return None
    when = value[0][0] if isinstance(value[0], list) and value[0] else value[0]
    return when if isinstance(when, (int, float)) and not isinstance(when, bool) else None


def _of_stream(labels: dict[str, Any], values: list[Any]) -> Iterator[Fields]:
    """Lines as Loki gives them: pairs of a time in nanoseconds and a text, under their labels."""
    for pair in values[:_MANY]:
        if isinstance(pair, list) and len(pair) == 2 and isinstance(pair[1], str):
            yield _fields(pair[1], {"timestamp": pair[0]}, labels)


def _said(value: Mapping[str, Any]) -> str | None:
    """The text under a known key, with the error that stands beside it."""
    for key in _TEXTS:
        said = _as_text(value.get(key))
        if said is None:
            continue
        rest = " ".join(str(value[name]) for name in ("error", "err") if value.get(name))
        return f"{said} {rest}".rstrip() if rest else said
    return None


def _as_text(said: Any) -> str | None:
    if isinstance(said, list):  # the journal writes bytes that are no text as numbers
        if not said or not all(isinstance(b, int) and 0 <= b < 256 for b in said[: 1 << 16]):
            return None
        return bytes(said[: 1 << 16]).decode("utf-8", "backslashreplace")
    if isinstance(said, str):
        return said
    if isinstance(said, dict):
        inner = said.get("stringValue", said.get("string_value"))
        return inner if isinstance(inner, str) else _said(said)
    return None


def _strings(value: Any, depth: int) -> Iterator[str]:
    if depth > _DEPTH:
        return
    if isinstance(value, str):
        yield value
    elif isinstance(value, (dict, list)):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _strings(each, depth + 1)


def _flat(value: Mapping[str, Any], depth: int = 0, within: str = "") -> dict[str, Any]:
    """Names and values at any depth, by their last name and by their path; attribute lists too."""
    flat: dict[str, Any] = {}
    for name, each in value.items():
        path = f"{within}.{name}" if within else name
        if isinstance(each, dict):
            one = each.get("stringValue")
            if isinstance(one, str):
                flat.setdefault(path, one)
            elif depth < _DEPTH:
                for inner, found in _flat(each, depth + 1, path).items():
                    flat.setdefault(inner, found)
        elif isinstance(each, list) and depth < _DEPTH:
            for item in each[:64]:
                if isinstance(item, dict) and isinstance(item.get("key"), str):
                    attribute = item.get("value")
                    if isinstance(attribute, dict):
                        attribute = attribute.get("stringValue")
                    flat.setdefault(item["key"], attribute)
        elif isinstance(each, (str, int, float)):
            flat.setdefault(path, each)
            flat.setdefault(name, each)
    return flat


def _first(flat: Mapping[str, Any], names: tuple[str, ...]) -> str | None:
    for name in names:
        value = flat.get(name)
        if isinstance(value, (str, int)) and not isinstance(value, bool) and str(value):
            return str(value)[:255]
    return None


def _fields(said: str, value: Mapping[str, Any], around: Mapping[str, Any]) -> Fields:
    # A journal's own entry is flat: nothing has to be gone through.
    flat: Mapping[str, Any] = value
    if "__REALTIME_TIMESTAMP" not in value or around:
        flat = {**around, **_flat(value)}
    made = Fields(
        said,
        time_in(flat),
        sandbox=_first(flat, _SANDBOXES),
        pod=_first(flat, _PODS),
        host=_first(flat, _HOSTS),
        program=_first(flat, _PROGRAMS),
        subsystem=_first(flat, _SUBSYSTEMS),
    )
    made.own_pid = "pid" in flat
    made.pid = _first(flat, ("pid", "_PID"))
    source = flat.get("source")
    if made.sandbox is None and isinstance(source, str):
        ours = _ID.match(source) or (
            flat.get("name") == "kata-runtime" and source not in _NO_SANDBOX
        )
        made.sandbox = source[:255] if ours else None
    monotonic = flat.get("_SOURCE_MONOTONIC_TIMESTAMP")
    if flat.get("_TRANSPORT") == "kernel" and str(monotonic).isdecimal():
        made.guest_ns = int(str(monotonic)[:18]) * 1000
    if said.startswith("{") and len(said) <= _JSON_LIMIT:
        _unwrap(made)
    return made


def _unwrap(made: Fields) -> None:
    """A text that is an object itself: what it says of itself comes first."""
    inner = _parse(said) if (said := made.text) else None
    if not isinstance(inner, dict):
        return
    found = next(_records(inner, {}, 1), None)
    if found is None:
        return
    made.text = found.text
    made.sandbox = found.sandbox or made.sandbox
    made.subsystem = found.subsystem or made.subsystem
    made.wall_ns = made.wall_ns or found.wall_ns
    made.pod = made.pod or found.pod
    if found.pid:
        made.pid, made.own_pid = found.pid, found.own_pid


_UNITS: Final = ((1e17, 1), (1e14, 1_000), (1e11, 1_000_000), (0, 1_000_000_000))


def time_in(flat: Mapping[str, Any]) -> int | None:
    """Nanoseconds since 1970 of the first field that has a time."""
    for key in TIMES:
        value = flat.get(key)
        if isinstance(value, str):
            if value.isdecimal() and 9 < len(value) < 20:
                value = int(value)
            elif (parsed := parse_time(value)) is not None:
                return parsed
        if isinstance(value, (int, float)) and not isinstance(value, bool) and 1e8 < value < 4e18:
            unit = next(unit for limit, unit in _UNITS if value >= limit)
            return round(value * unit)
    return None
