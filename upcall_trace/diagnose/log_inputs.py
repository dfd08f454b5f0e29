"""Logs as inputs: which files, in which order, what each of them is, and what was read of it."""

from __future__ import annotations

import heapq
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import IO, Final

from ..capture.unpacking import STDIN
from ..errors import NothingRun, UnreadableInput, WrongUsage
from ..logs.entries import LogEntry, Scanner
from ..logs.lines import LogLine, lines_of
from ..logs.lost_lines import is_gap, of_loggers_alone
from ..logs.meaning import Understood
from ..logs.opening import LogFile, Progress, is_text, sniff
from ..logs.table import Aside, understood, wanted
from ..logs.turned import Repeats, newest_first
from ..sources import capture_kind
from .log_channel import DRAGONBALL, OTHER_VMMS
from .log_guests import Stories
from .told_by_logs import LogInput, Logs, Option, Span

_AGE: Final = re.compile(r"\.(\d{1,3})(?:\.(?:gz|xz|zst))?\Z")
_DATED: Final = re.compile(r"[-.](\d{8}(?:[-T]\d{2,6})?)(?:\.(?:log|gz|xz|zst)){0,3}\Z")
_TURNED: Final = 500_000
"""Understood lines of a log with the newest first that are put in order, at most."""
_LOOKED: Final = 50
"""Lines at the beginning that are looked at for a time."""
_SANDBOXES: Final = 10_000
"""Names that are told of one log, at most."""


def read_logs(
    console: Path | Sequence[Path] | None = None,
    vmm_log: Path | Sequence[Path] | None = None,
    found: Sequence[Path] = (),
    *,
    sandbox: str | None = None,
    span: Span | None = None,
    progress: Progress | None = None,
    named: Callable[[Path], str] = str,
) -> Logs:
    """Read logs, in one pass and in the order of their times.

    `found` are those that were given without an option; `named` says how evidence calls a file.
    Raises UnreadableInput, also for a file
    that is something else than its option says, and WrongUsage for an unknown sandbox.
    """
    given = _given(console, vmm_log, found, named)
    stories = Stories()
    logs = Logs([each.input for each in given])
    seen: list[str] = []
    if sandbox is not None:
        stories.wanted = lambda whose: whose is None or _is(whose, sandbox, seen)
    repeats = Repeats()
    for stream, said in _in_order(given, span or Span(), progress):
        whose = None
        if repeats.is_one(said.line):
            stories.feed_again(said)
        else:
            whose = stories.feed(said)
        _count(stream.input, said, whose)
    stories.finish()
    logs.guests = list(stories.guests.values())
    for each in given:
        each.conclude()
    if sandbox is not None and not any(whose.startswith(sandbox) for whose in seen):
        there = ", ".join(seen[:20]) or "none that lines name"
        raise WrongUsage(f"no guest {sandbox!r} in these logs; there are: {there}")
    return logs


def read_stream(name: str, stream: IO[bytes], sandbox: str | None = None) -> Logs:
    """Read a log that is no file, as the output of another program."""
    stories = Stories()
    if sandbox is not None:
        stories.wanted = lambda whose: whose is not None and whose.startswith(sandbox)
    told = LogInput(name, Option.FOUND, name)
    scanner = Scanner(wanted())
    log = LogFile(Path(name), stream)
    for said in understood(scanner, log.blocks(), name, partial(_aside, told)):
        _count(told, said, stories.feed(said))
    stories.finish()
    told.lines = scanner.lines
    if told.says_nothing:
        told.seems = _seems(scanner.first, log.torn)
    return Logs([told], list(stories.guests.values()))


def _is(whose: str, sandbox: str, seen: list[str]) -> bool:
    if whose not in seen and len(seen) < 10_000:
        seen.append(whose)
    return whose.startswith(sandbox)


