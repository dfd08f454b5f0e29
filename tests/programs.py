"""Programs of others that tests need, and where they are looked for.

`make suites` puts programs of other Debian suites under the user's cache. docs/developing.md.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import pytest

_CACHE = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"


def tsharks() -> list[Any]:
    """A parameter for each tshark: the installed one, and those of other versions.

    `UPCALL_TRACE_TSHARKS` names the others, separated by `:`. Without it, they are those of
    `make suites`.
    """
    named = os.environ.get("UPCALL_TRACE_TSHARKS")
    suites = Path(_CACHE, "upcall-trace", "suites")
    others = named.split(os.pathsep) if named else sorted(map(str, suites.glob("*/bin/tshark")))
    installed = shutil.which("tshark")
    found = [pytest.param(installed, id="installed")] if installed else [_skipped("installed")]
    found += [pytest.param(each, id=Path(each).parents[1].name) for each in others if each]
    return found if others else [*found, _skipped("another version")]


@cache
def not_as_root() -> tuple[str, ...]:
    """What to start tshark with: newer ones load no Lua script for root.

    In a user namespace of its own, a program does not know that it is root.
    """
    words = ("unshare", "--user")
    if os.geteuid() != 0 or subprocess.run([*words, "true"], capture_output=True).returncode:
        return ()
    return words


def _skipped(which: str) -> Any:
    reason = f"no tshark: {which}; `make suites` gets some"
    return pytest.param(None, id=which, marks=pytest.mark.skip(reason=reason))
