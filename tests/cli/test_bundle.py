"""`bundle` as a user meets it: what it prints, what it refuses, and how it ends."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import tarfile
from pathlib import Path
from typing import Any, Final

import pytest

from tests.support import GOLDEN, Outcome, command, connect, limited, run, write_capture
from upcall_trace.bundle.archive import FOLDER
from upcall_trace.errors import ExitCode

CAPTURES: Final = Path(__file__).parents[2] / "captures"
OOPS: Final = CAPTURES / "guest_oops.upcap"
CONSOLE: Final = GOLDEN / "guest_oops.console.log"


def manifest_of(archive: Path) -> dict[str, Any]:
    with tarfile.open(archive) as tar:
        content = tar.extractfile(f"{FOLDER}/MANIFEST.json")
        assert content is not None
        told: dict[str, Any] = json.load(content)
    return told


def test_it_lists_what_it_packed(tmp_path: Path) -> None:
    archive = tmp_path / "a.tar.gz"
    told = run("bundle", OOPS, "--console", CONSOLE, "-o", archive)
    assert told.code == ExitCode.EXPECTED
    files = manifest_of(archive)["files"]
    assert told.out.splitlines() == [
        f"{file['size']:>12}  {file['name']}: {file['what']}" for file in files
    ]
    assert told.err == f"{archive}: 5 files, 3 errors found\n"
    assert [*tmp_path.iterdir()] == [archive]


def test_it_lists_what_it_redacted_and_asks_for_a_look(tmp_path: Path) -> None:
    log = tmp_path / "kata.log"
    log.write_text("Nov  5 12:34:56 worker-7 kata[1]: vmm action error: at 10.1.2.3\nhello\n" * 3)
    archive = tmp_path / "a.tar.gz"
    told = run("bundle", "--vmm-log", log, "--redact", "-o", archive)
    assert told.code == ExitCode.EXPECTED
    assert "redacted: host names: 1 values at 3 places" in told.out
    assert "redacted: IP addresses: 1 values at 3 places" in told.out
    assert "redacted: lines that say nothing about upcall, left out: 3 lines" in told.out
    assert "look at the archive before you publish it" in told.err
    assert "worker-7" not in told.out + told.err


def test_other_lines_are_kept_when_asked_and_words_are_taken_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("platform.node", lambda: "builder9.lan")
    log = tmp_path / "log"
    log.write_text("the customer of builder9 is Acme\n")
    told = run("bundle", "--console", log, "--redact", "--keep-lines", "--redact-also", "acme",
               "-o", tmp_path / "a")  # fmt: skip
    assert told.code == ExitCode.EXPECTED
    with tarfile.open(tmp_path / "a") as tar:
        content = tar.extractfile(f"{FOLDER}/console.log")
        assert content is not None
        assert content.read() == b"the customer of host-1 is name-1\n"
    assert run("bundle", "--console", log, "--keep-lines", "-o", tmp_path / "b").code == 2


def packed(*arguments: str | Path, tmp_path: Path) -> Outcome:
    return run("bundle", *arguments, "-o", tmp_path / "a.tar.gz")


def test_a_torn_capture_ends_with_3_and_is_packed(tmp_path: Path) -> None:
    torn = tmp_path / "torn.upcap"
    torn.write_bytes((CAPTURES / "mmio_lifecycle.upcap").read_bytes()[:1000])
    for redact in ([], ["--redact"]):
        told = packed(torn, *redact, "--overwrite", tmp_path=tmp_path)
        assert told.code == ExitCode.LOST
        assert str(torn) in told.err
        assert manifest_of(tmp_path / "a.tar.gz")["complete"] is False


def test_a_recording_that_goes_on_is_packed_as_far_as_it_is(tmp_path: Path) -> None:
    capture = write_capture(tmp_path / "c.upcap", connect())
    capture.write_bytes(capture.read_bytes()[:-20])
    with capture.open("rb") as recorder:
        fcntl.flock(recorder, fcntl.LOCK_EX)
        told = packed(capture, tmp_path=tmp_path)
    assert told.code == ExitCode.LOST
    assert "capture" in told.out


def test_a_log_that_was_cut_ends_with_3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("upcall_trace.bundle.archive._LOG_LIMIT", 100)
    told = packed(OOPS, "--console", CONSOLE, tmp_path=tmp_path)
    assert told.code == ExitCode.LOST
    assert f"{CONSOLE} is too large: only its beginning is in the archive" in told.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "give a capture"),
        (["--machine", "pc", OOPS], "--world"),
        (["--world", GOLDEN / "worlds.toml", OOPS], "--machine"),
        (["--world", GOLDEN / "worlds.toml", "--machine", "nobody", OOPS], "nobody"),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, list) else "",
)
def test_wrong_usage_ends_with_2_and_writes_nothing(
    tmp_path: Path, arguments: list[str | Path], words: str
) -> None:
    told = packed(*arguments, tmp_path=tmp_path)
    assert (told.code, words in told.err, told.out) == (ExitCode.USAGE, True, "")
    assert [*tmp_path.iterdir()] == []


def test_no_input_is_overwritten(tmp_path: Path) -> None:
    names = ("capture", "console", "vmm", "world")
    contents = (
        OOPS.read_bytes(), CONSOLE.read_bytes(), b"log\n", b'[pod]\nkernel = "6.1"\n'
    )  # fmt: skip
    for name, content in zip(names, contents, strict=True):
        (tmp_path / name).write_bytes(content)
    for name in names:
        told = run(
            "bundle", tmp_path / "capture", "--console", tmp_path / "console",
            "--vmm-log", tmp_path / "vmm", "--world", tmp_path / "world", "-o", tmp_path / name,
        )  # fmt: skip
        assert told.code == ExitCode.USAGE
        assert "is the input" in told.err
    assert [(tmp_path / name).read_bytes() for name in names] == [*contents]
    assert len([*tmp_path.iterdir()]) == len(names)


def test_an_output_that_is_no_file_is_refused(tmp_path: Path) -> None:
    for output in (tmp_path, tmp_path / "none" / "a.tar.gz"):
        told = run("bundle", OOPS, "-o", output)
        assert told.code == ExitCode.USAGE
        assert str(output) in told.err
    assert [*tmp_path.iterdir()] == []


@pytest.mark.parametrize("option", ["", "--console", "--vmm-log", "--world"])
def test_what_cannot_be_read_ends_with_5_and_keeps_an_old_archive(
    tmp_path: Path, option: str
) -> None:
    archive = tmp_path / "a.tar.gz"
    archive.write_bytes(b"precious")
    given = [option, tmp_path / "none"] if option else [tmp_path / "none"]
    told = run("bundle", OOPS, *given, "--redact", "-o", archive, "--overwrite")
    assert told.code == ExitCode.UNREADABLE
    assert str(tmp_path / "none") in told.err
    assert [*tmp_path.iterdir()] == [archive]
    assert archive.read_bytes() == b"precious"


def test_an_old_archive_is_replaced_as_a_whole(tmp_path: Path) -> None:
    archive = tmp_path / "a.tar.gz"
    archive.write_bytes(b"x" * 1_000_000)
    refused = packed(OOPS, tmp_path=tmp_path)
    assert refused.code == ExitCode.USAGE
    assert refused.err == f"upcall-trace: {archive} exists; give another name, or --overwrite\n"
    assert archive.read_bytes() == b"x" * 1_000_000
    assert packed(OOPS, "--overwrite", tmp_path=tmp_path).code == ExitCode.EXPECTED
    assert manifest_of(archive)["complete"] is True


def test_a_disk_that_is_full_leaves_nothing_behind(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(os.urandom(300_000))
    bundle = command("bundle", "--vmm-log", log, "-o", tmp_path / "a.tar.gz")
    done = subprocess.run(
        limited(bundle, "RLIMIT_FSIZE", 100 << 10),
        capture_output=True, check=False, text=True, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (ExitCode.USAGE, "")
    assert "cannot be written: File too large" in done.stderr
    assert [*tmp_path.iterdir()] == [log]


def test_a_log_may_come_through_a_pipe(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with subprocess.Popen(["cp", CONSOLE, pipe]) as writer:
        ended = run("bundle", "--console", pipe, "--redact", "-o", tmp_path / "a")
        writer.wait(10)
    assert ended.code == ExitCode.EXPECTED
    with tarfile.open(tmp_path / "a") as tar:
        content = tar.extractfile(f"{FOLDER}/console.log")
        assert content is not None
        assert b"lines left out]" in content.read()


def test_control_bytes_do_not_reach_the_terminal(tmp_path: Path) -> None:
    odd = write_capture(tmp_path / "c\x1b]0;owned\x07.upcap", connect())
    told = run("bundle", odd, "-o", tmp_path / "a\x1b[31m.tar.gz")
    assert told.code == ExitCode.EXPECTED
    assert [c for c in told.out + told.err if not c.isprintable() and c != "\n"] == []
