"""The pytest plugin: recordings as tests. docs/pytest.md.

Every run of pytest loads this module where the package is installed. So it imports nothing heavy:
what reads and replays is imported by the test that does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from ..errors import ExitCode, UnreadableInput, UserError, WrongUsage
from .account import Account, Worker, done_by, send_along
from .failing import ReplayFailed
from .settings import (
    MARKER,
    OPTIONS,
    SETTINGS,
    SUFFIX,
    VERDICTS,
    choice_of,
    folder_of,
    marked,
    own_name,
    path_of,
    verdict_of,
)

if TYPE_CHECKING:
    from ..replay.run import Recording
    from ..replay.verdict import Verdict
    from ..simulated.on_socket import SimulatedGuest
    from .channel_under_test import ChannelUnderTest

_CHANNEL: Final = pytest.StashKey["ChannelUnderTest"]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Options and settings."""
    group = parser.getgroup("upcall", "recordings of upcall traffic")
    for name, (how, told) in OPTIONS.items():
        group.addoption(name, help=told, **how)
    for name, told in SETTINGS.items():
        parser.addini(name, told)


def pytest_configure(config: pytest.Config) -> None:
    """The marker, and who decides on the exit code: one process, whatever the workers."""
    config.addinivalue_line("markers", f"upcall({', '.join(MARKER)}): see upcall-trace docs pytest")
    for name in ("upcall_extra", "upcall_unused"):
        if config.getini(name) not in ("", *VERDICTS):
            raise pytest.UsageError(f"{name} is fail or ignore, not {config.getini(name)!r}")
    in_worker = hasattr(config, "workerinput")
    config.pluginmanager.register(Worker(config) if in_worker else Account(config))


# Failures.


class Failed(pytest.fail.Exception):  # type: ignore[misc, name-defined]  # made at run time
    """A replay that failed: pytest shows the report, and no traceback."""

    __module__ = "builtins"  # as pytest's own: a summary names it without its home

    def __init__(self, report: str, exit_code: ExitCode) -> None:
        super().__init__(report, pytrace=False)
        self.exit_code = exit_code


@contextmanager
def _as_failure() -> Iterator[None]:
    try:
        yield
    except ReplayFailed as error:
        raise Failed(str(error), error.exit_code) from None
    except UserError as error:
        from ..views.text import safe

        raise Failed(safe(str(error)), error.exit_code) from None


# Captures as tests.


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> pytest.Collector | None:
    """With --upcall-captures, every capture is a file with one test."""
    if file_path.suffix == SUFFIX and parent.config.getoption("--upcall-captures"):
        collected: pytest.Collector = CaptureFile.from_parent(parent, path=file_path)
        return collected
    return None


class CaptureFile(pytest.File):
    """A capture."""

    def collect(self) -> Iterable[pytest.Item]:
        """Its one test."""
        yield CaptureItem.from_parent(self, name="replay")


class CaptureItem(pytest.Item):
    """Replays the capture, with the matchers beside it and in its marks."""

    def runtest(self) -> None:
        """Raises Failed."""
        with _as_failure():
            _replay(self, _read(self, self.path), ())

    def reportinfo(self) -> tuple[Path, None, str]:
        """What pytest calls it."""
        return self.path, None, f"replay of {self.path.name}"


# Fixtures.


@pytest.fixture
def upcall_guest(request: pytest.FixtureRequest) -> Iterator[SimulatedGuest]:
    """A simulated guest that listens at `.path`, with `.control`, `.state` and `.reset`.

    Its world is the parameter of an indirect parametrization, or chosen by the marker `upcall` and
    --upcall-world; else it is a default Kata pod.
    """
    from dissectors.constants import Arch

    from .guests import find_world, simulated

    with ExitStack() as running:
        with _as_failure():
            choice = choice_of(request.node)
            world = getattr(request, "param", None) or find_world(choice, {}, Arch.X86_64)
            guest = running.enter_context(simulated(world, choice.faults))
        yield guest


@pytest.fixture
def upcall_recording(request: pytest.FixtureRequest) -> Callable[[str], Recording]:
    """A function: the recording of a name, from the directory of recordings."""

    def recording(name: str) -> Recording:
        with _as_failure():
            return _read_named(request.node, name)

    return recording


@pytest.fixture
def upcall_replay(request: pytest.FixtureRequest) -> Callable[..., Verdict]:
    """A function: replay a recording, given or by name, and fail unless all is as recorded.

    It talks to --upcall-target, or to a simulated guest that has just booted. `allow` names
    dangers to begin in spite of.
    """

    def replay(recording: Recording | str | None = None, allow: Iterable[str] = ()) -> Verdict:
        with _as_failure():
            name = recording or marked(request.node).get("recording")
            if name is None:
                raise WrongUsage("which recording? give its name, or mark the test with it")
            if isinstance(name, str):
                name = _read_named(request.node, name)
            return _replay(request.node, name, allow)

    return replay


@pytest.fixture
def upcall_channel(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ChannelUnderTest]:
    """A socket for the test's own client at `.path`, behind it the guest.

    What passes is compared with the test's recording when the test has passed, or becomes that
    recording, as --upcall-record says. `.order` reaches the VMM's side.
    """
    from .channel_under_test import ChannelUnderTest, Expected, Keep

    item: pytest.Item = request.node
    with _as_failure():
        path = path_of(item, marked(item).get("recording") or own_name(item))
        keep = _keep(item, path)
        done_by(item).used.append(str(path))
        done_by(item).folders.append(str(folder_of(item)))
        recording = _read(item, path) if keep == Keep.NOTHING.value else None
        extra, unused = (verdict_of(item, name) == "fail" for name in ("extra", "unused"))
        traffic = tmp_path_factory.mktemp("upcall") / path.name
        channel = ChannelUnderTest(
            choice_of(item), Expected(path, recording, extra, unused), Keep(keep), traffic
        )
    item.stash[_CHANNEL] = channel
    try:
        yield channel
    finally:
        with _as_failure():
            channel.close()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """A test that has passed so far also has to have sent what its recording has."""
    result = yield
    channel = item.stash.get(_CHANNEL, None)
    if channel is not None:
        with _as_failure():
            done_by(item).replayed += 1
            channel.settle()
    return result  # a wrapper of pluggy's returns the result it was given


def _keep(item: pytest.Item, path: Path) -> str:
    """What becomes of a test's traffic in this mode; raises UnreadableInput."""
    mode = item.config.getoption("--upcall-record")
    if mode in ("all", "rewrite"):
        return "all" if mode == "all" else "good"
    if path.exists():
        return "nothing"
    if mode == "once":
        return "good"
    raise UnreadableInput(f"{path} is missing; --upcall-record once records it")


def _read_named(item: pytest.Item, name: str) -> Recording:
    done_by(item).folders.append(str(folder_of(item)))
    return _read(item, path_of(item, name))


def _read(item: pytest.Item, path: Path) -> Recording:
    from ..replay.run import read_recording
    from .replaying import losses

    done = done_by(item)
    done.used.append(str(path))
    recording = read_recording(path)
    done.lost += losses(recording)
    return recording


def _replay(item: pytest.Item, recording: Recording, allow: Iterable[str]) -> Verdict:
    from .replaying import replay

    verdict = replay(recording, choice_of(item, recording.path.parent, allow))
    done_by(item).replayed += 1
    return verdict


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """What was done with recordings goes along with the report."""
    report = yield
    failure = call.excinfo.value if call.excinfo is not None else None
    if isinstance(failure, Failed):
        done_by(item).code = int(failure.exit_code)
    send_along(item, report)
    return report
