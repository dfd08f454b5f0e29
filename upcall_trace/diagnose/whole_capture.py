"""A capture with everything that can be asked of it, each read when it is first asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..capture.reader import Damage
from ..capture.records import Header, Mark, Record
from ..capture.unpacking import STDIN
from ..sources import open_source
from ..sources.spooled import plain
from ..trace.decoding import Connection
from ..trace.filters import parse
from ..trace.opening import Capture, Progress, load
from ..trace.operations import Operation, Operations
from .finding import Finding
from .judged import judging
from .run import Diagnosed, diagnose_joined, joined

if TYPE_CHECKING:
    from .lines_beside import LinesBeside
    from .log_joining import Joining


class WholeCapture:
    """A capture, or any file that is read as one.

    The file is looked at when the object is made: UnreadableInput then says in a sentence what is
    wrong with it. It is read once for the operations, and once each for findings and records. What
    is damaged or missing raises nothing: `damage` and `complete` tell it. `consoles` and `vmm_logs`
    are logs of the same time, which are read with the findings.
    """

    def __init__(
        self, path: Path, consoles: Sequence[Path] = (), vmm_logs: Sequence[Path] = ()
    ) -> None:
        with open_source(path) as source:
            self.header: Header = source.header
        self.path = plain(path)
        self._consoles, self._vmm_logs = list(map(_kept, consoles)), list(map(_kept, vmm_logs))
        self._opened: Capture | None = None

    def __repr__(self) -> str:
        return f"<WholeCapture {self.path}>"

    def load(self, progress: Progress | None = None) -> Capture:
        """Read the operations now, if that is still to be done."""
        if self._opened is None:
            self._opened = load(self.path, progress)
            self._opened.operations.judge = judging(self.path)
        return self._opened

    @property
    def opened(self) -> Capture:
        """The capture as the commands see it."""
        return self.load()

    @property
    def operations(self) -> Operations:
        """Every request with its reply, in the order the requests were sent."""
        return self.opened.operations

    @property
    def connections(self) -> list[Connection]:
        """Every connection in the order they were opened, refused ones and other ports too."""
        return self.opened.connections

    @property
    def marks(self) -> list[Mark]:
        """The marks and comments that the capture holds."""
        return self.opened.marks

    @property
    def damage(self) -> list[Damage]:
        """The places of the file that cannot be read."""
        return self.opened.damage

    @property
    def complete(self) -> bool:
        """Whether the recording was closed cleanly and all that was read of it is whole."""
        return self.opened.complete is True

    def column(self, name: str) -> NDArray[Any]:
        """One column of the operations as an array, a value for each; raises KeyError.

        `t_ns` counts from the capture's first record. docs/capture-format.md has the columns.
        """
        return self.operations.t_ns() if name == "t_ns" else self.operations.column(name)

    @property
    def columns(self) -> Mapping[str, NDArray[Any]]:
        """All columns that have a value for each operation, by name."""
        return {name: self.column(name) for name in self.operations.names() if name != "extra"}

    def select(self, expression: str) -> Iterator[Operation]:
        """The operations that a filter matches (docs/filters.md); raises BadFilter."""
        operations = self.operations
        rows: list[int] = np.flatnonzero(parse(expression).mask(operations)).tolist()
        return (operations.operation(row) for row in rows)

    def records(self) -> Iterator[Record]:
        """Every record as it is in the file, in its order: what was sent, byte for byte."""
        with open_source(self.path) as source:
            for _, record in source.records():
                yield record

    @cached_property
    def _joining(self) -> Joining | None:
        """The capture with its logs, None where there are none; raises UnreadableInput."""
        if not (self._consoles or self._vmm_logs):
            return None
        from .log_inputs import read_logs  # who gives no log waits for nothing that reads logs

        return joined(self.path, read_logs(self._consoles, self._vmm_logs))

    @cached_property
    def diagnosed(self) -> Diagnosed:
        """What `diagnose` says of the capture and its logs, without a world."""
        return diagnose_joined(self.path, self._joining)

    @property
    def findings(self) -> list[Finding]:
        """What failed, and why, in the order of the operations."""
        return self.diagnosed.findings

    @cached_property
    def lines_beside(self) -> LinesBeside | None:
        """The lines of the logs beside the requests, None where there are no logs."""
        if self._joining is None:
            return None
        from .lines_beside import CONSOLE, VMM_LOG, GivenLog, lines_beside

        files = [GivenLog(CONSOLE, path) for path in self._consoles]
        files += [GivenLog(VMM_LOG, path) for path in self._vmm_logs]
        first_ns, began_ns = self.opened.first_ns, self.header.wall_ns
        wall_ns = None if began_ns is None else began_ns + first_ns
        clocks = (wall_ns, first_ns)
        return lines_beside(files, self._joining, self.findings, self.operations, clocks)


def _kept(log: Path) -> Path:
    """A log that can be read more than once."""
    return plain(log) if log == STDIN else log
