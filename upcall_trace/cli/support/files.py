"""Opening and writing captures on behalf of commands, and telling what is missing in them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ...capture.reader import CaptureReader, Damage, DamageTo, is_being_written
from ...capture.records import Header, Record
from ...capture.runs import MessageRun
from ...capture.writer import CaptureWriter
from ...errors import ExitCode, UnreadableInput, WrongUsage
from ...sources import open_source
from ...sources.spooled import plain
from ...trace.opening import Capture, build_index, decode_source, index_disagrees, load
from .output import progress, talk
from .standard_output import STDOUT, check_stdout, for_stdout

if TYPE_CHECKING:
    from ...diagnose.whole_capture import WholeCapture
    from ...trace.judgement import Judged
    from ...trace.operations import Operations

# Whether it can be read is ours to find out and to tell, with the exit code that it has.
CAPTURE = click.Path(path_type=Path, readable=False)
_DAMAGE_TOLD = 10


def open_capture(path: Path, check: bool = True) -> Capture:
    """Load a capture with a progress bar where it takes long; raises UnreadableInput.

    `check` as in `load`.
    """
    try:
        path = plain(path)
        size = path.stat().st_size
    except OSError as error:
        raise UnreadableInput(f"{path}: {error.strerror or error}") from None
    with progress(f"decoding {path.name}", size) as report:
        opened = load(path, report, check)

    def judge(operations: Operations) -> Judged:
        from ...diagnose.judged import judging  # all of the rules come with it

        return judging(path)(operations)

    opened.operations.judge = judge
    return opened


def verify_capture(path: Path) -> tuple[Capture, str | None]:
    """A capture of which every record was read, and what its index says wrongly."""
    with open_source(path) as source:
        size = source.size if isinstance(source, CaptureReader) else 0
        with progress(f"verifying {path.name}", size) as report:
            decoded = decode_source(source, report)
        wrong = None
        if isinstance(source, CaptureReader) and source.is_one_file:
            wrong = index_disagrees(source, decoded)
    return decoded, wrong


def open_whole(
    path: Path, consoles: Sequence[Path] = (), vmm_logs: Sequence[Path] = ()
) -> WholeCapture:
    """A capture to be asked for anything, with a progress bar; raises UnreadableInput."""
    from ...diagnose.whole_capture import WholeCapture  # all of the rules come with it

    whole = WholeCapture(path, consoles, vmm_logs)
    with progress(f"decoding {path.name}", whole.path.stat().st_size) as report:
        whole.load(report)
    return whole


def tell_losses(path: Path, capture: Capture) -> ExitCode:
    """Say on stderr what is missing of a capture; the exit code that this deserves."""
    lost = tell_damage(path, capture.damage)
    if capture.gaps:
        talk(f"{path}: {capture.gaps} bytes of traffic were not recorded")
        lost = True
    if capture.complete is False and not capture.live and not lost:
        talk(f"{path}: the recording was not closed cleanly; its last moments may be missing")
        lost = True
    return ExitCode.LOST if lost else ExitCode.EXPECTED


def tell_damage(path: Path, found: Sequence[Damage]) -> bool:
    """Say on stderr where a file cannot be read, up to a point; whether there is such a place."""
    for damage in found[:_DAMAGE_TOLD]:
        talk(f"{path}: {_DAMAGED[damage.to].format(damage.offset, damage.size, _where(damage))}")
    if len(found) > _DAMAGE_TOLD:
        talk(f"{path}: damaged in {len(found) - _DAMAGE_TOLD} more places")
    return bool(found)


_DAMAGED = {
    DamageTo.RECORDS: "{2} at offset {0}: {1} bytes cannot be read",
    DamageTo.INDEX: "{2} at offset {0}, behind the recording: {1} bytes cannot be read",
    DamageTo.DIGEST: "changed since it was recorded, in the {1} bytes from offset {0} on",
}


def _where(damage: Damage) -> str:
    return "the end is torn" if damage.at_end else "damaged"


def write_capture(
    path: Path,
    header: Header,
    records: Iterable[Record],
    *inputs: Path,
    overwrite: bool = False,
    private: bool = False,
) -> None:
    """A capture with an index, at `path` once it is whole; raises as `replacing` does."""
    with replacing(path, *inputs, overwrite=overwrite, private=private) as temporary:
        write_whole(temporary, header, records)


def write_whole(path: Path, header: Header, records: Iterable[Record | MessageRun]) -> None:
    """A capture with an index, at a path that is ours already; raises OSError."""
    with CaptureWriter(path, header) as writer:
        for item in records:
            if isinstance(item, MessageRun):
                writer.write_run(item)
            else:
                writer.write(item)
    build_index(path)


@contextmanager
def replacing(
    path: Path, *inputs: Path, overwrite: bool = False, private: bool = False
) -> Iterator[Path]:
    """A temporary path beside `path` that takes its place when the block succeeds.

    Its mode is as the umask says, and never wider than that of an input. With `private` nobody but
    its owner may read it.
    Standard output gets all of it at the end, so that after a failure it has nothing.
    Raises WrongUsage when `path` is one of the inputs, no plain file, or cannot be written, and
    when it has something in it already that is not to be overwritten.
    """
    if path == STDOUT:
        with for_stdout() as temporary:
            yield temporary
        return
    try:
        check_output(path, *inputs, overwrite=overwrite)
        import tempfile  # who only reads does not wait for it

        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    except OSError as error:
        raise WrongUsage(f"{path} cannot be written: {error.strerror or error}") from None
    os.close(descriptor)
    temporary = Path(name)
    try:
        yield temporary
        if not private:  # as it was made
            temporary.chmod(_mode_for(inputs))
        temporary.replace(path)
    except OSError as error:
        raise WrongUsage(f"{path} cannot be written: {error.strerror or error}") from None
    finally:
        temporary.unlink(missing_ok=True)


def _mode_for(inputs: Iterable[Path]) -> int:
    """The mode that a new file has here, and never wider than any input's."""
    mode = os.umask(0)
    os.umask(mode)
    mode = 0o666 & ~mode
    for path in inputs:
        try:
            mode &= path.stat().st_mode
        except OSError:
            mode &= 0o600  # standard input, or gone: nobody knows who may read it
    return mode | 0o600


def check_output(path: Path, *inputs: Path, overwrite: bool = False) -> None:
    """Refuse, before anything is done, what `replacing` refuses; raises WrongUsage and OSError."""
    if path == STDOUT:
        check_stdout()
        return
    if not path.exists():
        return
    if any(other.exists() and path.samefile(other) for other in inputs):
        raise WrongUsage(f"{path} is the input; give another name for the output")
    if not path.is_file():  # taking the place of a socket or device would cut others off
        raise WrongUsage(f"{path} exists and is not a file")
    with path.open("rb") as file:
        if is_being_written(file.fileno()):
            raise WrongUsage(f"{path} is being recorded into by another process")
    if path.stat().st_size and not overwrite:
        raise WrongUsage(f"{path} exists; give another name, or --overwrite")
