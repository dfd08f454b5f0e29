"""Counts and latencies of operations, piece by piece: the memory is that of one piece.

Quantiles are exact. They are found digit by digit, with a pass over the latencies for each digit
of 16 bits: a table says how many latencies have each value there, among those that begin alike.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from dissectors.constants import op_name

from .operations import ANOMALY_BIT, Operations

QUANTILES: Final = {"p50": 0.5, "p90": 0.9, "p99": 0.99}
OTHER_SERVICES: Final = "other services"
_DIGIT_BITS: Final = 16


@dataclass(slots=True)
class KindCounts:
    """Of the operations of one kind."""

    count: int = 0
    errors: int = 0
    unanswered: int = 0


@dataclass(slots=True)
class Statistics:
    """What is counted of operations; `latency_ns` is None where none was answered."""

    requests: int = 0
    replies: int = 0
    errors: int = 0
    latency_ns: dict[str, int] | None = None
    by_operation: dict[str, KindCounts] = field(default_factory=dict)
    anomalies: dict[str, int] = field(default_factory=dict)

    @property
    def unanswered(self) -> int:
        """Requests that were never answered."""
        return self.requests - self.replies


def statistics_of(operations: Operations) -> Statistics:
    """Count all there is."""
    told = Statistics()
    kinds: dict[int, KindCounts] = {}
    anomalies = dict.fromkeys(ANOMALY_BIT, 0)
    lowest, highest = np.iinfo(np.int64).max, np.iinfo(np.int64).min
    for piece in operations.pieces():
        answered = piece.column("answered") == 1
        errors = answered & (piece.column("ret") < 0)
        told.requests += len(piece)
        told.replies += int(answered.sum())
        told.errors += int(errors.sum())
        _count_kinds(kinds, piece, answered, errors)
        bits = piece.column("anomalies")
        if bits.any():
            for name, bit in ANOMALY_BIT.items():
                anomalies[name] += int(((bits & bit) != 0).sum())
        latency = piece.column("latency_ns")[answered]
        if len(latency):
            lowest, highest = min(lowest, int(latency.min())), max(highest, int(latency.max()))
    told.by_operation = _named(kinds)
    told.anomalies = {name: count for name, count in anomalies.items() if count}
    if told.replies:
        found = _ranked(operations, told.replies, lowest, highest)
        told.latency_ns = {"min": lowest, **found, "max": highest}
    return told


def _count_kinds(
    kinds: dict[int, KindCounts], piece: Operations, answered: NDArray[Any], errors: NDArray[Any]
) -> None:
    """One for each type of message, and -1 for other services."""
    types = np.where(piece.ours(), piece.column("msg_type").astype(np.int64), -1)
    found, group = np.unique(types, return_inverse=True)
    counted = [np.bincount(group[mask], minlength=len(found)).tolist()
               for mask in (slice(None), errors, ~answered)]  # fmt: skip
    for kind, count, failed, missing in zip(found.tolist(), *counted, strict=True):
        told = kinds.setdefault(kind, KindCounts())
        told.count += count
        told.errors += failed
        told.unanswered += missing


def _named(kinds: dict[int, KindCounts]) -> dict[str, KindCounts]:
    """By name, in the order of the types; other services come last."""
    others = kinds.pop(-1, None)
    named = {op_name(kind): counts for kind, counts in sorted(kinds.items())}
    return named if others is None else named | {OTHER_SERVICES: others}


def _ranked(operations: Operations, count: int, lowest: int, highest: int) -> dict[str, int]:
    """The quantiles of `count` latencies from the lowest to the highest."""
    ranks = {name: round((count - 1) * share) for name, share in QUANTILES.items()}
    bits = max(highest - lowest, 0).bit_length()
    # What is known of each: how many bits are still open, what stands above them, how many
    # latencies begin with less.
    begins = dict.fromkeys(ranks, (0, 0))
    while bits > 0:
        digit = min(bits, _DIGIT_BITS)
        bits -= digit
        tables = {prefix: np.zeros(1 << digit, np.int64) for prefix, _ in begins.values()}
        for latency in _latencies(operations, lowest):
            above = latency >> np.uint64(bits)
            for prefix, table in tables.items():
                mine = above[above >> np.uint64(digit) == prefix] & np.uint64((1 << digit) - 1)
                table += np.bincount(mine.astype(np.int64), minlength=len(table))
        for name, (prefix, below) in begins.items():
            upto = below + np.cumsum(tables[prefix])
            next_digit = int(np.searchsorted(upto, ranks[name], "right"))
            less = below if next_digit == 0 else int(upto[next_digit - 1])
            begins[name] = (prefix << digit | next_digit, less)
    return {name: lowest + prefix for name, (prefix, _) in begins.items()}


def _latencies(operations: Operations, lowest: int) -> Iterator[NDArray[np.uint64]]:
    """How much longer than the lowest each one is."""
    for piece in operations.pieces():
        latency = piece.column("latency_ns")[piece.column("answered") == 1]
        yield (latency - np.int64(lowest)).view(np.uint64)
