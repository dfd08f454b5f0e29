"""One archive for an issue: captures, logs, what was found in them, and a list of it all.

Everything is copied, and redacted where that is wanted, into a workspace first. What is packed is
what was diagnosed, and the same inputs make the same archive, byte for byte. docs/findings.md.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import re
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any, Final

from dissectors.constants import Arch

from .. import __version__
from ..capture.reader import CaptureReader
from ..capture.records import (
    COMMENT,
    DAMAGED,
    FAULT,
    NO_TIMES,
    THREAD_DIED,
    TIMES,
    End,
    Gap,
    Header,
    Mark,
    Open,
    Record,
    Vmm,
)
from ..capture.unpacking import STDIN
from ..capture.writer import CaptureWriter
from ..diagnose.log_inputs import read_logs
from ..diagnose.report_formats import as_json, as_markdown
from ..diagnose.run import Diagnosed, diagnose, diagnose_logs
from ..errors import UnreadableInput
from ..kernel.noted_world import WORLD, redacted_world, world_notes
from ..kernel.world import World, find_world
from ..logs.opening import LogFile
from ..sources import Source, open_source
from ..sources.spooled import plain
from ..trace.opening import Capture, Progress, load
from ..views.json_objects import info_object
from .allowed_lines import allowed_lines, some_lines
from .allowed_text import allowed_text
from .redaction import Redactor

VERSION: Final = 1
FOLDER: Final = "upcall-bundle"
"""Everything in an archive is in this folder."""
MANIFEST: Final = "MANIFEST.json"
_WORLD: Final = "world.toml"
_MARKS_OF_OURS: Final = frozenset({COMMENT, THREAD_DIED, FAULT})
_OUR_TOOL: Final = re.compile(r"upcall-trace [0-9][0-9.]{0,20}")
_ARCHITECTURES: Final = frozenset(arch.value for arch in Arch)
_NEUTRAL: Final = "guest"
"""What a machine is called in a redacted archive."""
_LOG_LIMIT: Final = 1 << 30
"""Bytes of a log that are packed at most."""
_PIECE: Final = 1 << 20
_COMPRESSION: Final = 6


@dataclass(frozen=True, slots=True)
class Inputs:
    """What goes into an archive; `machine` names the table in the file `world`."""

    captures: Sequence[Path] = ()
    console: Path | None = None
    vmm_log: Path | None = None
    world: Path | None = None
    machine: str | None = None

    @property
    def logs(self) -> list[tuple[str, str, Path]]:
        """(name in the archive, what it is, where it is) of the logs."""
        named = (
            ("console.log", "guest console", self.console),
            ("vmm.log", "VMM log", self.vmm_log),
        )
        return [(name, what, path) for name, what, path in named if path is not None]

    @property
    def paths(self) -> list[Path]:
        """Every file that is read."""
        world = [] if self.world is None else [self.world]
        return [*self.captures, *(path for _, _, path in self.logs), *world]


@dataclass(slots=True)
class Packed:
    """What became of the inputs: the archive's list, its captures, and the logs that were cut."""

    files: list[dict[str, Any]] = field(default_factory=list)
    captures: list[tuple[Path, Capture]] = field(default_factory=list)
    diagnosed: list[Diagnosed] = field(default_factory=list)
    cut: list[Path] = field(default_factory=list)
    redacted: list[dict[str, str | int]] | None = None

    @property
    def complete(self) -> bool:
        """False when a capture is torn or has gaps, or a log was cut."""
        return not self.cut and all(each.complete for each in self.diagnosed)


def pack(
    inputs: Inputs,
    archive: Path,
    workspace: Path,
    redactor: Redactor | None,
    progress: Progress | None = None,
    keep_lines: bool = False,
) -> Packed:
    """Write the archive; `workspace` is an empty directory that the caller removes.

    With a redactor, logs hold only what the diagnosis understands, and with `keep_lines` the
    other lines too, as far as patterns can clean them. Nothing is written that is not redacted.
    `progress` is told the bytes of logs that are done. Raises UnreadableInput, WrongUsage for a
    machine that the world does not have, and OSError.
    """
    # Read before the long work: its errors are the user's.
    world = find_world(inputs.world, inputs.machine)
    packed = Packed()
    kinds: dict[str, str] = {}
    for name, what, path in inputs.logs:
        with (workspace / name).open("xb") as copy:
            if redactor is None:
                cut = _copy_bytes(_blocks_of(path), copy, _LOG_LIMIT)
            else:
                cut = _redact_log(path, copy, redactor, keep_lines, progress)
        if cut:
            packed.cut.append(path)
        kinds[name] = what
    if world is not None:
        _write_world(inputs, world, workspace / _WORLD, neutral=redactor is not None)
        kinds[_WORLD] = "guests at boot"
    names = _capture_names(inputs.captures, neutral=redactor is not None)
    for path, name in zip(inputs.captures, names, strict=True):
        _copy_capture(path, workspace / name, redactor)
        packed.captures.append((path, load(workspace / name)))
        kinds[name] = "capture"
    packed.diagnosed = _diagnose(workspace, names, inputs, world)
    if redactor is not None:
        packed.redacted = redactor.account()
    machine = inputs.machine if redactor is None or inputs.machine is None else _NEUTRAL
    kinds |= _describe(workspace, names, packed)
    packed.files = [_described(workspace / name, what) for name, what in sorted(kinds.items())]
    _write_json(workspace / MANIFEST, _manifest(packed, machine))
    _write_archive(archive, workspace, [MANIFEST, *(file["name"] for file in packed.files)])
    return packed


