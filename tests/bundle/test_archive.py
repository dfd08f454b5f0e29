"""What is in an archive, that it is always the same, and what redaction leaves of its inputs."""

from __future__ import annotations

import hashlib
import json
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import pytest

from tests.support import GOLDEN, connect, records_of, run, small_capture, write_capture
from upcall_trace.bundle.archive import FOLDER, Inputs, Packed, pack
from upcall_trace.bundle.redaction import Redactor
from upcall_trace.capture.records import Chunk, Close, Gap, Header, Mark, Open, Record, Vmm
from upcall_trace.errors import UnreadableInput, WrongUsage
from upcall_trace.kernel.world import find_world
from upcall_trace.trace.opening import load

CAPTURES: Final = Path(__file__).parents[2] / "captures"
OOPS: Final = CAPTURES / "guest_oops.upcap"
CONSOLE: Final = GOLDEN / "guest_oops.console.log"
SECRETS: Final = (
    "worker-7",
    "alice",
    "10.1.2.3",
    "8f3a1c2e4b5d",
    "shop-pod",
    "launch codes",
)
HEADER: Final = Header(
    "proxy", "upcall-trace 0.1.0", "worker-7 Linux 6.1.0", "x86_64", 1699187696000000000, 1, 219,
    {"pod": "shop-pod", "who": "alice"},
)  # fmt: skip
PRIVATE: Final[list[Record]] = [
    replace(record, peer=(4711, 4711, 4711)) if isinstance(record, Open) else record
    for record in small_capture()[:-1]
] + [
    Vmm(9350, "vCPU 1 created by alice@worker-7 at 10.1.2.3"),
    Gap(9360, 2, False, 5, "no room on worker-7"),
    Mark(7, 1, 0, "comment", "launch codes of alice"),
    Mark(7, 1, 1, "shop-pod", "launch codes"),
    Mark(7, None, None, "shop-pod"),
    small_capture()[-1],
]
LOG: Final = """\
Nov  5 12:34:56 worker-7 kata[12]: sandbox 8f3a1c2e4b5d of alice: /home/alice/x, at 10.1.2.3
Nov  5 12:34:57 worker-7 kata[12]: vmm action error: UpcallServerNotReady on worker-7
"""


def pack_into(
    tmp_path: Path, inputs: Inputs, redactor: Redactor | None = None, name: str = "a"
) -> tuple[Packed, dict[str, bytes]]:
    """What `pack` says, and the archive's files by their names in its folder."""
    workspace = tmp_path / f"{name}.work"
    workspace.mkdir()
    packed = pack(inputs, tmp_path / name, workspace, redactor)
    with tarfile.open(tmp_path / name, "r:gz") as tar:
        members = tar.getmembers()
        assert all(member.name.startswith(f"{FOLDER}/") for member in members)
        files = {}
        for member in members:
            content = tar.extractfile(member)
            assert content is not None
            files[member.name.removeprefix(f"{FOLDER}/")] = content.read()
    assert len(files) == len(members)
    return packed, files


def manifest_of(files: dict[str, bytes]) -> dict[str, Any]:
    told: dict[str, Any] = json.loads(files["MANIFEST.json"])
    return told


@pytest.fixture
def private(tmp_path: Path) -> Inputs:
    """A capture and a log that say a lot about whose they are."""
    capture = write_capture(tmp_path / "shop-pod-of-alice.upcap", PRIVATE, HEADER)
    log = tmp_path / "worker-7.log"
    log.write_text(LOG)
    return Inputs([capture], console=log, vmm_log=log)


# Contents.


def test_an_archive_holds_what_was_given_and_what_was_found(tmp_path: Path) -> None:
    inputs = Inputs([OOPS], CONSOLE, CONSOLE, GOLDEN / "worlds.toml", "microvm")
    packed, files = pack_into(tmp_path, inputs)
    assert [*files] == [
        "MANIFEST.json", "console.log", "findings.json", "guest_oops.info.json",
        "guest_oops.upcap", "report.md", "vmm.log", "world.toml",
    ]  # fmt: skip
    assert files["guest_oops.upcap"] == OOPS.read_bytes()
    assert files["console.log"] == files["vmm.log"] == CONSOLE.read_bytes()
    assert files["world.toml"] == (GOLDEN / "worlds.toml").read_bytes()
    told = run(
        "diagnose", OOPS, "--console", CONSOLE, "--vmm-log", CONSOLE,
        "--world", GOLDEN / "worlds.toml", "--machine", "microvm", "--json",
    )  # fmt: skip
    packed_findings = json.loads(files["findings.json"])["findings"]
    shown = json.loads(told.out)["findings"]
    assert [(f["code"], f["request"]) for f in packed_findings] == [
        (f["code"], f["request"]) for f in shown
    ]
    assert {e["file"] for f in packed_findings for e in f["evidence"]} <= {None, "console.log"}
    assert (
        files["report.md"].decode().startswith("# Diagnosis\n\n## Findings in guest\\_oops.upcap")
    )
    assert json.loads(files["guest_oops.info.json"]) == json.loads(run("info", "--json", OOPS).out)
    assert packed.complete


