"""Runs against guests that agree and guests that do not, the latter made short; and resuming."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from dissectors.constants import UPCALL_PORT, MessageType
from tests.conform.wrong_guests import (
    Change,
    of_every_window,
    of_nothing,
    of_removed_windows,
    of_stale_loads,
    wrong_guest,
)
from upcall_trace.conform.asking import Asker
from upcall_trace.conform.cases import Ask, Tell, rehearse
from upcall_trace.conform.run import ENOUGH, Conformity, Wish, run
from upcall_trace.errors import PeerDied, Unreachable, UnreadableInput, WrongUsage
from upcall_trace.kernel.world import World, kata_pod
from upcall_trace.simulated.machine import ORDERS
from upcall_trace.simulated.on_socket import SimulatedGuest
from upcall_trace.sockets.addresses import UnixAddress

POD = kata_pod(cpus=2)


def asker(guest: SimulatedGuest, control: bool = True, stop_after: int | None = None) -> Asker:
    path = guest.path.with_name("control") if control else None
    made: list[Asker] = []

    def stopped() -> bool:
        return stop_after is not None and made[0].asked >= stop_after

    made.append(Asker(UnixAddress(guest.path), POD, UPCALL_PORT, path, 2.0, 0.1, stopped))
    return made[0]


def ran_on(change: Change, tmp_path: Path, wish: Wish, control: bool = True) -> Conformity:
    with wrong_guest(change, POD, tmp_path) as guest:
        return run(wish, asker(guest, control))


def test_a_guest_that_is_the_model_agrees(tmp_path: Path) -> None:
    ran = ran_on(of_nothing, tmp_path, Wish(POD, count=600))
    assert (ran.cases, ran.asked, ran.agrees) == (3, 600, True)


@pytest.mark.parametrize(
    ("change", "steps", "last"),
    [
        (of_every_window, 1, "add_mmio"),
        (of_removed_windows, 2, "del_mmio"),
        (of_stale_loads, 3, "add_mmio"),
    ],
)
def test_one_wrong_byte_is_found_and_the_case_made_as_short_as_it_can_be(
    change: Change, steps: int, last: str, tmp_path: Path
) -> None:
    """A window is added before it can be removed, and a load is left over by a CPU request."""
    ran = ran_on(change, tmp_path, Wish(POD, count=3000))
    assert len(ran.differing) == ENOUGH
    assert not ran.agrees
    for shrunk in ran.differing.values():
        differs = shrunk.differs
        assert shrunk.again
        assert not any(isinstance(step, Tell) for step in differs.steps)
        assert len(differs.steps) <= steps
        assert all(len(step.raw) == 1024 for step in differs.steps if isinstance(step, Ask))
        assert differs.expected.requests[-1].op == last
        pairs = zip(differs.expected.replies, differs.got, strict=True)
        assert sum(ours != theirs for ours, theirs in pairs) == 1


def test_without_the_vmms_side_it_is_one_case_and_nothing_is_made_shorter(tmp_path: Path) -> None:
    ran = ran_on(of_every_window, tmp_path, Wish(POD, count=500), control=False)
    assert (ran.cases, ran.asked) == (1, 500)
    (shrunk,) = ran.differing.values()
    assert (shrunk.again, shrunk.tries) == (False, 0)
    agreeing = tmp_path / "other"
    agreeing.mkdir()
    assert ran_on(of_nothing, agreeing, Wish(POD, count=500), control=False).agrees


def test_what_does_not_come_again_is_told_as_it_was(tmp_path: Path) -> None:
    once = [True]

    def change(request: object, reply: bytes) -> int | None:
        return 7 if once and once.pop() else None

    ran = ran_on(change, tmp_path, Wish(POD, count=200))
    (shrunk,) = ran.differing.values()
    assert (shrunk.again, shrunk.tries) == (False, 1)


def test_more_bytes_than_were_asked_for_differ(tmp_path: Path) -> None:
    from upcall_trace.kernel.faults import parse_fault

    # A reply in two pieces is whole in the end; one with garbage is not the model's.
    for text, agrees in (("any:split=500:chance=0.05", True), ("any:garbage:when=9", False)):
        with SimulatedGuest(
            POD, faults=[parse_fault(text)], path=tmp_path / "guest", control=tmp_path / "control"
        ) as guest:
            assert run(Wish(POD, count=60), asker(guest)).agrees is agrees


@pytest.fixture
def guest(tmp_path: Path) -> Iterator[SimulatedGuest]:
    with SimulatedGuest(POD, path=tmp_path / "guest", control=tmp_path / "control") as guest:
        yield guest


def test_silence_where_the_model_is_silent_agrees(guest: SimulatedGuest) -> None:
    wish = Wish(POD, count=200, allowed=frozenset({"UP206"}))
    told = rehearse(POD, wish.case(0, 200, resets=True))
    assert any(each.silent for each in told if each)
    assert run(wish, asker(guest)).agrees


def test_an_answer_where_the_model_is_silent_differs(guest: SimulatedGuest) -> None:
    """The guest has a CPU more than the model thinks."""
    other = kata_pod(cpus=3)
    with SimulatedGuest(
        other, path=guest.path.with_name("more"), control=guest.path.with_name("more.control")
    ) as more:
        one = Asker(
            UnixAddress(more.path), POD, UPCALL_PORT, more.path.with_name("more.control"), 0.3, 0.1
        )
        ran = run(Wish(POD, count=100, allowed=frozenset({"UP206"})), one)
    assert ran.differing


def test_a_run_that_was_broken_off_goes_on_where_it_was(
    guest: SimulatedGuest, tmp_path: Path
) -> None:
    kept = tmp_path / "place.json"
    wish = Wish(POD, count=1000)
    first = run(wish, asker(guest, stop_after=500), kept)
    assert first.interrupted
    assert (first.cases, first.asked) == (2, 400)
    assert json.loads(kept.read_text()) == {
        "v": 1, "run": wish.identity(), "case": 2, "asked": 400,
    }  # fmt: skip
    one = asker(guest)
    second = run(wish, one, kept)
    assert (second.cases, second.asked, second.agrees) == (5, 1000, True)
    assert one.asked == 600
    finished = asker(guest)
    assert run(wish, finished, kept).agrees
    assert finished.asked == 0
    for other in (Wish(POD, count=999), Wish(POD, 1, 1000), Wish(World(), 0, 1000)):
        with pytest.raises(WrongUsage, match="is of another run"):
            run(other, asker(guest), kept)


ENDLESS = '{"v": 1, "run": "", "case": 1e999, "asked": 0}'


@pytest.mark.parametrize(
    "text", ["", "{}", "[]", '{"v": 2}', '{"v": 1, "run": 3}', "\0" * 40, "[" * 100_000, ENDLESS]
)
def test_a_file_that_keeps_no_place(guest: SimulatedGuest, tmp_path: Path, text: str) -> None:
    kept = tmp_path / "place.json"
    kept.write_text(text)
    with pytest.raises(UnreadableInput, match="does not keep the place of a run"):
        run(Wish(POD), asker(guest), kept)
    kept.unlink()
    kept.mkdir()
    with pytest.raises(UnreadableInput, match="Is a directory"):
        run(Wish(POD), asker(guest), kept)


def test_a_place_that_cannot_be_kept(guest: SimulatedGuest, tmp_path: Path) -> None:
    with pytest.raises(WrongUsage, match="cannot be written"):
        run(Wish(POD, count=300), asker(guest), tmp_path / "none" / "place.json")


def test_a_guest_that_goes_away_on_the_way(guest: SimulatedGuest) -> None:
    one = asker(guest, control=False)
    first = rehearse(POD, [Ask(1, b"x")])
    assert first[0] is not None
    guest.close()
    with pytest.raises(Unreachable):
        run(Wish(POD, count=10), one)
    one.asked = 1
    assert "cannot be reached" in run(Wish(POD, count=10), one).ended
    with pytest.raises(PeerDied):
        one.play([Ask(1, bytes(1024))])


def test_an_order_that_is_refused_is_told(guest: SimulatedGuest) -> None:
    one = asker(guest)
    request = bytes.fromhex("00014d44 00000000 03000000".replace(" ", "")).ljust(1024, b"\0")
    assert one.play([Tell({"resize_memory": 0}), Ask(1, request)]) is None
    assert [*one.told] == [f"'resize_memory' is no order; known are {', '.join(ORDERS)}"]


def test_the_message_types_of_a_case(guest: SimulatedGuest) -> None:
    """The handshake is not part of it: connections are opened when they are first used."""
    told = rehearse(POD, [Ask(1, bytes(1024)), Ask(2, bytes(1024))])
    assert [each.requests[0].msg_type for each in told if each] == [MessageType.CONNECT] * 2
