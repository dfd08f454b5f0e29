"""The observer on peers that misbehave and on recordings with holes, told as conversations."""

from __future__ import annotations

import pytest

from dissectors.constants import MESSAGE_SIZE, Arch, MessageType
from dissectors.events import ReplyReceived
from dissectors.messages import CpuReplyArm, CpuReplyX86, cpu_request
from dissectors.observer import Observer, Start
from tests.dissectors.playbook import (
    CONNECT,
    END,
    HELLO,
    MAGIC,
    OK,
    RESYNC,
    SERVICE,
    Gap,
    Playbook,
    answer,
    ask,
    facts,
    feed,
    ready,
)


def test_a_conversation() -> None:
    assert (
        ready(Playbook())
        >> ask(0)
        >> "request 0 type_1000"
        << answer(0)
        << "reply to 0, ret 0"
        >> ask(1)
        >> "request 1 type_1001"
        << answer(1)
        << "reply to 1, ret 1"
    )


def test_a_playbook_that_does_not_hold_shows_where() -> None:
    playbook = ready(Playbook()) >> ask(0) >> "request 1 type_1000"
    with pytest.raises(AssertionError) as failure:
        bool(playbook)
    assert "-     >> request 1 type_1000" in str(failure.value)
    assert "+     >> request 0 type_1000" in str(failure.value)
    assert "  << 1024 bytes" in str(failure.value)


def test_a_service_byte_before_ok_is_early() -> None:
    assert (
        Playbook()
        >> CONNECT
        >> "CONNECT line, port 219"
        >> SERVICE
        >> "service 0x64, device manager, early"
        << OK + HELLO
        << "OK line, port 1024"
        << "hello"
        >> ask(0)
        >> "request 0 type_1000"
    )


def test_line_service_byte_and_request_in_one_write() -> None:
    assert (
        Playbook()
        >> CONNECT + SERVICE + ask(0).encode()
        >> "CONNECT line, port 219"
        >> "service 0x64, device manager, early"
        >> "request 0 type_1000, at 13"
        << OK + HELLO + answer(0).encode()
        << "OK line, port 1024"
        << "hello"
        << "reply to 0, ret 0"
    )


def test_a_line_in_pieces() -> None:
    assert (
        Playbook()
        >> b"conn"
        >> b"ECT 21"
        >> b"9\n"
        >> "CONNECT line, port 219"
        << b"O"
        << b"k 7\n"
        << "OK line, port 7"
    )


def test_an_unknown_service() -> None:
    assert (
        Playbook()
        >> CONNECT
        >> "CONNECT line, port 219"
        << OK
        << "OK line, port 1024"
        >> b"xyz"
        >> "service 0x78, unknown"
        >> "opaque b'yz'"
        << b"what?"
        << "opaque b'what?'"
    )


def test_passfd_hands_the_connection_over() -> None:
    assert (
        Playbook()
        >> b"passfd\n"
        >> "passfd line"
        >> b"219 keep"
        >> "opaque b'219 keep'"
        << OK
        << "OK line, port 1024"
        << HELLO
        << "opaque 1024 bytes"
    )


@pytest.mark.parametrize("line", [b"CONNECT 99999999999\n", b"HELLO\n", b"\n", b"CONNECT 219x\n"])
def test_a_malformed_line(line: bytes) -> None:
    assert (
        Playbook()
        >> line
        >> f"CONNECT line, malformed {line!r}"
        >> SERVICE
        >> "opaque b'd'"
        << b"go away\n"
        << r"OK line, malformed b'go away\n'"
    )


def test_a_line_that_does_not_end_in_32_bytes() -> None:
    assert (
        Playbook()
        >> b"CONNECT " + b"0" * 30
        >> f"CONNECT line, malformed {b'CONNECT ' + b'0' * 24!r}"
        >> "opaque b'000000'"
        >> b"219\n"
        >> r"opaque b'219\n'"
    )
    assert Playbook() >> b"A" * 31 >> b"\n" >> rf"CONNECT line, malformed b'{'A' * 31}\n'"


