"""The schemas of files that users write: they and the program's readers are of one opinion."""

from __future__ import annotations

import copy
import json
import re
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from tests.support import TRANSCRIPTS
from tools.input_schemas import INPUTS
from tools.make_schemas import FOLDER, input_schema_texts
from upcall_trace.compare.matchers import read_matchers
from upcall_trace.errors import UserError
from upcall_trace.kernel.world import load_worlds
from upcall_trace.replay.rebase import read_map
from upcall_trace.sources import open_source
from upcall_trace.tui.data.settings import read_settings


def read_transcript(path: Path) -> None:
    with open_source(path) as source:
        list(source.records())
        if source.damage:
            raise UserError("a line is damaged")


READERS: dict[str, Callable[[Path], object]] = {
    "world": load_worlds,
    "matchers": lambda path: read_matchers(path, (), path),
    "map": read_map,
    "settings": read_settings,
    "transcript": read_transcript,
}
BETWEEN_KEYS = ("more CPUs than nr_cpu_ids", "must have 0 and numbers below nr_cpu_ids")
"""What is wrong with two keys together, which no schema says."""


def documents() -> Iterator[Any]:
    """Every TOML file and block that is ours, with the name of its schema."""
    for path in sorted(Path("tests").rglob("worlds.toml")):
        yield pytest.param("world", tomllib.loads(path.read_text("utf-8")), id=str(path))
    for page in sorted(Path("docs").glob("*.md")):
        for block in re.findall(r"```toml\n(.*?)```", page.read_text("utf-8"), re.DOTALL):
            values = tomllib.loads(block)
            if name := kind_of(values):
                yield pytest.param(name, values, id=f"{page.name}-{name}")


def kind_of(values: dict[str, Any]) -> str | None:
    if "match" in values:
        return "matchers"
    if {"theme", "columns", "filters"} & values.keys():
        return "settings"
    if "irq" in values:
        return "map"
    machines = [each for each in values.values() if isinstance(each, dict) and "kernel" in each]
    return "world" if machines else None


DOCUMENTS = list(documents())
VALIDATORS = {name: jsonschema.Draft202012Validator(made()) for name, made in INPUTS.items()}


def valid(name: str, values: Any) -> bool:
    return bool(VALIDATORS[name].is_valid(values))


def refused(name: str, values: Any, path: Path) -> str | None:
    """What the reader says against a file, None when it takes it."""
    if name == "transcript":
        head = {"kind": "header", "format": "upcall-transcript", "version": 1}
        path.write_text(f"{json.dumps(head)}\n{json.dumps(values)}\n", "ascii")
    else:
        path.write_text(toml(values), "utf-8")
    try:
        READERS[name](path)
    except UserError as error:
        return str(error)
    return None


def toml(table: dict[str, Any]) -> str:
    return "".join(f"{json.dumps(key)} = {inline(value)}\n" for key, value in table.items())


def inline(value: Any) -> str:
    if isinstance(value, dict):
        parts = (f"{json.dumps(key)} = {inline(each)}" for key, each in value.items())
        return "{" + ", ".join(parts) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(inline, value)) + "]"
    return json.dumps(value)


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every container in a document with each of its keys; of lists the first item only."""
    keys = list(value) if isinstance(value, dict) else [0] if value else []
    for key in keys:
        yield value, key
        if isinstance(value[key], (dict, list)):
            yield from places(value[key])


def changed(document: Any) -> Iterator[Any]:
    """The document with one thing wrong or other: a key gone, added, or of another kind."""
    for number in range(sum(1 for _ in places(document))):
        others: list[Any] = ["gone", "added", -1, 1 << 70, 300, "text", "7", True, 1.5, [], {}]
        for other in others:
            again = copy.deepcopy(document)
            container, key = next(
                place for count, place in enumerate(places(again)) if count == number
            )
            if other == "gone":
                del container[key]
            elif other != "added":
                container[key] = other
            elif isinstance(container, dict):
                container["made_up"] = 1
            yield again


def test_the_published_ones_are_these() -> None:
    for name, text in input_schema_texts().items():
        assert (FOLDER / name).read_text("ascii") == text, "run `python -m tools.make_schemas`"
        jsonschema.Draft202012Validator.check_schema(json.loads(text))


def test_there_is_a_document_of_every_kind() -> None:
    assert {each.values[0] for each in DOCUMENTS} == INPUTS.keys() - {"transcript"}


@pytest.mark.parametrize(("name", "document"), DOCUMENTS)
def test_what_the_pages_and_recordings_have_fits(
    name: str, document: dict[str, Any], tmp_path: Path
) -> None:
    assert valid(name, document)
    assert refused(name, document, tmp_path / "x") is None


@pytest.mark.parametrize(("name", "document"), DOCUMENTS)
def test_schema_and_reader_are_of_one_opinion(
    name: str, document: dict[str, Any], tmp_path: Path
) -> None:
    if name == "world":
        document = dict(list(document.items())[-1:])
    for values in changed(document):
        why = refused(name, values, tmp_path / "x")
        if why is not None and any(words in why for words in BETWEEN_KEYS):
            continue
        if name == "matchers" and why is not None and "is no rule" in why:
            continue  # the text of a rule has a grammar of its own
        assert valid(name, values) == (why is None), (values, why)


@pytest.mark.parametrize("path", TRANSCRIPTS, ids=lambda path: path.stem)
def test_every_line_of_a_transcript_fits(path: Path) -> None:
    for line in path.read_text("ascii").splitlines():
        assert valid("transcript", json.loads(line)), line


def test_schema_and_reader_are_of_one_opinion_on_lines(tmp_path: Path) -> None:
    common = {"t_ns": 5, "conn": 1}
    for line in (
        {"kind": "bytes", **common, "dir": ">", "hex": "64", "zeros": 0},
        {"kind": "open", **common, "begins": "line", "port": 219, "accepted": True},
        {"kind": "close", **common, "how": "half"},
        {"kind": "gave_up", **common, "after_s": 2.5},
    ):
        for values in changed(line):
            why = refused("transcript", values, tmp_path / "x")
            if "after_s" in values and values["after_s"] in (True, "7"):
                continue  # read as numbers, which nobody need write so
            assert valid("transcript", values) == (why is None), (values, why)
