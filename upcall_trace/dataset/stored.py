"""Where a fleet's tables are: Parquet files by table and day, and which of them count.

A batch of captures is written as Parquet files first. Then one small file in `commits/` is put in
its place, which names them; before that nobody sees them. So an interrupted conversion leaves
files that do not count, and the next one writes the same batch again. docs/fleet.md.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from ..errors import UnreadableInput, WrongUsage
from .parquet import arrow_schema, pyarrow_or_refuse
from .schema import FLEET, FLEET_VERSION

if TYPE_CHECKING:
    import pyarrow

_ABOUT: Final = "fleet.json"
_PART: Final = ".part"
_COMMITS: Final = "commits"
_MEANT: Final = frozenset("*?[=")
"""Characters of a path that DuckDB takes for a pattern of names, or for a column's value."""
_GROUP: Final = 1 << 17
"""Rows of a row group: what a writer holds in memory of each table and day."""


class SourceNote(NamedTuple):
    """A source as it was when it was converted. `stamp` changes when its bytes do."""

    url: str
    stamp: str
    digest: str | None


class DataFile(NamedTuple):
    """One Parquet file."""

    table: str
    day: str
    path: str
    rows: int


@dataclass(frozen=True, slots=True)
class Commit:
    """What a batch added; with `replaces` it stands for those batches as well."""

    batch: str
    pieces: tuple[DataFile, ...]
    sources: tuple[SourceNote, ...]
    replaces: tuple[str, ...] = ()


def filesystem(url: str) -> tuple[Any, str]:
    """The file system of a URL, and the path there; raises WrongUsage for one without a driver."""
    try:
        import fsspec
    except ImportError:
        raise WrongUsage("fleet needs pip install 'upcall-trace[fleet]'") from None
    try:
        fs, path = fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise WrongUsage(f"{url}: {error}") from None
    return fs, path


@dataclass(slots=True)
class Dataset:
    """A fleet's dataset at a URL."""

    url: str
    fs: Any = field(init=False, repr=False)
    root: str = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.fs, root = filesystem(self.url)
        self.root = root.rstrip("/")

    def make(self) -> None:
        """Begin an empty dataset where there is none; raises as `check` does."""
        if self._exists(_ABOUT):
            self.check()
            return
        there = self.fs.ls(self.root, detail=False) if self.fs.exists(self.root) else []
        # Somebody was killed while this was written, and came no further.
        begun = [path for path in there if f"/{_ABOUT}." in path and path.endswith(_PART)]
        if len(begun) < len(there):
            raise WrongUsage(f"{self.url} has something in it, and is no fleet")
        for path in begun:
            self.fs.rm_file(path)
        about = {"fleet": FLEET_VERSION, "tables": list(FLEET)}
        self._put(_ABOUT, json.dumps(about).encode())

    def check(self) -> None:
        """Raises UnreadableInput unless this is a dataset that we can read."""
        try:
            about = json.loads(self.fs.cat_file(self._at(_ABOUT)))
            version = about["fleet"]
        except (OSError, ValueError, LookupError, TypeError, RecursionError):
            raise UnreadableInput(f"{self.url} is no fleet; `fleet add` makes one") from None
        if version != FLEET_VERSION:
            raise UnreadableInput(
                f"{self.url} has version {version!r} of the tables; this program knows "
                f"{FLEET_VERSION}"
            )

    def commits(self) -> list[Commit]:
        """The commits that count, in the order of their names."""
        folder = self._at(_COMMITS)
        if not self.fs.exists(folder):
            return []
        self.fs.invalidate_cache()
        names = sorted(name for name in self.fs.ls(folder, detail=False) if name.endswith(".json"))
        try:
            # `cat` takes names for patterns; this does not, and reads as many at a time.
            read = self.fs.cat_ranges(names, None, None, on_error="raise")
            known = {commit.batch: commit for commit in map(_parse, read)}
        except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
            raise UnreadableInput(f"{self.url}: a commit is damaged: {error}") from None
        gone = {batch for commit in known.values() for batch in commit.replaces}
        return [commit for batch, commit in sorted(known.items()) if batch not in gone]

    def commit(self, commit: Commit) -> None:
        """Make a batch count, all of it at once."""
        told = asdict(commit)
        self._put(f"{_COMMITS}/{commit.batch}.json", json.dumps(told).encode())

    def clean(self) -> None:
        """Remove what does not count: left by an interrupted run, or replaced."""
        counting = self.commits()
        wanted = {piece.path for commit in counting for piece in commit.pieces}
        batches = {commit.batch for commit in counting}
        for table in FLEET:
            folder = self._at(table)
            for path in self.fs.find(folder) if self.fs.exists(folder) else ():
                if path[path.index(f"/{table}/day=") + 1 :] not in wanted:
                    self.fs.rm_file(path)
        folder = self._at(_COMMITS)
        for path in self.fs.ls(folder, detail=False) if self.fs.exists(folder) else ():
            name = path.rpartition("/")[2]
            if name.removesuffix(".json") not in batches:
                self.fs.rm_file(path)

    def writer(self, batch: str) -> Writer:
        """Takes the rows of a batch."""
        return Writer(self, batch)

    def table(self, name: str, pieces: Iterable[DataFile]) -> Any:
        """The rows of these files as a `pyarrow.dataset.Dataset`, with the column `day`."""
        pa = pyarrow_or_refuse()
        import pyarrow.dataset as ds

        schema = arrow_schema(FLEET[name]).append(pa.field("day", pa.string()))
        paths = [self._at(piece.path) for piece in pieces if piece.table == name]
        if not paths:
            return ds.dataset(schema.empty_table())
        days = ds.partitioning(pa.schema([("day", pa.string())]), flavor="hive")
        return ds.dataset(
            paths, schema=schema, filesystem=self.fs, format="parquet", partitioning=days,
            partition_base_dir=self._at(name),
        )  # fmt: skip

    def local_files(self, name: str, pieces: Iterable[DataFile]) -> list[str]:
        """The same as names of files of this machine; none where DuckDB cannot open them so."""
        if "file" not in self.fs.protocol or _MEANT & set(self.root):
            return []
        return [self._at(piece.path) for piece in pieces if piece.table == name]

    def rewritten(self, commit: Commit, batch: str, gone: set[str]) -> list[DataFile]:
        """The files of a commit without the rows of some sources, by digest and by URL."""
        import pyarrow.compute as pc

        pa = pyarrow_or_refuse()
        values = pa.array(sorted(gone), pa.string())
        with self.writer(batch) as writer:
            kept = []
            for piece in commit.pieces:
                rows = self.table(piece.table, [piece]).to_table().drop(["day"])
                hit = pc.is_in(rows["digest"], value_set=values)
                if "url" in rows.schema.names:
                    hit = pc.or_(hit, pc.is_in(rows["url"], value_set=values))
                if not pc.any(hit).as_py():
                    kept.append(piece)
                else:
                    writer.write(piece.table, piece.day, rows.filter(pc.invert(hit)))
        return kept + writer.pieces

    def _at(self, path: str) -> str:
        return f"{self.root}/{path}"

    def _exists(self, path: str) -> bool:
        there: bool = self.fs.exists(self._at(path))
        return there

    def _put(self, path: str, content: bytes) -> None:
        """A small file, whole or not at all."""
        at = self._at(path)
        self.fs.makedirs(at.rpartition("/")[0], exist_ok=True)
        if "file" not in self.fs.protocol:
            self.fs.pipe_file(at, content)  # an object store shows an object when it is whole
            return
        temporary = f"{at}.{os.getpid()}{_PART}"
        with self.fs.open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(at)


