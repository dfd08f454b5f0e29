"""What a disk may hold after the power is gone: every state that a program's system calls allow.

strace writes down what a program writes, syncs and names. What was synced is there. Of what was
written since, each sector may be there or not, in any of the versions that it had, and the file
may be as short as it was. A name counts once the folder was synced, and before that may count.
"""

from __future__ import annotations

import random
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

SECTOR = 512
_ALL_OF = 6
_NAMING = {"link": "link", "linkat": "link", "rename": "rename", "renameat": "rename"}
"""Calls that name a file, and what they do: newer Pythons make others than older ones."""
_CALLS = ",".join(("openat,pwrite64,write,fdatasync,fsync,ftruncate", *_NAMING))
_LINE = re.compile(r"([\d.]+) (\w+)\((.*)\) += (-?\d+)")
_FD = re.compile(r"(\d+)<((?:\\x[0-9a-f]{2})*)>(?:\(deleted\))?")
_TEXT = re.compile(r'"((?:\\x[0-9a-f]{2})*)"')


def traced(log: Path, *command: str | Path) -> list[str | Path]:
    """The command, with its writes, syncs and names written into files that begin with `log`."""
    # One file a process: in one for all of them, calls of different processes cut each other.
    words: list[str | Path] = [
        "strace",
        "-ff",
        "-ttt",
        "-xx",
        "-y",
        "-s",
        "16777216",
        "-o",
        log,
        "-e",
    ]
    return [*words, f"trace={_CALLS}", *command]


@dataclass(frozen=True)
class Call:
    """A call that worked: `file` is the path that the file was opened by."""

    name: str
    file: str
    data: bytes = b""
    offset: int = 0
    other: str = ""


def calls(log: Path) -> list[Call]:
    """The calls of all processes that were traced into `log`, in order."""
    lines = [
        found
        for path in log.parent.glob(f"{log.name}.*")
        for found in map(_LINE.match, path.read_text().splitlines())
        if found
    ]
    return [
        call
        for line in sorted(lines, key=lambda line: float(line[1]))
        if int(line[4]) >= 0 and (call := _call(line[2], line[3], int(line[4])))
    ]


def _raw(text: str) -> bytes:
    return bytes.fromhex(text.replace("\\x", ""))


def _call(name: str, words: str, result: int) -> Call | None:
    texts = [_raw(text) for text in _TEXT.findall(words)]
    described = _FD.match(words)
    file = _raw(described[2]).decode() if described else ""
    if name in _NAMING:
        return Call(_NAMING[name], texts[0].decode(), other=texts[1].decode())
    if name == "pwrite64":
        return Call("write", file, texts[0][:result], int(words.rpartition(",")[2]))
    if name == "write":
        return Call("append", file, texts[0][:result])
    if name == "ftruncate":
        return Call(name, file, offset=int(words.rpartition(",")[2]))
    if name in ("fsync", "fdatasync"):
        return Call("sync", file)
    return None


@dataclass
class _File:
    """One file: what is on the disk for sure, and what was written since."""

    synced: bytes = b""
    now: bytes = b""
    versions: list[bytes] = field(default_factory=list)
    """What the file was after each call since the last sync."""

    def change(self, content: bytes) -> None:
        self.now = content
        self.versions.append(content)

    def sync(self) -> None:
        self.synced = self.now
        self.versions.clear()

    def states(self, count: int, chance: random.Random) -> Iterator[bytes]:
        """Contents that it may have; all of them where they are few, else so many by chance."""
        versions = [self.synced, *self.versions]
        longest = max(map(len, versions))
        changed = [
            at for at in range(0, longest, SECTOR)
            if len({version[at : at + SECTOR] for version in versions}) > 1
        ]  # fmt: skip
        if not changed:
            yield self.synced
            return
        if len(changed) <= _ALL_OF and len(versions) == 2:
            for picked in range(1 << len(changed)):
                chosen = {at: picked >> n & 1 for n, at in enumerate(changed)}
                for size in sorted({len(version) for version in versions}):
                    yield self._state(versions, chosen, size)
            return
        for _ in range(count):
            chosen = {at: chance.randrange(len(versions)) for at in changed}
            size = chance.choice([*map(len, versions), chance.randint(len(self.synced), longest)])
            yield self._state(versions, chosen, size)

    @staticmethod
    def _state(versions: Sequence[bytes], chosen: dict[int, int], size: int) -> bytes:
        whole = bytearray(max(versions, key=len))
        for at, number in chosen.items():
            piece = versions[number][at : at + SECTOR]
            whole[at : at + SECTOR] = piece.ljust(len(whole[at : at + SECTOR]), b"\0")
        return bytes(whole[:size]).ljust(size, b"\0")


@dataclass(frozen=True)
class State:
    """A file after a loss of power: what it holds, and what was on the disk for sure."""

    content: bytes | None
    """None where there is no file of that name."""
    sure: bytes | None


def states(
    happened: Sequence[Call], path: Path, count: int, seed: int, before: bytes | None = None
) -> Iterator[State]:
    """What the file at `path` may be after a loss of power at any of the calls.

    `count` states by chance for each call where there are too many; `before` is what was there.
    """
    chance = random.Random(seed)
    old = _File(before or b"", before or b"")
    files: dict[str, _File] = {}
    named: list[_File | None] = [old if before is not None else None]
    """What the name stands for: first what it does for sure, then what it may."""
    for call in happened:
        file = files.setdefault(call.file, _File())
        if call.name == "write":
            padded = file.now.ljust(call.offset, b"\0")
            file.change(padded[: call.offset] + call.data + padded[call.offset + len(call.data) :])
        elif call.name == "append":
            file.change(file.now + call.data)
        elif call.name == "ftruncate":
            file.change(file.now[: call.offset].ljust(call.offset, b"\0"))
        elif call.name == "sync" and call.file == str(path.parent):
            named = named[-1:]
        elif call.name == "sync":
            file.sync()
        elif call.other == str(path):
            named.append(file)
        for each in named:
            sure = None if len(named) > 1 or each is None else each.synced
            if each is None:
                yield State(None, None)
            else:
                yield from (State(held, sure) for held in each.states(count, chance))


available = shutil.which("strace") is not None
