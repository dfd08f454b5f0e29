"""A plugin's source, held at arm's length: what it does wrong ends it, and nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, Self

from ..capture.encoding import checked
from ..capture.reader import Damage
from ..capture.records import Header, Record
from ..errors import UnreadableInput
from ..plugins import BrokenPlugin, Plugin, note


class PluggedSource:
    """A `Source` around that of a plugin.

    Its records are checked as those of a file are. When it raises, or gives something that is no
    record, what it gave before stands, the recording is not complete, and the trouble is noted.
    """

    live = False

    def __init__(self, plugin: Plugin, module: str, path: Path) -> None:
        """Open the file with the `read` of a module; raises UnreadableInput and OSError."""
        self._plugin = plugin
        self._broken = False
        try:
            with plugin.in_use(passes=(OSError,)):
                self._source: Any = import_module(module).read(path)
                header = self._source.header
                if not isinstance(header, Header) or not isinstance(checked(header), Header):
                    raise TypeError("its source has no header")
        except BrokenPlugin as trouble:
            raise UnreadableInput(f"{path}: {trouble}") from trouble

    @property
    def header(self) -> Header:
        """The plugin's own, which may be replaced: it reads the port from there."""
        header: Header = self._source.header
        return header

    @header.setter
    def header(self, header: Header) -> None:
        self._source.header = header

    @property
    def damage(self) -> list[Damage]:
        """Where the file cannot be read."""
        return [each for each in self._source.damage if isinstance(each, Damage)]

    @property
    def complete(self) -> bool:
        """Whether the plugin read all of a whole file."""
        return not self._broken and bool(self._source.complete)

    def records(self) -> Iterator[tuple[int, Record]]:
        """The plugin's records up to the first that is none."""
        try:
            with self._plugin.in_use():
                records = iter(self._source.records())
            while True:
                with self._plugin.in_use():
                    item = next(records, None)
                    if item is None:
                        return
                    offset, record = item
                    if type(offset) is not int:
                        raise TypeError("an offset is no number")
                    record = checked(record)
                yield offset, record
        except BrokenPlugin as trouble:
            self._broken = True
            note(trouble)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            with self._plugin.in_use():
                self._source.__exit__(None, None, None)
        except BrokenPlugin as trouble:
            note(trouble)
