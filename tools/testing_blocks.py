"""Blocks of docs/pytest.md, made from what the plugin registers."""

from __future__ import annotations

from tools.markdown import code, table
from upcall_trace.testing.settings import MARKER, OPTIONS, RECORD_MODES, SETTINGS


def pytest_options() -> str:
    """What pytest's command line takes."""
    rows = []
    for name, (how, told) in OPTIONS.items():
        value = how.get("metavar") or "|".join(how.get("choices", ()))
        rows.append((code(f"{name} {value}".rstrip()), told))
    return table(("option", "what it does"), rows)


def pytest_settings() -> str:
    """What pytest's configuration file takes."""
    return table(("setting", "value"), [(code(name), told) for name, told in SETTINGS.items()])


def pytest_marker() -> str:
    """The keywords of the marker."""
    return table(("keyword", "value"), [(code(name), told) for name, told in MARKER.items()])


def record_modes() -> str:
    """When a recording is made."""
    return table(
        ("mode", "what becomes of recordings"), [(code(m), t) for m, t in RECORD_MODES.items()]
    )
