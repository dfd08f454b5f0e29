"""The windows that a guest has registered, found by place and by interrupt without a search.

A recording can leave ten thousands of them registered, and each refusal asks which one is meant.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator, Mapping, MutableMapping
from itertools import chain

from ..kernel.world import Window
from .finding import Ref

WindowKey = tuple[int, int, int]
"""Base, size and interrupt."""


class PlacedWindows(MutableMapping[WindowKey, "Ref | None"]):
    """Window -> the request that registered it, in the order in which that happened."""

    def __init__(self, known: Mapping[WindowKey, Ref | None] | None = None) -> None:
        self._refs: dict[WindowKey, Ref | None] = {}
        self._indexed: set[WindowKey] = set()
        self._moved: set[WindowKey] = set()
        """Which came or went since the indexes were last made true: most recordings ask rarely."""
        self._numbers: dict[WindowKey, int] = {}
        self._next = 0
        self._by_size: dict[int, list[WindowKey]] = {}
        """Sorted; by the number of bits of their sizes, so that a large one slows no search."""
        self._by_irq: dict[int, dict[WindowKey, None]] = {}
        self._by_base: dict[int, dict[WindowKey, None]] = {}
        self._by_end: dict[int, dict[WindowKey, None]] = {}
        self.update(known or {})

    def __setitem__(self, key: WindowKey, ref: Ref | None) -> None:
        if key not in self._refs:
            self._numbers[key] = self._next
            self._next += 1
            self._moved.add(key)
        self._refs[key] = ref

    def __delitem__(self, key: WindowKey) -> None:
        del self._refs[key]
        del self._numbers[key]
        self._moved.add(key)

    def _settle(self) -> None:
        """Make the indexes true."""
        for key in self._moved:
            if key in self._refs:
                if key not in self._indexed:
                    self._enter(key)
            elif key in self._indexed:
                self._take_out(key)
        self._moved.clear()

    def _enter(self, key: WindowKey) -> None:
        self._indexed.add(key)
        insort(self._by_size.setdefault(key[1].bit_length(), []), key)
        for index, value in self._indexes(key):
            index.setdefault(value, {})[key] = None

    def _take_out(self, key: WindowKey) -> None:
        self._indexed.remove(key)
        known = self._by_size[key[1].bit_length()]
        del known[bisect_left(known, key)]
        for index, value in self._indexes(key):
            del index[value][key]
            if not index[value]:
                del index[value]

    def __getitem__(self, key: WindowKey) -> Ref | None:
        return self._refs[key]

    def __iter__(self) -> Iterator[WindowKey]:
        return iter(self._refs)

    def __len__(self) -> int:
        return len(self._refs)

    def overlapping(self, base: int, size: int) -> WindowKey | None:
        """The first one that the kernel's overlap check finds: it compares last bytes, too."""
        self._settle()
        end = base + size - 1
        found = (
            key for key in self._near(base, end) if base < key[0] + key[1] - 1 and end > key[0]
        )
        return self._first(found)

    def at_edge(self, base: int, end: int) -> WindowKey | None:
        """The first one whose last byte is at `base`, or whose first byte is at `end`."""
        self._settle()
        return self._first(chain(self._by_end.get(base, ()), self._by_base.get(end, ())))

    def at_base(self, base: int) -> WindowKey | None:
        """The first one that begins here."""
        self._settle()
        return self._first(iter(self._by_base.get(base, ())))

    def on_irq(self, irq: int) -> WindowKey | None:
        """The first one with this interrupt."""
        self._settle()
        return self._first(iter(self._by_irq.get(irq, ())))

    def _indexes(self, key: WindowKey) -> Iterator[tuple[dict[int, dict[WindowKey, None]], int]]:
        base, size, irq = key
        yield self._by_irq, irq
        yield self._by_base, base
        yield self._by_end, Window(base, size, irq).end

    def _near(self, base: int, end: int) -> Iterator[WindowKey]:
        """Those that begin before `end` and may reach to `base`."""
        for bits, known in self._by_size.items():
            place = bisect_left(known, (base - (1 << bits), 0, 0))
            while place < len(known) and known[place][0] < end:
                yield known[place]
                place += 1

    def _first(self, keys: Iterator[WindowKey]) -> WindowKey | None:
        return min(keys, key=self._numbers.__getitem__, default=None)
