"""Small or natural inputs that once cost a traceback, gigabytes, or a wider mode than allowed."""

from __future__ import annotations

import gzip
import json
import os
import resource
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from dissectors.constants import MMIO_MSG_SIZE, Arch, MessageType
from dissectors.messages import mmio_request
from tests.support import (
    DISK,
    answer,
    ask,
    command,
    connect,
    golden,
    limited,
    run,
    small_capture,
    write_capture,
)
from upcall_trace.capture.records import Chunk, Close, Gap, Open, Record
from upcall_trace.diagnose.choosing import BASELINE_LIMIT
from upcall_trace.errors import ExitCode
from upcall_trace.kernel.world import kata_pod
from upcall_trace.simulated.on_socket import SimulatedGuest

ROOM = 500 << 20
"""What a hostile file may cost beyond the same command on an empty one; docs/robustness.md."""
READING = {
    "info": ("info", "IN"),
    "show": ("show", "IN"),
    "frames": ("show", "--frames", "IN"),
    "diagnose": ("diagnose", "IN"),
    "state": ("state", "IN", "--at", "1.0"),
    "split": ("split", "IN", "-o", "OUT"),
    "recover": ("recover", "IN", "-o", "OUT"),
    "filter": ("filter", "IN", "failed", "-o", "OUT"),
    "merge": ("merge", "IN", "IN", "-o", "OUT"),
    "edit": ("edit", "IN", "--drop", "1.0", "-o", "OUT"),
    "export": ("export", "IN", "-o", "OUT.html"),
    "replay": ("replay", "IN", "--to", "GUEST"),
    "minimise": ("minimise", "IN", "-o", "OUT"),
    "diff": ("diff", "IN", "IN"),
}


def arguments(name: str, path: Path, folder: Path) -> list[str]:
    places = {"IN": path, "OUT": folder / "out", "OUT.html": folder / "out.html"}
    places["GUEST"] = folder / "g"
    return [str(places.get(word, word)) for word in READING[name]]


def zeros_counted() -> list[Record]:
    return [*connect(), *(Chunk(1000 + n, 1, True, bytes(1 << 16)) for n in range(13_000))]


def gaps_of_many_connections() -> list[Record]:
    return [Gap(1000 + n, n + 1, True, 1 << 62, "lost") for n in range(1_700)]


def gaps_of_one() -> list[Record]:
    gap = [Gap(9500, conn, way, (1 << 63) - 1, "x") for conn in (0, 1, 2) for way in (True, False)]
    return [*small_capture(), *gap, *gap]


def opened_twice() -> list[Record]:
    return [
        *connect(), ask(DISK, 10), Open(11, 1), *connect(1, 12)[1:], ask(DISK, 20),
        answer(DISK, 30), Close(31, 1, by_guest=False), *connect(1, 40), ask(DISK, 50),
    ]  # fmt: skip


HOSTILE = {
    "zeros-counted": zeros_counted,
    "gaps-of-many-connections": gaps_of_many_connections,
    "gaps-whose-sum-overflows": gaps_of_one,
    "opened-twice": opened_twice,
}


@pytest.fixture(scope="module")
def base() -> int:
    """The address space of a command on an empty capture, the libraries of all commands loaded."""
    return 700 << 20


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("reading", ["info", "diagnose", "replay", "split", "export"])
def test_no_small_file_costs_much_memory_or_time(
    name: str, reading: str, base: int, tmp_path: Path
) -> None:
    path = write_capture(tmp_path / "x.upcap", HOSTILE[name]())
    assert path.stat().st_size < 500_000
    words = command(*arguments(reading, path, tmp_path))
    begun = resource.getrusage(resource.RUSAGE_CHILDREN)
    with SimulatedGuest(kata_pod(Arch.X86_64), path=tmp_path / "g"):
        ended = subprocess.run(
            limited(words, "RLIMIT_AS", base + ROOM), capture_output=True, text=True, timeout=100
        )
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert ended.returncode in (0, 1, 2, 3, 5, 6), ended.stderr
    assert "Traceback" not in ended.stderr
    assert "MemoryError" not in ended.stderr
    assert spent.ru_utime - begun.ru_utime < 60


@pytest.mark.parametrize("name", ["gaps-whose-sum-overflows", "opened-twice"])
@pytest.mark.parametrize("reading", sorted(set(READING) - {"replay"}))
def test_no_command_raises_on_a_small_file(name: str, reading: str, tmp_path: Path) -> None:
    path = write_capture(tmp_path / "x.upcap", HOSTILE[name]())
    assert run(*arguments(reading, path, tmp_path)).code in (0, 1, 2, 3, 5, 6)


