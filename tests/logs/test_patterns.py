"""No pattern of the log readers takes more than linear time on any line."""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib import import_module
from pkgutil import walk_packages

import pytest

import upcall_trace.diagnose
import upcall_trace.logs
from tests.logs.linear import WAYS, steps
from upcall_trace.logs.table import ROWS


def patterns() -> Iterator[tuple[str, re.Pattern[str] | re.Pattern[bytes]]]:
    for package in (upcall_trace.logs, upcall_trace.diagnose):
        for found in walk_packages(package.__path__, f"{package.__name__}."):
            if package is upcall_trace.diagnose and ".log_" not in found.name:
                continue
            for name, value in vars(import_module(found.name)).items():
                if isinstance(value, re.Pattern):
                    yield f"{found.name.split('.', 1)[1]}.{name}", value
    for row in ROWS:
        if row.pattern is not None:
            yield row.words[:60], row.pattern


@pytest.mark.parametrize("pattern", [pytest.param(p, id=name) for name, p in patterns()])
def test_a_pattern_is_linear(pattern: re.Pattern[str]) -> None:
    assert steps(pattern) < WAYS


@pytest.mark.parametrize("bad", [r"a.*b", r"(?:a+)+$", r"x\S+ y", r"(?:a{1,9}|b)*c", r"\d*x"])
def test_the_proof_refuses_what_is_not(bad: str) -> None:
    with pytest.raises(ValueError, match="without a bound"):
        steps(re.compile(bad))
