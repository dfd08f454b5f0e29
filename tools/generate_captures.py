"""Makes captures/ from the recordings that the tests hold: `python -m tools.generate_captures`.

For each recording there is NAME.upcap, and NAME.expected.jsonl with what `show --json` says of it;
NAME.md tells its story and is written by hand. tests/test_captures.py keeps them equal.
"""

from __future__ import annotations

import dataclasses
import json
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from upcall_trace.capture.records import COMMENT, End, Mark
from upcall_trace.capture.writer import CaptureWriter
from upcall_trace.sources import open_source
from upcall_trace.trace.opening import build_index, load
from upcall_trace.views.json_objects import operation_object

ROOT: Final = Path(__file__).resolve().parent.parent
RECORDINGS: Final = ROOT / "tests" / "golden"
CAPTURES: Final = ROOT / "captures"
_FROM_INSIDE: Final = ("real_client_simple",)
"""Recordings that exist only as packets captured inside the guest."""


def sources() -> Iterator[tuple[str, Path]]:
    """(name, recording) of every capture to make."""
    for path in sorted(RECORDINGS.glob("*.jsonl")):
        yield path.stem, path
    for name in _FROM_INSIDE:
        yield name, RECORDINGS / f"{name}.vsockmon.pcap"


def make(source: Path, name: str, directory: Path) -> None:
    """Write NAME.upcap and NAME.expected.jsonl into `directory`."""
    capture = directory / f"{name}.upcap"
    with open_source(source) as opened:
        header = dataclasses.replace(opened.header, notes=opened.header.notes | {"name": name})
        with CaptureWriter(capture, header) as writer:
            for _, record in opened.records():
                if not isinstance(record, End):
                    writer.write(record)
            for mark in _comments(name):
                writer.write(mark)
    build_index(capture)
    lines = [json.dumps(operation_object(op)) for op in load(capture).operations]
    (directory / f"{name}.expected.jsonl").write_text("\n".join(lines) + "\n", "ascii")


def _comments(name: str) -> Iterator[Mark]:
    remarks = tomllib.loads((CAPTURES / "comments.toml").read_text("utf-8")).get(name, {})
    for key, text in remarks.items():
        conn, request = map(int, key.split("."))
        yield Mark(0, conn, request, COMMENT, text)


def main() -> None:
    """Make all of them anew."""
    for name, source in sources():
        make(source, name, CAPTURES)


if __name__ == "__main__":
    main()
