"""What can be said about tests with recordings: to pytest, and by a test's marker.

Loaded by every run of pytest: light.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest

from ..errors import WrongUsage

if TYPE_CHECKING:
    from .guests import Choice

RECORD_MODES: Final = {
    "none": "nothing is ever recorded; a test without its recording fails",
    "once": "a recording that is missing is made, if the test passes; others are as with `none`",
    "all": "every recording is made anew, whether the test passes or not",
    "rewrite": "every recording is made anew, and takes the old one's place if the test passes",
}
OPTIONS: Final[dict[str, tuple[dict[str, Any], str]]] = {
    "--upcall-captures": (
        {"action": "store_true"},
        "collect every .upcap file as a test that replays it",
    ),
    "--upcall-target": (
        {"metavar": "ADDRESS"},
        "the guest to test with, instead of a simulated one for each test",
    ),
    "--upcall-allow": (
        {"action": "append", "metavar": "CODE", "default": []},
        "begin in spite of this danger; may be repeated",
    ),
    "--upcall-world": (
        {"metavar": "FILE", "type": Path},
        "a TOML file of guests at boot, for the simulated ones",
    ),
    "--upcall-record": (
        {"choices": list(RECORD_MODES), "default": "none"},
        "when what passes a test's upcall_channel becomes its recording",
    ),
}
"""What the command line takes, with its help."""
SETTINGS: Final = {
    "upcall_recordings": "the directory of the recordings, relative to the configuration file; "
    "without it, captures or recordings beside the test",
    "upcall_world": "as --upcall-world, relative to the configuration file",
    "upcall_extra": "fail or ignore: a request that the recording does not have",
    "upcall_unused": "fail or ignore: a recording, or a request of one, that no test used",
}
"""What pytest's configuration file takes."""
MARKER: Final = {
    "recording": "the name of the test's recording",
    "machine": "which world of the file the simulated guest is in",
    "world": "the file, relative to the test",
    "faults": "what the simulated guest does wrong, as `guest --fault` takes it",
    "allow": "dangers to begin in spite of, with guests that are simulated or a lab",
    "extra": "fail or ignore, for this test",
    "unused": "fail or ignore, for this test",
}
"""What the marker `upcall` takes."""
_FOLDERS: Final = ("captures", "recordings")
SUFFIX: Final = ".upcap"
_WORLDS: Final = "worlds.toml"
VERDICTS: Final = ("fail", "ignore")


def marked(item: pytest.Item) -> dict[str, Any]:
    """The keywords of its markers, the nearest one's first; raises WrongUsage."""
    said: dict[str, Any] = {}
    for mark in item.iter_markers("upcall"):
        for name in mark.kwargs:
            if name not in MARKER:
                known = ", ".join(MARKER)
                raise WrongUsage(f"the marker upcall has no {name!r}; it takes {known}")
        said = {**mark.kwargs, **said}
    return said


def verdict_of(item: pytest.Item, name: str) -> str:
    """`fail` or `ignore`, for `extra` or `unused`; raises WrongUsage."""
    said: str = marked(item).get(name) or item.config.getini(f"upcall_{name}") or "fail"
    if said not in VERDICTS:
        raise WrongUsage(f"{name} of the marker upcall is fail or ignore, not {said!r}")
    return said


def choice_of(item: pytest.Item, folder: Path | None = None, allow: Iterable[str] = ()) -> Choice:
    """What was said about the guest; `folder` is the recording's."""
    from .guests import Choice

    config, mark = item.config, marked(item)
    worlds = config.getoption("--upcall-world") or from_settings(config, "upcall_world")
    if "world" in mark:
        worlds = item.path.parent / mark["world"]
    turn = None
    if hasattr(config, "workerinput"):
        # One guest, several workers: they take turns, and this directory is the one they share.
        turn = config._tmp_path_factory.getbasetemp().parent / "upcall-target"  # type: ignore[attr-defined]
    return Choice(
        address=config.getoption("--upcall-target"),
        turn=turn,
        worlds=worlds,
        nearby=(folder or folder_of(item)) / _WORLDS,
        machine=mark.get("machine"),
        faults=tuple(mark.get("faults", ())),
        allowed=frozenset(config.getoption("--upcall-allow")),
        allowed_here=frozenset([*mark.get("allow", ()), *allow]),
    )


def from_settings(config: pytest.Config, name: str) -> Path | None:
    """A path of the configuration file, None where it says none."""
    said = config.getini(name)
    base = config.inipath.parent if config.inipath else config.rootpath
    return _plain(base / said) if said else None


def folder_of(item: pytest.Item) -> Path:
    """The directory of a test's recordings, which need not exist."""
    said = from_settings(item.config, "upcall_recordings")
    if said is not None:
        return said
    beside = [item.path.parent / name for name in _FOLDERS]
    return next((folder for folder in beside if folder.is_dir()), beside[0])


def path_of(item: pytest.Item, name: str) -> Path:
    """Where the recording of that name is, or would be."""
    return _plain(folder_of(item) / (name if name.endswith(SUFFIX) else name + SUFFIX))


def own_name(item: pytest.Item) -> str:
    """`test_disks/TestHotplug.test_add-2`: a file name that says which test it is of."""
    parts = item.nodeid.partition("::")[2].split("::")
    return f"{item.path.stem}/{re.sub(r'[^A-Za-z0-9_.-]+', '-', '.'.join(parts)).strip('-')}"


def _plain(path: Path) -> Path:
    """Without `..`, so that one file has one name however it was come by."""
    return Path(os.path.normpath(path))
