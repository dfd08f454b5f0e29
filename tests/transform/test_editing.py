"""A recording changed: what is left is a recording without a seam."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest

from dissectors.messages import cpu_request
from tests.replay.modelled import (
    ADD_MEM,
    STEP_NS,
    TWO_CPUS,
    Asking,
    T,
    disk,
    overlapping,
    recorded,
    script_of,
    words,
)
from tests.support import (
    HELLO,
    answer,
    ask,
    connect,
    decode,
    each_recording,
    operations,
    records_of,
)
from upcall_trace.capture.records import (
    LEFT_OUT,
    Begins,
    Chunk,
    Close,
    Gap,
    GaveUp,
    Header,
    Mark,
    Open,
    Record,
    Vmm,
)
from upcall_trace.compare.matchers import parse_rules
from upcall_trace.errors import WrongUsage
from upcall_trace.trace.operations import Operation
from upcall_trace.trace.scripting import read_script
from upcall_trace.transform.composing import keep_operations
from upcall_trace.transform.editing import Edited, Edits, Move, edit, in_order
from upcall_trace.transform.fields import parse_setting

HEADER = Header("test")
THREE: list[Asking] = [disk(0), ADD_MEM, disk(0)]
TWO_CONNECTIONS: list[Asking] = [(1, disk(0)), (2, disk(1)), (1, disk(0)), (2, ADD_MEM)]
KILL = cpu_request(T.DEL_CPU, [9])


def edited(records: list[Record], **edits: object) -> Edited:
    return edit(HEADER, records, Edits(**edits))  # type: ignore[arg-type]


def left(done: Edited) -> list[str]:
    return words(operations(decode(done.records)))


def shown(done: Edited) -> list[Operation]:
    return operations(decode(done.records))


def test_without_a_change_it_is_the_same() -> None:
    records = recorded(TWO_CONNECTIONS)
    assert edited(records).records == records


def test_a_dropped_operation_goes_with_its_reply_and_leaves_no_gap() -> None:
    done = edited(recorded(THREE), dropped=[(1, 1)])
    assert left(done) == ["1.0 add_mmio 0", "1.1 add_mmio -17"]
    assert done.numbers == {(1, 0): (1, 0), (1, 2): (1, 1)}
    assert not any(isinstance(record, Gap) for record in done.records)
    assert [shown(done)[1].t_ns, done.remarks] == [3 * STEP_NS, []]


def test_only_what_is_kept_stays_and_only_its_connections() -> None:
    records: list[Record] = [
        *recorded(TWO_CONNECTIONS),
        Open(9 * STEP_NS, 3),
        Chunk(9 * STEP_NS, 3, True, b"x"),
    ]
    done = edited(records, kept=[(2, 0), (2, 1)])
    assert left(done) == ["2.0 add_mmio 0", "2.1 add_mem -1"]
    assert {getattr(record, "conn", 2) for record in done.records} == {2}
    assert any(isinstance(record, Close) for record in done.records)


def test_a_connection_that_lost_its_operations_goes_and_one_that_had_none_stays() -> None:
    refused: list[Record] = [
        Open(5, 3),
        Chunk(5, 3, True, b"CONNECT 219\n"),
        Close(6, 3, by_guest=True),
    ]
    done = edited([*recorded(TWO_CONNECTIONS), *refused], dropped=[(1, 0), (1, 1)])
    assert {record.conn for record in done.records if isinstance(record, Open)} == {2, 3}


@pytest.mark.parametrize(
    ("moves", "expected"),
    [
        ([Move((1, 2), (1, 0))], "add_mmio 0, add_mmio -17, add_mem -1"),
        ([Move((1, 2), (1, 0), before=True)], "add_mmio -17, add_mmio 0, add_mem -1"),
        ([Move((1, 0), (1, 2))], "add_mem -1, add_mmio -17, add_mmio 0"),
        ([Move((1, 0), (1, 2)), Move((1, 1), (1, 0))], "add_mmio -17, add_mmio 0, add_mem -1"),
    ],
)
def test_an_operation_moves_with_its_reply(moves: list[Move], expected: str) -> None:
    done = edited(recorded(THREE), moves=moves)
    assert left(done) == [f"1.{n} {what}" for n, what in enumerate(expected.split(", "))]
    times = [record.t_ns for record in done.records if isinstance(record, Chunk)]
    assert times == sorted(times)
    assert all(each.latency_ns == STEP_NS // 10 for each in shown(done))


def test_an_operation_moves_to_another_connection() -> None:
    done = edited(recorded(TWO_CONNECTIONS), moves=[Move((2, 0), (1, 1))])
    assert left(done) == ["1.0 add_mmio 0", "1.1 add_mmio -17", "1.2 add_mmio 0", "2.0 add_mem -1"]
    assert done.numbers[2, 0] == (1, 2)
    done = edited(recorded(TWO_CONNECTIONS), moves=[Move((2, 0), (1, 1)), Move((2, 1), (1, 1))])
    assert {record.conn for record in done.records if isinstance(record, Open)} == {1}


def test_nothing_that_is_answered_can_follow_silence() -> None:
    records = [*recorded([(1, disk(0)), (2, KILL)], TWO_CPUS), GaveUp(9 * STEP_NS, 2, STEP_NS)]
    with pytest.raises(WrongUsage, match=r"2\.0 would be taken to be answered by another one's"):
        edited(records, moves=[Move((1, 0), (2, 0))])
    done = edited(records, moves=[Move((2, 0), (1, 0))])
    assert left(done) == ["1.0 add_mmio 0", "1.1 del_cpu None"]
    (gave_up,) = (record for record in done.records if isinstance(record, GaveUp))
    assert gave_up.conn == 1


def test_nobody_gives_up_on_what_was_dropped() -> None:
    records = [*recorded([ADD_MEM, KILL], TWO_CPUS), GaveUp(9 * STEP_NS, 1, STEP_NS)]
    done = edited(records, dropped=[(1, 1)])
    assert not any(isinstance(record, GaveUp) for record in done.records)


def test_moves_and_drops_have_no_order_among_each_other() -> None:
    done = edited(recorded(THREE), dropped=[(1, 0)], moves=[Move((1, 2), (1, 0))])
    assert left(done) == ["1.0 add_mmio -17", "1.1 add_mem -1"]


def test_settings_change_bytes_and_the_last_one_counts() -> None:
    told = ["1.2 mmio_irq=7", "1.2 mmio_irq=8", "1.2 ret=0", "1.1 request.msg_type=77"]
    done = edited(recorded(THREE), settings=[parse_setting(text) for text in told])
    assert left(done) == ["1.0 add_mmio 0", "1.1 type_77 -1", "1.2 add_mmio 0"]
    assert shown(done)[2].fields["mmio_irq"] == 8
    assert done.remarks == []


def test_a_short_request_that_means_something_else_then_is_told() -> None:
    records = recorded([disk(0), disk(1), disk(0).encode()[:16]])
    done = edited(records, dropped=[(1, 1)])
    (remark,) = done.remarks
    assert remark == (
        "1.2 is executed over other bytes than before: it was add_mmio 0xd0010000+0x2000 irq=5, "
        "and is add_mmio 0xd0000000+0x2000 irq=5 now"
    )


def test_two_requests_of_one_write_stay_one_unless_one_goes() -> None:
    replies = disk(0).reply().encode() + ADD_MEM.reply(-1).encode()
    records = [*connect(), ask(disk(0).encode() + ADD_MEM.encode(), 5), Chunk(6, 1, False, replies)]
    assert edited(records, dropped=[]).records == records
    done = edited(records, dropped=[(1, 0)])
    assert [len(record.data) for record in done.records[-2:] if isinstance(record, Chunk)] == [
        1024,
        1024,
    ]
    assert left(done) == ["1.0 add_mem -1"]


def test_a_reply_that_came_in_pieces_stays_in_pieces_and_goes_as_a_whole() -> None:
    reply = ADD_MEM.reply(-1).encode()
    records = [*connect(), ask(ADD_MEM, 5), Chunk(6, 1, False, reply[:100]),
               Chunk(7, 1, False, reply[100:]), ask(disk(0), 8), answer(disk(0), 9)]  # fmt: skip
    assert edited(records).records == records
    assert left(edited(records, dropped=[(1, 0)])) == ["1.0 add_mmio 0"]
    done = edited(records, settings=[parse_setting("1.0 ret=-22")])
    assert left(done) == ["1.0 add_mem -22", "1.1 add_mmio 0"]


def test_marks_and_matchers_go_with_their_operations() -> None:
    marks = [Mark(7, 1, number, "comment", f"of {number}") for number in range(3)]
    whole = Mark(7, None, None, "comment", "of all")
    done = edited([*recorded(THREE), *marks, whole], dropped=[(1, 0)],
                  matchers=[((1, 2), parse_rules("ret=any"))])  # fmt: skip
    assert [record for record in done.records if isinstance(record, Mark)] == [
        Mark(7, 1, 0, "comment", "of 1"),
        Mark(7, 1, 1, "comment", "of 2"),
        whole,
        Mark(0, 1, 1, "match", "ret=any"),
    ]


def test_what_the_vmm_did_stays_unless_it_is_left_out() -> None:
    records = recorded(["vCPU 1 created", disk(0), "vCPU 2 created", ADD_MEM])
    done = edited(records, dropped=[(1, 0)])
    assert sum(isinstance(record, Vmm) for record in done.records) == 2
    (left_over,) = (r for r in edited(records, without={0}).records if isinstance(r, Vmm))
    assert left_over.action == "vCPU 2 created"


def test_gaps_of_an_earlier_filter_go_and_those_of_a_loss_stay() -> None:
    filtered = list(keep_operations(HEADER, recorded(THREE), {(1, 0), (1, 2)}))
    assert any(isinstance(record, Gap) for record in filtered)
    done = edited(filtered, settings=[parse_setting("1.2 ret=0")])
    assert left(done) == ["1.0 add_mmio 0", "1.1 add_mmio 0"]
    assert not any(isinstance(record, Gap) for record in done.records)
    lost = Gap(9 * STEP_NS, 1, False, 10, "the disk was full")
    assert lost in edited([*recorded(THREE), lost], dropped=[(1, 0)]).records
    assert lost.reason != LEFT_OUT


def test_new_answers_take_the_place_of_recorded_ones_and_of_silence() -> None:
    records = recorded([ADD_MEM, disk(0), KILL], TWO_CPUS)
    new = disk(0).reply(-17).encode()
    done = edited(records, answers={(1, 1): new, (1, 0): ADD_MEM.reply(-1).encode()})
    assert left(done) == ["1.0 add_mem -1", "1.1 add_mmio -17", "1.2 del_cpu None"]
    done = edited(records, answers={(1, 2): KILL.reply(-22).encode()})
    assert left(done)[2] == "1.2 del_cpu -22"
    done = edited(records, answers={(1, 1): None}, dropped=[(1, 2)])
    assert left(done) == ["1.0 add_mem -1", "1.1 add_mmio None"]


@pytest.mark.parametrize("begins", [Begins.SERVICE, Begins.MIDDLE])
def test_recordings_from_inside_and_from_the_middle_can_be_changed(begins: Begins) -> None:
    start: list[Record] = [Open(0, 1, begins, 219, True)]
    if begins is Begins.SERVICE:
        start += [Chunk(0, 1, True, b"d"), Chunk(0, 1, False, HELLO)]
    records = [*start, ask(ADD_MEM, 5), answer(ADD_MEM, 6, ret=-1), ask(disk(0), 7),
               answer(disk(0), 8)]  # fmt: skip
    assert left(edited(records, dropped=[(1, 0)])) == ["1.0 add_mmio 0"]


@pytest.mark.parametrize(
    "edits",
    [
        {"dropped": [(1, 3)]},
        {"kept": [(1, 3)]},
        {"moves": [Move((1, 3), (1, 0))]},
        {"moves": [Move((1, 0), (1, 3))]},
        {"settings": [parse_setting("1.3 ret=0")]},
        {"matchers": [((1, 3), parse_rules("ret=any"))]},
    ],
)
def test_an_operation_that_is_not_there_is_named(edits: dict[str, object]) -> None:
    with pytest.raises(WrongUsage, match=r"there is no operation 1\.3"):
        edited(recorded(THREE), **edits)


def test_an_operation_cannot_be_moved_to_itself() -> None:
    with pytest.raises(WrongUsage, match=r"1\.1 cannot be moved to itself"):
        edited(recorded(THREE), moves=[Move((1, 1), (1, 1))])


def test_a_range_is_in_the_order_of_sending() -> None:
    script = script_of(recorded(TWO_CONNECTIONS))
    assert in_order(script, (2, 0), (2, 1)) == [(2, 0), (1, 1), (2, 1)]
    with pytest.raises(WrongUsage, match=r"2\.1 was sent after 1\.0: name the first one first"):
        in_order(script, (2, 1), (1, 0))
    with pytest.raises(WrongUsage, match=r"there is no operation 3\.0"):
        in_order(script, (3, 0), (1, 0))


def test_the_recording_that_went_in_is_not_touched() -> None:
    records = recorded([disk(0), overlapping(0)])
    before = [replace(record) for record in records]
    edited(records, settings=[parse_setting("1.1 ret=0")], moves=[Move((1, 1), (1, 0), True)])
    assert records == before


@each_recording
def test_whatever_is_dropped_and_moved_the_rest_keeps_its_answers(golden: Path) -> None:
    header, records = records_of(golden)
    script = read_script(header, records)
    keys = list(script.asked)
    chance = random.Random(golden.name)
    for _ in range(10 if len(keys) > 1 else 0):
        dropped = set(chance.sample(keys, chance.randrange(len(keys))))
        one, other = chance.sample(keys, 2)
        moves = [Move(one, other, chance.random() < 0.5)][: chance.randrange(2)]
        try:
            done = edit(header, records, Edits(dropped, moves=moves))
        except WrongUsage:
            assert moves  # it would have come behind silence
            continue
        after = read_script(header, done.records)
        assert done.numbers.keys() == set(keys) - dropped
        assert sorted(done.numbers.values()) == sorted(after.asked)
        for old, new in done.numbers.items():
            assert after.asked[new].reply_raw == script.asked[old].reply_raw
