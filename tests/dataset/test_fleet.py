"""Many captures become one dataset: whole, once, and whatever happens on the way."""

from __future__ import annotations

import functools
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import fsspec
import pytest

from tests.dataset.fleets import captures, rows, same_rows
from tests.support import golden, records_of, write_capture
from upcall_trace.capture.records import Header
from upcall_trace.dataset import fleet
from upcall_trace.dataset.fleet import Added, add, drop, find_sources, known_sources
from upcall_trace.dataset.query import DayRange, ask, failures, query
from upcall_trace.dataset.schema import FLEET
from upcall_trace.dataset.stored import Dataset
from upcall_trace.errors import UnreadableInput, WrongUsage


def made(url: str | Path, *sources: str | Path, update: bool = False) -> Added:
    return add(str(url), find_sources(map(str, sources)), update=update)


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_every_capture_is_there_with_its_rows(tmp_path: Path) -> None:
    captures(tmp_path / "nodes", 6)
    added = made(tmp_path / "set", tmp_path / "nodes")
    there = Dataset(str(tmp_path / "set"))
    assert (added.captures, added.problems) == (6, 0)
    assert added.operations == len(rows(there, "operations"))
    assert {row["kernel"] for row in rows(there, "operations")} == {"5.10.226", "6.1.62"}
    assert {row["day"] for row in rows(there, "captures")} == {
        "2026-09-21", "2026-09-22", "2026-09-23",
    }  # fmt: skip
    assert sum(row["operations"] for row in rows(there, "captures")) == added.operations
    assert rows(there, "connections")
    assert rows(there, "findings")


def test_adding_twice_changes_no_byte(tmp_path: Path) -> None:
    captures(tmp_path / "nodes", 4)
    made(tmp_path / "set", tmp_path / "nodes")
    before = files(tmp_path / "set")
    again = made(tmp_path / "set", tmp_path / "nodes")
    assert (again.captures, again.known) == (0, 4)
    assert files(tmp_path / "set") == before


def test_one_capture_under_two_names_counts_once(tmp_path: Path) -> None:
    (path,) = captures(tmp_path / "nodes", 1)
    (tmp_path / "nodes" / "copy.upcap").write_bytes(path.read_bytes())
    assert made(tmp_path / "set", tmp_path / "nodes").captures == 1


def test_damaged_captures_are_problems_and_all_others_are_there(tmp_path: Path) -> None:
    whole = captures(tmp_path / "nodes", 4)
    (tmp_path / "nodes" / "none.upcap").write_bytes(b"not a capture")
    torn = tmp_path / "nodes" / "torn.upcap"
    torn.write_bytes(whole[0].read_bytes()[:-20])
    added = made(tmp_path / "set", tmp_path / "nodes")
    there = Dataset(str(tmp_path / "set"))
    assert (added.captures, added.problems) == (5, 2)
    told = {Path(row["url"]).name: row["problem"] for row in rows(there, "problems")}
    assert told == {"none.upcap": "unreadable", "torn.upcap": "damaged"}
    assert len(rows(there, "captures")) == 5
    assert made(tmp_path / "set", tmp_path / "nodes").known == 6


def test_update_takes_the_new_rows_and_lets_go_of_the_old(tmp_path: Path) -> None:
    first, second = captures(tmp_path / "nodes", 2)
    made(tmp_path / "set", tmp_path / "nodes")
    header, records = records_of(second)
    first.unlink()
    write_capture(first, records, Header("proxy", host="another", wall_ns=header.wall_ns))
    assert made(tmp_path / "set", tmp_path / "nodes").captures == 0  # add looks for new ones only
    assert made(tmp_path / "set", update=True).captures == 0  # no sources at all
    added = add(str(tmp_path / "set"), known_sources(str(tmp_path / "set")), update=True)
    assert added.captures == 1
    made(tmp_path / "fresh", tmp_path / "nodes")
    assert same_rows(Dataset(str(tmp_path / "set")), Dataset(str(tmp_path / "fresh")), FLEET)


