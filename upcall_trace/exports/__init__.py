"""What a capture can be written as: one table of formats, open to plugins.

A format's module has a function `write(capture, out)`. It gets a `WholeCapture`, asks it for
records, operations or findings as it likes, and writes bytes to `out` from front to back. It
returns what had no place in the file. Modules are imported when needed, those of plugins when
their name or suffix is asked for. docs/formats.md, docs/plugins.md.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Final

from ..errors import WrongUsage
from ..plugins import BrokenPlugin, Plugin, installed, note

if TYPE_CHECKING:  # names are completed without loading what reads captures
    from ..diagnose.whole_capture import WholeCapture


@dataclass(frozen=True, slots=True)
class Loss:
    """Something of the capture that the written file has not."""

    what: str
    """A sentence without its full stop: `3 gaps have no place in a transcript`."""
    serious: bool = False
    """Whether what is there reads differently without it; the command then ends with 3."""


Write = Callable[["WholeCapture", BinaryIO], list[Loss]]
"""Raises OSError when `out` cannot be written, and UserError with a sentence for the user."""


@dataclass(frozen=True, slots=True)
class ExportFormat:
    """One format that a capture can be written as; `module` has its `write`.

    `suffixes` begin with a dot. `loses` tells what of a capture is not in such a file.
    """

    name: str
    about: str
    suffixes: tuple[str, ...]
    module: str
    loses: str = ""
    since: str = ""
    """The first version of the program that writes it."""
    binary: bool = False
    """Whether it is nothing for a terminal."""


_NO_BYTES: Final = "messages' bytes, handshakes, marks"
FORMATS: Final = (
    ExportFormat(
        "transcript",
        "JSON lines, one send or receive each",
        (".jsonl",),
        "upcall_trace.exports.transcript",
        loses="gaps, marks, half-closes, the wall clock, the client's process and user",
        since="0.1.0",
    ),
    ExportFormat(
        "pcapng",
        "packets of a vsockmon interface, for Wireshark and tshark",
        (".pcapng",),
        "upcall_trace.exports.pcapng",
        loses="nothing: what is no packet is kept in comments",
        since="0.2.0",
        binary=True,
    ),
    ExportFormat(
        "ndjson",
        "operations and findings as JSON, one object a line",
        (".ndjson",),
        "upcall_trace.exports.ndjson",
        loses=_NO_BYTES,
        since="0.2.0",
    ),
    ExportFormat(
        "csv",
        "operations as a table",
        (".csv",),
        "upcall_trace.exports.csv_table",
        loses=f"{_NO_BYTES}, sentences of findings",
        since="0.2.0",
    ),
    ExportFormat(
        "arrow",
        "operations as a table, for data tools (needs pyarrow)",
        (".arrow", ".feather"),
        "upcall_trace.exports.arrow",
        loses=f"{_NO_BYTES}, sentences of findings",
        since="0.2.0",
        binary=True,
    ),
    ExportFormat(
        "parquet",
        "operations as a table, compressed (needs pyarrow)",
        (".parquet",),
        "upcall_trace.exports.parquet",
        loses=f"{_NO_BYTES}, sentences of findings",
        since="0.2.0",
        binary=True,
    ),
    ExportFormat(
        "html",
        "a report that a browser shows without a network",
        (".html", ".htm"),
        "upcall_trace.exports.html",
        loses="handshakes' bytes, marks on no operation, operations beyond the first 200000",
        since="0.2.0",
    ),
    ExportFormat(
        "markdown",
        "findings and a Mermaid diagram, for an issue",
        (".md",),
        "upcall_trace.exports.markdown",
        loses="operations far from a failure, bytes, handshakes, marks",
        since="0.2.0",
    ),
    ExportFormat(
        "perfetto",
        "a trace for ui.perfetto.dev (needs perfetto)",
        (".pftrace", ".perfetto-trace"),
        "upcall_trace.exports.perfetto",
        loses=_NO_BYTES,
        since="0.2.0",
        binary=True,
    ),
)
"""The formats of ours. A plugin's entry point in the group `upcall_trace.exports` names another
`ExportFormat`, of the entry point's name."""
_OWN: Final = {known.name: known for known in FORMATS}


def format_names() -> list[str]:
    """The names of all formats, plugins' last; imports no plugin."""
    return [*_OWN, *(plugin.name for plugin in installed("exports") if plugin.name not in _OWN)]


def plugged_format(plugin: Plugin) -> ExportFormat:
    """The format that a plugin adds; raises BrokenPlugin."""
    if plugin.name in _OWN:
        raise plugin.broken("has the name of a format that is built in")
    known = plugin.load(ExportFormat)
    if known.name != plugin.name:
        raise plugin.broken(f"calls its format {known.name!r}")
    return known


def export_format(name: str) -> tuple[ExportFormat, Write]:
    """A format by its name, and what writes it; raises WrongUsage, and BrokenPlugin."""
    if known := _OWN.get(name):
        write: Write = import_module(known.module).write
        return known, write
    for plugin in installed("exports"):
        if plugin.name == name:
            known = plugged_format(plugin)
            return known, _guarded(plugin, known)
    near = difflib.get_close_matches(name, format_names(), n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(format_names())}"
    raise WrongUsage(f"no format is called {name!r}; {hint}")


def format_for(path: Path) -> str:
    """The name of the format that a file's suffix asks for; raises WrongUsage."""
    found = [known for known in FORMATS if path.name.endswith(known.suffixes)]
    if not found:
        for plugin in installed("exports"):
            try:
                known = plugged_format(plugin)
                with plugin.in_use():
                    fits = path.name.endswith(known.suffixes)
            except BrokenPlugin as trouble:
                note(trouble)
            else:
                found += [known] if fits else []
    if len(found) == 1:
        return found[0].name
    which = ", ".join(known.name for known in found) if found else ", ".join(format_names())
    several = "several formats have the suffix" if found else "no format has the suffix"
    raise WrongUsage(f"{several} of {path.name}; give --format with one of {which}")


def _guarded(plugin: Plugin, known: ExportFormat) -> Write:
    """A plugin's `write` that raises nothing but BrokenPlugin, UserError and OSError."""

    def write(capture: WholeCapture, out: BinaryIO) -> list[Loss]:
        with plugin.in_use(passes=(OSError,)):
            losses = list(import_module(known.module).write(capture, out))
        if not all(isinstance(loss, Loss) for loss in losses):
            raise plugin.broken("returned something else than a list of losses")
        return losses

    return write
