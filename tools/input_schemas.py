"""JSON Schemas of the files that users write: for editors that check and complete them.

Limits and names come from where they are read. `tests/test_input_schemas.py` holds every schema and
its reader to the same opinion of real files, and of files with something wrong in them.
"""

from __future__ import annotations

from typing import Any, Final

from dissectors.constants import Arch
from tools.guest_blocks import DEVICE_KEYS, KEYS
from upcall_trace.capture.records import Begins, How
from upcall_trace.kernel.world import MAX_CPUS, MAX_PHYS_BITS, SERIES
from upcall_trace.sources.transcript import FORMAT, VERSION
from upcall_trace.tui.data.settings import COLUMNS

_Schema = dict[str, Any]
_U32: Final = (1 << 32) - 1
_U64: Final = (1 << 64) - 1
_DAY_MS: Final = 86_400_000
_TIME: Final = 1 << 62
_SEND: Final = (1 << 20) - 1
_NUMBER: Final = r"(0[xX][0-9a-fA-F]+|[0-9]+)"
_PCI: Final = r"^[0-9]{1,3}:[0-9]{1,2}(\.[0-7])?$"
_TEXT: Final[_Schema] = {"type": "string"}


def _number(low: int, high: int) -> _Schema:
    return {"type": "integer", "minimum": low, "maximum": high}


def _list(items: _Schema) -> _Schema:
    return {"type": "array", "items": items}


def _table(properties: dict[str, _Schema], required: tuple[str, ...] = ()) -> _Schema:
    told: _Schema = {"type": "object", "properties": properties, "additionalProperties": False}
    return told | ({"required": list(required)} if required else {})


def _texts(names: str | None = None) -> _Schema:
    told: _Schema = {"type": "object", "additionalProperties": _TEXT}
    return told | ({"propertyNames": {"pattern": names}} if names else {})


def world() -> _Schema:
    """Worlds: a table for each machine. docs/worlds.md."""
    cpus = _list(_number(0, 255))
    windows = _list({"$ref": "#/$defs/window"})
    values = {
        "kernel": {"enum": list(SERIES)},
        "arch": {"enum": [arch.value for arch in Arch]},
        "nr_cpu_ids": _number(1, MAX_CPUS),
        "cpus_online": {**cpus, "minItems": 1, "uniqueItems": True},
        "boot_table": {**cpus, "uniqueItems": True},
        "vcpus_running": cpus,
        "mmio": windows,
        "mmio_hidden": windows,
        "pci": _list({"$ref": "#/$defs/function"}),
        "pci_buses": cpus,
        "iomem": _list({"$ref": "#/$defs/range"}),
        "phys_bits": _number(32, MAX_PHYS_BITS),
        "max_irq": _number(0, _U32),
        "needs_boot_mmio": {"type": "boolean"},
    }
    machine = _table(
        {key: {**values[key], "description": KEYS[key][1].replace("`", "")} for key in KEYS}
    )
    beginning, length = _number(0, _U64), _number(1, _U64)
    kinds = {
        "window": {"base": beginning, "size": length, "irq": _number(0, _U32)},
        "function": {"bus": _number(0, 255), "slot": _number(0, 31), "function": _number(0, 7)},
    }
    meanings = dict(zip(kinds, (meaning for _, _, meaning in DEVICE_KEYS), strict=True))
    needed = {"window": ("base", "size", "irq"), "function": ("bus", "slot")}
    tables = {
        name: _table(
            {
                key: {**given, "description": meanings[name][key].replace("`", "")}
                for key, given in (keys | {"role": _TEXT, "probe_ms": _number(0, _DAY_MS)}).items()
            },
            needed[name],
        )
        for name, keys in kinds.items()
    }
    tables["range"] = _table({"base": beginning, "size": length}, ("base", "size"))
    return {
        "type": "object",
        "additionalProperties": {"$ref": "#/$defs/machine"},
        "$defs": {"machine": machine, **tables},
    }


def matchers() -> _Schema:
    """What may differ in a replay. docs/replay.md."""
    rules = {
        **_texts(r"^(\*|[0-9]+\.[0-9]+|[a-z][a-z0-9_]*)$"),
        "description": "rules by operation: CONNECTION.REQUEST, a name such as add_cpu, or *",
    }
    return _table({"match": rules}, ("match",))


def rebase() -> _Schema:
    """Other addresses, interrupts, CPUs and slots for a replay. docs/replay.md."""

    def numbers(limit: int) -> _Schema:
        values = [_number(0, limit), {"type": "string", "pattern": f"^{_NUMBER}$"}]
        return {
            "type": "object",
            "propertyNames": {"pattern": f"^{_NUMBER}$"},
            "additionalProperties": {"anyOf": values},
        }

    slots = {
        "type": "object",
        "propertyNames": {"pattern": _PCI},
        "additionalProperties": {"type": "string", "pattern": _PCI},
    }
    return _table(
        {"mmio": numbers(_U64), "irq": numbers(_U32), "apic_id": numbers(255), "pci": slots}
    )


def settings() -> _Schema:
    """The browser's tui.toml. docs/tui.md."""
    columns = _list({"enum": list(COLUMNS)})
    return _table(
        {
            "theme": {**_TEXT, "description": "the name of a theme"},
            "columns": {**columns, "description": "what the ladder shows beside what crossed"},
            "keys": {**_texts(), "description": "other keys, by the names of actions"},
            "filters": {**_texts(), "description": "expressions, by names of yours"},
        }
    )


def transcript() -> _Schema:
    """One line of a transcript. docs/formats.md."""
    header = {
        "properties": {
            "kind": {"const": "header"},
            "format": {"const": FORMAT},
            "version": {"const": VERSION},
            "port": _number(0, _U32),
        },
        "required": ["format", "version"],
    }
    more: dict[str, tuple[dict[str, _Schema], tuple[str, ...]]] = {
        "bytes": (
            {
                "dir": {"enum": [">", "<"], "description": "> is to the guest"},
                "hex": {**_TEXT, "pattern": r"^([0-9a-fA-F]{2}\s*)*$"},
                "zeros": {**_number(0, _SEND), "description": "zero bytes behind hex"},
            },
            ("dir", "hex", "zeros"),
        ),
        "open": (
            {
                "begins": {"enum": [each.value for each in Begins]},
                "port": _number(0, _U32),
                "accepted": {"type": ["boolean", "null"]},
            },
            (),
        ),
        "close": ({"how": {"enum": [each.value for each in How]}}, ()),
        "closed_by_guest": ({}, ()),
        "reset_by_guest": ({}, ()),
        "gave_up": (
            {"after_s": {"type": "number", "minimum": 0, "exclusiveMaximum": 1e9}},
            ("after_s",),
        ),
        "vmm": ({"action": _TEXT}, ("action",)),
    }
    common = {"t_ns": _number(-_TIME, _TIME - 1), "conn": _number(0, _U32)}
    records = [
        {
            "properties": {"kind": {"const": kind}, **common, **properties},
            "required": ["kind", *common, *required],
        }
        for kind, (properties, required) in more.items()
    ]
    return {"type": "object", "oneOf": [header, *records]}


INPUTS: Final = {
    "world": world,
    "matchers": matchers,
    "map": rebase,
    "settings": settings,
    "transcript": transcript,
}
"""What makes the schema of each kind of file, by the schema's name."""
