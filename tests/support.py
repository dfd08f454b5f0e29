"""Captures to test with, and the command line as a user meets it."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shutil
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from click.shell_completion import ShellComplete

from dissectors.constants import MessageType
from dissectors.messages import Request, bare_request, hello, mmio_request
from upcall_trace.capture.index import read_index
from upcall_trace.capture.reader import CaptureReader
from upcall_trace.capture.records import Begins, Chunk, Close, Header, Open, Record
from upcall_trace.capture.writer import CaptureWriter
from upcall_trace.cli import cli, main
from upcall_trace.sources import open_source
from upcall_trace.trace.decoding import Session
from upcall_trace.trace.indexing import INDEX_VERSION
from upcall_trace.trace.operations import Operation, Operations

GOLDEN = Path(__file__).parent / "golden"
TRANSCRIPTS = sorted(GOLDEN.glob("*.jsonl"))
PCAPS = sorted(GOLDEN.glob("*.pcap"))
HELLO = hello().encode()

each_transcript = pytest.mark.parametrize("golden", TRANSCRIPTS, ids=lambda path: path.stem)
each_recording = pytest.mark.parametrize(
    "golden", [*TRANSCRIPTS, *PCAPS], ids=lambda path: path.name
)


def golden(name: str) -> Path:
    """The transcript of that name."""
    return GOLDEN / f"{name}.jsonl"


def transcript_text(path: Path) -> str:
    """A transcript as we would write it: seconds of waiting always have a point."""
    return re.sub(r'("after_s": [0-9]+)}', r"\1.0}", path.read_text())


def records_of(path: Path) -> tuple[Header, list[Record]]:
    """The header and the records of any file that can be read."""
    with open_source(path) as source:
        return source.header, [record for _, record in source.records()]


def write_capture(path: Path, records: Iterable[Record], header: Header | None = None) -> Path:
    """A capture that was closed cleanly, without an index."""
    with CaptureWriter(path, header or Header("test")) as writer:
        for record in records:
            writer.write(record)
    return path


def has_index(path: Path) -> bool:
    """Whether there is an index for all of a capture."""
    with CaptureReader(path) as reader:
        return read_index(reader, INDEX_VERSION) is not None


def decode(records: Iterable[Record], header: Header | None = None) -> Session:
    """A session that was fed all of the records."""
    session = Session(header or Header("test"))
    for record in records:
        session.feed(record)
    session.finish()
    return session


def operations(session: Session) -> list[Operation]:
    """What a session found, as objects."""
    return list(Operations(session.table.columns(), session.first_ns or 0))


def connect(conn: int = 1, t_ns: int = 0, port: int = 219) -> list[Record]:
    """A connection up to the CONNECT message, all at one time."""
    sent = ((True, b"CONNECT %d\n" % port), (False, b"OK 1024\n"), (True, b"d"), (False, HELLO))
    return [Open(t_ns, conn), *(Chunk(t_ns, conn, way, raw) for way, raw in sent)]


def ask(request: Request | bytes, t_ns: int, conn: int = 1) -> Chunk:
    """One send to the guest."""
    return Chunk(t_ns, conn, True, request if isinstance(request, bytes) else request.encode())


def answer(request: Request, t_ns: int, conn: int = 1, ret: int = 0) -> Chunk:
    """The reply of a guest with clean buffers."""
    return Chunk(t_ns, conn, False, request.reply(ret).encode())


DISK = mmio_request(MessageType.ADD_MMIO, 0xE0006000, 0x2000, 5)
ADD_MEM = bare_request(MessageType.ADD_MEM)


def small_capture() -> list[Record]:
    """Two connections, three operations: one good, one refused, one unanswered."""
    return [
        *connect(1, 1000),
        ask(DISK, 2000),
        answer(DISK, 5000),
        ask(DISK, 6000),
        answer(DISK, 8000, ret=-17),
        Close(9000, 1, by_guest=False),
        Open(9100, 2, Begins.SERVICE, 219, True),
        Chunk(9200, 2, True, b"d"),
        Chunk(9300, 2, False, HELLO),
        ask(ADD_MEM, 9400, 2),
    ]


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a command ended and what it said."""

    code: int
    out: str
    err: str

    @property
    def objects(self) -> list[Any]:
        """Standard output as JSON lines."""
        return [json.loads(line) for line in self.out.splitlines()]


def run(*arguments: str | Path, encoding: str = "utf-8") -> Outcome:
    """Run the command line in this process, its streams written strictly."""
    out, err = io.BytesIO(), io.BytesIO()
    stdout, stderr = io.TextIOWrapper(out, encoding), io.TextIOWrapper(err, encoding)
    with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as ended:
            code = ended.code
    stdout.flush()
    stderr.flush()
    return Outcome(code, out.getvalue().decode(encoding), err.getvalue().decode(encoding))


def diagnosed_log(path: Path) -> tuple[dict[str, Any], list[Any], int]:
    """What `diagnose` tells of a log alone: of its input, the findings, and how it ended."""
    ended = run("diagnose", "--json", path)
    told = json.loads(ended.out)
    return told["inputs"][0], told["findings"], ended.code


def completed(line: str) -> list[str]:
    """What the program completes a command line to whose last word is unfinished."""
    typed = line.split(" ")[1:]
    found = ShellComplete(cli, {}, "upcall-trace", "").get_completions(typed[:-1], typed[-1])
    return [item.value for item in found]


def command(*arguments: str | Path) -> list[str]:
    """The command line as arguments of a process of its own."""
    return [sys.executable, "-m", "upcall_trace", *map(str, arguments)]


_LIMITED = (
    "import os, resource, sys; resource.setrlimit(resource.{0}, ({1}, {1})); "
    "os.environ['OPENBLAS_NUM_THREADS'] = '1'; "  # numpy's threads take address space each
    # What is compiled is cut at a limit of file sizes like everything else, in the source tree.
    "os.environ['PYTHONDONTWRITEBYTECODE'] = '1'; "
    "os.execv(sys.argv[1], sys.argv[1:])"
)


def limited(arguments: Sequence[str], kind: str, limit: int) -> list[str]:
    """The same command under a limit of the kernel's: RLIMIT_FSIZE or RLIMIT_AS, in bytes."""
    return [sys.executable, "-c", _LIMITED.format(kind, limit), *arguments]


def without_privileges(arguments: Sequence[str]) -> list[str]:
    """The same command for somebody to whom file permissions apply; root is not."""
    if os.geteuid() != 0:
        return list(arguments)
    if not shutil.which("setpriv"):
        pytest.skip("root may read everything, and there is no setpriv to give that up")
    dropped = "-dac_override,-dac_read_search"
    return ["setpriv", f"--bounding-set={dropped}", f"--inh-caps={dropped}", *arguments]
