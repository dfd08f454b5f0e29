"""Many captures become one dataset: what is to be read, in which batches, by whom.

The work is the same on this machine's cores and on a Dask cluster: a batch is a value, and
`convert_batch` a function of it. Only this process makes batches count. docs/fleet.md.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

from ..errors import Unreachable, UnreadableInput, UserError, WrongUsage
from .converting import convert, problem
from .stored import Commit, DataFile, Dataset, SourceNote, batch_name, filesystem

_BATCH_BYTES: Final = 64 << 20
_BATCH_SOURCES: Final = 256
"""What one batch takes on at most: so much is done again after an interruption."""
_BLOCK: Final = 1 << 20
_ENDINGS: Final = (".upcap", ".pcap", ".pcapng")
_PACKED: Final = (".gz", ".xz", ".zst")


class Found(NamedTuple):
    """A source: `stamp` changes when its bytes do, `size` is None when nobody says."""

    url: str
    stamp: str
    size: int | None


class SourceBatch(NamedTuple):
    """Sources that are converted together; those of a digest in `known` are there already."""

    dataset: str
    name: str
    sources: tuple[Found, ...]
    known: frozenset[str]


class BatchDone(NamedTuple):
    """What came of a batch."""

    batch: SourceBatch
    pieces: tuple[DataFile, ...]
    notes: tuple[SourceNote, ...]
    captures: int
    operations: int
    problems: int


@dataclass(slots=True)
class Added:
    """What `add` did."""

    sources: int = 0
    known: int = 0
    captures: int = 0
    operations: int = 0
    problems: int = 0


def find_sources(urls: Iterable[str]) -> list[Found]:
    """The captures at some URLs: files, folders and patterns; raises UnreadableInput.

    In folders those count whose name ends like a capture's or a packet capture's.
    """
    found: dict[str, Found] = {}
    for url in urls:
        fs, path = filesystem(url)
        try:
            details = _listed(fs, path, url)
        except OSError as error:
            raise UnreadableInput(f"{url}: {error.strerror or error}") from None
        except Exception as error:  # drivers have errors of their own
            raise Unreachable(f"{url}: {type(error).__name__}: {error}") from None
        for name, detail in details:
            each = fs.unstrip_protocol(name)
            found[each] = Found(each, _stamp(detail), detail.get("size"))
    return [found[url] for url in sorted(found)]


def known_sources(url: str) -> list[Found]:
    """What a dataset knows of, as far as it is still there."""
    dataset = Dataset(url)
    dataset.check()
    found: list[Found] = []
    for known in sorted({note.url for commit in dataset.commits() for note in commit.sources}):
        try:
            found += find_sources([known])
        except UnreadableInput:
            continue  # a recording may go; what it said stays
    return found


def _listed(fs: Any, path: str, url: str) -> list[tuple[str, dict[str, Any]]]:
    if any(sign in path for sign in "*?[") and not fs.exists(path):
        return [
            (name, detail)
            for name, detail in fs.glob(path, detail=True).items()
            if detail["type"] == "file"
        ]
    if fs.isfile(path) and not url.endswith("/"):
        return [(path, fs.info(path))]
    if not fs.exists(path):
        raise FileNotFoundError(2, "no such file or folder")
    return [
        (name, detail)
        for name, detail in fs.find(path, detail=True).items()
        if _is_capture_name(name)
    ]


def _is_capture_name(name: str) -> bool:
    for ending in _PACKED:
        name = name.removesuffix(ending)
    return name.endswith(_ENDINGS)


def _stamp(detail: dict[str, Any]) -> str:
    """What tells one version of a file from the next without reading it; empty for nothing."""
    # On a file system `created` is when its name or its rights changed.
    moment = ("mtime",) if "mtime" in detail else ("ETag", "etag", "LastModified", "created")
    keys = (*moment, "size")
    told = [f"{key}={detail[key]}" for key in keys if detail.get(key) is not None]
    return ";".join(told) if len(told) > 1 else ""


def add(
    url: str,
    sources: Sequence[Found],
    executor: Executor | None = None,
    update: bool = False,
    told: Callable[[Added], None] | None = None,
) -> Added:
    """Convert what the dataset does not have yet; with `update` also what has changed.

    Without an executor the work is done here. `told` is called after each batch. What is already
    there stays as it is, so that an interrupted run goes on where it was.
    """
    dataset = Dataset(url)
    with _alone(dataset):
        dataset.make()
        dataset.clean()
        notes = [note for commit in dataset.commits() for note in commit.sources]
        wanted = _wanted(sources, notes, update)
        outdated = {note.url for note in notes} & {source.url for source in wanted}
        digests = frozenset(note.digest for note in notes if note.digest)
        added = Added(len(sources), len(sources) - len(wanted))
        batches = list(_batches(url, wanted, digests))
        for done in _work(batches, executor):
            _commit(dataset, done, outdated)
            added.captures += done.captures
            added.known += len(done.batch.sources) - done.captures - done.problems
            added.operations += done.operations
            added.problems += done.problems
            if told is not None:
                told(added)
    return added


def drop(url: str, before: str) -> int:
    """Drop what was recorded before a day (`2026-11-28`); how many rows of operations went.

    What has no day stays. A source that was dropped stays known, so that it is not added again.
    """
    dataset = Dataset(url)
    dropped = 0
    with _alone(dataset):
        dataset.check()
        for commit in dataset.commits():
            kept = tuple(piece for piece in commit.pieces if piece.day >= before)
            if len(kept) < len(commit.pieces):
                gone = set(commit.pieces) - set(kept)
                dropped += sum(piece.rows for piece in gone if piece.table == "operations")
                name = batch_name([commit.batch, "before", before])
                dataset.commit(Commit(name, kept, commit.sources, (commit.batch,)))
        dataset.clean()
    return dropped


@contextmanager
def workers(jobs: int, scheduler: str | None, *urls: str) -> Iterator[Executor | None]:
    """Who does the work: a Dask cluster, processes of this machine, or nobody else (None).

    Raises Unreachable when nobody answers at `scheduler`, WrongUsage without Dask.
    """
    if scheduler is not None:
        try:
            from distributed import Client
        except ImportError:
            raise WrongUsage("--scheduler needs pip install 'upcall-trace[fleet]'") from None
        try:
            client = Client(scheduler, timeout=10)  # type: ignore[no-untyped-call]
        except (OSError, ValueError) as error:
            raise Unreachable(f"no Dask scheduler at {scheduler}: {error}") from None
        with client:
            yield client.get_executor()  # type: ignore[no-untyped-call]
        return
    # What is in the memory of this process, others do not see.
    if jobs == 1 or any(url.startswith("memory:") for url in urls):
        yield None
        return
    import multiprocessing

    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool:
        yield pool


def _wanted(sources: Sequence[Found], notes: Sequence[SourceNote], update: bool) -> list[Found]:
    """What has to be read: what is new, what could not be reached, with `update` what changed."""
    known = {note.url: note for note in notes}
    wanted = []
    for source in sources:
        note = known.get(source.url)
        changed = update and note is not None and (not source.stamp or source.stamp != note.stamp)
        if note is None or note.digest is None or changed:
            wanted.append(source)
    return wanted


def _batches(url: str, sources: Sequence[Found], known: frozenset[str]) -> Iterator[SourceBatch]:
    batch: list[Found] = []
    size = 0
    for source in sources:
        batch.append(source)
        size += source.size or _BLOCK
        if len(batch) >= _BATCH_SOURCES or size >= _BATCH_BYTES:
            yield _batch(url, batch, known)
            batch, size = [], 0
    if batch:
        yield _batch(url, batch, known)


def _batch(url: str, sources: Sequence[Found], known: frozenset[str]) -> SourceBatch:
    name = batch_name(f"{source.url} {source.stamp}" for source in sources)
    return SourceBatch(url, name, tuple(sources), known)


def _work(batches: Sequence[SourceBatch], executor: Executor | None) -> Iterator[BatchDone]:
    """The batches as they are done; one with a capture that another one had too is done again."""
    seen: set[str] = set()

    def again(done: BatchDone) -> SourceBatch | None:
        here = {note.digest for note in done.notes if note.digest} - done.batch.known
        if not here & seen:
            seen.update(here)
            return None
        return done.batch._replace(known=done.batch.known | frozenset(seen))

    if executor is None:
        for batch in batches:
            batch = batch._replace(known=batch.known | frozenset(seen))
            done = convert_batch(batch)
            again(done)
            yield done
        return
    waiting: list[Future[BatchDone]] = [executor.submit(convert_batch, batch) for batch in batches]
    try:
        while waiting:
            repeated: list[Future[BatchDone]] = []
            for future in _completed(waiting):
                done = future.result()
                repeat = again(done)
                if repeat is None:
                    yield done
                else:
                    repeated.append(executor.submit(convert_batch, repeat))
            waiting = repeated
    finally:
        for future in waiting:
            future.cancel()


def _completed(futures: Sequence[Any]) -> Iterable[Any]:
    if isinstance(futures[0], Future):
        return as_completed(futures)
    from distributed import as_completed as dask_completed

    completed: Iterable[Any] = dask_completed(futures)  # type: ignore[no-untyped-call]
    return completed


def _commit(dataset: Dataset, done: BatchDone, outdated: set[str]) -> None:
    """Make a batch count, and in the same moment what it replaces not."""
    urls = {note.url for note in done.notes} & outdated
    pieces, notes, replaces = list(done.pieces), list(done.notes), []
    for commit in dataset.commits() if urls else ():
        stale = [note for note in commit.sources if note.url in urls]
        if not stale or commit.batch == done.batch.name:
            continue
        fresh = {note.digest for note in done.notes}
        gone = {note.url for note in stale}
        gone |= {note.digest for note in stale if note.digest and note.digest not in fresh}
        name = batch_name([commit.batch, done.batch.name])
        pieces += dataset.rewritten(commit, name, gone)
        notes += [note for note in commit.sources if note.url not in urls]
        replaces.append(commit.batch)
    dataset.commit(Commit(done.batch.name, tuple(pieces), tuple(notes), tuple(replaces)))


def convert_batch(batch: SourceBatch) -> BatchDone:
    """Read the sources of a batch, and write its rows; runs anywhere."""
    dataset = Dataset(batch.dataset)
    notes: list[SourceNote] = []
    seen = set(batch.known)
    captures = operations = problems = 0
    with dataset.writer(batch.name) as writer:
        for source in batch.sources:
            digest: str | None = None
            try:
                with fetched(source.url) as (path, digest):
                    if digest in seen:
                        notes.append(SourceNote(source.url, source.stamp, digest))
                        continue
                    converted = convert(path, source.url, digest)
                seen.add(digest)
            except UserError as error:
                converted = problem(source.url, None, "unreachable", str(error))
            notes.append(SourceNote(source.url, source.stamp, digest))
            for table, day, rows in converted.rows:
                writer.write(table, day, rows)
            captures += any(table == "captures" for table, _, _ in converted.rows)
            operations += converted.operations
            problems += converted.trouble
    return BatchDone(batch, tuple(writer.pieces), tuple(notes), captures, operations, problems)


@contextmanager
def fetched(url: str) -> Iterator[tuple[Path, str]]:
    """A source as a file of this machine, and the SHA-256 of its bytes; raises UnreadableInput."""
    fs, name = filesystem(url)
    local = "file" in fs.protocol
    digest = hashlib.sha256()
    with tempfile.TemporaryDirectory(prefix="upcall-fleet-") as folder:
        path = Path(name) if local else Path(folder, Path(name).name or "capture")
        try:
            with fs.open(name, "rb") as file, open(os.devnull if local else path, "wb") as copy:  # noqa: PTH123
                while block := file.read(_BLOCK):
                    digest.update(block)
                    if not local:
                        copy.write(block)
        except Exception as error:  # drivers have errors of their own
            raise UnreadableInput(f"{url}: {type(error).__name__}: {error}") from None
        yield path, digest.hexdigest()


@contextmanager
def _alone(dataset: Dataset) -> Iterator[None]:
    """Nobody else of this machine writes; raises WrongUsage when somebody does."""
    if "file" not in dataset.fs.protocol:
        yield
        return
    root = Path(dataset.root)
    made = not root.exists()
    root.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(root, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise WrongUsage(f"{dataset.url} is being written by another process") from None
    except WrongUsage:
        if made:
            shutil.rmtree(root, ignore_errors=True)
        raise
    finally:
        os.close(descriptor)
