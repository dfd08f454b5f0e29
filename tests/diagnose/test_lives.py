"""How connections, guests and VMs end, as far as traffic tells: small recordings made by hand."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from dissectors.constants import RECONNECT_LIMIT, MessageType
from dissectors.messages import cpu_request, hello, mmio_request
from tests.diagnose.test_engine import MS, SECOND, found, refusals, told
from tests.support import DISK, answer, ask, connect
from upcall_trace.capture.records import Begins, Chunk, Close, GaveUp, How, Open, Record
from upcall_trace.diagnose.finding import Finding

LINE = b"CONNECT 219\n"
ADD_CPU = cpu_request(MessageType.ADD_CPU, [1])


def one(code: str, findings: Sequence[Finding]) -> Finding:
    (finding,) = (finding for finding in findings if finding.code == code)
    return finding


# Nobody answers.


def silent(line: bytes = LINE, after_ns: int = 2 * SECOND) -> list[Record]:
    """A connection whose first line draws nothing until the client leaves."""
    return [Open(0, 1), Chunk(1, 1, True, line), Close(after_ns, 1, by_guest=False)]


def test_a_connect_that_is_neither_answered_nor_refused() -> None:
    findings = found(silent())
    assert told(findings) == "1 UP109"
    assert "for 2.00s: no OK, no refusal" in findings[0].what
    gave_up: list[Record] = [*silent()[:2], GaveUp(15 * SECOND, 1, 15 * SECOND)]
    gave_up.append(Close(15 * SECOND, 1, by_guest=False))
    assert told(found(gave_up)) == "1 UP109"


def test_a_client_that_leaves_at_once_has_not_waited() -> None:
    assert found(silent(after_ns=20 * MS)) == []


def test_a_connect_that_is_still_unanswered_at_the_end_is_possible_only() -> None:
    assert told(found(silent()[:2])) == "1 UP109?"
    assert found(silent()[:2], waits_ns=20 * MS) == []


def test_inside_the_guest_a_request_to_connect_without_an_answer() -> None:
    records: list[Record] = [
        Open(0, 1, Begins.SERVICE, 219),
        Close(2 * SECOND, 1, by_guest=False, how=How.RESET),
    ]
    assert told(found(records)) == "1 UP109"


def test_another_port_is_none_of_our_business() -> None:
    assert found(silent(b"CONNECT 1024\n")) == []


@pytest.mark.parametrize("line", [b"CONNECT 219\r", b"CONNECT 219", b"CONN"])
def test_a_line_that_has_no_end_is_malformed_and_not_unanswered(line: bytes) -> None:
    findings = found(silent(line))
    assert told(findings) == "1 UP103"
    assert "waits for the newline" in findings[0].so
    assert ("carriage return" in findings[0].why) == line.endswith(b"\r")


# What comes back is no OK.


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (hello().encode(), "A CONNECT message came back"),
        (b"ERROR no such port\n", "not OK but 'ERROR no such port'"),
        (b"denied", "not OK but 'denied'"),
        (b"\xff\xfe\x00\x01\n", "not OK but bytes: ff fe 00 01"),
        (b"OKAY\n", "not OK but 'OKAY'"),
    ],
)
@pytest.mark.parametrize("by_guest", [True, False])
def test_an_answer_that_is_not_ok(reply: bytes, words: str, by_guest: bool) -> None:
    records = [*silent()[:2], Chunk(2 * MS, 1, False, reply), Close(SECOND, 1, by_guest)]
    findings = found(records)
    assert told(findings) == "1 UP110"
    assert words in findings[0].what


# The client closes its half.


@pytest.mark.parametrize("end", [Close(MS, 1, by_guest=True, how=How.RESET), Close(MS, 1, False)])
def test_a_client_that_closes_its_half_before_ok(end: Close) -> None:
    half = Close(2, 1, by_guest=False, how=How.HALF)
    assert told(found([*silent()[:2], half, end])) == "1 UP111"
    # With OK all the same, nothing is wrong.
    answered = [*silent()[:2], half, Chunk(3, 1, False, b"OK 219\n"), end]
    assert "UP111" not in told(found(answered))


# Refused after having worked.


def worked(conn: int = 1, by_guest: bool = True) -> list[Record]:
    """A connection that was of use, up to the end that the guest's side makes."""
    return [*connect(conn), ask(DISK, MS, conn), answer(DISK, 2 * MS, conn),
            Close(3 * MS, conn, by_guest=by_guest)]  # fmt: skip


def test_a_guest_that_had_answered_and_then_refuses_to_the_end_is_gone() -> None:
    records: list[Record] = [*connect(1), ask(ADD_CPU, MS), Close(3 * SECOND, 1, by_guest=True),
               *refusals(RECONNECT_LIMIT, first=301)]  # fmt: skip
    findings = found(records)
    assert told(f for f in findings if f.request == 0) == "1.0 UP602, 1.0 UP605"
    died, loop = one("UP802", findings), one("UP102", findings)
    assert died.inferred
    assert "broke connection 1" in died.what
    assert "for the rest of the VM's life" in loop.so
    for finding in findings:
        assert "booting" not in finding.why
        assert "without limit" not in finding.so
        assert "no upcall" not in finding.why


