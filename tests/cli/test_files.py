"""Files that commands cannot read or may not write: one clear sentence and the right exit code."""

from __future__ import annotations

import fcntl
import os
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support import (
    Outcome,
    command,
    connect,
    golden,
    limited,
    run,
    small_capture,
    without_privileges,
    write_capture,
)
from upcall_trace.capture.encoding import encode
from upcall_trace.capture.frames import MAGIC, frame, pack
from upcall_trace.capture.records import Chunk, Header, Record
from upcall_trace.errors import ExitCode

READERS = {
    "show": ("show",),
    "show --json": ("show", "--json"),
    "show --frames": ("show", "--frames"),
    "show --follow": ("show", "--follow"),
    "info": ("info",),
    "import": ("import", "-o", "OUT"),
    "export": ("export", "--format", "transcript", "-o", "OUT"),
    "filter": ("filter", "-o", "OUT", "--", "IN", "failed"),
    "merge": ("merge", "-o", "OUT"),
    "split": ("split", "-o", "OUT"),
    "recover": ("recover", "-o", "OUT"),
}
"""Every command that reads a file; IN is put at the end where it does not stand."""


def arguments_of(reader: str, path: Path, output: Path) -> list[str]:
    template = READERS[reader]
    names = {"IN": str(path), "OUT": str(output)}
    filled = [names.get(argument, argument) for argument in template]
    return filled if "IN" in template else [*filled, str(path)]


def nothing(path: Path) -> None:
    pass


def bind_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))


