"""One field of a request or a reply written anew in its bytes: `mmio_irq=6`, `ret=-17`.

Everything else in the bytes stays as it is. Layout: docs/protocol.md section 3. No IO.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from struct import Struct
from typing import Final

from dissectors.constants import MESSAGE_SIZE, Arch
from dissectors.layouts import DEVICE_MANAGER_TABLE
from dissectors.messages import Reply, Request, decode_request
from dissectors.tables import FieldRow, named

from ..compare.matchers import parse_key
from ..compare.replies import request_values
from ..errors import WrongUsage
from ..trace.script import Asked, Key

_TABLE: Final = DEVICE_MANAGER_TABLE
_SETTING: Final = re.compile(r"(?:(request|reply)\.)?([a-z_]+)=(\S*)")


@dataclass(frozen=True, slots=True)
class Setting:
    """A field and what to write into it; several numbers for a list only."""

    field: str
    values: tuple[int, ...]
    of_request: bool


def parse_setting(text: str) -> tuple[Key, Setting]:
    """`1.3 mmio_irq=6`, `1.3 apic_ids=1,2`, `1.3 ret=-17`; raises WrongUsage.

    The header's fields are those of the reply, and with `request.` in front those of the request.
    """
    place, _, told = text.strip().partition(" ")
    key = parse_key(place)
    found = _SETTING.fullmatch(told.strip())
    if not found:
        raise WrongUsage(f"{text!r} sets nothing: 'C.R FIELD=VALUE', such as '1.3 ret=-17'")
    side, name, value = found.groups()
    of_request = side == "request" or (side is None and name not in _TABLE.reply_fields)
    fields = _TABLE.request_fields if of_request else _TABLE.reply_fields
    if name not in fields:
        whose = "request" if of_request else "reply"
        raise WrongUsage(
            f"{text!r}: {name} is no field of a {whose}; there are {', '.join(fields)}"
        )
    try:
        return key, Setting(name, _numbers(name, value, fields[name]), of_request)
    except ValueError:
        raise WrongUsage(f"{text!r}: {value!r} cannot be a value of {name}") from None


def _numbers(name: str, value: str, rows: Sequence[FieldRow]) -> tuple[int, ...]:
    """The numbers of a value that one of these rows can take; raises ValueError."""
    is_list = all(row.count is not None for row in rows)
    words = value.split(",") if value or not is_list else []
    numbers = tuple(int(word, 0) for word in words)
    if not any(_fits(name, numbers, row) for row in rows):
        raise ValueError(value)
    return numbers


def _fits(name: str, numbers: Sequence[int], row: FieldRow) -> bool:
    found = named([row], name)
    part = found[1] if found else None
    low, high = (0, part.limit) if part else row.limits
    many = len(numbers) == 1 if row.count is None else len(numbers) <= row.count
    return many and all(low <= number <= high for number in numbers)


def set_in_request(where: str, asked: Asked, setting: Setting, arch: str | None) -> bytes:
    """`asked.raw` with the field written; raises WrongUsage when the request has none there."""
    message = asked.message
    if isinstance(message, Request):
        message = decode_request(asked.raw, Arch.named(arch) or Arch.X86_64)
    if not isinstance(message, Request) or setting.field not in request_values(message):
        raise WrongUsage(f"{where} is {message.op}, which has no {setting.field}")
    rows = (*_TABLE.request_header, *message.codec.load)
    return _written(where, rows, asked.raw, asked.size, setting)


def set_in_reply(where: str, asked: Asked, setting: Setting) -> bytes:
    """`asked.reply_raw` with the field written; raises WrongUsage when there is no such field."""
    reply = asked.reply
    if reply is None or len(asked.reply_raw) != MESSAGE_SIZE:
        raise WrongUsage(f"{where} has no reply whose {setting.field} could be set")
    if not isinstance(reply, Reply):
        raise WrongUsage(f"the reply to {where} ({asked.message.op}) has no {setting.field}")
    rows = (*_TABLE.reply_header, *reply.codec.load)
    if named(rows, setting.field) is None:
        raise WrongUsage(f"the reply to {where} ({asked.message.op}) has no {setting.field}")
    return _written(where, rows, asked.reply_raw, len(asked.reply_raw), setting)


def _written(
    where: str, rows: Sequence[FieldRow], raw: bytes, size: int, setting: Setting
) -> bytes:
    """`raw` with the field written; `size` bytes of it are the message's own."""
    found = named(rows, setting.field)
    assert found is not None  # the callers have looked
    row, part = found
    changed = bytearray(raw)
    if row.count is not None:
        length = named(rows, row.length)
        meant = len(setting.values)
        if length is not None:  # elements that are not meant any more become zeros
            was = changed[length[0].offset : length[0].end]
            meant = min(max(meant, int.from_bytes(was, "little")), row.count)
            many = Struct("<" + length[0].code).pack(len(setting.values))
            changed[length[0].offset : length[0].end] = many
        values = (*setting.values, *[0] * (meant - len(setting.values)))
        written = Struct(f"<{len(values)}{row.code}").pack(*values)
    elif len(setting.values) != 1 or not _fits(setting.field, setting.values, row):
        told = ",".join(map(str, setting.values))
        raise WrongUsage(f"{where}: {told!r} cannot be a value of {setting.field}")
    else:
        (number,) = setting.values
        code = Struct("<" + row.code)
        if part is not None:
            number = part.put(code.unpack_from(changed, row.offset)[0], number)
        written = code.pack(number)
    if row.offset + len(written) > size:
        raise WrongUsage(f"{where} came with {size} bytes, and {setting.field} is beyond them")
    changed[row.offset : row.offset + len(written)] = written
    return bytes(changed)