def test_a_guest_that_never_answered_may_still_be_booting() -> None:
    findings = found(refusals(RECONNECT_LIMIT))
    assert "UP802" not in told(findings)
    assert "still booting" in findings[0].why


def test_a_slow_host_does_not_end_a_row_of_refusals() -> None:
    records = [*refusals(10), *refusals(10, every_ns=40 * MS, first=11)]
    (loop,) = (f for f in found(records) if f.code == "UP102")
    assert "20 connections in a row" in loop.what


def test_a_listener_that_was_gone_and_is_back_is_another_boots() -> None:
    again: list[Record] = [Open(9 * SECOND, 9), Chunk(9 * SECOND, 9, True, LINE),
             Chunk(9 * SECOND, 9, False, b"OK 219\n")]  # fmt: skip
    findings = found([*worked(), *refusals(5, first=2), *again])
    booted = one("UP608", findings)
    assert (booted.conn, booted.inferred) == (9, True)
    assert "after 5 refusals" in booted.what
    assert "UP802" not in told(findings)
    # Refusals before anything had worked are those of a boot.
    assert "UP608" not in told(found([*refusals(5, first=2), *again]))


def test_a_guest_that_takes_what_it_has_has_forgotten_it() -> None:
    again = [*connect(2, 4 * MS), ask(DISK, 5 * MS, 2), answer(DISK, 6 * MS, 2)]
    findings = found([*worked(by_guest=False), *again])
    forgot = one("UP608", findings)
    assert (forgot.conn, forgot.request, forgot.inferred) == (2, 0, True)
    assert "Request 1.0 had added it" in forgot.why
    # Removed in between, it is no wonder.
    gone = mmio_request(MessageType.DEL_MMIO, DISK.mmio_base, DISK.mmio_size, DISK.mmio_irq)
    removed = [*worked()[:-1], ask(gone, 3 * MS), answer(gone, 4 * MS)]
    assert "UP608" not in told(found([*removed, *again]))


# An idle channel.


def test_an_idle_channel_that_the_guest_closes_is_lost() -> None:
    findings = found(worked())
    lost = one("UP606", findings)
    assert (lost.conn, lost.request, lost.inferred) == (1, None, True)
    assert "does not reconnect" in lost.so


@pytest.mark.parametrize(
    "records",
    [
        worked(by_guest=False),
        [*worked(), *connect(2, 4 * MS)],
        [*connect(1), ask(DISK, MS), Close(2 * MS, 1, by_guest=True)],
        [*connect(1)[:4], Close(20 * SECOND, 1, by_guest=True)],
    ],
    ids=["the client closed", "somebody connected anew", "a request was open", "not ready"],
)
def test_no_idle_channel_was_lost(records: list[Record]) -> None:
    assert "UP606" not in told(found(records))


def test_another_client_than_dragonball_notices() -> None:
    assert "UP606" not in told(found(worked(), dragonball=False))


# How the wait for an answer ended.


def test_what_follows_from_no_answer_hangs_on_who_ended_the_wait() -> None:
    records = [*connect(1), ask(ADD_CPU, MS)]
    ends: dict[str, list[Record]] = {
        "sets no time limit": [],
        "would not give up": [GaveUp(3 * SECOND, 1, 3 * SECOND), Close(4 * SECOND, 1, False)],
        "Nobody waits": [Close(3 * SECOND, 1, by_guest=False)],
        "learns of a reset": [Close(3 * SECOND, 1, by_guest=True)],
    }
    for words, end in ends.items():
        assert words in one("UP602", found([*records, *end])).so


# A reply in pieces.


@pytest.mark.parametrize(("apart_ns", "sure"), [(1, False), (5 * MS, True)])
def test_a_reply_in_two_pieces(apart_ns: int, sure: bool) -> None:
    raw = DISK.reply(0).encode()
    records = [*connect(1), ask(DISK, MS), Chunk(2 * MS, 1, False, raw[:16]),
               Chunk(2 * MS + apart_ns, 1, False, raw[16:])]  # fmt: skip
    split = one("UP513", found(records))
    assert (split.request, split.inferred) == (0, not sure)
    assert "16 bytes first" in split.what
    assert "UP513" not in told(found(records, dragonball=False))
    inside = [Open(0, 1, Begins.SERVICE, 219, accepted=True), *records[3:]]
    assert "UP513" not in told(found(inside))


def test_half_a_reply_and_then_the_client_leaves() -> None:
    raw = DISK.reply(0).encode()
    records = [*connect(1), ask(DISK, MS), Chunk(2 * MS, 1, False, raw[:500])]
    findings = found([*records, Close(3 * MS, 1, by_guest=False)])
    assert told(findings) == "1.0 UP513, 1.0 UP602"
    assert "Only 500 of 1024 bytes" in one("UP513", findings).what
    assert "Only 500 of the 1024 bytes" in one("UP602", findings).why
    # A guest that goes away in the middle is another matter.
    broken = found([*records, Close(3 * MS, 1, by_guest=True)])
    assert told(broken) == "1.0 UP602, 1.0 UP605"


def test_two_whole_replies_in_one_receive_are_no_pieces() -> None:
    both = DISK.reply(0).encode() + ADD_CPU.reply(0, 1).encode()
    records = [*connect(1), ask(DISK, MS), ask(ADD_CPU, 2 * MS), Chunk(3 * MS, 1, False, both)]
    assert "UP513" not in told(found(records))
