"""Mutated bytes, the same for the same seed: samples that are right, with something wrong."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

INTERESTING: Final = [
    b"\0", b"\xff", b"\x7f", b"\x80", b"\n", b"\r", b" ", b"-", b"9" * 20, b"1e999", b"nan", b"{",
    b"[", b"\xff" * 4, b"\xff" * 8, b"\0" * 8, (1 << 63).to_bytes(8, "little"), b"\x80\0\0\0",
    b"\x1b]0;x\x07", b"\xc3\x28", b"\xed\xa0\x80", "\u202e\u0661".encode(), b'"', b"\\u0000",
]  # fmt: skip


def mutated(samples: Sequence[bytes], chance: random.Random) -> bytes:
    """One of the samples with up to eight changes."""
    raw = bytearray(chance.choice(samples))
    for _ in range(chance.choice((1, 1, 1, 2, 3, 8))):
        chance.choice(_WAYS)(raw, samples, chance)
    return bytes(raw)


def mutations(samples: Sequence[bytes], seed: int) -> Iterator[bytes]:
    """The samples as they are, and then without end."""
    chance = random.Random(seed)
    yield from samples
    while True:
        yield mutated(samples, chance)


def _flip(raw: bytearray, _: Sequence[bytes], chance: random.Random) -> None:
    if raw:
        raw[chance.randrange(len(raw))] ^= 1 << chance.randrange(8)


def _set(raw: bytearray, _: Sequence[bytes], chance: random.Random) -> None:
    if raw:
        raw[chance.randrange(len(raw))] = chance.randrange(256)


def _step(raw: bytearray, _: Sequence[bytes], chance: random.Random) -> None:
    if raw:
        at = chance.randrange(len(raw))
        raw[at] = (raw[at] + chance.choice((-1, 1))) & 0xFF


def _put(raw: bytearray, _: Sequence[bytes], chance: random.Random) -> None:
    word = chance.choice(INTERESTING)
    at = chance.randint(0, len(raw))
    raw[at : at + chance.choice((0, len(word)))] = word


def _cut(raw: bytearray, _: Sequence[bytes], chance: random.Random) -> None:
    del raw[chance.randint(0, len(raw)) :]


def _take_out(raw: bytearray, _: Sequence[bytes], chance: random.Random) -> None:
    begin, end = _span(raw, chance)
    del raw[begin:end]


def _repeat(raw: bytearray, _: Sequence[bytes], chance: random.Random) -> None:
    begin, end = _span(raw, chance)
    raw[begin:begin] = raw[begin:end] * chance.choice((1, 1, 2, 20))


def _swap(raw: bytearray, _: Sequence[bytes], chance: random.Random) -> None:
    begin, end = _span(raw, chance)
    at = chance.randint(0, len(raw))
    raw[at : at + end - begin] = raw[begin:end]


def _splice(raw: bytearray, samples: Sequence[bytes], chance: random.Random) -> None:
    other = chance.choice(samples)
    begin, end = _span(other, chance)
    at = chance.randint(0, len(raw))
    raw[at : at + chance.choice((0, end - begin))] = other[begin:end]


def _span(raw: bytes | bytearray, chance: random.Random) -> tuple[int, int]:
    begin = chance.randint(0, len(raw))
    longest = chance.choice((4, 16, 64, 1024, 1 << 16))
    return begin, min(len(raw), begin + chance.randint(0, longest))


_WAYS: Final[list[Callable[[bytearray, Sequence[bytes], random.Random], None]]] = [
    _flip, _flip, _set, _set, _step, _put, _put, _cut, _take_out, _repeat, _swap, _splice,
]  # fmt: skip


def blocks(
    samples: Sequence[bytes], size: int, seed: int, rows: int = 20_000
) -> Iterator[NDArray[np.uint8]]:
    """Blocks of `rows` mutated messages of `size` bytes, for what has to be fast.

    Most of what is changed is near the beginning, where a message has its fields.
    """
    chance = np.random.default_rng(seed)
    known = np.frombuffer(b"".join(s[:size].ljust(size, b"\0") for s in samples), np.uint8)
    known = known.reshape(-1, size)
    words = np.array([0, 1, 2, 0x7F, 0x80, 0xFE, 0xFF, 5], np.uint8)
    while True:
        block = known[chance.integers(0, len(known), rows)]
        row = np.arange(rows)
        for _ in range(int(chance.integers(1, 5))):
            at = chance.integers(0, size if chance.random() < 0.2 else min(size, 48), rows)
            kind = chance.integers(0, 4, rows)
            old = block[row, at]
            bits = (1 << chance.integers(0, 8, rows)).astype(np.uint8)
            block[row, at] = np.select(
                [kind == 0, kind == 1, kind == 2],
                [old ^ bits, chance.integers(0, 256, rows, np.uint8), words[bits % 8]],
                old + np.uint8(1),
            )
        yield block