def capture_with(header: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(MAGIC + header)


def link_to_itself(path: Path) -> None:
    path.symlink_to(path)


UNREADABLE: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (nothing, "{path}: No such file or directory"),
    "a directory": (
        Path.mkdir,
        "{path} cannot be read as a capture: it is a directory without captures",
    ),
    "a socket": (bind_socket, "{path} is a socket, not a file"),
    "a pipe": (os.mkfifo, "{path} is a pipe, not a file"),
    "a device": (lambda path: path.symlink_to("/dev/null"), "{path} is a device, not a file"),
    "a link to itself": (link_to_itself, "{path}: Too many levels of symbolic links"),
    "empty": (Path.touch, "{path} is empty"),
    "a text": (
        lambda path: path.write_text("hello\n"),
        "{path} is neither a capture nor one of the formats pcap, transcript",
    ),
    "only the magic": (
        lambda path: path.write_bytes(MAGIC),
        "{path} cannot be read as a capture: its header is cut off",
    ),
    "a damaged header": (
        capture_with(encode(Header("x"))[:-1] + b"\x01"),
        "{path} cannot be read as a capture: its header is damaged or cut off",
    ),
    "a later version": (
        capture_with(encode(Header("x", version=9))),
        "{path} cannot be read as a capture: it has format version 9; this program knows 2",
    ),
    "a hostile header": (
        capture_with(frame(pack([0, 1, "s", "t", "h", None, None, 0, 219, []]))),
        "{path} cannot be read as a capture: its header is damaged: kind 0: the notes are missing",
    ),
    "a deep header": (
        capture_with(frame(b"\x91" * 5000)),
        "{path} cannot be read as a capture: its header is damaged: not a bounded msgpack array: ",
    ),
    "carriage returns lost": (
        lambda path: path.write_bytes(MAGIC.replace(b"\r\n", b"\n") + encode(Header("x"))),
        "{path} cannot be read as a capture: it does not begin like one",
    ),
    "a later transcript": (
        lambda path: path.write_text('{"format": "upcall-transcript", "version": 2}\n'),
        "{path} is a transcript of version 2; this program knows 1",
    ),
    "half a pcap header": (
        lambda path: path.write_bytes(b"\xd4\xc3\xb2\xa1\x02"),
        "{path} is not a whole packet capture: Not a supported capture file",
    ),
    "what cannot be read at all": (
        lambda path: path.symlink_to("/proc/self/mem"),
        "{path}: Input/output error",
    ),
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("kind", UNREADABLE)
def test_an_input_that_cannot_be_read(tmp_path: Path, reader: str, kind: str) -> None:
    path, output = tmp_path / "in", tmp_path / "out"
    make, why = UNREADABLE[kind]
    make(path)
    before = sorted(tmp_path.iterdir())
    ended = run(*arguments_of(reader, path, output))
    assert (ended.code, ended.out) == (ExitCode.UNREADABLE, "")
    assert ended.err.startswith("upcall-trace: " + why.format(path=path))
    assert ended.err.count("\n") == 1
    assert len(ended.err) < 300 + len(str(path))
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("reader", READERS)
def test_a_path_that_cannot_be_looked_at(tmp_path: Path, reader: str) -> None:
    (tmp_path / "file").touch()
    for path, why in (
        (tmp_path / "file" / "in", "Not a directory"),
        (tmp_path / ("x" * 300), "File name too long"),
    ):
        ended = run(*arguments_of(reader, path, tmp_path / "out"))
        assert ended == Outcome(ExitCode.UNREADABLE, "", f"upcall-trace: {path}: {why}\n")


@pytest.mark.parametrize("reader", ["show", "info", "import", "filter"])
@pytest.mark.parametrize("closed", ["file", "directory"])
def test_a_file_that_is_not_ours_to_read(tmp_path: Path, reader: str, closed: str) -> None:
    directory = tmp_path / "closed"
    directory.mkdir()
    path = write_capture(directory / "in.upcap", small_capture())
    (path if closed == "file" else directory).chmod(0)
    try:
        ended = subprocess.run(
            without_privileges(command(*arguments_of(reader, path, tmp_path / "out"))),
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
    finally:
        directory.chmod(0o700)
    assert (ended.returncode, ended.stdout) == (ExitCode.UNREADABLE, "")
    assert ended.stderr == f"upcall-trace: {path}: Permission denied\n"


@pytest.mark.parametrize("reader", READERS)
def test_a_capture_with_damage_everywhere_ends_every_command_well(
    tmp_path: Path, reader: str
) -> None:
    path = write_capture(tmp_path / "in", small_capture())
    raw = bytearray(path.read_bytes())
    for place in range(60, len(raw), 37):
        raw[place] ^= 0xFF
    path.write_bytes(raw)
    ended = run(*arguments_of(reader, path, tmp_path / "out"))
    # An import refuses captures, and the filter may find nothing that is left.
    assert ended.code in (ExitCode.LOST, ExitCode.NOTHING_RUN, ExitCode.USAGE)
    assert ended.err


WRITERS = ["export", "filter", "merge", "recover"]


@pytest.fixture
def capture(tmp_path: Path) -> Path:
    return write_capture(tmp_path / "in.upcap", small_capture())


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("way", ["itself", "another way to it", "a link to it"])
def test_the_input_is_never_written_over(capture: Path, writer: str, way: str) -> None:
    before = capture.read_bytes()
    output = capture
    if way == "another way to it":
        output = capture.parent / "." / ".." / capture.parent.name / capture.name
    elif way == "a link to it":
        output = capture.parent / "link"
        output.symlink_to(capture)
    ended = run(*arguments_of(writer, capture, output))
    assert ended == Outcome(
        ExitCode.USAGE,
        "",
        f"upcall-trace: {output} is the input; give another name for the output\n",
    )
    assert capture.read_bytes() == before


def test_a_transcript_is_not_written_over_by_its_import(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(golden("framing").read_bytes())
    ended = run("import", path, "-o", path)
    assert ended.code == ExitCode.USAGE
    assert path.read_bytes() == golden("framing").read_bytes()


def test_no_input_of_a_merge_is_written_over(capture: Path, tmp_path: Path) -> None:
    other = write_capture(tmp_path / "other.upcap", connect())
    for order in ((capture, other), (other, capture)):
        ended = run("merge", *order, "-o", other)
        assert ended.code == ExitCode.USAGE
        assert "is the input" in ended.err


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize(
    ("make", "why"),
    [
        (Path.mkdir, "exists and is not a file"),
        (bind_socket, "exists and is not a file"),
        (os.mkfifo, "exists and is not a file"),
        (lambda path: path.symlink_to("/dev/null"), "exists and is not a file"),
    ],
    ids=["directory", "socket", "pipe", "device"],
)
def test_an_output_that_is_no_file_is_left_alone(
    capture: Path, writer: str, make: Callable[[Path], object], why: str
) -> None:
    output = capture.parent / "out"
    make(output)
    mode = output.lstat().st_mode
    ended = run(*arguments_of(writer, capture, output))
    assert ended == Outcome(ExitCode.USAGE, "", f"upcall-trace: {output} {why}\n")
    assert output.lstat().st_mode == mode
    assert len(list(capture.parent.iterdir())) == 2


@pytest.mark.parametrize("writer", WRITERS)
def test_an_output_where_nothing_can_be_written(capture: Path, writer: str) -> None:
    (capture.parent / "file").touch()
    for output, why in (
        (capture.parent / "no" / "out", "No such file or directory"),
        (capture.parent / "file" / "out", "Not a directory"),
        (capture.parent / ("x" * 300), "File name too long"),
    ):
        ended = run(*arguments_of(writer, capture, output))
        assert ended == Outcome(
            ExitCode.USAGE, "", f"upcall-trace: {output} cannot be written: {why}\n"
        )
    assert len(list(capture.parent.iterdir())) == 2


@pytest.mark.parametrize("writer", WRITERS)
def test_a_capture_that_is_being_recorded_is_not_replaced(capture: Path, writer: str) -> None:
    output = write_capture(capture.parent / "live.upcap", connect())
    before = output.read_bytes()
    with output.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        ended = run(*arguments_of(writer, capture, output))
    assert ended == Outcome(
        ExitCode.USAGE,
        "",
        f"upcall-trace: {output} is being recorded into by another process\n",
    )
    assert output.read_bytes() == before


@pytest.mark.parametrize("writer", ["filter", "export"])
@pytest.mark.parametrize("closed", [0o500, 0])
def test_a_directory_that_is_not_ours_to_write(capture: Path, writer: str, closed: int) -> None:
    directory = capture.parent / "closed"
    directory.mkdir(mode=closed)
    output = directory / "out"
    ended = subprocess.run(
        without_privileges(command(*arguments_of(writer, capture, output))),
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (ended.returncode, ended.stdout) == (ExitCode.USAGE, "")
    assert ended.stderr == f"upcall-trace: {output} cannot be written: Permission denied\n"


@pytest.mark.parametrize("writer", ["import", "export", "filter", "merge", "recover"])
@pytest.mark.parametrize("limit", [0, 100, 3000])
def test_a_disk_that_is_full_leaves_the_old_output(tmp_path: Path, writer: str, limit: int) -> None:
    path, output = tmp_path / "in", tmp_path / "out"
    if writer == "import":
        path.write_bytes(golden("framing").read_bytes())
    else:
        rest: list[Record] = [Chunk(n, 1, True, b"\xff" * 1000) for n in range(9500, 9550)]
        write_capture(path, [*small_capture(), *rest])
    output.write_text("precious")

    kept = run(*arguments_of(writer, path, output))
    said = f"upcall-trace: {output} exists; give another name, or --overwrite\n"
    assert kept == Outcome(ExitCode.USAGE, "", said)
    arguments = [writer, "--overwrite", *arguments_of(writer, path, output)[1:]]
    # Newer Pythons tell of what a file that nobody closed could not write; older ones in this mode.
    ended = subprocess.run(
        limited(command(*arguments), "RLIMIT_FSIZE", limit),
        env={**os.environ, "PYTHONDEVMODE": "1"},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    if ended.returncode == 0:  # what is written may be small
        assert writer in ("filter", "import")
        return
    assert ended.returncode == ExitCode.USAGE
    assert ended.stderr.splitlines()[0].startswith(f"upcall-trace: {output} cannot be written: ")
    assert ended.stderr.count("\n") == 1
    assert output.read_text() == "precious"
    assert sorted(tmp_path.iterdir()) == [path, output]


def test_an_output_gets_the_permissions_of_any_new_file(capture: Path) -> None:
    output = capture.parent / "out"
    capture.chmod(0o666)  # no output gets more than its input has
    before = os.umask(0o027)
    try:
        assert run("recover", capture, "-o", output).code == 0
    finally:
        os.umask(before)
    assert output.stat().st_mode & 0o777 == 0o640


BOMBS: dict[str, bytes] = {
    "zeros that claim to be requests": b"".join(
        encode(Chunk(n, 1, True, bytes(65536))) for n in range(300)
    ),
    "lengths beyond everything": b"\xff\xff\xff\x00" * 200_000,
    "arrays in arrays": frame(b"\x91" * 1_000_000),
    "many small arrays": frame(b"\xdc\x0f\xff\x05" + (b"\xdc\x0f\xff" + b"\x90" * 4095) * 200),
    "text that is none": frame(b"\x94\x05\x00\xdb\xff\xff\xff\xff"),
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_hostile_capture_is_read_within_limits(tmp_path: Path, name: str) -> None:
    path = tmp_path / "x.upcap"
    path.write_bytes(MAGIC + encode(Header("x")) + b"".join(map(encode, connect())) + BOMBS[name])

    ended = subprocess.run(
        limited(command("info", path), "RLIMIT_AS", 2 << 30),
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert ended.returncode == ExitCode.LOST
    assert "Traceback" not in ended.stderr
    assert "complete" not in ended.stdout.splitlines()[0]
