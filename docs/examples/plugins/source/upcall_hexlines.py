"""Lines of hex digits as a capture. The first line is `# upcall hexlines`; then each line is

    SECONDS CONNECTION > DIGITS

with `>` for bytes to the guest and `<` for bytes from it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from upcall_trace.capture.reader import Damage
from upcall_trace.capture.records import Begins, Chunk, Header, Open, Record
from upcall_trace.sources import SourceFormat

FIRST_LINE = b"# upcall hexlines\n"


def recognise(start: bytes) -> bool:
    """Whether a file that begins like this is one of ours."""
    return start.startswith(FIRST_LINE)


FORMAT = SourceFormat(
    name="hexlines",
    about="lines of hex digits, one send each",
    recognise=recognise,
    module=__name__,
    lacks="the wall clock; who closed a connection",
)


class HexLines:
    """The file as a source. A line that is none becomes damage, and the rest is read."""

    live = False

    def __init__(self, path: Path) -> None:
        self.header = Header(source="hexlines")
        self.damage: list[Damage] = []
        self.complete = False
        self._file = path.open("rb")

    def records(self) -> Iterator[tuple[int, Record]]:
        """Every record with the offset of its line."""
        seen: set[int] = set()
        offset = 0
        for line in self._file:
            try:
                for record in self._of_line(line, seen):
                    yield offset, record
            except (ValueError, KeyError):
                self.damage.append(Damage(offset, len(line), at_end=False))
            offset += len(line)
        self.complete = True

    def _of_line(self, line: bytes, seen: set[int]) -> Iterator[Record]:
        if line.startswith(b"#") or not line.strip():
            return
        seconds, conn, arrow, digits = line.decode("ascii").split()
        t_ns, number = round(float(seconds) * 1e9), int(conn)
        if number not in seen:
            seen.add(number)
            yield Open(t_ns, number, Begins.LINE)
        yield Chunk(t_ns, number, {">": True, "<": False}[arrow], bytes.fromhex(digits))

    def __enter__(self) -> HexLines:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


def read(path: Path) -> HexLines:
    """Open the file; the program turns an OSError into a sentence."""
    return HexLines(path)
