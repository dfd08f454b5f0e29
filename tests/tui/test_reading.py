"""What the browser is told of a capture, and in which order."""

from __future__ import annotations

from pathlib import Path

import pytest

from dissectors.constants import MessageType
from dissectors.messages import mmio_request
from tests.support import answer, ask, connect, write_capture
from upcall_trace.capture.records import End, Record
from upcall_trace.trace import opening
from upcall_trace.trace.opening import Capture, build_index, load
from upcall_trace.trace.operations import Operations
from upcall_trace.tui.data import reading
from upcall_trace.tui.data.browsed import BrowsedCapture
from upcall_trace.tui.data.columns import RowsByConnection
from upcall_trace.tui.data.reading import Grown, read

_COUNT = 15_000
"""More than a block of the file holds."""


def _told(path: Path) -> list[Capture | Grown]:
    told: list[Capture | Grown] = []
    read(path, told.append, lambda: False)
    return told


def _many(count: int) -> list[Record]:
    asked = mmio_request(MessageType.ADD_MMIO, 0xE0000000, 0x1000, 5)
    found: list[Record] = connect()
    for number in range(count):
        found += [ask(asked, 1000 * number), answer(asked, 1000 * number + 300)]
    return [*found, End(1000 * count)]


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(opening, "DECODED_SIZE", -1)
    monkeypatch.setattr(reading, "_GLANCE_BYTES", 4000)
    return write_capture(tmp_path / "x.upcap", _many(_COUNT))


def test_the_beginning_of_a_long_capture_is_told_before_all_of_it(path: Path) -> None:
    assert build_index(path)
    glance, whole = _told(path)
    assert isinstance(glance, Grown)
    assert glance.glance
    assert not glance.ended
    assert isinstance(whole, Capture)
    first = list(Operations(glance.columns, glance.first_ns))
    assert 0 < len(first) < _COUNT
    expected = load(path).operations
    assert first == [expected.operation(row) for row in range(len(first))]
    assert len(whole.operations) == _COUNT


def test_the_whole_takes_the_place_of_the_beginning(path: Path) -> None:
    assert build_index(path)
    glance, whole = _told(path)
    assert isinstance(glance, Grown)
    assert isinstance(whole, Capture)
    browsed = BrowsedCapture(path)
    browsed.take_grown(glance)
    assert browsed.glance
    assert browsed.rows.row(1, _COUNT - 1) is None
    rows = RowsByConnection()
    rows.extend(whole.operations)
    browsed.take_whole(whole, rows)
    assert not browsed.glance
    assert (len(browsed), browsed.rows.row(1, _COUNT - 1)) == (_COUNT, _COUNT - 1)
    assert browsed.ended


def test_a_capture_without_an_index_is_told_as_it_is_read(path: Path) -> None:
    told = _told(path)
    assert not any(isinstance(each, Capture) or each.glance for each in told)
    last = told[-1]
    assert isinstance(last, Grown)
    assert last.ended
