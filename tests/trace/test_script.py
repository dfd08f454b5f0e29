"""What of a recording is sent again, and in which order."""

from __future__ import annotations

from pathlib import Path

from tests.replay.playing import script_of
from tests.support import (
    ADD_MEM,
    DISK,
    HELLO,
    answer,
    ask,
    connect,
    golden,
    small_capture,
    write_capture,
)
from upcall_trace.capture.records import (
    LEFT_OUT,
    Begins,
    Chunk,
    Close,
    Gap,
    GaveUp,
    Header,
    How,
    Open,
    Record,
    Vmm,
)
from upcall_trace.sources import open_source
from upcall_trace.trace.script import Act, Await, Connect, Leave, Script, Send
from upcall_trace.trace.scripting import read_script
from upcall_trace.trace.streams import distinct_connections, distinct_records


def told(script: Script) -> list[str]:
    """The steps, one short line each."""
    lines = []
    for step in script.steps:
        match step:
            case Connect():
                lines.append(f"{step.conn} connect")
            case Send():
                numbers = ",".join(map(str, step.requests))
                lines.append(f"{step.conn} > {step.what} {numbers or len(step.data)}")
            case Await():
                number = "" if step.request is None else f" {step.request}"
                lines.append(f"{step.conn} < {step.what}{number}")
            case Leave():
                lines.append(f"{step.conn} {step.how}")
            case Act():
                lines.append(f"vmm {step.action}")
    return lines


def test_a_connection_from_its_first_line_to_its_end() -> None:
    script = script_of([*small_capture()[:9], Close(9000, 1, by_guest=False)])
    assert told(script) == [
        "1 connect",
        "1 > line 12",
        "1 < line",
        "1 > service 1",
        "1 < hello",
        "1 > request 0",
        "1 < reply 0",
        "1 > request 1",
        "1 < reply 1",
        "1 close",
    ]
    first, second = script.asked.values()
    assert (first.key, first.place, first.t_ns, first.latency_ns) == ((1, 0), 0, 1000, 3000)
    assert first.message == DISK
    assert first.reply == DISK.reply()
    assert second.reply == DISK.reply(-17)


def test_requests_wait_for_what_came_before_on_any_connection() -> None:
    script = script_of([
        *connect(1), *connect(2), ask(DISK, 1, 1), ask(ADD_MEM, 2, 2), answer(ADD_MEM, 3, 2, -1),
        answer(DISK, 4, 1), Vmm(5, "vCPU 1 created"), ask(DISK, 6, 2), answer(DISK, 7, 2, -17),
    ])  # fmt: skip
    assert told(script)[10:] == [
        "1 > request 0",
        "2 > request 0",
        "2 < reply 0",
        "1 < reply 0",
        "vmm vCPU 1 created",
        "2 > request 1",
        "2 < reply 1",
    ]


def sent_together() -> list[Record]:
    two = Chunk(10, 1, True, DISK.encode() + ADD_MEM.encode() + b"\x01" * 16)
    return [*connect(1), two, answer(DISK, 20), answer(ADD_MEM, 20, ret=-1)]


def test_requests_in_one_send_are_a_write_each_unless_splits_are_kept() -> None:
    script = script_of(sent_together())
    assert told(script)[5:8] == ["1 > request 0", "1 > request 1", "1 > request 2"]
    kept = read_script(Header("test"), sent_together(), keep_splits=True)
    assert told(kept)[5:6] == ["1 > request 0,1,2"]
    (send,) = [step for step in kept.steps if isinstance(step, Send) and step.requests]
    assert len(send.data) == 1024 + 1024 + 16


def test_a_split_request_stays_two_writes() -> None:
    raw = DISK.encode()
    script = script_of([*connect(1), ask(raw[:500], 1), ask(raw[500:], 2), answer(DISK, 3)])
    sends = [step for step in script.steps if isinstance(step, Send) and step.requests]
    assert [step.data for step in sends] == [raw[:500], raw[500:]]