def test_another_ports_traffic() -> None:
    assert (
        Playbook()
        >> b"CONNECT 1024\n"
        >> "CONNECT line, port 1024"
        << b"OK 5\n"
        << "OK line, port 5"
        >> b"d"
        >> "opaque b'd'"
        << HELLO
        << "opaque 1024 bytes"
    )
    assert (
        Playbook(Start.OTHER)
        >> CONNECT
        >> r"opaque b'CONNECT 219\n'"
        << OK
        << r"opaque b'OK 1024\n'"
    )


def test_the_upcall_port_can_be_another() -> None:
    observer = Observer(upcall_port=1000)
    events = list(feed(observer, [(True, b"CONNECT 1000\nd")]))
    assert facts(events)[1:] == [">> service 0x64, device manager, early"]
    assert facts(Observer(upcall_port=1000).to_guest(CONNECT + SERVICE))[1:] == [">> opaque b'd'"]


def test_ok_refused() -> None:
    assert (
        Playbook()
        >> CONNECT
        >> "CONNECT line, port 219"
        << b"no such port\n"
        << r"OK line, malformed b'no such port\n'"
        >> SERVICE
        >> "service 0x64, device manager"
        << HELLO
        << "opaque 1024 bytes"
    )


def test_an_answer_without_an_end_in_50_bytes() -> None:
    assert (
        Playbook()
        >> CONNECT
        >> "CONNECT line, port 219"
        << b"OK" * 30
        << "OK line, malformed 50 bytes"
        << "opaque b'OKOKOKOKOK'"
    )


def test_a_first_message_that_is_no_connect_message() -> None:
    assert (
        Playbook(Start.SERVICE)
        >> SERVICE
        >> "service 0x64, device manager"
        << answer(7)
        << "hello, not valid"
        >> ask(0)
        >> "request 0 type_1000"
        << answer(0)
        << "reply to 0, ret 0"
    )


def test_a_reply_to_nothing() -> None:
    assert (
        ready(Playbook())
        << answer(3)
        << "reply to nothing, ret 3"
        >> ask(0)
        >> "request 0 type_1000"
        << answer(0)
        << "reply to 0, ret 0"
    )


def test_pieces_of_requests() -> None:
    raw = ask(0).encode()
    assert (
        ready(Playbook())
        >> raw[:10]
        >> "request 0 type_1000, 10 bytes"
        >> bytes(14)
        >> "request 1 connect, 14 bytes, continues 0, overlaps 0"
        >> bytes(1000)
        >> "request 2 connect, 1000 bytes, continues 0, overlaps 0"
        >> bytes(1000)
        >> "request 3 connect, 1000 bytes, overlaps 0"
        >> bytes(25)
        >> "request 4 connect, 25 bytes, overlaps 0"
        >> raw[:16]
        >> "request 5 type_1000, 16 bytes, overlaps 0"
        >> raw
        >> "request 6 type_1000, overlaps 0"
        >> bytes(8)
        >> "request 7 type_1000, 8 bytes, overlaps 0"
    )


def test_what_follows_a_whole_request_in_one_write() -> None:
    raw = ask(0).encode()
    assert (
        ready(Playbook())
        >> raw + raw[:16]
        >> "request 0 type_1000"
        >> "request 1 type_1000, 16 bytes, at 1024, overlaps 0"
        >> raw + bytes(16)
        >> "request 2 type_1000, overlaps 0"
        >> "request 3 connect, 16 bytes, at 1024, rest_of 2, overlaps 0"
        >> bytes(1008)
        >> "request 4 connect, 1008 bytes, overlaps 0"
    )


def test_a_replys_layout_is_that_of_its_request() -> None:
    arm = cpu_request(MessageType.ADD_CPU, 1)
    for guest, request, kind in (
        (Arch.X86_64, arm, CpuReplyArm),
        (Arch.AARCH64, cpu_request(MessageType.ADD_CPU, [1]), CpuReplyX86),
    ):
        observer = Observer(Start.MIDDLE, guest)
        observer.to_guest(request.encode())
        (answered,) = observer.from_guest(request.reply().encode())
        assert isinstance(answered, ReplyReceived)
        assert type(answered.message) is kind


