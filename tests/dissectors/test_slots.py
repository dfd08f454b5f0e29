"""Makers of frozen dataclasses: what they make is what the class itself makes."""

from __future__ import annotations

import pickle
from dataclasses import FrozenInstanceError, dataclass, field

import pytest

from dissectors.constants import MessageType
from dissectors.events import ReplyReceived, RequestReceived
from dissectors.messages import Reply, decode_request, mmio_request
from dissectors.slots import maker, positional


@dataclass(frozen=True, slots=True)
class Point:
    x: int
    y: int = 0


@dataclass(frozen=True, slots=True)
class Sorted:
    low: int
    high: int

    def __post_init__(self) -> None:
        if self.low > self.high:
            raise ValueError("not sorted")


@dataclass(frozen=True)
class Loose:
    x: int


def test_what_is_made_equals_what_the_class_makes() -> None:
    request = mmio_request(MessageType.ADD_MMIO, 0xE0000000, 0x2000, 5)
    event = positional(RequestReceived)(3, 1024, request, request.encode(), 0, None, 2, None)
    assert event == RequestReceived(3, 1024, request, request.encode(), 0, None, 2, None)
    reply = Reply(1, 2, 3, 4, 5, b"")
    assert positional(ReplyReceived)(0, reply, b"a") == ReplyReceived(0, reply, b"a")


def test_it_is_frozen_and_can_be_pickled() -> None:
    made = decode_request(mmio_request(MessageType.DEL_MMIO, 1, 2, 3).encode())
    with pytest.raises(FrozenInstanceError):
        made.msg_type = 5  # type: ignore[misc]
    assert pickle.loads(pickle.dumps(made)) == made


def test_values_are_expressions_of_the_parameters() -> None:
    doubled = maker(Point, {"x": "a * 2", "y": "b"}, "a", "b = twice(a) * 2", twice=lambda a: 2 * a)
    assert doubled(3) == Point(6, 12)


def test_a_class_that_checks_its_fields_still_does() -> None:
    with pytest.raises(ValueError, match="not sorted"):
        positional(Sorted)(2, 1)


def test_slots_of_a_class_before_it_are_filled_too() -> None:
    @dataclass(frozen=True, slots=True)
    class Place(Point):
        z: int = 0

    made = positional(Place)(1, 2, 3)
    assert made == Place(1, 2, 3)
    assert type(made) is Place
    with pytest.raises(FrozenInstanceError):
        made.x = 5  # type: ignore[misc]


def test_a_class_without_slots_is_called() -> None:
    assert positional(Loose)(7) == Loose(7)


def test_a_field_that_is_not_given_has_its_default() -> None:
    @dataclass(frozen=True, slots=True)
    class Listed:
        x: int
        seen: list[int] = field(default_factory=list)

    assert maker(Listed, {"x": "x"}, "x")(1) == Listed(1, [])