def test_drop_keeps_a_retention_and_what_went_stays_away(tmp_path: Path) -> None:
    captures(tmp_path / "nodes", 6)
    made(tmp_path / "set", tmp_path / "nodes")
    there = Dataset(str(tmp_path / "set"))
    old = [row for row in rows(there, "operations") if row["day"] < "2026-09-22"]
    assert drop(there.url, "2026-09-22") == len(old) > 0
    assert {row["day"] for row in rows(there, "operations")} == {"2026-09-22", "2026-09-23"}
    assert not list((tmp_path / "set").rglob("day=2026-09-21/*"))
    assert made(tmp_path / "set", tmp_path / "nodes").captures == 0


def test_killed_in_the_middle_and_again_it_is_the_same_dataset(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    captures(tmp_path / "nodes", 30)
    # Small batches: the program that is killed takes the same ones.
    program = (
        "import sys\n"
        "from upcall_trace.dataset import fleet\n"
        "fleet._BATCH_SOURCES = 3\n"
        "def told(added):\n"
        "    print('batch', flush=True)\n"
        "    sys.stdin.readline()\n"
        "fleet.add(sys.argv[1], fleet.find_sources([sys.argv[2]]), told=told)\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "set"), str(tmp_path / "nodes")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as running:
        assert running.stdout is not None
        assert running.stdout.readline() == b"batch\n"
        running.send_signal(signal.SIGKILL)
    (tmp_path / "set/operations/day=2026-09-21/left.parquet").write_bytes(b"half a file")

    monkeypatch.setattr(fleet, "_BATCH_SOURCES", 3)
    there = Dataset(str(tmp_path / "set"))
    assert len(rows(there, "captures")) == 3
    assert made(tmp_path / "set", tmp_path / "nodes").captures == 27
    made(tmp_path / "fresh", tmp_path / "nodes")
    assert files(tmp_path / "set") == files(tmp_path / "fresh")


def test_a_kill_at_any_moment_leaves_the_same_dataset(tmp_path: Path) -> None:
    captures(tmp_path / "nodes", 12)
    command = [sys.executable, "-m", "upcall_trace", "fleet", "add", "-j", "1",
               str(tmp_path / "set"), str(tmp_path / "nodes")]  # fmt: skip
    for wait in (0.4, 0.8):
        with subprocess.Popen(command, stderr=subprocess.DEVNULL) as running:
            time.sleep(wait)
            running.kill()
    subprocess.run(command, check=True)
    made(tmp_path / "fresh", tmp_path / "nodes")
    assert files(tmp_path / "set") == files(tmp_path / "fresh")


def test_a_kill_before_anything_was_whole_leaves_no_folder_that_is_refused(tmp_path: Path) -> None:
    captures(tmp_path / "nodes", 1)
    there = tmp_path / "set"
    there.mkdir()
    (there / "fleet.json.123.part").write_text('{"fle')
    made(there, tmp_path / "nodes")
    assert not list(there.glob("*.part"))


def test_two_writers_do_not_meet(tmp_path: Path) -> None:
    captures(tmp_path / "nodes", 1)
    there = Dataset(str(tmp_path / "set"))
    with fleet._alone(there), pytest.raises(WrongUsage, match="another process"):
        made(tmp_path / "set", tmp_path / "nodes")


def test_a_folder_with_something_else_is_left_alone(tmp_path: Path) -> None:
    (path,) = captures(tmp_path / "nodes", 1)
    with pytest.raises(WrongUsage, match="is no fleet"):
        made(tmp_path / "nodes", path)
    with pytest.raises(UnreadableInput, match="fleet add"):
        known_sources(str(tmp_path / "nodes"))
    with pytest.raises(UnreadableInput, match="no such file"):
        made(tmp_path / "set", tmp_path / "nowhere")


def test_what_is_in_memory_is_a_dataset_too(tmp_path: Path) -> None:
    captures(tmp_path / "nodes", 3)
    memory = fsspec.filesystem("memory")
    for path in sorted((tmp_path / "nodes").iterdir()):
        memory.pipe_file(f"/nodes/{path.name}", path.read_bytes())
    try:
        assert made("memory://set", "memory://nodes").captures == 3
        assert made("memory://set", "memory://nodes").known == 3
        made(tmp_path / "fresh", tmp_path / "nodes")
        tables = ("operations", "findings", "connections")
        assert same_rows(Dataset("memory://set"), Dataset(str(tmp_path / "fresh")), tables)
    finally:
        memory.rm("/set", recursive=True)
        memory.rm("/nodes", recursive=True)


@pytest.mark.parametrize("sign", ["[1]", "[", "*", "?", "a{b,c}", "day=x", "%20", "#1"])
def test_a_folder_may_have_any_name(sign: str, tmp_path: Path) -> None:
    folder = tmp_path / f"pod{sign}"
    (path,) = captures(folder / "nodes", 1)
    path = path.rename(path.with_name(f"a{sign}.upcap"))
    there = Dataset(str(folder / "set"))
    assert made(there.url, folder / "nodes").captures == 1
    assert made(there.url, path).known == 1
    count = "SELECT count(*) AS n FROM operations"
    (answer,) = query(there, count).to_pylist()
    assert answer["n"] == len(rows(there, "operations")) > 0
    assert ask(there, failures(["op"]), DayRange()).num_rows > 0
    path.write_bytes(captures(folder / "more", 2)[1].read_bytes())
    add(there.url, known_sources(there.url), update=True)
    (after,) = query(there, count).to_pylist()
    assert after["n"] != answer["n"]


@pytest.fixture
def served(tmp_path: Path) -> Iterator[str]:
    """The URL of an HTTP server with `tmp_path`."""
    handler = functools.partial(SimpleHTTPRequestHandler, directory=str(tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_captures_come_over_http(tmp_path: Path, served: str) -> None:
    paths = captures(tmp_path / "nodes", 3)
    assert made(tmp_path / "set", f"{served}/nodes/").captures == 3
    assert made(tmp_path / "one", f"{served}/nodes/{paths[0].name}").captures == 1
    made(tmp_path / "fresh", tmp_path / "nodes")
    tables = ("operations", "findings", "connections")
    assert same_rows(Dataset(str(tmp_path / "set")), Dataset(str(tmp_path / "fresh")), tables)


def test_what_cannot_be_reached_is_asked_for_again(tmp_path: Path, served: str) -> None:
    captures(tmp_path / "nodes", 2)
    sources = find_sources([f"{served}/nodes/"])
    aside = (tmp_path / "nodes/0001.upcap").rename(tmp_path / "aside")
    added = add(str(tmp_path / "set"), sources)
    there = Dataset(str(tmp_path / "set"))
    assert (added.captures, added.problems) == (1, 1)
    assert [row["problem"] for row in rows(there, "problems")] == ["unreachable"]
    aside.rename(tmp_path / "nodes/0001.upcap")
    assert add(str(tmp_path / "set"), sources).captures == 1
    assert rows(there, "problems") == []
    assert len(rows(there, "captures")) == 2


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The URL of an empty bucket of an S3 that runs here."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in (
        ("AWS_ACCESS_KEY_ID", "testing"), ("AWS_SECRET_ACCESS_KEY", "testing"),
        ("AWS_ENDPOINT_URL", f"http://{host}:{port}"), ("AWS_DEFAULT_REGION", "us-east-1"),
    ):  # fmt: skip
        monkeypatch.setenv(name, value)
    fs = fsspec.filesystem("s3", skip_instance_cache=True)
    fs.mkdir("fleet")
    yield "s3://fleet"
    server.stop()


def test_captures_and_dataset_are_in_an_object_store(tmp_path: Path, bucket: str) -> None:
    captures(tmp_path / "nodes", 3)
    fs = fsspec.filesystem("s3")
    for path in sorted((tmp_path / "nodes").iterdir()):
        fs.put_file(str(path), f"fleet/nodes/{path.name}")
    assert made(f"{bucket}/set", f"{bucket}/nodes").captures == 3
    assert made(f"{bucket}/set", f"{bucket}/nodes").known == 3
    made(tmp_path / "fresh", tmp_path / "nodes")
    tables = ("operations", "findings", "connections")
    assert same_rows(Dataset(f"{bucket}/set"), Dataset(str(tmp_path / "fresh")), tables)


def test_a_url_of_no_kind_is_told(tmp_path: Path) -> None:
    with pytest.raises(WrongUsage, match="nonsense"):
        made(tmp_path / "set", "nonsense://captures")


def test_transcripts_are_sources_by_name(tmp_path: Path) -> None:
    added = made(tmp_path / "set", golden("mmio_lifecycle"))
    assert added.captures == 1
    assert {row["day"] for row in rows(Dataset(str(tmp_path / "set")), "operations")} == {"unknown"}