def test_a_recording_that_begins_in_the_middle() -> None:
    assert (
        Playbook(Start.MIDDLE)
        >> ask(7)
        >> "request 0 type_1007"
        << answer(7)
        << "reply to 0, ret 7"
        >> ask(8).encode()[:500]
        >> "request 1 type_1008, 500 bytes"
    )
    assert (
        Playbook(Start.MIDDLE)
        << OK + HELLO
        << r"opaque b'OK 1024\n'"
        << "hello"
        >> ask(0)
        >> "request 0 type_1000"
        << answer(0)
        << "reply to 0, ret 0"
    )
    assert Playbook(Start.MIDDLE) >> SERVICE >> "service 0x64, device manager" << HELLO << "hello"


def test_a_recording_that_begins_in_the_middle_of_a_reply() -> None:
    assert (
        Playbook(Start.MIDDLE)
        << answer(0).encode()[600:] + answer(1).encode()
        << "opaque 424 bytes"
        << "reply to nothing, ret 1"
        >> ask(2)
        >> "request 0 type_1002"
        << answer(2)
        << "reply to 0, ret 2"
    )


def test_a_gap_in_the_lines() -> None:
    assert (
        Playbook()
        >> b"CONN"
        >> Gap(8)
        >> "incomplete b'CONN'"
        >> "lost 8 bytes"
        << b"OK 1"
        << Gap(4)
        << "incomplete b'OK 1'"
        << "lost 4 bytes"
        >> SERVICE
        >> "service 0x64, device manager, early"
        << HELLO
        << "hello"
        >> ask(0)
        >> "request 0 type_1000"
        << answer(0)
        << "reply to 0, ret 0"
    )


def test_a_gap_instead_of_the_service_byte() -> None:
    assert (
        Playbook(Start.SERVICE)
        >> Gap(1)
        >> "lost 1 bytes"
        << HELLO
        << "hello"
        >> ask(0)
        >> "request 0 type_1000"
        << answer(0)
        << "reply to 0, ret 0"
    )


@pytest.mark.parametrize(("kept", "words"), [(40, "40 bytes"), (4, r"b'\x00\x01MD'")])
def test_a_gap_in_the_connect_message(kept: int, words: str) -> None:
    assert (
        Playbook(Start.SERVICE)
        >> SERVICE
        >> "service 0x64, device manager"
        << HELLO[:kept]
        << Gap(500)
        << f"incomplete {words}"
        << "lost 500 bytes"
        << HELLO[kept + 500 :]
        << f"incomplete {524 - kept} bytes"
        >> ask(0)
        >> "request 0 type_1000"
        << answer(0)
        << "reply to 0, ret 0"
    )


def test_a_gap_with_the_connect_message_and_more_in_it() -> None:
    assert (
        Playbook(Start.SERVICE)
        >> SERVICE + ask(0).encode() + ask(1).encode()
        >> "service 0x64, device manager"
        >> "request 0 type_1000, at 1"
        >> "request 1 type_1001, at 1025, overlaps 0"
        << Gap(MESSAGE_SIZE + 10)
        << "lost 1034 bytes and replies (0,)"
        << answer(0).encode()[10:]
        << "incomplete 1014 bytes"
        << answer(1)
        << "reply to 1, ret 1"
    )


def test_a_gap_in_requests_keeps_their_numbers_and_their_replies() -> None:
    assert (
        ready(Playbook())
        >> ask(0)
        >> "request 0 type_1000"
        << answer(0)
        << "reply to 0, ret 0"
        >> Gap(1500)
        >> "lost 1500 bytes"
        << answer(1)
        << "reply to 1, ret 1"
        << answer(2)
        << "reply to 2, ret 2"
        >> ask(3)
        >> "request 3 type_1003"
        << answer(3)
        << "reply to 3, ret 3"
    )


def test_a_piece_after_a_gap_continues_nothing_that_is_known() -> None:
    assert (
        ready(Playbook())
        >> ask(0).encode()[:500]
        >> "request 0 type_1000, 500 bytes"
        >> Gap(24)
        >> "lost 24 bytes"
        >> bytes(500)
        >> "request 2 connect, 500 bytes, overlaps 0"
    )