def test_the_manifest_lists_every_file_with_its_size_and_digest(tmp_path: Path) -> None:
    packed, files = pack_into(tmp_path, Inputs([OOPS], CONSOLE))
    manifest = manifest_of(files)
    assert [*manifest] == ["v", "tool", "files", "machine", "complete", "redacted"]
    assert (manifest["v"], manifest["complete"], manifest["redacted"]) == (1, True, None)
    assert manifest["files"] == packed.files
    assert {file["name"] for file in packed.files} == set(files) - {"MANIFEST.json"}
    for file in packed.files:
        content = files[file["name"]]
        assert file["size"] == len(content)
        assert file["sha256"] == hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize("redacted", [False, True])
def test_the_same_inputs_make_the_same_archive(
    tmp_path: Path, private: Inputs, redacted: bool
) -> None:
    for name in ("a", "b"):
        pack_into(tmp_path, private, Redactor() if redacted else None, name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_an_archive_says_nothing_of_the_machine_that_made_it(tmp_path: Path) -> None:
    pack_into(tmp_path, Inputs([OOPS]))
    with tarfile.open(tmp_path / "a") as tar:
        for member in tar.getmembers():
            assert (member.mtime, member.uid, member.gid) == (0, 0, 0)
            assert (member.uname, member.gname, member.mode) == ("", "", 0o644)
    assert (tmp_path / "a").read_bytes()[4:8] == bytes(4)  # gzip's own time


def test_a_foreign_format_is_packed_as_a_capture(tmp_path: Path) -> None:
    sources = [GOLDEN / "framing.jsonl", GOLDEN / "framing.vsockmon.pcap"]
    _, files = pack_into(tmp_path, Inputs(sources))
    for source, name in zip(sources, ("framing.upcap", "framing.vsockmon.upcap"), strict=True):
        (tmp_path / name).write_bytes(files[name])
        assert records_of(tmp_path / name)[1][:-1] == records_of(source)[1]
        assert load(tmp_path / name).complete


def test_captures_of_one_name_and_of_odd_names_get_names_of_their_own(tmp_path: Path) -> None:
    paths = []
    for number, name in enumerate(["x", "x", "x", "..\x1b[31m/etc é", ".upcap"]):
        directory = tmp_path / str(number)
        path = directory / f"{name}.upcap"
        path.parent.mkdir(parents=True)
        paths.append(write_capture(path, connect()))
    _, files = pack_into(tmp_path, Inputs(paths))
    assert {name for name in files if name.endswith(".upcap")} == {
        "x.upcap", "x-2.upcap", "x-3.upcap", "etc__.upcap", "upcap.upcap",
    }  # fmt: skip


def test_logs_alone_make_an_archive(tmp_path: Path) -> None:
    packed, files = pack_into(tmp_path, Inputs(console=CONSOLE))
    assert [*files] == ["MANIFEST.json", "console.log", "findings.json", "report.md"]
    alone = json.loads(run("diagnose", "--console", CONSOLE, "--json").out)
    packed_findings = json.loads(files["findings.json"])["findings"]
    assert [f["code"] for f in packed_findings] == [f["code"] for f in alone["findings"]]
    assert packed.captures == []


# What is missing.


@pytest.mark.parametrize("redacted", [False, True])
def test_a_torn_capture_is_torn_in_the_archive_too(tmp_path: Path, redacted: bool) -> None:
    torn = tmp_path / "torn.upcap"
    torn.write_bytes((CAPTURES / "mmio_lifecycle.upcap").read_bytes()[:1000])
    packed, files = pack_into(tmp_path, Inputs([torn]), Redactor() if redacted else None)
    assert not packed.complete
    assert manifest_of(files)["complete"] is False
    (about,) = (json.loads(raw) for name, raw in files.items() if name.endswith(".info.json"))
    whole = json.loads(run("info", "--json", torn).out)
    assert about["complete"] is False
    for key in ("lost_bytes", "requests", "replies"):
        assert about[key] == whole[key], key


def test_a_log_that_is_too_large_is_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = tmp_path / "large.log"
    log.write_bytes(b"0123456789")
    monkeypatch.setattr("upcall_trace.bundle.archive._LOG_LIMIT", 10)
    packed, _ = pack_into(tmp_path, Inputs([OOPS], log), name="a")
    assert (packed.cut, packed.complete) == ([], True)
    monkeypatch.setattr("upcall_trace.bundle.archive._LOG_LIMIT", 9)
    packed, files = pack_into(tmp_path, Inputs([OOPS], log), name="b")
    assert (packed.cut, packed.complete) == ([log], False)
    assert files["console.log"] == b"012345678"


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    for inputs in (
        Inputs([tmp_path / "none"]),
        Inputs([OOPS], tmp_path / "none"),
        Inputs([OOPS], vmm_log=tmp_path),
        Inputs([OOPS], world=tmp_path / "none"),
    ):
        with pytest.raises(UnreadableInput, match=str(tmp_path)):
            pack(inputs, tmp_path / "a", tmp_path, None)
    with pytest.raises(WrongUsage, match="nobody"):
        pack(Inputs([OOPS], None, None, GOLDEN / "worlds.toml", "nobody"), tmp_path, tmp_path, None)


# Redaction.


def test_nothing_that_identifies_is_in_a_redacted_archive(tmp_path: Path, private: Inputs) -> None:
    _, plain = pack_into(tmp_path, private, name="plain")
    for secret in SECRETS:
        assert any(secret.encode() in content for content in plain.values()), secret
    _, files = pack_into(tmp_path, private, Redactor(), "redacted")
    for name, content in files.items():
        for secret in SECRETS:
            assert secret.encode() not in content, (name, secret)
            assert secret not in name


def test_a_redacted_capture_keeps_the_traffic_and_the_times(
    tmp_path: Path, private: Inputs
) -> None:
    _, files = pack_into(tmp_path, private, Redactor())
    (tmp_path / "c.upcap").write_bytes(files["capture-1.upcap"])
    header, records = records_of(tmp_path / "c.upcap")
    assert header == replace(HEADER, host="", notes={})
    kinds = (Chunk, Close)
    before = records_of(private.captures[0])[1]
    assert [r for r in records if isinstance(r, kinds)] == [
        r for r in before if isinstance(r, kinds)
    ]
    assert [r.peer for r in records if isinstance(r, Open)] == [None, None]
    assert [replace(r, peer=None) for r in before if isinstance(r, Open)] == [
        r for r in records if isinstance(r, Open)
    ]
    assert [r.action for r in records if isinstance(r, Vmm)] == ["vCPU 1 created by name-2 at ip-1"]
    assert [r.reason for r in records if isinstance(r, Gap)] == ["no room on name-1"]
    marks = [(r.conn, r.request, r.name, r.text) for r in records if isinstance(r, Mark)]
    assert marks == [
        (1, 0, "comment", ""), (1, 1, "mark-name-1", ""), (None, None, "mark-name-1", ""),
    ]  # fmt: skip
    assert [type(record) for record in records] == [type(record) for record in before]


def test_redaction_changes_no_finding(tmp_path: Path) -> None:
    for path in (OOPS, CAPTURES / "mmio_lifecycle.upcap"):
        inputs = Inputs([path], CONSOLE, CONSOLE)
        _, plain = pack_into(tmp_path, inputs, name=f"{path.stem}.plain")
        _, files = pack_into(tmp_path, inputs, Redactor(), f"{path.stem}.redacted")
        one, other = (json.loads(each["findings.json"]) for each in (files, plain))
        assert one["headline"] == other["headline"]
        log = [line.rstrip() for line in files["console.log"].decode().splitlines()]
        for finding in one["findings"]:  # each names the lines of the log beside it
            assert all(
                e["text"] == log[e["line"] - 1] for e in finding.pop("evidence") if e["line"]
            )
        for finding in other["findings"]:
            del finding["evidence"]
        assert one["findings"] == other["findings"]


def test_a_line_that_says_nothing_about_upcall_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("launch codes\nVM upcall init\nlaunch codes\nlaunch codes\n")
    _, files = pack_into(tmp_path, Inputs([OOPS], tmp_path / "log"), Redactor())
    assert files["console.log"].decode().splitlines() == [
        "[1 lines left out]", "VM upcall init", "[2 lines left out]",
    ]  # fmt: skip


def test_the_list_of_what_was_redacted_has_kinds_and_numbers(
    tmp_path: Path, private: Inputs
) -> None:
    packed, files = pack_into(tmp_path, private, Redactor())
    redacted = manifest_of(files)["redacted"]
    assert redacted == packed.redacted
    counts = {row["kind"]: (row["values"], row["places"]) for row in redacted}
    # The log is packed twice, as console and as the VMM's.
    assert counts["line"] == (0, 2)
    assert counts["host"] == (1, 2)
    assert counts["capture-mark"] == (2, 2)
    assert {"name", "pid", "capture-host", "capture-note", "capture-client"} <= set(counts)
    report = files["report.md"].decode()
    for row in redacted:
        assert f"| {row['what']} | {row['values']} | {row['places']} |" in report


def test_a_machine_is_named_as_the_redacted_world_names_it(tmp_path: Path) -> None:
    world = tmp_path / "world.toml"
    world.write_text('["10.1.2.3"]\nkernel = "6.1"\n')
    _, files = pack_into(tmp_path, Inputs([OOPS], None, None, world, "10.1.2.3"), Redactor())
    assert files["world.toml"].startswith(b'[guest]\nkernel = "6.1"\n')
    assert manifest_of(files)["machine"] == "guest"
    (tmp_path / "again.toml").write_bytes(files["world.toml"])
    assert find_world(tmp_path / "again.toml", "guest") == find_world(world, "10.1.2.3")