# Captures.


def _capture_names(captures: Sequence[Path], neutral: bool) -> list[str]:
    """A name in the archive for each; neutral ones say nothing, as a file's name may say much."""
    names: list[str] = []
    for number, path in enumerate(captures, 1):
        name = "stdin" if path == STDIN else path.stem
        stem = re.sub(r"[^\w.+-]", "_", name, flags=re.ASCII).lstrip(".") or "capture"
        if neutral:
            stem = f"capture-{number}"
        elif f"{stem}.upcap" in names:
            stem = next(
                f"{stem}-{n}" for n in range(2, len(names) + 3) if f"{stem}-{n}.upcap" not in names
            )
        names.append(f"{stem}.upcap")
    return names


def _copy_capture(path: Path, target: Path, redactor: Redactor | None) -> None:
    """A capture as it is; foreign formats and redacted ones record by record.

    A packet capture may hold the payload of other ports; as a capture it does not.
    """
    with open_source(path) as source:
        if isinstance(source, CaptureReader) and source.is_one_file and redactor is None:
            with target.open("xb") as copy:
                _copy_bytes(_blocks_of(plain(path)), copy, source.size)
            return
        header = source.header if redactor is None else _redacted_header(source.header, redactor)
        try:
            with CaptureWriter(target, header) as writer:
                for record in _records(source):
                    writer.write(record if redactor is None else _redacted(record, redactor))
                if not source.complete:
                    raise _NotClosed
        except _NotClosed:
            pass  # the copy of a recording that broke off breaks off too


class _NotClosed(Exception):
    """Leaves a capture without its end record."""


def _records(source: Source) -> Iterator[Record]:
    last_ns = 0
    for _, record in source.records():
        last_ns = getattr(record, "t_ns", last_ns)
        if not isinstance(record, End):
            yield record
    for damage in source.damage:
        if damage.at_end:
            yield Gap(last_ns, 0, False, damage.size, DAMAGED)


def _redacted_header(header: Header, redactor: Redactor) -> Header:
    if header.host:
        redactor.placeholder("capture-host", header.host)
    world = redacted_world(header.notes)  # numbers, on which findings rest
    for key, text in header.notes.items():
        if key not in world and (key, text) != (TIMES, NO_TIMES):
            redactor.placeholder("capture-note", f"{key}={text}")
    return replace(
        header,
        source=allowed_text(header.source, redactor.placeholder),
        tool=header.tool if _OUR_TOOL.fullmatch(header.tool) else "",
        arch=header.arch if header.arch in _ARCHITECTURES else None,
        host="",
        notes=world | ({TIMES: NO_TIMES} if header.notes.get(TIMES) == NO_TIMES else {}),
    )


def _redacted(record: Record, redactor: Redactor) -> Record:
    """The record without what people wrote and who they are; bytes of traffic stay."""
    match record:
        case Open(peer=tuple()):
            redactor.placeholder("capture-client", str(record.peer))
            return replace(record, peer=None)
        case Mark():
            if record.text:
                redactor.placeholder("capture-mark", record.text)
            own = record.name not in _MARKS_OF_OURS
            name = redactor.placeholder("mark-name", record.name) if own else record.name
            return replace(record, name=name, text="")
        case Vmm():
            return replace(record, action=allowed_text(record.action, redactor.placeholder))
        case Gap():
            return replace(record, reason=allowed_text(record.reason, redactor.placeholder))
    return record


# Logs, and files as they are.


def _blocks_of(path: Path) -> Iterator[bytes]:
    """The bytes of a file or pipe in pieces; raises UnreadableInput."""
    try:
        with path.open("rb") as file:
            while piece := file.read(_PIECE):
                yield piece
    except OSError as error:
        raise UnreadableInput(f"{path}: {error.strerror or error}") from None


def _copy_bytes(pieces: Iterable[bytes], copy: IO[bytes], limit: int) -> bool:
    """Copy at most `limit` bytes; true when there were more."""
    for piece in pieces:
        copy.write(piece[:limit])
        limit -= len(piece)
        if limit < 0:
            return True
    return False