class _LogStream:
    """One log while it is read, with the time that it has come to."""

    def __init__(self, input_: LogInput, path: Path) -> None:
        self.input = input_
        self.path = path
        self.log = LogFile(path)
        self.scanner = Scanner(wanted())
        self.start = sniff(path)
        first = _first_lines(self.start)
        self.turned = newest_first(first, self.start.decode("utf-8", "replace").splitlines())
        oldest_first = first[::-1] if self.turned else first
        self.first_wall = next((ns for line in oldest_first if (ns := line.wall_ns)), None)
        self.first_guest = next((ns for line in first if (ns := line.guest_ns) is not None), None)
        self.input.kind = _kind(self.start, first)

    def read(self, span: Span, progress: Progress | None) -> Iterator[Understood]:
        file = self.input.file
        last_ns: int | None = None
        lines: Iterable[Understood] = understood(
            self.scanner, self.log.blocks(progress), file, partial(_aside, self.input)
        )
        if self.turned:
            lines = reversed([*islice(lines, _TURNED)])
        for said in lines:
            last_ns = said.line.wall_ns or last_ns
            if last_ns in span:
                yield said

    def conclude(self) -> None:
        """The log is read: how long it is, from when to when, and what it seems to be."""
        told = self.input
        told.lines, told.torn = self.scanner.lines, self.log.torn
        start = self.scanner.first or self.start
        told.from_ns = self.first_wall or told.from_ns
        last = [*lines_of(LogEntry(1, self.scanner.last), None)] if self.scanner.last else []
        told.to_ns = max((ns for line in last if (ns := line.wall_ns)), default=told.to_ns)
        if told.says_nothing:
            told.seems = _seems(start, self.log.torn)
        wrong = None
        if told.option is Option.CONSOLE and told.of_vmm and not told.of_guest:
            wrong = "a VMM's log, not a guest's console", "--vmm-log"
        elif told.option is Option.VMM_LOG and told.of_guest and not told.of_vmm:
            wrong = (
                ("a guest's console, not a VMM's log", "--console") if not told.dressed else None
            )
        if wrong is not None:
            what, option = wrong
            raise UnreadableInput(
                f"{told.file} was given with {told.option.value}, but is {what}: give it with "
                f"{option}, or without an option"
            )


def _given(
    console: Path | Sequence[Path] | None,
    vmm_log: Path | Sequence[Path] | None,
    found: Sequence[Path],
    named: Callable[[Path], str],
) -> list[_LogStream]:
    """The logs, each once, rotated ones in their order."""
    options: dict[Path, Option] = {}
    for option, paths in ((Option.CONSOLE, console), (Option.VMM_LOG, vmm_log)):
        for path in [paths] if isinstance(paths, Path) else paths or ():
            twice = next((other for other in options if _is_same_file(other, path)), None)
            if twice is None:
                options[path] = option
            elif options[twice] is not option:
                options[twice] = Option.FOUND  # it is said to be both
    for path in found:
        options.setdefault(path, Option.FOUND)
    streams = []
    for path, option in options.items():
        name = "standard input" if path == STDIN else named(path)
        stream = _LogStream(LogInput(name, option), path)
        _refuse_captures(stream)
        streams.append(stream)
    return sorted(streams, key=_order)


def _is_same_file(one: Path, other: Path) -> bool:
    return one == other or (STDIN not in (one, other) and one.resolve() == other.resolve())


def _refuse_captures(stream: _LogStream) -> None:
    kind = capture_kind(stream.start)
    if kind is None:
        return
    how = f" with {stream.input.option.value}" if stream.input.option.value else " as a log"
    raise UnreadableInput(
        f"{stream.input.file} was given{how}, but is {kind}, not a log: give it without an option"
    )


def _order(stream: _LogStream) -> tuple[int, int, str]:
    """By time; what has none by the numbers and dates of rotated files, then by the guest's clock.

    The first number of a rotation is the youngest, a file without one younger still.
    """
    name = stream.path.name
    if stream.first_wall is not None:
        return stream.first_wall, 0, name
    if (found := _AGE.search(name)) is not None:
        return 0, -int(found[1]), name
    if (found := _DATED.search(name)) is not None:
        return 0, -1, found[1]
    return 0, 1 + (stream.first_guest or 0), name


def _in_order(
    streams: Sequence[_LogStream], span: Span, progress: Progress | None
) -> Iterator[tuple[_LogStream, Understood]]:
    """The lines of all logs: those with times among each other, the rest log by log before them."""
    timeless = [stream for stream in streams if stream.first_wall is None]
    for stream in timeless:
        for said in stream.read(span, progress):
            yield stream, said
    timed = [stream for stream in streams if stream.first_wall is not None]
    if len(timed) == 1:
        for said in timed[0].read(span, progress):
            yield timed[0], said
        return
    merged = heapq.merge(*(_timed(s, span, progress) for s in timed), key=lambda each: each[0])
    for _, stream, said in merged:
        yield stream, said


