"""`make torture`: long tests in sections, each with its share of the time.

`python -m tools.torture [SECTION…] [--minutes M] [--seed N]`. A seed makes a run again; without one
it is that of the day, and printed. What is found is kept under `tests/fuzz/crashers/`, where the
ordinary tests try it from then on. docs/robustness.md has what was run, and what it found.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple
from xml.etree import ElementTree

from tests.cli.test_hostile_memory import COMMANDS, CORPUS, check
from tests.fuzz import campaign
from tests.fuzz.differing import compare_three, compare_with_lua
from tests.fuzz.targets import targets

ROOT: Final = Path(__file__).parents[1]
VARIABLE: Final = "TORTURE_MINUTES"
_ALL_OF_IT: Final = 1 << 60
_MESSAGE: Final = 1024
_GRACE: Final = 120.0
"""Seconds that tests have to end what they began, when their time is over."""
HOSTILE_RUN: Final = ROOT / ".torture" / "hostile"
"""Which commands ran on which hostile files, a pair each line."""


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def _messages(seed: int, until: float) -> bool:
    with tempfile.TemporaryDirectory() as folder:
        target = targets(Path(folder))["message"]
        account = campaign.run_blocks("message", target, _MESSAGE, seed, _ALL_OF_IT, until)
    _say(f"  {account}")
    return not account.finds


def _parsers(seed: int, until: float) -> bool:
    fine = True
    with tempfile.TemporaryDirectory(dir=_memory()) as folder:
        all_of_them = targets(Path(folder))
        for number, (name, target) in enumerate(all_of_them.items()):
            now = time.monotonic()
            end = now + (until - now) / (len(all_of_them) - number)
            account = campaign.run(name, target, seed, _ALL_OF_IT, end)
            _say(f"  {account}")
            for what, path in account.finds.items():
                _say(f"    {what}: {path.relative_to(ROOT)}")
            fine &= not account.finds
    return fine


def _memory() -> Path | None:
    """Where files cost no disk."""
    place = Path("/dev/shm")  # noqa: S108  # a private directory is made in it
    return place if os.access(place, os.W_OK) else None


def _guided(seed: int, until: float) -> bool:
    if importlib.util.find_spec("atheris") is None:
        _say("  not run: atheris is not installed (pip install atheris)")
        return True
    fine = True
    names = [name for name, target in targets(Path()).items() if target.join is None]
    for number, name in enumerate(names):
        seconds = int((until - time.monotonic()) / (len(names) - number))
        if seconds < 1:
            break
        folder = campaign.CRASHERS / name
        folder.mkdir(parents=True, exist_ok=True)
        words = ["-m", "tests.fuzz.coverage_guided", name, str(seed), str(seconds), str(folder)]
        done = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True)
        runs = [line for line in done.stderr.splitlines() if line.startswith("Done ")]
        told = runs[-1] if done.returncode == 0 and runs else f"FOUND, kept in {folder}"
        _say(f"  {name:15} seed {seed:<6} {told}")
        if done.returncode:
            _say(done.stderr[-2000:])
        fine &= done.returncode == 0
        if not any(folder.iterdir()):
            folder.rmdir()
    return fine


def _alike(seed: int, until: float) -> bool:
    half = time.monotonic() + (until - time.monotonic()) / 2
    count = compare_three(seed, _ALL_OF_IT, half)
    _say(f"  struct, construct and scapy: {count:,} messages alike")
    if shutil.which("tshark") is None:
        _say("  Lua not run: there is no tshark")
        return True
    _say(f"  Lua in tshark: {compare_with_lua(seed, _ALL_OF_IT, until):,} operations alike")
    return True


def _tests(*arguments: str) -> Callable[[int, float], bool]:
    def run(seed: int, until: float) -> bool:
        command = [sys.executable, "-m", "pytest", "-q", "--timeout", "3600", *arguments]
        with tempfile.TemporaryDirectory() as folder:
            told = Path(folder) / "told.xml"
            words = [*command, f"--hypothesis-seed={seed}", f"--junit-xml={told}"]
            # Whoever started us may ignore SIGINT, as a script's background does.
            heeds = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
            with subprocess.Popen(words, cwd=ROOT, preexec_fn=heeds) as tests:
                try:
                    return tests.wait(max(1.0, until - time.monotonic())) in (0, 5)
                except subprocess.TimeoutExpired:
                    tests.send_signal(signal.SIGINT)  # it ends its fixtures, and tells what failed
                try:
                    tests.wait(_GRACE)
                except subprocess.TimeoutExpired:
                    tests.kill()
            _say("  cut short: its time is over")
            return _none_failed(told)

    return run


def _none_failed(told: Path) -> bool:
    """By what pytest wrote; where it was stopped before its first test, there is nothing."""
    if not told.exists():
        return True
    suites = ElementTree.parse(told).getroot().iter("testsuite")  # noqa: S314  # pytest's own
    return not any(int(suite.get(kind, 0)) for suite in suites for kind in ("failures", "errors"))


def _hostile(_: int, until: float) -> bool:
    """Goes on with the pairs that did not run the last time; after all of them, anew."""
    pairs = [f"{name} {hostile}" for name in COMMANDS for hostile in CORPUS]
    HOSTILE_RUN.parent.mkdir(exist_ok=True)
    HOSTILE_RUN.touch()
    ran = set(HOSTILE_RUN.read_text("utf-8").splitlines())
    left = [pair for pair in pairs if pair not in ran] or pairs
    if left is pairs:
        HOSTILE_RUN.write_text("")
    fine, ended = True, 0
    with tempfile.TemporaryDirectory(dir=_memory()) as folder:
        for pair in left:
            if time.monotonic() > until:
                break
            name, hostile = pair.split()
            with tempfile.TemporaryDirectory(dir=_memory()) as place:
                try:
                    check(name, hostile, Path(folder), Path(place))
                except (AssertionError, subprocess.TimeoutExpired) as wrong:
                    _say(f"  {pair}: FOUND {wrong}")
                    fine = False
                    continue
            ended += 1
            with HOSTILE_RUN.open("a", encoding="utf-8") as file:
                file.write(f"{pair}\n")
    _say(f"  {ended} of {len(left)} pairs of a command and a file ended as told")
    return fine


class Section(NamedTuple):
    """What a section does, its share of the time, and what runs it until a time: was it fine?"""

    does: str
    share: int
    run: Callable[[int, float], bool]


_DISK: Final = ("tests/vantage", "tests/capture")
SECTIONS: Final = {
    "messages": Section("mutated messages through decode and encode", 10, _messages),
    "parsers": Section("mutated input through every parser", 20, _parsers),
    "guided": Section("the same, guided by coverage (atheris)", 15, _guided),
    "hostile": Section(
        "every command on every hostile file, from where the last run stopped", 15, _hostile
    ),
    "alike": Section("struct, construct, scapy and Lua read the same", 5, _alike),
    "properties": Section(
        "hypothesis with many more examples", 10,
        _tests("--hypothesis-profile", "torture", "-m", "not torture", "tests/dissectors",
               "tests/capture", "tests/trace", "tests/transform", "tests/kernel", "tests/compare"),
    ),
    "disk": Section(
        "every bit flip, kills at system calls, a disk that fails, losses of power", 15,
        _tests("-m", "torture", *_DISK),
    ),
    "long": Section(
        "all other long tests: guests, replays, the lab", 25,
        _tests("-m", "torture", "tests", *(f"--ignore={folder}" for folder in _DISK)),
    ),
}  # fmt: skip


def main() -> int:
    """1 when something was found."""
    parser = argparse.ArgumentParser(prog="python -m tools.torture")
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=", ".join(SECTIONS))
    parser.add_argument("--minutes", type=float, default=float(os.environ.get(VARIABLE, "60")))
    parser.add_argument("--seed", type=int, default=int(time.time() // 86_400))
    given = parser.parse_args()
    if unknown := set(given.sections) - set(SECTIONS):
        parser.error(f"no such section: {', '.join(sorted(unknown))}")
    chosen = {name: SECTIONS[name] for name in given.sections or SECTIONS}
    shares = sum(section.share for section in chosen.values())
    failed = []
    for name, section in chosen.items():
        seconds = given.minutes * 60 * section.share / shares
        _say(f"{name}: {section.does}; seed {given.seed}, {seconds / 60:.1f} minutes")
        if not section.run(given.seed, time.monotonic() + seconds):
            failed.append(name)
    _say(f"FOUND something: {', '.join(failed)}" if failed else "nothing was found")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
