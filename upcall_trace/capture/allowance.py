"""How much a file may stand for: runs of zeros are counted, so that a few bytes can be many.

Whatever reads records needs memory for what they say, and a hostile file says more than it is long.
docs/robustness.md.
"""

from __future__ import annotations

from typing import Final

from ..errors import UnreadableInput

FREE: Final = 64 << 20
"""Bytes of traffic that any file may stand for."""
PER_BYTE: Final = 64
"""And so many more for each of its own bytes; a real message takes 40 and stands for 1024."""


class StandsForTooMuch(UnreadableInput):
    """A few hostile bytes can stand for very many: there is a limit to how many."""


class Allowance:
    """What a file may still stand for, as it is read."""

    def __init__(self) -> None:
        self._stood_for = 0

    def has_room(self, size: int, offset: int) -> bool:
        """Whether `size` bytes can stand from `offset` on without a look at each."""
        stood_for = self._stood_for + size
        return stood_for <= FREE or stood_for <= FREE + PER_BYTE * offset

    def take(self, size: int, offset: int) -> None:
        """`size` bytes of traffic stand at `offset`; raises StandsForTooMuch."""
        self._stood_for += size
        if self._stood_for > FREE and self._stood_for > FREE + PER_BYTE * offset:
            raise StandsForTooMuch("it stands for more traffic than a file of its size can")
