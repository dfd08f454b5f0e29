"""The state of a guest as text and as JSON. docs/state.md, docs/json.md."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from itertools import groupby
from typing import Any, Final

from .. import codes
from ..views.text import WIDTH, fields_text, safe
from ..views.values import id_list
from .finding import Ref
from .ledger import Cpu, CpusOnline, Dead, Entry, Lock, Mmio, Pci, Thing
from .state import Device, GuestState

VERSION: Final = 1
_THERE: Final = {True: "there", False: "absent", None: "open"}
_FATES: Final = {
    "died": "its thread in the guest died",
    "hangs": "it waits for the hotplug lock, which nobody gives back",
    "cut-off": "the device that the channel runs on was removed",
}
_MODEL: Final = {
    None: "No world was given: what the guest had before the recording is not known.",
    "in step": "The kernel model predicts the recording, and what it has is known.",
    "parted": "The kernel model does not predict the recording: what only it tells is inferred.",
    "incomplete": "The capture lacks connections: what only the kernel model tells is inferred.",
}
_DEVICES: Final = {
    codes.DEVICE_SILENTLY_LOST: "refused, but Dragonball keeps it",
    codes.DEVICE_LEAKED: "added and not removed",
}
_INDENT: Final = " " * 13


def as_text(state: GuestState) -> Iterator[str]:
    """What is known, what is inferred, what waits, and at the end what VMM and guest differ in."""
    told = _MODEL[state.model]
    yield told if state.parted is None else f"{told[:-1]}, since {_key(state.parted)}."
    begin = "since boot" if state.model == "in step" else "from before"
    for title, inferred in (("known", False), ("inferred", True)):
        yield from _section(title, list(_rows(state, inferred, begin)))
    waiting = [
        f"  {_key(request.ref):<10} {safe(request.op)}, "
        + ("answered later" if request.answered else "never answered")
        for request in state.waiting
    ]
    yield from _section("without an answer at this moment", waiting)
    devices = [
        f"  {device.code}  {device.thing.kind:<5} {_name(device.thing):<30} "
        f"{_key(device.since):<7} {_DEVICES[device.code]}"
        + (", probably" if device.inferred else "")
        for device in state.devices or ()
    ]
    yield from _section("devices to look at", devices)


def _rows(state: GuestState, inferred: bool, begin: str) -> Iterator[str]:
    """Everything that is known, or everything that is inferred."""
    for entries in _grouped([e for e in state.entries if bool(e.why) is inferred]):
        entry = entries[0]
        name = _name(entry.thing)
        if isinstance(entry.thing, Cpu):
            name = id_list([each.thing.name for each in entries if isinstance(each.thing, Cpu)])
        yield from _row(
            entry.thing.kind, name, _THERE[entry.there], entry.since, entry.why, begin
        )  # fmt: skip
    lock = state.lock
    if bool(lock.why) is inferred:
        yield from _row("lock", "hotplug", lock.state, lock.since, lock.why, begin)
    for dead in state.dead:
        if bool(dead.why) is inferred:
            why = dead.why or _FATES[dead.fate]
            yield from _row("conn", str(dead.since.conn), "dead", dead.since, why, begin)


def _section(title: str, lines: list[str]) -> Iterator[str]:
    if lines:
        yield ""
        yield title
        yield from lines


def _grouped(entries: list[Entry]) -> Iterator[list[Entry]]:
    """CPUs of which the same is said together, everything else by itself."""

    def alike(numbered: tuple[int, Entry]) -> object:
        number, entry = numbered
        return (entry.there, entry.since, entry.why) if isinstance(entry.thing, Cpu) else number

    for _, group in groupby(enumerate(entries), alike):
        yield [entry for _, entry in group]


def _name(thing: Thing) -> str:
    role = f" {safe(thing.role)}" if isinstance(thing, (Mmio, Pci)) and thing.role else ""
    match thing:
        case Cpu(name=name):
            return str(name)
        case CpusOnline(count=count):
            return "?" if count is None else str(count)
    fields = {key: value for key, value in thing.fields().items() if key != "role"}
    return fields_text(fields) + role


def _row(kind: str, name: str, status: str, since: Ref | None, why: str, begin: str) -> list[str]:
    """One line, and what does not fit below it."""
    when = f"since {_key(since)}" if since else begin
    line = f"  {kind:<11} {name:<30} {status:<7} {when}"
    remark = f"({why})" if why else ""
    if len(line) + 1 + len(remark) <= WIDTH:
        return [f"{line} {remark}".rstrip()]
    return [line, *textwrap.wrap(remark, WIDTH, initial_indent=_INDENT, subsequent_indent=_INDENT)]


def _key(ref: Ref) -> str:
    return f"{ref.conn}.{ref.request}"


def state_object(state: GuestState) -> dict[str, Any]:
    """`state --json`, without what it says of the operation."""
    entries = [_entry_object(entry) for entry in state.entries]
    return {
        "model": state.model,
        "parted": _ref_object(state.parted),
        "known": [entry for entry in entries if entry["why"] is None],
        "inferred": [entry for entry in entries if entry["why"] is not None],
        "lock": _lock_object(state.lock),
        "dead": [_dead_object(dead) for dead in state.dead],
        "waiting": [
            {**request.ref._asdict(), "text": request.op, "answered": request.answered}
            for request in state.waiting
        ],
        "devices": None
        if state.devices is None
        else [_device_object(device) for device in state.devices],
    }


def _entry_object(entry: Entry) -> dict[str, Any]:
    return {
        "kind": entry.thing.kind,
        "fields": entry.thing.fields(),
        "there": entry.there,
        "since": _ref_object(entry.since),
        "why": entry.why or None,
    }


def _lock_object(lock: Lock) -> dict[str, Any]:
    return {"state": lock.state, "since": _ref_object(lock.since), "why": lock.why or None}


def _dead_object(dead: Dead) -> dict[str, Any]:
    return {**dead.since._asdict(), "fate": dead.fate, "why": dead.why or None}


def _device_object(device: Device) -> dict[str, Any]:
    return {
        "code": device.code,
        **device.since._asdict(),
        "kind": device.thing.kind,
        "fields": device.thing.fields(),
        "inferred": device.inferred,
    }


def _ref_object(ref: Ref | None) -> dict[str, int] | None:
    return None if ref is None else ref._asdict()
