"""Which folder knows what, and which others it may import: the one table of both.

`tests/test_imports.py` holds every file to it; docs/developing.md shows it.
"""

from __future__ import annotations

from typing import Final, NamedTuple


class Wing(NamedTuple):
    """A folder of the source tree."""

    knows: str
    imports: tuple[str, ...]
    """The folders whose modules it may import. What those may import, it may, too."""


EVERYBODYS: Final = (
    "upcall_trace",
    "upcall_trace.errors",
    "upcall_trace.codes",
    "upcall_trace.durations",
    "upcall_trace.plugins",
    "upcall_trace.user_folders",
)
"""Modules that every folder of `upcall_trace/` may import."""

WINGS: Final[dict[str, Wing]] = {
    "dissectors": Wing("the protocol: layouts, messages, state machines, observer", ()),
    "capture": Wing("the `.upcap` file; files unpacked; TOML, bounded", ()),
    "sockets": Wing("addresses, listening, serving, the client", ("dissectors",)),
    "logs": Wing(
        "lines of consoles, VMMs, runtimes: what they say, whose they are",
        ("capture", "dissectors"),
    ),
    "kernel": Wing("what the guest kernel does (pure)", ("capture", "dissectors")),
    "sources": Wing(
        "what can be read as a capture: one table, open to plugins", ("capture", "dissectors")
    ),
    "control": Wing(
        "what the VMM's side can be told; the note beside a socket", ("sockets", "kernel")
    ),
    "trace": Wing(
        "where bytes get meaning: decoding, operations, filters, provenance, opening, scripts",
        ("capture", "sources"),
    ),
    "vantage": Wing(
        "where traffic is taken from: proxy, recorder, vsockmon interface, doctor",
        ("capture", "sockets", "sources", "trace"),
    ),
    "views": Wing("operations, frames and log lines as text and as JSON", ("trace", "logs")),
    "compare": Wing("pairing and judging two of them", ("trace", "views")),
    "simulated": Wing(
        "the guest without a VM: on a socket, in process, from a recording",
        ("kernel", "compare", "control"),
    ),
    "diagnose": Wing("why it failed", ("trace", "views", "logs", "kernel")),
    "recording": Wing(
        "a recording that runs for weeks: its sockets, log, metrics, faults, service",
        ("vantage", "diagnose", "kernel", "control"),
    ),
    "transform": Wing("captures made from captures", ("trace", "simulated")),
    "replay": Wing("plan, play, judge", ("diagnose", "compare", "simulated", "control", "vantage")),
    "conform": Wing("does a guest answer as the model says", ("replay", "simulated", "transform")),
    "lab": Wing("the live guest", ("vantage", "control", "simulated", "trace")),
    "dataset": Wing("captures as tables", ("trace", "diagnose")),
    "exports": Wing(
        "what a capture can be written as: one table, open to plugins",
        ("diagnose", "views", "dataset"),
    ),
    "bundle": Wing("the archive for an issue, redaction", ("diagnose", "views")),
    "testing": Wing("the pytest plugin", ("replay", "simulated", "vantage", "transform")),
    "tui": Wing("the terminal browser", ("replay", "transform", "exports", "bundle", "lab")),
    "cli": Wing(
        "the command line: one module a command", ("tui", "testing", "conform", "recording")
    ),
}
"""In order: a folder imports only folders that stand above it."""