def _redact_log(
    path: Path,
    copy: IO[bytes],
    redactor: Redactor,
    keep_lines: bool,
    progress: Progress | None,
) -> bool:
    """A log's redacted lines, written as they are read; true when the log was too long."""
    pieces = _Bounded(path, progress)
    if keep_lines:

        def others(raw: bytes) -> bytes:
            redactor.learn(raw)
            return redactor.redact(raw) if len(raw) < _PIECE else redactor.unreadable() + b"\n"

        for text in some_lines(pieces, redactor.placeholder, others):
            copy.write(text)
    else:
        for line in allowed_lines(pieces, redactor.placeholder):
            if isinstance(line, int):
                redactor.left_out(line)
                copy.write(f"[{line} lines left out]\n".encode())
            else:
                copy.write(redactor.clean(line).encode("utf-8", "backslashreplace") + b"\n")
    return pieces.cut


class _Bounded:
    """The blocks of a log up to a limit; `cut` says that there were more."""

    def __init__(self, path: Path, progress: Progress | None) -> None:
        self._blocks = LogFile(path).blocks(progress)
        self.cut = False

    def __iter__(self) -> Iterator[bytes]:
        room = _LOG_LIMIT
        for block in self._blocks:
            yield block[:room]
            room -= len(block)
            if room < 0:
                self.cut = True
                return


def _write_world(inputs: Inputs, world: World, target: Path, neutral: bool) -> None:
    """The file as it is; redacted, only the guest that was named, under a name of ours."""
    if neutral:
        noted = json.loads(redacted_world(world_notes(world))[WORLD])
        target.write_text(f"[{_NEUTRAL}]\n" + "".join(_toml_lines(noted)), "utf-8")
    elif inputs.world is not None:
        with target.open("xb") as copy:
            _copy_bytes(_blocks_of(inputs.world), copy, _LOG_LIMIT)


def _toml_lines(table: dict[str, Any]) -> Iterator[str]:
    for name, value in table.items():
        if value is not None:
            yield f"{name} = {_toml(value)}\n"


def _toml(value: Any) -> str:
    """A value of a world as TOML on one line."""
    if isinstance(value, dict):
        pairs = (f"{name} = {_toml(each)}" for name, each in value.items() if each is not None)
        return "{ " + ", ".join(pairs) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return json.dumps(value)


# What is made of them.


def _diagnose(
    workspace: Path, names: Sequence[str], inputs: Inputs, world: World | None
) -> list[Diagnosed]:
    """Findings about the copies, which are called by their names in the archive."""
    console = workspace / "console.log" if inputs.console else None
    vmm_log = workspace / "vmm.log" if inputs.vmm_log else None
    given = [path for path in (console, vmm_log) if path is not None]
    logs = read_logs(found=given, named=lambda path: path.name)
    if not names:
        return [diagnose_logs(logs)]
    found = (diagnose(workspace / name, world, logs=logs) for name in names)
    return [replace(each, path=Path(each.short_name)) for each in found]


def _describe(workspace: Path, names: Sequence[str], packed: Packed) -> dict[str, str]:
    """Write info.json of each capture, the findings and the report; what each of them is."""
    made = {"findings.json": "findings, as diagnose --json", "report.md": "findings, for people"}
    for name, (_, capture) in zip(names, packed.captures, strict=True):
        about = f"{name.removesuffix('.upcap')}.info.json"
        _write_json(workspace / about, info_object(capture))
        made[about] = f"counts of {name}, as info --json"
    (workspace / "findings.json").write_text(as_json(packed.diagnosed) + "\n", encoding="ascii")
    report = "\n".join(_report(packed)) + "\n"
    (workspace / "report.md").write_text(report, encoding="utf-8")
    return made


def _report(packed: Packed) -> Iterator[str]:
    yield "# Diagnosis"
    yield ""
    yield from as_markdown(packed.diagnosed)
    if packed.redacted is not None:
        yield "## What was taken out"
        yield ""
        yield "| what | values | places |"
        yield "| --- | --- | --- |"
        for row in packed.redacted:
            yield f"| {row['what']} | {row['values']} | {row['places']} |"


def _manifest(packed: Packed, machine: str | None) -> dict[str, Any]:
    return {
        "v": VERSION,
        "tool": f"upcall-trace {__version__}",
        "files": packed.files,
        "machine": machine,
        "complete": packed.complete,
        "redacted": packed.redacted,
    }


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="ascii")


def _described(path: Path, what: str) -> dict[str, Any]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"name": path.name, "what": what, "size": path.stat().st_size, "sha256": digest}


def _write_archive(archive: Path, workspace: Path, names: Sequence[str]) -> None:
    """A tar.gz without times, owners or anything else of this machine's."""
    with (
        archive.open("wb") as file,
        gzip.GzipFile("", "wb", _COMPRESSION, file, mtime=0) as packer,
        tarfile.open(fileobj=packer, mode="w", format=tarfile.PAX_FORMAT) as tar,
    ):
        for name in names:
            entry = tarfile.TarInfo(f"{FOLDER}/{name}")
            entry.size = (workspace / name).stat().st_size
            with (workspace / name).open("rb") as content:
                tar.addfile(entry, content)
