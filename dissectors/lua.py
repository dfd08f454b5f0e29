"""The tables of the Wireshark dissector, written in Lua from the table of the protocol.

`upcall.lua` and `upcall_showing.lua` beside this file are the program; the line that holds
`TABLE_MARK` is replaced by what `tables()` gives. docs/protocol.md sections 2 and 3.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from .constants import (
    CALLER_TIMEOUT_NS,
    CPU_MSG_SIZE,
    CPU_TYPES,
    ERRNO_NAMES,
    HANDLED_TYPES,
    MAGIC_VERSION,
    MESSAGE_SIZE,
    PCI_TYPES,
    REPLY_LOAD_OFFSET,
    RESULT_MEANINGS,
    RET_OFFSET,
    UPCALL_PORT,
    Arch,
    MessageType,
    op_name,
)
from .layouts import DEVICE_MANAGER_TABLE
from .tables import FieldRow, Show

_TABLE: Final = DEVICE_MANAGER_TABLE
TABLE_MARK: Final = "local T = {} --@TABLE@"
_KINDS: Final = {"u": "uint", "i": "int"}
_SHORT: Final = {"msg_type": "type"}
"""Fields whose name in a display filter is shorter: `upcall.type`."""


def _literal(value: Any) -> str:
    """A Python value as a Lua one; mappings and sequences become tables, None is left out."""
    match value:
        case bool():
            return "true" if value else "false"
        case int():
            return str(int(value))
        case bytes():
            return '"' + "".join(f"\\{byte:03d}" for byte in value) + '"'
        case str():
            return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
        case Mapping():
            return (
                "{" + ", ".join(f"[{_literal(k)}] = {_literal(v)}" for k, v in value.items()) + "}"
            )
        case _:
            return "{" + ", ".join(map(_literal, value)) + "}"


def _rows(fields: Sequence[FieldRow]) -> list[dict[str, Any]]:
    """Some rows of the table, as the dissector shows them."""
    rows = []
    for row in fields:
        if row.show is Show.FILLING:
            continue
        name = _SHORT.get(row.name, row.name)
        shown: dict[str, Any] = {"name": name, "offset": row.offset, "size": row.size}
        if row.length:
            counting = next(other for other in fields if other.name == row.length)
            shown |= {"count_at": counting.offset, "count_size": counting.size}
        rows.append(shown)
    return rows


def _declared() -> list[dict[str, Any]]:
    """Every field once, with its kind and meaning, for the list of display filters."""
    declared: dict[str, dict[str, Any]] = {}
    loads = (row for layout in _TABLE.layouts for row in (*layout.request, *layout.reply))
    for row in (*_TABLE.request_header, *_TABLE.reply_header, *loads):
        if row.show is Show.FILLING:
            continue
        number = f"{_KINDS[row.type[0]]}{8 * row.item_size}"
        field: dict[str, Any] = {
            "name": _SHORT.get(row.name, row.name),
            "kind": number if row.count is None else "bytes",
            "meaning": row.meaning,
            "hex": row.show in (Show.HEX, Show.MAGIC),
        }
        if row.show is Show.MESSAGE_TYPE:
            field["values"] = "ops"
        declared.setdefault(row.name, field)
    return list(declared.values())


def _loads(of_reply: bool) -> dict[str, dict[int, list[dict[str, Any]]]]:
    """The rows of each message's load, by architecture and number."""
    found: dict[str, dict[int, list[dict[str, Any]]]] = {}
    for arch in Arch:
        for number in _TABLE.by_number:
            layout = _TABLE.layout(number, arch)
            rows = _rows(layout.reply if of_reply else layout.request)
            if rows:
                found.setdefault(arch.value, {})[number] = rows
    return found


def tables() -> str:
    """The Lua statement that takes the place of `TABLE_MARK`."""
    cpu_request = _TABLE.layout(MessageType.ADD_CPU, Arch.X86_64).request
    meanings: dict[int, dict[int, str]] = {}
    for (kind, ret), text in RESULT_MEANINGS.items():
        meanings.setdefault(kind, {})[ret] = text
    values = {
        "port": UPCALL_PORT,
        "message_size": MESSAGE_SIZE,
        "caller_timeout_ns": CALLER_TIMEOUT_NS,
        "magic_bytes": MAGIC_VERSION.to_bytes(4, "little"),
        "at": {
            **{row.name: row.offset for row in _TABLE.request_header},
            "ret": RET_OFFSET,
            "reply_load": REPLY_LOAD_OFFSET,
            "count": next(row.offset for row in cpu_request if row.name == "count"),
        },
        "services": {0x64: "device manager"},
        "ops": {kind: op_name(kind) for kind in MessageType},
        "handled": dict.fromkeys(sorted(HANDLED_TYPES), True),
        "cpu_types": dict.fromkeys(CPU_TYPES, True),
        "pci_types": dict.fromkeys(PCI_TYPES, True),
        "arch_of_size": {size: arch.value for arch, size in CPU_MSG_SIZE.items()},
        "default_arch": Arch.X86_64.value,
        "errnos": ERRNO_NAMES,
        "meanings": meanings,
        "fields": _declared(),
        "header": _rows(_TABLE.request_header),
        "reply": _rows(_TABLE.reply_header[len(_TABLE.request_header) :]),
        "requests": _loads(of_reply=False),
        "replies": _loads(of_reply=True),
    }
    lines = [f"    {name} = {_literal(value)},\n" for name, value in values.items()]
    return "local T = {\n" + "".join(lines) + "}"
