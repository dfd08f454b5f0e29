"""What runs behind a capture's screen. Workers only post messages to the widget that shows it.

Every worker looks now and then whether it is still wanted.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from textual.message import Message
from textual.widget import Widget
from textual.worker import Worker, get_current_worker

from ...diagnose.log_inputs import read_logs
from ...diagnose.told_by_logs import Logs
from ...errors import UserError
from ...kernel.world import World
from ...trace.filters import Filter
from ...trace.opening import Capture
from ...trace.operations import Operations
from ...views.line_order import Rows
from ...views.log_lines import LogRow, read_log
from ...views.text import safe
from ..data.browsed import Arranged, BrowsedCapture, Wanted, arrange
from ..data.columns import RowsByConnection
from ..data.export import export
from ..data.findings import Batch
from ..data.first_failure import FirstFailure
from ..data.reading import Grown, read
from ..data.search import Sought, Told, rows_with
from ..data.summary import Summary, by_connection, by_operation
from ..data.walk import Moment, Walk, WalkProgress
from ..panes.log_pane import trouble_row

_READERS: Final = 2
_AT_ONCE: Final = ("conn", "request", "t_ns", "answered", "latency_ns")
"""What lines, timeline and findings are laid by: whole columns of the capture's index."""
_SAY_EVERY_S: Final = 0.5


@dataclass(frozen=True, slots=True)
class Given:
    """What the user opened: a capture, and what goes with it."""

    path: Path
    console: Path | None = None
    vmm_log: Path | None = None
    world: World | None = None
    address: str | None = None
    """Of the VMM's socket, where it is known."""
    filter: str | None = None
    """What is shown first, as an expression."""


