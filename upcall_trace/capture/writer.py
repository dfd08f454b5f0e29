"""Writing a capture: append-only, one frame a record, nothing ever rewritten."""

from __future__ import annotations

import os
from io import BufferedWriter
from pathlib import Path
from typing import TYPE_CHECKING, Self

from .encoding import encode, encode_chunk
from .frames import MAGIC
from .records import End, Header, Record

if TYPE_CHECKING:
    from .runs import MessageRun


class CaptureWriter:
    """A new capture at `path`, as a context manager.

    Leaving the context closes the file cleanly, with an `End` record; an exception leaves it
    without one, so that readers see that the recording broke off. Raises OSError.
    """

    def __init__(self, path: Path, header: Header) -> None:
        self.path = path
        begin = MAGIC + encode(header)
        self._file: BufferedWriter = path.open("wb")
        self._last_ns = 0
        self._file.write(begin)

    def write(self, record: Record) -> int:
        """Append `record`; returns the offset at which it stands."""
        offset = self._file.tell()
        self._file.write(encode(record))
        t_ns = getattr(record, "t_ns", None)
        if t_ns is not None:
            self._last_ns = max(self._last_ns, t_ns)
        return offset

    def write_run(self, run: MessageRun) -> None:
        """Append each message of a run."""
        write = self._file.write
        times: list[int] = run.t_ns.tolist()
        for place, (t_ns, conn, to_guest) in enumerate(
            zip(times, run.conn.tolist(), run.to_guest.tolist(), strict=True)
        ):
            write(encode_chunk(t_ns, conn, to_guest, run.data(place)))
        self._last_ns = max(self._last_ns, *times)

    def flush(self) -> None:
        """Hand everything written so far to the kernel: it survives a kill of this process."""
        self._file.flush()

    def close(self) -> None:
        """End the recording cleanly and put it on the disk."""
        with self._file:  # closed also when the disk is full
            self.write(End(self._last_ns))
            self._file.flush()
            os.fdatasync(self._file.fileno())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.close()
        else:
            self._file.close()
