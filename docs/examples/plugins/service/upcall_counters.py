"""Counters in the guest, behind the service byte `c`: requests of 8 bytes, replies of 8."""

from __future__ import annotations

from dissectors.services import Service
from dissectors.tables import FieldRow, MessageRow, MessageTable, Show

KIND = FieldRow(0, "kind", "u32", "which message this is", show=Show.MESSAGE_TYPE)
RET = FieldRow(0, "ret", "i32", "0, or a negative errno", show=Show.ERRNO)
COUNTER = FieldRow(4, "counter", "u16", "which counter", word="COUNTER")
VALUE = FieldRow(4, "value", "u32", "the counter afterwards")

ADD = MessageRow(
    number=1,
    name="add_counter",
    request=(COUNTER, FieldRow(6, "amount", "u16", "how much more", word="AMOUNT")),
    reply=(VALUE,),
)
READ = MessageRow(number=2, name="read_counter", request=(COUNTER,), reply=(VALUE,))

COUNTERS = Service(
    "counters",
    MessageTable(
        byte=0x63,
        request_size=8,
        reply_size=8,
        request_header=(KIND,),
        reply_header=(RET,),
        messages=(ADD, READ),
        type_field="kind",
    ),
)
