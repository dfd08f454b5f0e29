"""How many files this process may have open."""

from __future__ import annotations

import resource
from typing import Final

_WANTED: Final = 65_536
_OTHERS: Final = 64
_AT_ONCE: Final = 4096


def raise_descriptor_limit() -> None:
    """As many files as we may have: a VMM's socket has up to 1023 connections, clients more."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for limit in (max(hard, _WANTED), hard):
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, max(hard, limit)))
        except (OSError, ValueError):
            continue  # more than this user may raise it to
        return


def outputs_at_once() -> int:
    """How many files one reading of an input may write, beside what else is open."""
    raise_descriptor_limit()
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return _AT_ONCE if soft < 0 else max(1, min(_AT_ONCE, soft - _OTHERS))
