"""How a command that runs until it is told to stop hears of it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Final

_LOOK_UP_S: Final = 0.05
_ENDING: Final = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}


def stop_on_signals(
    stop: threading.Event, hurry: bool = True, hang_up: Callable[[], None] | None = None
) -> Callable[[], None]:
    """The first SIGINT, SIGTERM or SIGHUP sets `stop`; with `hurry` a second one interrupts.

    With `hang_up`, SIGHUP does that instead. Where SIGHUP would end us and was ignored when we
    were started, as by nohup, it stays ignored. SIGINT does not: a shell that runs a script ignores
    it for all that it starts in the background. What is returned puts everything back.

    The handler only takes a note, and a thread acts on it: setting the event needs a lock that
    the main thread, in which handlers run, may be holding.
    """
    noted: list[int] = []
    hung_up: list[int] = []
    before: dict[int, Any] = {}
    over = threading.Event()

    def handle(number: int, _: FrameType | None) -> None:
        if number == signal.SIGHUP and hang_up is not None:
            hung_up.append(number)
            return
        noted.append(number)
        if hurry and len(noted) > 1:
            raise KeyboardInterrupt

    def watch() -> None:
        while not noted:
            if over.wait(_LOOK_UP_S):
                return
            if hung_up and hang_up is not None:
                hung_up.clear()
                hang_up()
        stop.set()

    def put_back() -> None:
        over.set()
        for number, handler in before.items():
            signal.signal(number, handler)

    for number in _ENDING:
        kept = number == signal.SIGHUP and hang_up is None
        if not kept or signal.getsignal(number) is not signal.SIG_IGN:
            before[number] = signal.signal(number, handle)
    threading.Thread(target=watch, name="signals", daemon=True).start()
    return put_back


@contextmanager
def interrupted_by_signals() -> Iterator[None]:
    """SIGTERM and SIGHUP interrupt as Ctrl-C does, so that what was begun is cleared away.

    In another thread than the main one nothing is changed: its owner hears of signals.
    """
    ours = threading.current_thread() is threading.main_thread()
    changed = [
        number
        for number in (signal.SIGTERM, signal.SIGHUP)
        if ours and signal.getsignal(number) is signal.SIG_DFL
    ]
    for number in changed:
        signal.signal(number, signal.default_int_handler)
    try:
        yield
    finally:
        for number in changed:
            signal.signal(number, signal.SIG_DFL)


@contextmanager
def held_signals() -> Iterator[Callable[[], object]]:
    """SIGINT, SIGTERM and SIGHUP wait; yields a function that returns when one of them came."""
    # Blocked and waited for: a handler that sets an Event can meet its own thread in Event.wait.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)
    try:
        yield lambda: signal.sigwait(_ENDING)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
