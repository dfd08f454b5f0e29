"""A live guest for tests: skipped, loudly, where the lab is not set up; required in CI."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from upcall_trace.lab import pieces
from upcall_trace.lab.initramfs import initramfs_for
from upcall_trace.lab.process import LiveGuest
from upcall_trace.sockets.addresses import short_temporary

REQUIRED = "UPCALL_TRACE_REQUIRE_LAB"
"""In CI this is set, so that a lab that cannot run is a failure and not a skip."""


@pytest.fixture(scope="session")
def lab_pieces() -> pieces.Kernel:
    """The stock kernel, when the lab is set up."""
    missing = [piece.name for piece in pieces.survey() if piece.where is None]
    kernel = pieces.find_kernel()
    if kernel is None or missing:
        why = f"NO LIVE GUEST: {', '.join(missing)} missing; upcall-trace lab setup --install"
        if os.environ.get(REQUIRED):
            pytest.fail(why, pytrace=False)
        pytest.skip(why)
    initramfs_for(kernel, lambda _: None)
    return kernel


@pytest.fixture(scope="session")
def labs_directory(lab_pieces: pieces.Kernel) -> Iterator[Path]:
    """A runtime directory of our own, which must be empty of labs in the end."""
    # A socket's path is short, and pytest's own directories are not.
    directory = Path(tempfile.mkdtemp(prefix="live-", dir=short_temporary()))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_RUNTIME_DIR", str(directory))
        yield directory / "upcall-trace"
    left = [path.name for path in directory.glob("upcall-trace/*") if path.name != ".lock"]
    shutil.rmtree(directory)
    assert left == []


Start = Callable[..., LiveGuest]


@pytest.fixture
def live_guest(labs_directory: Path) -> Iterator[Start]:
    """Starts guests that end with the test: `live_guest("--machine", "microvm")`."""
    with ExitStack() as stack:
        yield lambda *options: stack.enter_context(LiveGuest(*options))
