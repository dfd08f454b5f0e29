"""One field of a request or a reply written anew in its bytes: `mmio_irq=6`, `ret=-17`.

Everything else in the bytes stays as it is. Layout: docs/protocol.md section 3. No IO.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from typing import Final

from dissectors.constants import MESSAGE_SIZE, Arch
from dissectors.layouts import _HEADER, REPLY_FIELDS, REQUEST_FIELDS
from dissectors.messages import CpuRequestX86, Reply, Request, decode_request

from ..compare.matchers import parse_key
from ..compare.replies import request_values
from ..errors import WrongUsage
from ..trace.script import Asked, Key

_LIMITS: Final = {"slot": 31, "function": 7}
_COUNT_AT: Final = 16
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
    of_request = side == "request" or (side is None and name not in REPLY_FIELDS)
    fields = REQUEST_FIELDS if of_request else REPLY_FIELDS
    if name not in fields:
        whose = "request" if of_request else "reply"
        raise WrongUsage(
            f"{text!r}: {name} is no field of a {whose}; there are {', '.join(fields)}"
        )
    words = value.split(",") if name == "apic_ids" and value else [value]
    if name == "apic_ids" and not value:
        words = []
    try:
        numbers = tuple(int(word, 0) for word in words)
        for number in numbers:
            struct.pack(fields[name][1], number)
            if number > _LIMITS.get(name, number) or len(numbers) > 255:
                raise ValueError(number)
    except (ValueError, struct.error):
        raise WrongUsage(f"{text!r}: {value!r} cannot be a value of {name}") from None
    return key, Setting(name, numbers, of_request)


def set_in_request(where: str, asked: Asked, setting: Setting, arch: str | None) -> bytes:
    """`asked.raw` with the field written; raises WrongUsage when the request has none there."""
    message = asked.message
    if isinstance(message, Request):
        message = decode_request(asked.raw, Arch.named(arch) or Arch.X86_64)
    if not isinstance(message, Request) or setting.field not in request_values(message):
        raise WrongUsage(f"{where} is {message.op}, which has no {setting.field}")
    offset, code = REQUEST_FIELDS[setting.field]
    raw = bytearray(asked.raw)
    if isinstance(message, CpuRequestX86) and setting.field == "apic_ids":
        ids = bytes(setting.values)
        written = ids.ljust(message.count, b"\0")
        raw[_COUNT_AT] = len(ids)
    else:
        (number,) = setting.values
        if setting.field == "slot":
            number = number << 3 | raw[offset] & 7
        elif setting.field == "function":
            number |= raw[offset] & ~7
        written = struct.pack(code, number)
    if offset + len(written) > asked.size:
        raise WrongUsage(
            f"{where} came with {asked.size} bytes, and {setting.field} is beyond them"
        )
    raw[offset : offset + len(written)] = written
    return bytes(raw)


def set_in_reply(where: str, asked: Asked, setting: Setting) -> bytes:
    """`asked.reply_raw` with the field written; raises WrongUsage when there is no such field."""
    reply = asked.reply
    if reply is None or len(asked.reply_raw) != MESSAGE_SIZE:
        raise WrongUsage(f"{where} has no reply whose {setting.field} could be set")
    has_it = setting.field in (*_HEADER, "ret", *reply.fields())
    if not isinstance(reply, Reply) or not has_it:
        raise WrongUsage(f"the reply to {where} ({asked.message.op}) has no {setting.field}")
    offset, code = REPLY_FIELDS[setting.field]
    raw = bytearray(asked.reply_raw)
    struct.pack_into(code, raw, offset, *setting.values)
    return bytes(raw)
