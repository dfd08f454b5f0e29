"""captures/ holds what the recordings say, each with its story, and the wheel ships it."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest

from dissectors.messages import decode_reply, decode_request
from tools.generate_captures import CAPTURES, RECORDINGS, make, sources
from upcall_trace.capture.records import Chunk, End, Mark
from upcall_trace.sources import open_source
from upcall_trace.trace.opening import load
from upcall_trace.trace.samples import sample
from upcall_trace.views.json_objects import operation_object

SOURCES = dict(sources())


def test_every_recording_has_a_capture_with_a_story_and_an_expected_decode() -> None:
    stems = {path.name.removesuffix(".vsockmon.pcap") for path in RECORDINGS.glob("*.pcap")}
    assert stems == set(SOURCES)
    for name in SOURCES:
        story = (CAPTURES / f"{name}.md").read_text("utf-8")
        assert story.startswith(f"# {name}: ")
        assert sample(name) == CAPTURES / f"{name}.upcap"


@pytest.mark.parametrize("name", SOURCES)
def test_capture_decodes_as_expected(name: str) -> None:
    capture = load(CAPTURES / f"{name}.upcap")
    assert capture.complete
    assert capture.complete
    assert capture.lost_bytes == 0
    expected = (CAPTURES / f"{name}.expected.jsonl").read_text("ascii").splitlines()
    assert [operation_object(op) for op in capture.operations] == [*map(json.loads, expected)]


@pytest.mark.parametrize("name", SOURCES)
def test_capture_holds_the_recording_byte_for_byte(name: str) -> None:
    with open_source(SOURCES[name]) as recording, open_source(CAPTURES / f"{name}.upcap") as ours:
        recorded = [record for _, record in recording.records()]
        kept = [record for _, record in ours.records() if not isinstance(record, (Mark, End))]
    assert kept == recorded


@pytest.mark.parametrize("name", SOURCES)
def test_the_script_makes_the_same_files_again(name: str, tmp_path: Path) -> None:
    make(SOURCES[name], name, tmp_path)
    for made in tmp_path.iterdir():
        assert made.read_bytes() == (CAPTURES / made.name).read_bytes(), f"make captures: {made}"


@pytest.mark.parametrize("name", SOURCES)
def test_every_message_encodes_to_the_bytes_it_came_from(name: str) -> None:
    with open_source(CAPTURES / f"{name}.upcap") as ours:
        chunks = [record for _, record in ours.records() if isinstance(record, Chunk)]
    whole = [chunk for chunk in chunks if len(chunk.data) == 1024]
    assert whole or name.startswith("framing")
    for chunk in whole:
        decode = decode_request if chunk.to_guest else decode_reply
        assert decode(chunk.data).encode() == chunk.data


def test_the_wheel_ships_them(tmp_path: Path) -> None:
    build = pytest.importorskip("hatchling.builders.wheel")
    builder = build.WheelBuilder(str(CAPTURES.parent))
    (wheel,) = builder.build(directory=str(tmp_path), versions=["standard"])
    names = set(zipfile.ZipFile(wheel).namelist())
    for name in SOURCES:
        assert f"upcall_trace/samples/{name}.upcap" in names
        assert f"upcall_trace/samples/{name}.md" in names
    assert not any(name.startswith(("tests/", "tools/")) for name in names)
