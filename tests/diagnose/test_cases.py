"""Logs and captures as operators have them: each case is answered as it should be."""

from __future__ import annotations

from typing import Final

import pytest

from tests.diagnose.judging import judge, names

FAILING: Final[frozenset[str]] = frozenset()
"""Cases that are not answered rightly yet. One that passes has to leave the list."""


@pytest.mark.parametrize("name", names())
def test_case(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = judge(name, monkeypatch)
    assert bool(wrong) == (name in FAILING), wrong
