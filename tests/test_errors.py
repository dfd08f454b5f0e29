"""One class above every error of ours."""

from __future__ import annotations

import importlib
import inspect

from tests.test_imports import SOURCES
from upcall_trace.errors import EXIT_MEANINGS, ExitCode, UpcallError, UserError

OUTCOME_OF_PYTEST = "upcall_trace.testing.plugin.Failed"
"""pytest knows failures by a class of its own, which it has to derive from."""


def test_every_error_of_ours_derives_from_one_class() -> None:
    found = set()
    for name in SOURCES:
        if name.endswith("__main__"):
            continue
        for each in vars(importlib.import_module(name)).values():
            if not inspect.isclass(each) or each.__module__ != name or each.__name__[0] == "_":
                continue
            if issubclass(each, BaseException) and not issubclass(each, Warning):
                found.add(f"{name}.{each.__name__}")
                ours = issubclass(each, UpcallError)
                assert ours or f"{name}.{each.__name__}" == OUTCOME_OF_PYTEST, each
    assert {"dissectors.codecs.NotAMessage", "upcall_trace.plugins.BrokenPlugin"} <= found


def test_every_exit_code_has_a_meaning_and_what_a_user_is_told_has_a_code() -> None:
    assert set(EXIT_MEANINGS) == set(ExitCode)
    assert UserError("x").exit_code is ExitCode.USAGE
