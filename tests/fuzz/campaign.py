"""Feeding parsers with what is wrong: what raises, or takes too long, is kept as a crasher."""

from __future__ import annotations

import hashlib
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tests.fuzz.mutating import blocks, mutations
from tests.fuzz.targets import Target, take

CRASHERS: Final = Path(__file__).parent / "crashers"
"""A folder for each target: what was found once, and is tried ever since."""
_AT_ONCE: Final = 500
_KEPT: Final = 20
_LONG: Final = 100_000
"""Bytes of an input from which on the limit of its time grows with it."""


@dataclass
class Account:
    """What a target was fed with, and what came of it."""

    target: str
    seed: int
    inputs: int = 0
    cpu_s: float = 0.0
    slowest_s: float = 0.0
    finds: dict[str, Path] = field(default_factory=dict)
    """The last line of each traceback, and the input that led to it."""

    def __str__(self) -> str:
        found = f", {len(self.finds)} FINDS" if self.finds else ""
        return (
            f"{self.target:15} seed {self.seed:<6} {self.inputs:>12,} inputs {self.cpu_s:8.1f} s, "
            f"slowest {self.slowest_s * 1000:8.2f} ms{found}"
        )


def run(
    name: str, target: Target, seed: int, most: int, until: float, keep: Path = CRASHERS
) -> Account:
    """Feed a target with `most` inputs, or until that time on the monotonic clock.

    Of one that takes heaps, every part counts.
    """
    account = Account(name, seed)
    known = list(target.known())
    inputs: Iterator[bytes] = mutations(known, seed)
    while account.inputs < most and time.monotonic() < until:
        at_once = min(target.heap if target.join else _AT_ONCE, most - account.inputs)
        batch = [next(inputs) for _ in range(at_once)]
        _feed(account, target, [target.join(batch)] if target.join else batch, keep)
        account.inputs += at_once
    return account


def run_blocks(
    name: str, target: Target, size: int, seed: int, most: int, until: float, keep: Path = CRASHERS
) -> Account:
    """The same for messages of one size, many of which are made at once."""
    account = Account(name, seed)
    made = blocks(list(target.known()), size, seed)
    while account.inputs < most and time.monotonic() < until:
        whole = next(made)
        for begin in range(0, len(whole), _AT_ONCE):
            raw = whole[begin : begin + _AT_ONCE].tobytes()
            batch = [raw[at : at + size] for at in range(0, len(raw), size)]
            _feed(account, target, batch, keep)
            account.inputs += len(batch)
    return account


def _feed(account: Account, target: Target, batch: list[bytes], keep: Path) -> None:
    before = begun = time.thread_time()
    for raw in batch:
        try:
            take(target, raw)
        except Exception as error:
            _keep(account, raw, error, keep)
        now = time.thread_time()
        spent, before = now - before, now
        if spent > account.slowest_s:
            _judge_time(account, target, raw, spent, keep)
            before = time.thread_time()
    account.cpu_s += before - begun


def _judge_time(account: Account, target: Target, raw: bytes, spent: float, keep: Path) -> None:
    # Once more, twice: the first time may have been the garbage collector's.
    spent = min(spent, _time(target, raw), _time(target, raw))
    if spent > target.limit_s * max(1.0, len(raw) / _LONG):
        _keep(account, raw, TimeoutError(f"{spent:.3f} s of the processor"), keep)
    account.slowest_s = max(account.slowest_s, spent)


def _time(target: Target, raw: bytes) -> float:
    begun = time.thread_time()
    try:
        take(target, raw)
    except Exception:
        pass  # it was told
    return time.thread_time() - begun


def _keep(account: Account, raw: bytes, error: BaseException, keep: Path) -> None:
    trace = traceback.extract_tb(error.__traceback__)
    where = f"{Path(trace[-1].filename).name}:{trace[-1].lineno}" if trace else ""
    what = f"{type(error).__name__} at {where}"
    if what in account.finds or len(account.finds) >= _KEPT:
        return
    folder = keep / account.target
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / hashlib.sha256(raw).hexdigest()[:12]
    path.write_bytes(raw)
    account.finds[what] = path
