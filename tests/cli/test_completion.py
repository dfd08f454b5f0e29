"""`completion`: written where each shell looks, and tried in the real shells with the Tab key."""

from __future__ import annotations

import os
import pty
import re
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import completed, run
from upcall_trace.cli import COMMANDS
from upcall_trace.errors import ExitCode

SHELLS = {
    "bash": ("--norc --noprofile -i", ".local/share/bash-completion/completions/upcall-trace"),
    "zsh": ("-f -i", ".local/share/zsh/site-functions/_upcall-trace"),
    "fish": ("-i", ".config/fish/completions/upcall-trace.fish"),
}
"""How each is started without what this machine's administrator set up, and its file."""
_ESCAPES = re.compile(r"\x1b(\[[0-9;?<>=]*[a-zA-Z]|\][^\x07\x1b]*(\x07|\x1b\\)|[=>()][A-Z0-9]?)")
_AT_A_TERMINAL = (
    "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); "
    "os.execvp(sys.argv[1], sys.argv[1:])"
)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home of a user who has set nothing up."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("XDG_DATA_HOME", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


class Terminal:
    """A shell with a person at the keys."""

    def __init__(self, arguments: list[str], home: Path) -> None:
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        settings = {"HOME": str(home), "PATH": path, "TERM": "xterm", "LANG": "C.UTF-8"}
        self._ours, theirs = pty.openpty()
        self._process = subprocess.Popen(
            [sys.executable, "-c", _AT_A_TERMINAL, *arguments],
            stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True, env=settings,
        )  # fmt: skip
        os.close(theirs)
        self.seen = ""

    def press(self, keys: str, until: str, timeout_s: float = 30) -> None:
        """Type, and wait until a pattern is seen that was not there before."""
        begin = len(self.seen)
        os.write(self._ours, keys.encode())
        deadline = time.monotonic() + timeout_s
        while not re.search(until, _ESCAPES.sub("", self.seen[begin:])):
            left = deadline - time.monotonic()
            assert left > 0, f"no {until!r} after {keys!r}: {self.seen[begin:]!r}"
            if select.select([self._ours], [], [], left)[0]:
                self.seen += os.read(self._ours, 65536).decode("utf-8", "replace")

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._ours)


@pytest.fixture(params=SHELLS)
def shell(request: pytest.FixtureRequest, home: Path) -> Iterator[tuple[str, Terminal]]:
    """A shell that completes as `completion install` says it should."""
    name: str = request.param
    options, file = SHELLS[name]
    if shutil.which(name) is None:
        pytest.skip(f"there is no {name} here")
    told = run("completion", "install", name)
    assert (told.code, told.out) == (0, f"{home / file}\n")
    for folder in (home / file).parents:
        if folder.is_relative_to(home):  # zsh asks before it uses what others may write
            folder.chmod(0o755)
    way = told.err.splitlines()[0]
    terminal = Terminal([name, *options.split()], home)
    try:
        if name == "bash":
            terminal.press(f"{way.partition('add to ~/.bashrc: ')[2]}; echo rea''dy\n", "ready")
        elif name == "zsh":
            terminal.press(f"{way.partition('before compinit: ')[2]}; echo rea''dy\n", "ready")
        else:
            assert way == "fish loads it by itself"
            terminal.press("echo rea''dy\n", r"\bready")
        yield name, terminal
    finally:
        terminal.close()


def test_a_real_shell_completes_commands_pages_and_formats(shell: tuple[str, Terminal]) -> None:
    _, terminal = shell
    terminal.press("upcall-trace completion ins\t", "completion install ")
    terminal.press("\x15upcall-trace docs exit\t", "docs exit-codes")
    terminal.press("\x15upcall-trace export --format trans\t", "--format transcript")


def test_without_a_name_it_is_the_shell_of_the_user(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHELL", "/usr/bin/fish")
    assert run("completion", "install").out == f"{home / SHELLS['fish'][1]}\n"
    for value, said in (("/bin/tcsh", "$SHELL is tcsh"), ("", "$SHELL is not set")):
        monkeypatch.setenv("SHELL", value)
        told = run("completion", "install")
        assert told.code == ExitCode.USAGE
        assert told.err == f"upcall-trace: {said}; name one of bash, zsh, fish\n"


def test_an_own_file_stays_and_an_older_script_is_replaced(home: Path) -> None:
    path = home / SHELLS["fish"][1]
    path.parent.mkdir(parents=True)
    path.write_text("# my own\n")
    told = run("completion", "install", "fish")
    assert told.code == ExitCode.USAGE
    assert told.err == (
        f"upcall-trace: {path} exists and is not of this command; move it away first\n"
    )
    assert path.read_text() == "# my own\n"
    path.unlink()
    assert run("completion", "install", "fish").code == 0
    fresh = path.read_text()
    path.write_text(fresh + "# older\n")
    assert run("completion", "install", "fish").code == 0
    assert path.read_text() == fresh == run("completion", "show", "fish").out
    assert [each.name for each in path.parent.iterdir()] == [path.name]


def test_a_folder_that_cannot_be_made_is_told(home: Path) -> None:
    (home / ".config").write_text("no folder")
    told = run("completion", "install", "fish")
    assert told.code == ExitCode.USAGE
    assert "cannot be written: Not a directory" in told.err


def test_commands_are_completed_without_loading_them() -> None:
    assert completed("upcall-trace ") == [*COMMANDS]
    assert completed("upcall-trace comp") == ["completion"]
    assert completed("upcall-trace --ver") == ["--version"]
    code = (
        "import sys; from upcall_trace.cli import cli\n"
        "from click.shell_completion import ShellComplete\n"
        "ShellComplete(cli, {}, 'upcall-trace', '').get_completions([], '')\n"
        "print('numpy' in sys.modules)"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout == "False\n"
