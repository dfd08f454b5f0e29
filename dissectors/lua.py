"""The tables of the Wireshark dissector, written in Lua from the table of the protocol.

`upcall.lua` beside this file is the program; the line that holds `TABLE_MARK` is replaced by what
`tables()` gives. docs/protocol.md sections 2 and 3.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from . import layouts
from .constants import (
    CALLER_TIMEOUT_NS,
    CPU_MSG_SIZE,
    CPU_TYPES,
    ERRNO_NAMES,
    MAGIC_VERSION,
    MESSAGE_SIZE,
    PCI_TYPES,
    REPLY_LOAD_OFFSET,
    RESERVED_TYPES,
    RESULT_MEANINGS,
    RET_OFFSET,
    UPCALL_PORT,
    Arch,
    MessageType,
    op_name,
)

TABLE_MARK: Final = "local T = {} --@TABLE@"
_KINDS: Final = {"u8": "uint8", "u16": "uint16", "u32": "uint32", "u64": "uint64", "i32": "int32"}
_SHORT: Final = {"msg_type": "type"}
"""Fields whose name in a display filter is shorter: `upcall.type`."""
_HIDDEN: Final = ("padding", "alignment")


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


def _rows(fmt: Any, skip: int = 0) -> list[dict[str, Any]]:
    """The fields of a format from the `skip`-th on, as the dissector shows them."""
    rows = []
    for row in layouts.layout(fmt)[skip:]:
        if row.name in _HIDDEN:
            continue
        name = _SHORT.get(row.name, row.name)
        shown: dict[str, Any] = {"name": name, "offset": row.offset, "size": row.size}
        if row.name == "apic_ids":
            shown["count_from"] = "count"
        rows.append(shown)
    return rows


def _declared() -> list[dict[str, Any]]:
    """Every field once, with its kind and meaning, for the list of display filters."""
    declared: dict[str, dict[str, Any]] = {}
    for fmt in layouts.FORMATS.values():
        for row in layouts.layout(fmt):
            if row.name in _HIDDEN or fmt in (layouts.VSOCKMON_HEADER, layouts.VIRTIO_VSOCK_HEADER):
                continue
            field: dict[str, Any] = {
                "name": _SHORT.get(row.name, row.name),
                "kind": _KINDS.get(row.type_name, "bytes"),
                "meaning": row.meaning,
                "hex": row.name in ("magic_version", "mmio_base", "mmio_size", "devfn"),
            }
            if row.name == "msg_type":
                field["values"] = "ops"
            declared.setdefault(row.name, field)
    return list(declared.values())


def tables() -> str:
    """The Lua statement that takes the place of `TABLE_MARK`."""
    header = len(layouts.HEADER.subcons)
    handled = {
        kind for kind in MessageType if kind not in RESERVED_TYPES and kind != MessageType.CONNECT
    }
    meanings: dict[int, dict[int, str]] = {}
    for (kind, ret), text in RESULT_MEANINGS.items():
        meanings.setdefault(kind, {})[ret] = text
    values = {
        "port": UPCALL_PORT,
        "message_size": MESSAGE_SIZE,
        "caller_timeout_ns": CALLER_TIMEOUT_NS,
        "magic_bytes": MAGIC_VERSION.to_bytes(4, "little"),
        "at": {
            **{row.name: row.offset for row in layouts.layout(layouts.HEADER)},
            "ret": RET_OFFSET,
            "reply_load": REPLY_LOAD_OFFSET,
            "count": layouts.layout(layouts.CPU_REQUEST_X86)[header].offset,
        },
        "services": {0x64: "device manager"},
        "ops": {kind: op_name(kind) for kind in MessageType},
        "handled": dict.fromkeys(handled, True),
        "cpu_types": dict.fromkeys(CPU_TYPES, True),
        "pci_types": dict.fromkeys(PCI_TYPES, True),
        "arch_of_size": {size: arch.value for arch, size in CPU_MSG_SIZE.items()},
        "default_arch": Arch.X86_64.value,
        "errnos": ERRNO_NAMES,
        "meanings": meanings,
        "fields": _declared(),
        "header": _rows(layouts.HEADER),
        "reply": _rows(layouts.REPLY, header),
        "requests": {
            arch.value: {kind: _rows(fmt, header) for kind, fmt in formats.items()}
            for arch, formats in layouts.REQUESTS.items()
        },
        "replies": {
            arch.value: {kind: _rows(fmt, header + 1) for kind, fmt in formats.items()}
            for arch, formats in layouts.REPLIES.items()
        },
    }
    lines = [f"    {name} = {_literal(value)},\n" for name, value in values.items()]
    return "local T = {\n" + "".join(lines) + "}"