def test_a_gap_in_replies_keeps_the_later_ones_with_their_requests() -> None:
    first, second = answer(0).encode(), answer(1).encode()
    assert (
        ready(Playbook())
        >> ask(0)
        >> "request 0 type_1000"
        << first[:1000]
        << Gap(24 + 1000)
        << "incomplete 1000 bytes"
        << "lost 1024 bytes and replies (0,)"
        >> ask(1)
        >> "request 1 type_1001"
        << second[1000:]
        << f"incomplete {bytes(24)!r}"
        << answer(1)
        << "reply to 1, ret 1"
    )


def test_two_gaps_in_one_reply_lose_one_reply() -> None:
    assert (
        ready(Playbook())
        >> ask(0).encode() + ask(1).encode()
        >> "request 0 type_1000"
        >> "request 1 type_1001, at 1024, overlaps 0"
        << Gap(500)
        << "lost 500 bytes and replies (0,)"
        << answer(0).encode()[500:510]
        << f"incomplete {bytes(10)!r}"
        << Gap(514)
        << "lost 514 bytes"
        << answer(1)
        << "reply to 1, ret 1"
    )


def test_an_unknown_loss_gives_up_what_is_open_when_the_next_request_comes() -> None:
    assert (
        ready(Playbook())
        >> ask(0)
        >> "request 0 type_1000"
        << answer(0).encode()[:5]
        << RESYNC
        >> ask(1)
        << r"incomplete b'\x00\x01MD\x00'"
        << "lost 1019 bytes and replies (0,)"
        >> "request 1 type_1001"
        << answer(1)
        << "reply to 1, ret 1"
        >> ask(2)
        >> "request 2 type_1002"
        << answer(2)
        << "reply to 2, ret 2"
    )


def test_an_unknown_loss_elsewhere_changes_nothing() -> None:
    assert (
        ready(Playbook() << RESYNC)
        >> ask(0)
        >> "request 0 type_1000"
        << RESYNC
        << answer(0)
        << "reply to 0, ret 0"
        >> ask(1)
        >> "request 1 type_1001"
        << answer(1)
        << "reply to 1, ret 1"
    )


def test_an_unknown_loss_with_the_connect_message_in_it() -> None:
    assert (
        Playbook(Start.SERVICE)
        >> SERVICE
        >> "service 0x64, device manager"
        << RESYNC
        >> ask(0)
        >> "request 0 type_1000"
        << answer(0)
        << "reply to 0, ret 0"
    )


def test_an_unknown_loss_after_a_gap() -> None:
    assert (
        ready(Playbook())
        >> ask(0)
        >> "request 0 type_1000"
        << Gap(100)
        << "lost 100 bytes and replies (0,)"
        << RESYNC
        >> ask(1)
        >> "request 1 type_1001"
        << answer(1)
        << "reply to 1, ret 1"
    )


def test_another_ports_gap_changes_nothing() -> None:
    assert Playbook(Start.OTHER) << Gap(10) << "lost 10 bytes" << MAGIC << r"opaque b'\x00\x01MD'"


def test_an_end_in_the_middle_of_things() -> None:
    assert Playbook() >> b"CONNE" << b"" >> END >> "incomplete b'CONNE'"
    assert (
        ready(Playbook())
        >> ask(0)
        >> "request 0 type_1000"
        << answer(0).encode()[:100]
        << END
        << "incomplete 100 bytes"
    )


def test_which_replies_the_next_bytes_are_of() -> None:
    observer = Observer(Start.SERVICE)
    assert observer.awaited(9999) == []
    list(feed(observer, [(True, SERVICE), (False, HELLO)]))
    assert observer.awaited(9999) == []
    list(feed(observer, [(True, ask(0).encode() + ask(1).encode()), (False, bytes(100))]))
    assert observer.open_requests == (0, 1)
    assert observer.awaited(9999) == [(0, 924), (1, 1024)]
    observer.from_guest(bytes(924))
    assert observer.awaited(1) == [(1, 1024)]
    observer.to_guest(ask(2).encode())
    observer.lost(False, 1000)
    assert observer.awaited(9999) == [(-1, 24), (2, 1024)]
