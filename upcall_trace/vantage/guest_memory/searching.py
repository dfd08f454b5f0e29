"""Looking for new connections beside the watching, a little at a time.

Two searches run in turns, each for a fraction of a millisecond: a quick one reads twenty bytes of
every page that is there, where known allocators put a reply buffer's magic; a thorough one reads
everything, at whatever offset it stands. Offsets are hints: they only say where to look first.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterable, Iterator
from typing import Final

import numpy as np
from numpy.typing import NDArray

from dissectors.constants import MAGIC_VERSION

from .locating import OBJECT_SIZE, ConnectionObject, Located, look, object_at
from .processes import RunningVmm
from .windows import Stretch

Pages = NDArray[np.uint64]
"""Addresses of pages."""

HINTS: Final = (0x08, 0x10, 0x18)
"""Page offsets at which the request buffer was seen: the lab's module, SLUB, SLOB."""
_PAGE: Final = os.sysconf("SC_PAGE_SIZE")
_STEP: Final = 512
_EMPTY_COST: Final = 32
"""Pages of one step; to learn that there are none costs about as much as to probe a few."""
_PROBE: Final = 24
_PROBE_AT: Final = HINTS[0] + 1024
_SLAB: Final = 32 << 10
"""Bytes of a slab of objects of this size, where the allocator has slabs."""
_SLABS: Final = 8
_PAGES: Final = 512
"""Pages of one call; the kernel takes 1024 pieces at most."""


class QuickSearch:
    """Every page once, at the offsets that are known; `steps` yields None between its steps.

    Objects that are known already are not yielded again.
    """

    def __init__(self, memory: RunningVmm) -> None:
        self._memory = memory
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._buffer = np.zeros(_PAGES * _PROBE, np.uint8)
        self._local = np.array([[self._buffer.ctypes.data, self._buffer.nbytes]], np.uint64)
        self._remote = np.full((_PAGES, 2), _PROBE, np.uint64)

    def steps(self, known: set[int]) -> Iterator[ConnectionObject | None]:
        """Objects whose request buffer is at none of the `known` addresses; raises VmmGone."""
        left = _STEP
        for addresses in self._memory.present_pages(_PAGES):
            left -= _EMPTY_COST + len(addresses)
            if left < 0:
                yield None
                left = _STEP
            yield from self._objects(addresses, known)
        yield None

    def _objects(self, pages: Pages, known: set[int]) -> Iterator[ConnectionObject]:
        for page in self._with_magic(pages):
            for hint in HINTS:
                request_at = page + hint
                if request_at not in known and (held := self._object(request_at)):
                    yield held

    def _object(self, request_at: int) -> ConnectionObject | None:
        raw = self._memory.look(request_at - 16, OBJECT_SIZE)
        return object_at(raw, request_at - 16) if len(raw) == OBJECT_SIZE else None

    def _with_magic(self, pages: Pages) -> list[int]:
        """Those pages in which one of the places that were probed holds the magic."""
        count = len(pages)
        self._remote[:count, 0] = pages + np.uint64(_PROBE_AT)
        got = self._libc.process_vm_readv(
            self._memory.pid,
            ctypes.c_void_p(self._local.ctypes.data), ctypes.c_ulong(1),
            ctypes.c_void_p(self._remote.ctypes.data), ctypes.c_ulong(count), ctypes.c_ulong(0),
        )  # fmt: skip
        whole = max(0, int(got)) // _PROBE
        probed = self._buffer[: whole * _PROBE].view("<u4").reshape(whole, _PROBE // 4)
        hits = (probed == MAGIC_VERSION).any(axis=1)
        found: list[int] = pages[:whole][hits].tolist()
        return found


def near(
    memory: RunningVmm, port: int, places: Iterable[int], known: set[int]
) -> Iterator[ConnectionObject]:
    """Objects in the slabs of places where others are or were: most likely the next is there.

    At any offset; raises VmmGone.
    """
    slabs = {slab for place in places if (slab := memory.slab_of(place, _SLAB)) is not None}
    for slab in sorted(slabs, key=lambda slab: slab.begin)[:_SLABS]:
        found = Located()
        for begin, raw in memory.runs_of(slab):
            look(Stretch(raw, [0], [begin], len(raw)), memory.aligned, port, found)
        for held in found.objects.values():
            if held.request_at not in known:
                yield held


def thorough_steps(
    memory: RunningVmm, port: int, known: set[int]
) -> Iterator[ConnectionObject | None]:
    """As `QuickSearch.steps`, at any offset: everything that is there is read; raises VmmGone."""
    for window in memory.windows(small=True):
        found = Located()
        look(window, memory.aligned, port, found)
        for held in found.objects.values():
            if held.request_at not in known:
                yield held
        yield None
