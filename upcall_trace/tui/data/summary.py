"""Counts and latencies of each connection and each kind of operation, from the columns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dissectors.constants import op_name

from ...trace.operations import Operations


@dataclass(frozen=True, slots=True)
class Summary:
    """Of some operations; latencies are in nanoseconds, None when none was answered."""

    name: str
    count: int
    failed: int
    """Refused, and not answered too."""
    unanswered: int
    p50_ns: int | None
    p99_ns: int | None
    max_ns: int | None


def by_connection(operations: Operations) -> dict[int, Summary]:
    """A summary of each connection that has operations, by its number."""
    conns = operations.column("conn").astype(np.int64)
    return {key: _named(str(key), found) for key, found in _groups(operations, conns)}


def by_operation(operations: Operations) -> list[Summary]:
    """A summary of each kind of operation, the most frequent first."""
    ours = operations.ours()
    types = np.where(ours, operations.column("msg_type").astype(np.int64), -1)
    found = [
        _named("other services" if key < 0 else op_name(key), group)
        for key, group in _groups(operations, types)
    ]
    return sorted(found, key=lambda summary: -summary.count)


def _named(name: str, found: tuple[int, int, int, NDArray[Any]]) -> Summary:
    count, failed, unanswered, latencies = found
    if not len(latencies):
        return Summary(name, count, failed, unanswered, None, None, None)
    p50, p99 = (int(latencies[int((len(latencies) - 1) * share)]) for share in (0.5, 0.99))
    return Summary(name, count, failed, unanswered, p50, p99, int(latencies[-1]))


def _groups(
    operations: Operations, keys: NDArray[np.int64]
) -> list[tuple[int, tuple[int, int, int, NDArray[Any]]]]:
    """(key, (count, failed, unanswered, sorted latencies)) of each group of rows."""
    count = len(keys)
    if not count:
        return []
    answered = operations.column("answered")[:count] == 1
    latency = np.where(answered, operations.column("latency_ns")[:count], -1)
    refused = answered & (operations.column("ret")[:count] < 0)
    order = np.lexsort((latency, keys))
    latency = latency[order]
    found, begins = np.unique(keys[order], return_index=True)
    ends = [*begins[1:].tolist(), count]
    refusals = np.concatenate(([0], np.cumsum(refused[order])))
    silent = np.concatenate(([0], np.cumsum(~answered[order])))
    groups = []
    for key, begin, end in zip(found.tolist(), begins.tolist(), ends, strict=True):
        unanswered = int(silent[end] - silent[begin])
        failed = int(refusals[end] - refusals[begin]) + unanswered
        groups.append((key, (end - begin, failed, unanswered, latency[begin + unanswered : end])))
    return groups


def worst_in(
    t_ns: NDArray[np.int64], latency_ns: NDArray[np.int64], duration_ns: int, columns: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The whole time cut into `columns` stretches: (first row, longest latency) of each.

    The latency is -1 where nothing was sent; `latency_ns` is to be the largest number for what
    was never answered.
    """
    # Whole numbers, as the times are: millions of them would be made into floats otherwise.
    edges = np.ceil(np.arange(columns) * (max(duration_ns, 1) / columns)).astype(np.int64)
    begins = np.searchsorted(t_ns, edges, "left")
    worst = np.full(columns, -1, np.int64)
    filled = np.flatnonzero(np.diff(np.append(begins, len(t_ns))))
    if len(filled):
        worst[filled] = np.maximum.reduceat(latency_ns, begins[filled])
    return begins, worst