class Writer:
    """Writes the files of a batch; their names follow from the batch."""

    def __init__(self, dataset: Dataset, batch: str) -> None:
        self.pieces: list[DataFile] = []
        self._dataset = dataset
        self._batch = batch
        self._waiting: dict[tuple[str, str], list[pyarrow.Table]] = {}
        self._files: dict[tuple[str, str], tuple[Any, Any, str]] = {}
        self._rows: dict[tuple[str, str], int] = {}

    def write(self, table: str, day: str, rows: pyarrow.Table) -> None:
        """Add rows of a table's day."""
        if not len(rows):
            return
        key = (table, day)
        waiting = self._waiting.setdefault(key, [])
        waiting.append(rows)
        if sum(map(len, waiting)) >= _GROUP:
            self._flush(key)

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            for key in list(self._waiting):
                self._flush(key)
        for (table, day), (writer, file, path) in sorted(self._files.items()):
            writer.close()
            file.close()
            self.pieces.append(DataFile(table, day, path, self._rows[table, day]))

    def _flush(self, key: tuple[str, str]) -> None:
        pa = pyarrow_or_refuse()
        from pyarrow import parquet

        rows = pa.concat_tables(self._waiting.pop(key))
        if key not in self._files:
            table, day = key
            path = f"{table}/day={day}/{self._batch}.parquet"
            at = self._dataset._at(path)
            self._dataset.fs.makedirs(at.rpartition("/")[0], exist_ok=True)
            file = self._dataset.fs.open(at, "wb")
            writer = parquet.ParquetWriter(file, rows.schema, compression="zstd")
            self._files[key] = (writer, file, path)
        self._files[key][0].write_table(rows, row_group_size=_GROUP)
        self._rows[key] = self._rows.get(key, 0) + len(rows)


def batch_name(parts: Iterable[str]) -> str:
    """The name of the batch that these make, always the same."""
    return hashlib.sha256("\n".join(parts).encode("utf-8", "surrogateescape")).hexdigest()[:24]


def _parse(raw: bytes) -> Commit:
    told: Mapping[str, Any] = json.loads(raw)
    return Commit(
        told["batch"],
        tuple(DataFile(*each) for each in told["pieces"]),
        tuple(SourceNote(*each) for each in told["sources"]),
        tuple(told["replaces"]),
    )


def pieces_of(commits: Iterable[Commit]) -> Iterator[DataFile]:
    """Every file of some commits."""
    for commit in commits:
        yield from commit.pieces