class Work:
    """The work on one capture, whose results are posted to `told`."""

    class Read(Message):
        """There is a capture, or more of one."""

        def __init__(self, found: Capture | Grown, rows: RowsByConnection) -> None:
            super().__init__()
            self.found = found
            self.rows = rows
            """Of a whole capture."""

    class Walked(Message):
        """The diagnosis has come on."""

        def __init__(self, batch: Batch | None, headline: str, told: WalkProgress) -> None:
            super().__init__()
            self.batch = batch
            self.headline = headline
            self.passed, self.offset, self.ended = told.passed, told.offset, told.ended
            self.followed, self.over = told.followed, told.over

    class Laid(Message):
        """The ladder's lines are worked out."""

        def __init__(self, arranged: Arranged) -> None:
            super().__init__()
            self.arranged = arranged

    class Summed(Message):
        """Counts and latencies are worked out."""

        def __init__(self, connections: dict[int, Summary], kinds: Sequence[Summary]) -> None:
            super().__init__()
            self.connections = connections
            self.kinds = kinds

    class Arrived(Message):
        """What is known around an operation; None when the diagnosis is not there yet."""

        def __init__(self, row: int, moment: Moment | None) -> None:
            super().__init__()
            self.row = row
            self.moment = moment

    class LogsRead(Message):
        """The logs are there."""

        def __init__(self, logs: Sequence[Sequence[LogRow]]) -> None:
            super().__init__()
            self.logs = logs

    class Lacks(Message):
        """Something that is needed to tell all is not there: its name, and why, in a sentence."""

        def __init__(self, what: str, why: str) -> None:
            super().__init__()
            self.what = what
            self.why = safe(why)

    class Counted(Message):
        """So many operations match what is being typed."""

        def __init__(self, text: str, count: int) -> None:
            super().__init__()
            self.text = text
            self.count = count

    class Found(Message):
        """Rows that have what is looked for, so far; with `ended` all of them."""

        def __init__(self, rows: Sequence[int], ended: bool) -> None:
            super().__init__()
            self.rows, self.ended = rows, ended

    class Said(Message):
        """A sentence for the user; `trouble` for what went wrong."""

        def __init__(self, text: str, trouble: bool) -> None:
            super().__init__()
            self.text = text
            self.trouble = trouble

    def __init__(self, given: Given, recording: BrowsedCapture, told: Widget) -> None:
        self._given = given
        self._recording = recording
        self._told = told
        self.walk: Walk | None = None
        self._unreadable: list[Path] = []
        """Logs that were given and cannot be read."""
        self._first = FirstFailure()
        self._laying: Wanted | None = None
        self._lay_again: Wanted | None = None
        self._summing = False
        self._sum_again = False
        self.began = False

    def start_reading(self) -> None:
        """Read the capture, the logs, and then the capture once more for its findings."""
        self.began = True
        self._start("read", self._read)

    def start_walking(self) -> None:
        """Diagnose, unless that has begun; to be called when operations are on the screen."""
        if self.walk is not None:
            return
        self.walk = Walk(self._given.path, self._given.world, self._tell)
        self._start("walk", self._walk)

    def lay(self, wanted: Wanted) -> None:
        """Work out the ladder's lines; the last wish counts."""
        if self._laying is not None:
            self._lay_again = wanted
            return
        self._laying = wanted
        self._start("lay", partial(self._lay, wanted))

    @property
    def wished(self) -> Wanted | None:
        """What is being worked out, None for nothing."""
        return self._lay_again or self._laying

    def laid(self) -> None:
        """The lines are there: go on with what was wished for meanwhile."""
        self._laying, wanted, self._lay_again = None, self._lay_again, None
        if wanted is not None:
            self.lay(wanted)

    def sum_up(self) -> None:
        """Work out counts and latencies."""
        if self._summing:
            self._sum_again = True
            return
        self._summing = True
        self._start("sum", self._sum)

    def summed(self) -> None:
        """They are there."""
        self._summing, again, self._sum_again = False, self._sum_again, False
        if again:
            self.sum_up()

    def look_around(self, row: int) -> None:
        """Find out what is known around an operation."""
        self._start("moment", partial(self._look_around, row, self._recording.operations))

    def count_matches(self, wanted: Filter) -> None:
        """Count what a filter would match."""
        self._start("count", partial(self._count, wanted, self._recording.operations))

    def find(self, sought: Sought) -> None:
        """Look for something in all operations that are there."""
        told = self._recording.told_at()
        self._start("find", partial(self._find, sought, self._recording.operations, told))

    def write_out(self, target: Path, rows: Rows | None) -> None:
        """Export operations, with None all of them."""
        self._start("export", partial(self._export, target, self._recording.operations, rows))

    @property
    def is_at_rest(self) -> bool:
        """Whether no work is being done or about to begin, and what was done is shown."""
        shown = self._laying is None and not self._summing
        return self.began and shown and all(worker.is_finished for worker in self._told.workers)

    def _start(self, group: str, work: Callable[[], None]) -> Worker[None]:
        return self._told.run_worker(
            partial(self._guarded, work), group=group, exclusive=True, thread=True
        )

    def _guarded(self, work: Callable[[], None]) -> None:
        try:
            work()
        except UserError as error:
            self._told.post_message(self.Said(safe(str(error)), trouble=True))
        except OSError as error:
            self._told.post_message(self.Said(safe(error.strerror or str(error)), trouble=True))

    def _read(self) -> None:
        worker = get_current_worker()
        read(
            self._given.path,
            self._show,
            lambda: worker.is_cancelled,
        )

    def _show(self, found: Capture | Grown) -> None:
        rows = RowsByConnection()
        if isinstance(found, Capture):
            operations = found.operations  # read here, not when the screen wants them
            with ThreadPoolExecutor(_READERS) as readers:
                list(readers.map(operations.column, _AT_ONCE))
            rows.extend(operations)
        self._told.post_message(self.Read(found, rows))

    def _walk(self) -> None:
        worker, given = get_current_worker(), self._given
        logs = Logs()
        if given.console or given.vmm_log:
            readable: dict[str, Path] = {}
            lines = []
            for path, name in ((given.console, "console"), (given.vmm_log, "vmm-log")):
                if path is None:
                    continue
                try:
                    lines.append(read_log(path, name))
                    readable[name] = path
                except UserError as error:  # the capture can be told without it
                    self._unreadable.append(path)
                    lines.append([trouble_row(str(error))])
                    self._told.post_message(self.Lacks(name, str(error)))
            self._told.post_message(self.LogsRead(lines))
            logs = read_logs(readable.get("console"), readable.get("vmm-log"))
        assert self.walk is not None  # it was made before the worker
        self.walk.run(logs, lambda: worker.is_cancelled)

    def _tell(self, told: WalkProgress) -> None:
        batch = Batch.of(told.findings) if told.findings else None
        self._first.take(told.findings)
        self._told.post_message(self.Walked(batch, self._first.headline, told))

    def _lay(self, wanted: Wanted) -> None:
        self._told.post_message(self.Laid(arrange(self._recording, wanted)))

    def _sum(self) -> None:
        operations = self._recording.operations
        self._told.post_message(self.Summed(by_connection(operations), by_operation(operations)))

    def _look_around(self, row: int, operations: Operations) -> None:
        worker = get_current_worker()
        walk = self.walk
        moment = None
        if walk is not None:
            moment = walk.moment(operations, row, lambda: worker.is_cancelled)
        if not worker.is_cancelled:
            self._told.post_message(self.Arrived(row, moment))

    def _count(self, wanted: Filter, operations: Operations) -> None:
        self._told.post_message(self.Counted(wanted.text, int(wanted.mask(operations).sum())))

    def _find(self, sought: Sought, operations: Operations, told: Told) -> None:
        worker, recording = get_current_worker(), self._recording
        found: list[int] = []
        said_s = time.monotonic()
        for row in rows_with(sought, self._given.path, operations, recording.rows.row, told):
            if worker.is_cancelled:
                return
            first = row is not None and not found
            if row is not None:
                found.append(row)
            if first or time.monotonic() - said_s >= _SAY_EVERY_S:
                said_s = time.monotonic()
                self._told.post_message(self.Found(list(found), ended=False))
        self._told.post_message(self.Found(sorted(set(found)), ended=True))

    def _export(self, target: Path, operations: Operations, rows: Rows | None) -> None:
        worker = get_current_worker()
        consoles, vmm_logs = (
            [path] if path is not None and path not in self._unreadable else []
            for path in (self._given.console, self._given.vmm_log)
        )
        count, losses = export(
            self._given.path, target, operations, rows, lambda: worker.is_cancelled,
            consoles, vmm_logs,
        )  # fmt: skip
        lost = "".join(f"; {loss.what}" for loss in losses)
        self._told.post_message(
            self.Said(f"{safe(str(target))}: {count} operations written{lost}", trouble=False)
        )
