"""The tests in places where tests often fail: `python -m tools.odd_places [PLACE…] [-- PYTEST…]`.

Each place is a copy of the tree or a setting of the environment. Without names all are taken, one
after the other; `--today` prints the name of one, another each day. Prints a row for each, and ends
with 1 when the tests failed in one.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final, NamedTuple

ROOT: Final = Path(__file__).parents[1]
_LEFT_OUT: Final = shutil.ignore_patterns(
    ".git", ".venv", "__pycache__", "dist", ".*_cache", ".hypothesis"
)


class Place(NamedTuple):
    """Where and how the tests are run: names of the tree's folder and of TMPDIR, variables."""

    folder: str = ""
    temporary: str = ""
    variables: Mapping[str, str] = MappingProxyType({})
    umask: int = 0o022


PLACES: Final = {
    "a path with a space, not ASCII, and long": Place(folder="a place, ähnlich 路径 " + "x" * 60),
    "a long TMPDIR": Place(temporary="t" * 80),
    "the size of a terminal in the environment": Place(
        variables={"COLUMNS": "40", "LINES": "10", "TERM": "xterm-256color"}
    ),
    "another time zone": Place(variables={"TZ": "Pacific/Chatham"}),
    "no locale": Place(variables={"LANG": "C", "LC_ALL": "C"}),
    "a closed umask": Place(umask=0o077),
    "an open umask": Place(umask=0o000),
}


def main(words: list[str]) -> int:
    """Run what is named; 2 for a name that is none."""
    if words == ["--today"]:
        sys.stdout.write(list(PLACES)[time.gmtime().tm_wday % len(PLACES)])
        return 0
    at = words.index("--") if "--" in words else len(words)
    names, arguments = words[:at] or list(PLACES), words[at + 1 :]
    if unknown := set(names) - set(PLACES):
        sys.stderr.write(f"no such place: {', '.join(unknown)}; known: {', '.join(PLACES)}\n")
        return 2
    failed = False
    for name in names:
        begun = time.monotonic()
        code = _run(PLACES[name], arguments)
        failed |= code != 0
        told = "passed" if code == 0 else f"FAILED ({code})"
        sys.stderr.write(f"{name:45} {told:12} {time.monotonic() - begun:6.0f} s\n")
    return int(failed)


def _run(place: Place, arguments: list[str]) -> int:
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="odd-") as work:
        # A copy each time: the first run has no compiled files, and no repository around it.
        copy = Path(work) / (place.folder or "copy")
        shutil.copytree(ROOT, copy, ignore=_LEFT_OUT)
        temporary = Path(work) / (place.temporary or "tmp")
        temporary.mkdir()
        variables = {"TMPDIR": str(temporary), "PYTHONPATH": str(copy), **place.variables}
        before: Callable[[], object] = lambda: os.umask(place.umask)  # noqa: E731  # for a child
        return subprocess.run(
            [sys.executable, "-m", "pytest", "-q", *arguments],
            cwd=copy, env={**os.environ, **variables}, preexec_fn=before, check=False,
        ).returncode  # fmt: skip


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