def _timed(
    stream: _LogStream, span: Span, progress: Progress | None
) -> Iterator[tuple[int, _LogStream, Understood]]:
    latest = stream.first_wall or 0
    for said in stream.read(span, progress):
        latest = max(latest, said.line.wall_ns or 0)
        yield latest, stream, said


def _aside(told: LogInput, line: LogLine, what: Aside) -> None:
    if what is Aside.MENTIONED:
        told.mentioned += 1
        told.first_mentioned = told.first_mentioned or line.number
    else:
        told.unknown += 1
        told.first_unknown = told.first_unknown or line.number


def _count(told: LogInput, said: Understood, whose: str | None) -> None:
    line, matches = said
    if any(is_gap(match) for match in matches):
        told.lost += 1
        told.first_lost = told.first_lost or line.number
    if of_loggers_alone(matches):
        return
    if whose is None:
        told.unnamed += 1
    elif len(told.sandboxes) < _SANDBOXES:
        told.sandboxes[whose] = None
    told.dressed |= line.dressed
    told.to_ns = line.wall_ns or told.to_ns
    told.from_ns = told.from_ns or line.wall_ns
    guest = of_vmm = other = False
    for match in matches:
        if match.meaning.of_guest:
            guest |= match.meaning.upcall
        elif match.meaning.upcall:
            of_vmm = True
        else:
            other = True
        name = OTHER_VMMS.get(match.meaning)
        if name is None and match.meaning.speaker in DRAGONBALL:
            name = "Dragonball"
        if name is not None and name not in told.vmms:
            told.vmms.append(name)
    told.of_guest += guest
    told.of_vmm += of_vmm
    told.of_others += other and not (guest or of_vmm)
    told.understood += guest or of_vmm


def _first_lines(start: bytes) -> list[LogLine]:
    lines: list[LogLine] = []
    for entry in Scanner(None).entries([start]):
        lines += lines_of(entry, None)
        if len(lines) >= _LOOKED:
            break
    return lines


def _kind(start: bytes, first: Sequence[LogLine]) -> str:
    """A short name for what a log is."""
    if b"__REALTIME_TIMESTAMP" in start or start.startswith(b"__CURSOR="):
        return "journal"
    if start.lstrip()[:1] == b"{" and any(line.dressed for line in first):
        return "JSON lines"
    console = sum(line.guest_ns is not None and not line.dressed for line in first)
    if console * 2 > len(first):
        return "console"
    return "syslog" if any(line.program for line in first) else "log"


def _seems(start: bytes, torn: bool) -> str:
    """What a log is in which nothing was understood."""
    if not start:
        return "a damaged archive" if torn else "empty"
    if not is_text(start):
        return "no text at all"
    if start.strip() == b"-- No entries --":
        return "the answer of a journal that has no such entries"
    if not start.strip(b"\r\n\t \x00\xef\xbb\xbf\xff\xfe"):
        return "blank: it has no text"
    return "text that says nothing about upcall"


def nothing_understood(logs: Logs) -> NothingRun:
    """Why nothing can be said of these logs, in one sentence."""
    parts = []
    vmms = [name for guest in logs.guests for name in guest.vmm.vmms if guest.is_other]
    no_vm = [guest for guest in logs.guests if guest.vmm.no_vm is not None]
    for told in logs.inputs:
        seems = told.seems
        if not seems:
            names = ", ".join(dict.fromkeys(vmms))
            seems = f"{names}'s log, a VMM without upcall" if names else ""
        if not seems and no_vm:
            seems = "of a runtime that refused its own configuration: no VM was started"
        if not seems and told.unknown:
            seems = "a log that speaks of upcall in words that are not known here"
        if not seems and told.mentioned:
            seems = (
                f"a text that quotes lines of upcall (line {told.first_mentioned}), and no log: "
                "give the log that they are from"
            )
        parts.append(f"{told.file} is {seems or 'a log in which nothing concerns upcall'}")
    return NothingRun(f"nothing was shown to be well: {'; '.join(parts)}")
