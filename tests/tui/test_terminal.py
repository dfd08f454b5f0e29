"""The installed program in a real terminal, typed at as a person would."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ..guests import wait_until
from ..support import command, golden

PATIENCE_S = 20.0

pytestmark = pytest.mark.skipif(not shutil.which("tmux"), reason="there is no tmux here")


class Tmux:
    """A terminal of its own, with a shell in it."""

    def __init__(self, directory: Path, width: int = 100, height: int = 32) -> None:
        self._socket = directory / "tmux"
        home = {"XDG_STATE_HOME": str(directory), "XDG_CONFIG_HOME": str(directory)}
        self._env = {**os.environ, **home, "PS1": "ready> ", "TERM": "xterm-256color"}
        for name in ("TMUX", "COLUMNS", "LINES"):
            self._env.pop(name, None)
        self.do("-f", "/dev/null", "new-session", "-d", "-x", str(width), "-y", str(height), "sh")
        self.type("PS1='ready'\"> \"; clear\n")

    def do(self, *arguments: str) -> str:
        """A command of tmux; what it prints."""
        ended = subprocess.run(
            ["tmux", "-u", "-S", str(self._socket), *arguments],
            env=self._env, capture_output=True, text=True, check=True, timeout=20,
        )  # fmt: skip
        return ended.stdout

    def type(self, text: str) -> None:
        """Type letters."""
        self.do("send-keys", "-l", text)

    def press(self, *keys: str) -> None:
        """Press keys by their names."""
        self.do("send-keys", *keys)

    def screen(self) -> str:
        """What the terminal shows."""
        return self.do("capture-pane", "-p")

    def wait(self, *texts: str) -> str:
        """Wait until all of it is on the screen, and return that."""
        until = time.monotonic() + PATIENCE_S
        while time.monotonic() < until:
            screen = self.screen()
            # A path of another length breaks a line elsewhere, at a word or within one.
            unbroken = (screen, screen.replace("\n", ""), " ".join(screen.split()))
            if all(any(text in form for form in unbroken) for text in texts):
                return screen
            time.sleep(0.05)
        raise AssertionError(f"{texts} never came:\n{self.screen()}")

    def wait_without(self, text: str) -> None:
        """Wait until something is not on the screen any more."""
        until = time.monotonic() + PATIENCE_S
        while text in self.screen():
            assert time.monotonic() < until, self.screen()
            time.sleep(0.05)

    def program(self) -> int:
        """The process that its shell runs, by its number."""
        shell = self.do("display-message", "-p", "#{pane_pid}").strip()
        wait_until(Path(f"/proc/{shell}/task/{shell}/children").read_text)
        return int(Path(f"/proc/{shell}/task/{shell}/children").read_text().split()[0])

    def close(self) -> None:
        """The terminal goes away."""
        self.do("kill-server")


@pytest.fixture
def tmux(tmp_path: Path) -> Iterator[Tmux]:
    terminal = Tmux(tmp_path)
    yield terminal
    try:
        terminal.close()
    except subprocess.CalledProcessError:
        pass  # the test closed it


def typed(*arguments: str | Path) -> str:
    return shlex.join(command("tui", *arguments)) + "\n"


def test_a_person_looks_into_a_recording(tmux: Tmux) -> None:
    tmux.type("echo before; stty -a > $XDG_STATE_HOME/stty\n")
    tmux.wait("before")
    tmux.type(typed(golden("mmio_lifecycle")))
    # The last of what comes by itself: the diagnosis has ended, and the cursor is on an operation.
    screen = tmux.wait("15 operations", "sessions", "1.0", "goes to the first of 8 failures")
    assert "VMM" in screen
    tmux.type("]")
    tmux.wait("UP301 mmio-overlap at 1.2", "why   The window overlaps one that it knows")
    tmux.press("Enter")
    tmux.wait("magic_version", "ret", "-17 EEXIST", "0000  00 01 4d 44")
    tmux.press("Escape")
    tmux.wait("━2 ladder")
    tmux.type("/")
    tmux.wait("filter:")
    tmux.type("op == del_mmio and ret < 0")
    tmux.wait("2 of 15 match")
    tmux.press("Enter")
    tmux.wait("2 of 15 match op == del_mmio and ret < 0", "del_mmio 0xfeb00600+0x200 irq=9")
    tmux.wait_without("─ add_mmio")
    tmux.type("?")
    tmux.wait("keys in ladder", "Next failure")
    tmux.press("Escape")
    tmux.wait_without("keys in ladder")
    tmux.type("q")
    tmux.wait("before", "ready>")
    tmux.type("stty -a | cmp - $XDG_STATE_HOME/stty && echo as'-'it'-'was\n")
    tmux.wait("as-it-was")
    assert "sessions" not in tmux.screen()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_it_and_gives_the_terminal_back(tmux: Tmux, number: signal.Signals) -> None:
    tmux.type(f"stty -a > $XDG_STATE_HOME/stty; {typed(golden('guest_oops')).strip()}; echo =$?=\n")
    tmux.wait("4 operations")
    os.kill(tmux.program(), number)
    tmux.wait("=130=", "ready>")
    tmux.type("stty -a | cmp - $XDG_STATE_HOME/stty && echo as'-'it'-'was\n")
    tmux.wait("as-it-was")


@pytest.mark.parametrize("key", ["", "q"])
def test_a_terminal_that_goes_away_leaves_no_process(tmux: Tmux, key: str) -> None:
    """Also when it does while the browser is about to end."""
    tmux.type(typed(golden("guest_oops")))
    tmux.wait("4 operations")
    process = tmux.program()
    tmux.type(key)
    tmux.close()
    wait_until(lambda: not Path(f"/proc/{process}").exists(), 30)


def test_a_size_in_the_environment_does_no_harm(tmux: Tmux) -> None:
    tmux.type("export COLUMNS=40 LINES=9; " + typed(golden("guest_oops")))
    screen = tmux.wait("1 sessions", "4 operations", "3 finding")
    assert max(map(len, screen.splitlines())) == 100
    tmux.type("q")


def test_a_terminal_that_shrinks_and_goes_away(tmux: Tmux) -> None:
    tmux.type("exec " + typed(golden("guest_oops")))
    tmux.wait("4 operations", "goes to the first of", "failures")
    tmux.type("G")
    tmux.wait("closed by the client")
    tmux.type("g")
    (pid,) = tmux.do("list-panes", "-F", "#{pane_pid}").split()
    tmux.do("resize-window", "-x", "20", "-y", "5")
    tmux.wait_without("1 sessions")
    tmux.do("resize-window", "-x", "90", "-y", "30")
    tmux.wait("1 sessions")
    tmux.type("]")
    tmux.wait("UP206", "sessions")
    tmux.close()
    until = time.monotonic() + PATIENCE_S
    while time.monotonic() < until and Path(f"/proc/{pid}").exists():
        time.sleep(0.05)
    assert not Path(f"/proc/{pid}").exists()


def test_without_a_file_there_is_a_choice(tmux: Tmux) -> None:
    tmux.type(typed())
    tmux.wait("recordings of real guests", "cpu_lifecycle")
    tmux.press("Down", "Enter")
    tmux.wait("sessions", "2 ladder")
    tmux.type("q")
    tmux.wait("ready>")
    tmux.type(typed())
    tmux.wait("opened lately")
    tmux.type("q")


def test_a_recording_is_started_followed_and_stopped(tmux: Tmux, tmp_path: Path) -> None:
    guest = subprocess.Popen(
        command("guest", "--listen", tmp_path / "g"), stderr=subprocess.PIPE, text=True
    )
    assert guest.stderr is not None
    assert "listening" in guest.stderr.readline()
    try:
        capture = tmp_path / "made.upcap"
        tmux.type(
            typed("--record", "--listen", tmp_path / "p", "--upstream", tmp_path / "g", capture)
        )
        tmux.wait("● recording")
        for words in (("add-cpu", "1"), ("add-cpu", "1")):
            subprocess.run(
                command("send", "--to", tmp_path / "p", *words), check=False, capture_output=True
            )
        tmux.wait("2 operations", "UP202")
        tmux.type("q")
        tmux.wait("Stop the recording?")
        tmux.press("Escape")
        tmux.wait_without("Stop the recording?")
        tmux.type("q")
        tmux.wait("Stop the recording?")
        tmux.type("y")
        tmux.wait("2 connections, 2 operations", "ready>")
        shown = subprocess.run(command("info", capture), capture_output=True, text=True, check=True)
        assert "complete" in shown.stdout
    finally:
        guest.send_signal(signal.SIGTERM)
        guest.wait(20)
        guest.stderr.close()


def test_where_the_output_is_no_terminal_the_operations_are_printed() -> None:
    ended = subprocess.run(
        command("tui", golden("framing")), capture_output=True, text=True, check=False, timeout=60
    )
    shown = subprocess.run(
        command("show", golden("framing")), capture_output=True, text=True, check=False, timeout=60
    )
    assert ended.stdout == shown.stdout
    assert ended.returncode == shown.returncode
    assert ended.stderr.startswith("the output is no terminal")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["tui"], "name a capture"),
        (["tui", "--record", "x"], "--listen and --upstream"),
        (["tui", "--listen", "x", "--upstream", "y"], "--record needs"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_usage_is_a_sentence(arguments: list[str], said: str) -> None:
    ended = subprocess.run(
        command(*arguments), capture_output=True, text=True, check=False, timeout=60
    )
    assert ended.returncode == 2
    assert said in ended.stderr
