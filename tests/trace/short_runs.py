"""Two messages are a run, so that small recordings are full of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

import pytest

from upcall_trace.capture import runs


@contextmanager
def short_runs(*readers: ModuleType) -> Iterator[pytest.MonkeyPatch]:
    """For `capture.runs`, and the modules that know the length from it."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (runs, *readers):
            patch.setattr(module, "SHORTEST", 2)
        yield patch
