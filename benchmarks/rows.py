"""What a benchmark measures: one figure a row, beside what it is a ratio to."""

from __future__ import annotations

from dataclasses import dataclass


class Skip(Exception):
    """What would be measured cannot be had here; the text says why."""


@dataclass(frozen=True, slots=True)
class Row:
    """One figure.

    `ratio` is how many times the value that `against` has in the same run; of several rounds it is
    the median of the rounds' own ratios. `size` are the operations that it was measured on,
    `message_bytes` what one message takes on disk. `cpu_s` and `peak_mib` are what the processes
    that measured it took since the row before; the harness fills them in where they are None.
    """

    name: str
    value: float
    unit: str
    ratio: float | None = None
    against: str = ""
    size: int | None = None
    message_bytes: float | None = None
    cpu_s: float | None = None
    peak_mib: float | None = None

    @property
    def more_is_better(self) -> bool:
        """Rates are good when they are high; times and sizes when they are low."""
        return self.unit.endswith("/s") or self.unit.startswith("% of")

    def __str__(self) -> str:
        told = f"{self.name:<58} {number(self.value):>11} {self.unit:<12}"
        if self.ratio is not None:
            told += f" {number(self.ratio)} times {self.against}"
        beside = [
            f"{self.message_bytes:.1f} bytes a message" if self.message_bytes is not None else "",
            f"{self.cpu_s:.2f} s of CPU" if self.cpu_s is not None else "",
            f"{self.peak_mib:.0f} MiB" if self.peak_mib is not None else "",
        ]
        if any(beside):
            told += f"  ({', '.join(filter(None, beside))})"
        return told


def number(value: float) -> str:
    """Three digits, and no power of ten."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.3g}"