def test_a_recording_from_inside_the_guest_gets_a_line() -> None:
    records: list[Record] = [
        Open(0, 4, Begins.SERVICE, 219, True), Chunk(1, 4, True, b"d"), Chunk(2, 4, False, HELLO),
        ask(DISK, 3, 4), answer(DISK, 4, 4),
    ]  # fmt: skip
    script = read_script(Header("test"), records, port=220)
    lines = [step.data for step in script.steps if isinstance(step, Send) and step.what == "line"]
    assert lines == [b"CONNECT 220\n"]
    assert script.header.port == 220
    assert told(script)[:5] == [
        "4 connect",
        "4 > line 12",
        "4 < line",
        "4 > service 1",
        "4 < hello",
    ]


def test_another_port_can_be_asked_for() -> None:
    script = read_script(Header("test"), connect(1), port=5)
    assert script.steps[1] == Send(0, 1, "line", b"CONNECT 5\n")


def test_a_connection_from_its_middle_is_sent_on_a_new_one_and_that_is_said() -> None:
    script = script_of([ask(DISK, 5, 3), answer(DISK, 6, 3)])
    assert told(script)[:6] == [
        "3 connect", "3 > line 12", "3 < line", "3 > service 1", "3 < hello", "3 > request 0",
    ]  # fmt: skip
    assert script.left_out == ["connection 3 was recorded from its middle: it is sent on a new one"]


def test_a_number_that_is_used_again_is_another_connection() -> None:
    again = [*connect(1), ask(DISK, 1), answer(DISK, 2), Close(3, 1, by_guest=False),
             *connect(1, 4), ask(DISK, 5), answer(DISK, 6, ret=-17)]  # fmt: skip
    script = script_of(distinct_connections([*again, *connect(2, 7)]))
    assert {key: asked.reply for key, asked in script.asked.items()} == {
        (1, 0): DISK.reply(), (3, 0): DISK.reply(-17),
    }  # fmt: skip


def test_numbers_are_told_apart_without_holding_the_records(tmp_path: Path) -> None:
    records = [*connect(1), ask(DISK, 1), Close(3, 1, by_guest=False), *connect(2, 4),
               *connect(1, 5), ask(DISK, 6), Close(7, 1, by_guest=True), *connect(2, 8),
               ask(DISK, 9, conn=2), *connect(7, 10), *connect(1, 11), ask(DISK, 12)]  # fmt: skip
    path = write_capture(tmp_path / "again.upcap", records)
    with open_source(path) as source:
        streamed = list(distinct_records(path, source))
    with open_source(path) as source:
        held = distinct_connections(record for _, record in source.records())
    assert streamed == held
    assert {record.conn for record in held if isinstance(record, Open)} == {1, 2, 7, 8, 9, 10}


def test_what_no_plan_can_tell_of_is_never_sent() -> None:
    script = script_of([
        Open(0, 1), Chunk(1, 1, True, b"passfd\n"), Chunk(2, 1, True, b"d"), ask(DISK, 3),
        Open(4, 2), Chunk(5, 2, True, b"CONNECT 1024\n"), Chunk(6, 2, True, b"rm -rf /\n"),
        Open(7, 3), Chunk(8, 3, True, b"CONNECT 219\n"), Chunk(9, 3, False, b"OK 1\n"),
        Chunk(10, 3, True, b"x" + b"secret" * 99), Close(11, 3, by_guest=True),
    ])  # fmt: skip
    assert [(step.conn, step.data) for step in script.steps if isinstance(step, Send)] == [
        (3, b"CONNECT 219\n"), (3, b"x"),
    ]  # fmt: skip
    assert script.left_out == [
        "connection 3: bytes without a meaning are not sent",
        "connection 1 was handed over as a descriptor",
        "connection 2 is to port 1024",
    ]


