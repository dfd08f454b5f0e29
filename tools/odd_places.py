"""The tests in places where tests often fail: `python -m tools.odd_places [PLACE…] [-- PYTEST…]`.

Each place is a copy of the tree or a setting of the environment. Without names all are taken, one
after the other; `--today` prints the name of one, another each day. Prints a row for each, and ends
with 1 when the tests failed in one.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
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
_USER: Final = "nobody"
_NEWER_SUITE: Final = "forky"
_NOT_RUN: Final = 77
"""How a place says that it cannot be had here."""


class Place(NamedTuple):
    """Where and how the tests are run: names of the tree's folder and of TMPDIR, variables.

    `around` makes another command of pytest's, and may put things into a folder of its own and
    into the variables. `needs` is the program for that.
    """

    folder: str = ""
    temporary: str = ""
    variables: Mapping[str, str] = MappingProxyType({})
    umask: int = 0o022
    around: Callable[[list[str], Path, dict[str, str]], list[str]] | None = None
    needs: str = "sh"


def _in_a_terminal(command: list[str], _: Path, __: dict[str, str]) -> list[str]:
    return ["script", "--quiet", "--return", "--command", shlex.join(command), "/dev/null"]


def _as_nobody(command: list[str], work: Path, variables: dict[str, str]) -> list[str]:
    """The tree is theirs. Only root can become somebody else; others are ordinary anyhow."""
    if os.geteuid() != 0:
        return command
    become = ["runuser", "-u", _USER, "--"]
    variables["HOME"] = str(work / "home")
    (work / "home").mkdir()
    if subprocess.run([*become, sys.executable, "-c", ""], capture_output=True).returncode:
        command = [str(_open_to_all(work / "env")), *command[1:]]
    for path in (work, *work.rglob("*")):
        if not path.is_symlink():
            shutil.chown(path, _USER)
    return [*become, *command]


def _open_to_all(env: Path) -> Path:
    """Our packages for the distribution's Python of the same version: ours is in a closed home."""
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    subprocess.run([f"/usr/bin/{version}", "-m", "venv", "--without-pip", env], check=True)
    packages = env / "lib" / version / "site-packages"
    shutil.rmtree(packages)
    packages.symlink_to(sysconfig.get_path("purelib"))
    ours = b"#!" + os.fsencode(Path(sys.executable).parent)
    for script in Path(sys.executable).parent.iterdir():
        text = script.read_bytes() if script.is_file() else b""
        if text.startswith(ours):
            copy = env / "bin" / script.name
            copy.write_bytes(text.replace(ours, b"#!" + os.fsencode(env / "bin"), 1))
            copy.chmod(0o755)
    return env / "bin" / "python"


def _without_git(command: list[str], work: Path, variables: dict[str, str]) -> list[str]:
    """A PATH with links to all programs but that one."""
    links = work / "programs"
    links.mkdir()
    work.chmod(0o755)  # tests become other users, who look for programs, too
    for folder in os.environ["PATH"].split(os.pathsep):
        for program in Path(folder).glob("*") if os.access(folder, os.R_OK | os.X_OK) else ():
            link = links / program.name
            if program.name != "git" and not link.is_symlink():
                link.symlink_to(program)
    variables["PATH"] = str(links)
    return command


def _on_a_newer_python(command: list[str], _: Path, __: dict[str, str]) -> list[str]:
    return ["tools/newer_python.sh", _NEWER_SUITE, *command[1:]]


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
    "a terminal": Place(around=_in_a_terminal, needs="script"),
    "an ordinary user": Place(around=_as_nobody, needs="runuser"),
    "no git": Place(around=_without_git),
    "a newer Python": Place(around=_on_a_newer_python, needs="mmdebstrap"),
}


def main(words: list[str]) -> int:
    """Run what is named; 2 for a name that is none."""
    if words == ["--today"]:
        sys.stdout.write(list(PLACES)[time.gmtime().tm_yday % len(PLACES)])
        return 0
    at = words.index("--") if "--" in words else len(words)
    names, arguments = words[:at] or list(PLACES), words[at + 1 :]
    if unknown := set(names) - set(PLACES):
        sys.stderr.write(f"no such place: {', '.join(unknown)}; known: {', '.join(PLACES)}\n")
        return 2
    failed = False
    for name in names:
        begun = time.monotonic()
        if not shutil.which(PLACES[name].needs):
            sys.stderr.write(f"{name:45} not run: there is no {PLACES[name].needs}\n")
            continue
        code = _run(PLACES[name], arguments)
        failed |= code not in (0, _NOT_RUN)
        told = {0: "passed", _NOT_RUN: "not run"}.get(code, f"FAILED ({code})")
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
        command = [sys.executable, "-m", "pytest", "-q", *arguments]
        if place.around is not None:
            command = place.around(command, Path(work), variables)
        before: Callable[[], object] = lambda: os.umask(place.umask)  # noqa: E731  # for a child
        return subprocess.run(
            command, cwd=copy, env={**os.environ, **variables}, preexec_fn=before, check=False
        ).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
