"""What all tests of a session did with recordings, and how the session ends because of it.

Loaded by every run of pytest: light.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import pytest

from ..errors import ExitCode
from .settings import SUFFIX, from_settings


@dataclass(slots=True)
class WorkDone:
    """What a test did with recordings since its last report.

    `folders` are directories that it had recordings looked up in. `code` is the exit code of its
    failure, if it has one of its own.
    """

    replayed: int = 0
    used: list[str] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    code: int | None = None


_DONE: Final = pytest.StashKey[WorkDone]()


def done_by(item: pytest.Item) -> WorkDone:
    """To be added to by whoever does something."""
    return item.stash.setdefault(_DONE, WorkDone())


def send_along(item: pytest.Item, report: Any) -> None:
    """Put what was done into the report, which xdist takes from workers to the account."""
    if _DONE in item.stash:
        report.upcall = asdict(item.stash[_DONE])
        del item.stash[_DONE]


class Worker:
    """In a worker of xdist: tells whether it ran all that there is."""

    def __init__(self, config: pytest.Config) -> None:
        self._output = config.workeroutput  # type: ignore[attr-defined]

    def pytest_deselected(self) -> None:
        """Some tests are left out."""
        self._output["upcall_deselected"] = True


class Account:
    """The account of a session; where pytest says 0 or 1 it may know a better exit code."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._replayed = 0
        self._used: set[Path] = set()
        self._folders: set[Path] = set()
        self._lost: dict[str, None] = {}
        self._codes: set[int] = set()
        self._partly = False
        self._lines: list[str] = []

    def pytest_deselected(self) -> None:
        """Some tests are left out."""
        self._partly = True

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        """A worker of xdist has ended."""
        output = getattr(node, "workeroutput", {})
        self._partly = self._partly or output.get("upcall_deselected", False)

    def pytest_runtest_logreport(self, report: Any) -> None:
        """One phase of one test."""
        done = WorkDone(**getattr(report, "upcall", {}))
        if report.failed:
            self._codes.add(ExitCode.DIFFERENT if done.code is None else done.code)
        self._partly = self._partly or report.skipped
        self._replayed += done.replayed
        self._used |= set(map(Path, done.used))
        self._folders |= set(map(Path, done.folders))
        self._lost |= dict.fromkeys(done.lost)

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Decide; docs/exit-codes.md."""
        config, status = self._config, session.exitstatus
        if config.option.collectonly:
            return
        if status == pytest.ExitCode.TESTS_FAILED and len(self._codes) == 1:
            session.exitstatus = next(iter(self._codes))
        elif status in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
            if config.getoption("--upcall-captures") and not self._replayed:
                self._lines.append("no capture was replayed, so nothing was shown to work")
                session.exitstatus = ExitCode.NOTHING_RUN
            elif unused := list(self._unused()):
                self._lines += unused
                session.exitstatus = ExitCode.DIFFERENT
            elif self._lost:
                session.exitstatus = ExitCode.LOST

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """What has to be told beside the failures."""
        lines = [*self._lost, *self._lines]
        if not lines:
            return
        from ..views.text import safe

        terminalreporter.section("upcall recordings")
        for line in lines:
            terminalreporter.line(safe(line))

    def _unused(self) -> Iterator[str]:
        """Recordings that no test used, where all tests that might have were run."""
        if self._partly or self._config.getini("upcall_unused") == "ignore":
            return
        for folder in sorted(filter(self._is_whole, self._folders)):
            for path in sorted(set(folder.rglob(f"*{SUFFIX}")) - self._used):
                yield (
                    f"{path} was used by no test: remove it, replay it with --upcall-captures, or "
                    "set upcall_unused = ignore"
                )

    def _is_whole(self, folder: Path) -> bool:
        """Whether pytest was asked for every test that might use the recordings in `folder`."""
        config = self._config
        everywhere = folder == from_settings(config, "upcall_recordings")
        if everywhere and config.args_source is not pytest.Config.ArgsSource.ARGS:
            return True
        asked = [config.invocation_params.dir / each for each in config.args if "::" not in each]
        return any(folder.parent.is_relative_to(each) for each in asked)