@pytest.mark.parametrize("baseline", ["[],", "{},", "[", "/dev/zero"])
def test_a_baseline_costs_no_more_than_other_files(
    baseline: str, base: int, tmp_path: Path
) -> None:
    path = Path(baseline)
    if not path.is_absolute():
        path = tmp_path / "known.json"
        path.write_text("[" + baseline * (BASELINE_LIMIT // len(baseline) - 1))
    words = command("diagnose", str(golden("framing")), "--baseline", str(path))
    ended = subprocess.run(
        limited(words, "RLIMIT_AS", base + ROOM), capture_output=True, text=True, timeout=100
    )
    assert ended.returncode == ExitCode.UNREADABLE, ended.stderr
    assert len(ended.stderr.splitlines()) == 1
    assert "MemoryError" not in ended.stderr


def test_a_baseline_of_the_largest_size_is_read(base: int, tmp_path: Path) -> None:
    path = tmp_path / "known.json"
    one = b'{"code":"UP999","conn":null,"request":null},'
    many = one * (BASELINE_LIMIT // len(one) - 1)
    path.write_bytes(b'{"v":2,"findings":[' + many.rstrip(b",") + b"]}")
    words = command("diagnose", str(golden("framing")), "--baseline", str(path))
    ended = subprocess.run(
        limited(words, "RLIMIT_AS", base + ROOM), capture_output=True, text=True, timeout=100
    )
    assert ended.returncode == 0, ended.stderr
    assert "UP505" in ended.stdout


def test_what_is_sent_is_read_no_further_than_it_can_be(base: int, tmp_path: Path) -> None:
    words = command("send", "--to", str(tmp_path / "g"), "raw", "/dev/zero")
    ended = subprocess.run(
        limited(words, "RLIMIT_AS", base), capture_output=True, text=True, timeout=100
    )
    assert ended.returncode == ExitCode.UNREADABLE, ended.stderr
    assert "/dev/zero has more than" in ended.stderr


def test_counted_zeros_of_a_transcript_have_the_same_budget(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    header = golden("framing").read_text().splitlines()[0]
    line = {"kind": "bytes", "t_ns": 1, "conn": 1, "dir": ">", "hex": "", "zeros": (1 << 20) - 1}
    path.write_text("\n".join([header, *[json.dumps(line)] * 200]))
    ended = run("info", path)
    assert ended.code == ExitCode.UNREADABLE
    assert "stands for more traffic than a file of its size can" in ended.err


def test_a_packed_file_stands_for_a_bounded_number_of_bytes(tmp_path: Path) -> None:
    path = tmp_path / "x.upcap.gz"
    path.write_bytes(gzip.compress(bytes(64 << 20)))
    begun = time.process_time()
    ended = run("info", path)
    assert ended.code == ExitCode.UNREADABLE
    assert "stands for more than" in ended.err
    assert time.process_time() - begun < 10


def test_rebase_where_the_channels_own_device_goes_behind_one_that_was_refused(
    tmp_path: Path,
) -> None:
    pod = kata_pod(Arch.X86_64)
    channel = next(window for window in pod.mmio if window.role == "vsock")
    for device in pod.mmio:
        refused = mmio_request(MessageType.ADD_MMIO, device.base, device.size, device.irq)
        gone = mmio_request(MessageType.DEL_MMIO, channel.base, channel.size, channel.irq)
        assert refused.msg_size == MMIO_MSG_SIZE
        records = [*connect(), ask(refused, 10), answer(refused, 20, ret=-17), ask(gone, 30)]
        path = write_capture(tmp_path / "x.upcap", records)
        with SimulatedGuest(pod, path=tmp_path / "g"):
            ended = run("replay", path, "--to", tmp_path / "g", "--rebase")
        assert ended.code == ExitCode.USAGE  # refused: the channel would be gone
        assert "UP" in ended.out


ARCHITECTURES = ["riscv64", "", 5, None, [], {"a": 1}, "x86_64\x1b", "p" * 5000]


def of_architecture(arch: object, recording: str, path: Path) -> Path:
    first, *rest = golden(recording).read_text().splitlines()
    path.write_text("\n".join([json.dumps(json.loads(first) | {"arch": arch}), *rest]))
    return path


@pytest.mark.parametrize("arch", ARCHITECTURES, ids=range(len(ARCHITECTURES)))
def test_a_transcript_of_an_architecture_that_is_not_known(arch: object, tmp_path: Path) -> None:
    path = of_architecture(arch, "cpu_lifecycle", tmp_path / "x.jsonl")
    for reading in sorted(set(READING) - {"replay"}):
        ended = run(*arguments(reading, path, tmp_path), *(
            ["--overwrite"] if "OUT" in READING[reading] else []
        ))  # fmt: skip
        assert ended.code in (0, 1, 2, 3, 6), reading


@pytest.mark.parametrize("arch", ARCHITECTURES, ids=range(len(ARCHITECTURES)))
@pytest.mark.parametrize(
    "words",
    [
        ["replay", "IN", "--to", "GUEST", "--rebase"],
        ["minimise", "IN", "-o", "OUT"],
        ["edit", "IN", "--set", "1.0 request.msg_size=1", "-o", "OUT"],
    ],
    ids=lambda words: words[0],
)
def test_what_decodes_by_the_architecture_takes_one_that_is_not_known(
    words: list[str], arch: object, tmp_path: Path
) -> None:
    path = of_architecture(arch, "mmio_lifecycle", tmp_path / "x.jsonl")
    places = {"IN": path, "OUT": tmp_path / "out", "GUEST": tmp_path / "g"}
    with SimulatedGuest(kata_pod(Arch.X86_64), path=tmp_path / "g"):
        ended = run(*(str(places.get(word, word)) for word in words))
    assert ended.code in (0, 1, 2, 6)
    assert len(ended.err.splitlines()) <= 20


@pytest.mark.parametrize("setting", ["ret=5", "msg_type=4", "msg_size=4", "request.msg_size=1"])
@pytest.mark.parametrize("place", ["2.0", "1.9", "7.7"])
def test_edit_of_a_reply_or_an_operation_that_is_not_there(
    setting: str, place: str, tmp_path: Path
) -> None:
    path = write_capture(tmp_path / "x.upcap", small_capture())
    ended = run("edit", path, "--set", f"{place} {setting}", "-o", tmp_path / "out")
    assert ended.code in (0, 2)
    assert len(ended.err.splitlines()) <= 3


@pytest.mark.parametrize(
    "reading", ["split", "recover", "filter", "merge", "edit", "export"]
)  # fmt: skip
def test_what_is_derived_is_never_more_open_than_its_input(reading: str, tmp_path: Path) -> None:
    path = write_capture(tmp_path / "x.upcap", [*small_capture(), ask(DISK, 9500, 2)])
    for mode, umask, expected in (
        (0o600, 0o022, 0o600), (0o640, 0o022, 0o640), (0o644, 0o077, 0o600), (0o664, 0o002, 0o664),
    ):  # fmt: skip
        path.chmod(mode)
        before = os.umask(umask)
        try:
            assert run(*arguments(reading, path, tmp_path), "--overwrite").code in (0, 3)
        finally:
            os.umask(before)
        made = [each for each in tmp_path.rglob("out*") if each.is_file()]
        made += list((tmp_path / "out").glob("*")) if (tmp_path / "out").is_dir() else []
        assert made
        assert {each.stat().st_mode & 0o777 for each in made} == {expected}


@pytest.mark.parametrize("reading", ["recover", "filter", "merge", "edit", "minimise", "split"])
def test_no_file_is_replaced_unless_it_is_said(reading: str, tmp_path: Path) -> None:
    path = write_capture(tmp_path / "x.upcap", [*small_capture(), ask(DISK, 9500, 2)])
    there = tmp_path / "out" / "x.conn2.upcap" if reading == "split" else tmp_path / "out"
    there.parent.mkdir(exist_ok=True)
    there.write_bytes(b"precious")
    words = arguments(reading, path, tmp_path)
    refused = run(*words)
    assert refused.code == ExitCode.USAGE
    assert "--overwrite" in refused.err
    assert there.read_bytes() == b"precious"
    assert run(*words, "--overwrite").code in (0, 3)
    assert there.read_bytes() != b"precious"


@pytest.mark.parametrize("length", [75, 85, 120])
@pytest.mark.parametrize("words", [["demo"], ["minimise", "IN", "-o", "OUT"]], ids=lambda w: w[0])
def test_a_long_tmpdir_leaves_room_for_sockets(
    words: list[str], length: int, tmp_path: Path
) -> None:
    folder = Path(f"/tmp/{os.getpid()}".ljust(length, "t"))
    folder.mkdir()
    try:
        places = {"IN": write_capture(folder / "x.upcap", small_capture()), "OUT": folder / "out"}
        ended = subprocess.run(
            command(*(places.get(word, word) for word in words)),
            env={**os.environ, "TMPDIR": str(folder)}, capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert "Traceback" not in ended.stderr
        assert "socket path" not in ended.stderr
        assert ended.returncode in (0, 6), ended.stderr
    finally:
        shutil.rmtree(folder)