def test_a_reply_that_is_missing_in_the_recording_is_not_silence() -> None:
    lost = [*connect(1), ask(DISK, 1), Gap(2, 1, False, 1024, "x"), Close(3 * 10**9, 1, False)]
    assert script_of(lost).asked[1, 0].cut_off
    torn = [*connect(1), ask(DISK, 1), Gap(2, 0, False, 4096, "x"), Close(3 * 10**9, 1, False)]
    assert script_of(torn).asked[1, 0].cut_off


def test_the_end_of_a_connection_goes_with_what_it_came_of() -> None:
    script = script_of([*connect(1), ask(DISK, 1), answer(DISK, 2), ask(ADD_MEM, 3),
                        Close(4, 1, by_guest=True)])  # fmt: skip
    assert told(script)[-1] == "1 < end"
    assert told(script.only({(1, 0)}))[-1] == "1 < reply 0"


def test_what_went_in_one_write_is_chosen_together() -> None:
    kept = read_script(Header("test"), sent_together(), keep_splits=True)
    assert list(kept.only({(1, 1)}).asked) == [(1, 0), (1, 1), (1, 2)]


def test_other_ports_are_left_out_but_for_refusals() -> None:
    script = script_of([
        *connect(1, port=1024)[:3], Close(1, 1, by_guest=False),
        Open(2, 2), Chunk(3, 2, True, b"CONNECT 9999\n"), Close(4, 2, by_guest=True),
        Open(5, 3, Begins.OTHER, 1024), Close(6, 3, by_guest=True),
    ])  # fmt: skip
    assert told(script) == ["2 connect", "2 > line 13", "2 < end"]
    assert script.left_out == ["connection 1 is to port 1024", "connection 3 is to port 1024"]


def test_lines_that_are_none_are_sent_as_they_were() -> None:
    script = script_of([
        Open(0, 1), Chunk(1, 1, True, b"HELO\n"), Close(2, 1, by_guest=True),
        Open(3, 2), Chunk(4, 2, True, b"CONN"), Close(5, 2, by_guest=False, how=How.HALF),
        Close(6, 2, by_guest=False),
    ])  # fmt: skip
    assert [(step.conn, step.data) for step in script.steps if isinstance(step, Send)] == [
        (1, b"HELO\n"), (2, b"CONN"),
    ]  # fmt: skip


def test_what_is_missing_is_said() -> None:
    script = script_of([
        *connect(1), Gap(1, 1, True, 1024, LEFT_OUT), Gap(2, 1, False, 7, "the disk is slow"),
    ])  # fmt: skip
    assert script.left_out == ["7 bytes of connection 1 are missing: the disk is slow"]


def test_silence_is_only_silence_when_somebody_waited_for_it() -> None:
    asked = [*connect(1), ask(DISK, 10)]
    assert script_of(asked).asked[1, 0].cut_off
    assert script_of(asked).left_out == ["the recording ends before 1.0 is answered"]
    assert not script_of([*asked, GaveUp(11, 1, 250_000_000)]).asked[1, 0].cut_off
    assert not script_of([*asked, Close(11, 1, by_guest=False)]).asked[1, 0].cut_off
    later = [*asked, *connect(2, 2_000_000_000)]
    assert not script_of(later).asked[1, 0].cut_off


def test_only_some_operations() -> None:
    with open_source(golden("cpu_lifecycle")) as source:
        script = read_script(source.header, [record for _, record in source.records()])
    some = script.only({(1, 3)})
    assert list(some.asked) == [(1, 3)]
    assert [line for line in told(some) if "request" in line or "reply" in line] == [
        "1 > request 3", "1 < reply 3",
    ]  # fmt: skip
    assert some.actions == ["vCPU 1 created", "vCPU 2 created", "vCPU 3 created"]
    assert script.only({(1, 0)}).actions == []
    assert script.only(set()).steps == []
