"""`show`: operations and frames as text and JSON, of files at rest and of one that grows."""

from __future__ import annotations

import fcntl
import json
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dissectors.constants import MessageType
from dissectors.messages import cpu_request, pci_request
from tests.support import (
    ADD_MEM,
    DISK,
    GOLDEN,
    HELLO,
    TRANSCRIPTS,
    Outcome,
    answer,
    ask,
    command,
    connect,
    golden,
    run,
    small_capture,
    write_capture,
)
from upcall_trace.capture.encoding import encode
from upcall_trace.capture.frames import MAGIC
from upcall_trace.capture.records import (
    COMMENT,
    Begins,
    Chunk,
    Close,
    End,
    Gap,
    GaveUp,
    Header,
    How,
    Mark,
    Open,
    Record,
    Vmm,
)
from upcall_trace.errors import ExitCode
from upcall_trace.trace.filters import FLAGS
from upcall_trace.trace.opening import load


@pytest.fixture
def capture(tmp_path: Path) -> Path:
    return write_capture(tmp_path / "x.upcap", small_capture())


OBJECTS: list[dict[str, Any]] = [
    {
        "v": 1, "conn": 1, "request": 0, "t_ns": 1000, "op": "add_mmio",
        "fields": {"mmio_base": 0xE0006000, "mmio_size": 0x2000, "mmio_irq": 5},
        "ret": 0, "errno": None, "latency_ns": 3000, "reply": {"msg_type": 5, "msg_size": 0},
        "anomalies": [], "codes": [],
    },
    {
        "v": 1, "conn": 1, "request": 1, "t_ns": 5000, "op": "add_mmio",
        "fields": {"mmio_base": 0xE0006000, "mmio_size": 0x2000, "mmio_irq": 5},
        "ret": -17, "errno": "EEXIST", "latency_ns": 2000, "reply": {"msg_type": 5, "msg_size": 0},
        "anomalies": [], "codes": [],
    },
    {
        "v": 1, "conn": 2, "request": 0, "t_ns": 8400, "op": "add_mem", "fields": {},
        "ret": None, "errno": None, "latency_ns": None, "reply": None,
        "anomalies": [], "codes": [],
    },
]  # fmt: skip


CODES: list[list[str]] = [["UP704"], ["UP301", "UP701"], ["UP602"]]
"""What is found at these operations."""
JUDGED = [each | {"codes": codes} for each, codes in zip(OBJECTS, CODES, strict=True)]
FOLLOWED = [JUDGED[0] | {"codes": []}, *JUDGED[1:]]
"""The same while the recording grows: the loss of the first device is known with the second."""


def lines_of(values: list[dict[str, Any]]) -> str:
    """JSON lines, keys in the order they are given here."""
    return "".join(json.dumps(value) + "\n" for value in values)


def test_json_is_one_object_an_operation_with_these_keys_in_this_order(capture: Path) -> None:
    assert run("show", "--json", capture) == Outcome(0, lines_of(JUDGED), "")


def test_the_fields_and_replies_of_every_kind_of_operation(tmp_path: Path) -> None:
    requests = [
        cpu_request(MessageType.ADD_CPU, [2, 3]),
        cpu_request(MessageType.DEL_CPU, 1),
        pci_request(MessageType.ADD_PCI, 1, 6, 2),
        ADD_MEM,
    ]
    sent = [r for q in requests for r in (ask(q, 5), answer(q, 6, ret=0))]
    path = write_capture(tmp_path / "x.upcap", [*connect(), *sent])
    shown = [
        json.dumps([o["op"], o["fields"], o["reply"]]) for o in run("show", "--json", path).objects
    ]
    assert shown == [
        (
            '["add_cpu", {"count": 2, "apic_ver": 20, "apic_ids": [2, 3]},'
            ' {"msg_type": 1, "msg_size": 4, "apic_index": 2}]'
        ),
        '["del_cpu", {"count": 1}, {"msg_type": 2, "msg_size": 4, "cpu_id": 0}]',
        (
            '["add_pci", {"busno": 1, "devfn": 50, "slot": 6, "function": 2},'
            ' {"msg_type": 7, "msg_size": 0}]'
        ),
        '["add_mem", {}, {"msg_type": 3, "msg_size": 0}]',
    ]


def test_anomalies_are_named(capture: Path) -> None:
    shown = {(o["conn"], o["request"]): o for o in run("show", "--json", golden("framing")).objects}
    assert shown[2, 1]["anomalies"] == ["bad-magic", "stale-success", "split-request"]
    assert (shown[2, 1]["op"], shown[2, 1]["ret"], shown[2, 1]["errno"]) == ("connect", 0, None)
    assert shown[4, 1]["op"] == "type_4294967295"
    names = {name for o in shown.values() for name in o["anomalies"]}
    assert names <= FLAGS.keys()


def test_text_is_a_heading_and_a_line_each(capture: Path) -> None:
    ended = run("show", capture)
    assert (ended.code, ended.err) == (0, "")
    assert ended.out == (
        "   req   seconds latency  operation                        result\n"
        "   1.0  0.000001     3us  add_mmio 0xe0006000+0x2000 irq=5 ok\n"
        "   1.1  0.000005     2us  add_mmio 0xe0006000+0x2000 irq=5"
        " EEXIST (-17) window or IRQ already taken\n"
        "   2.0  0.000008          add_mem                          no answer\n"
    )


def test_comments_stand_below_their_operation(tmp_path: Path) -> None:
    marks = [
        Mark(1, 1, 1, COMMENT, "taken already"),
        Mark(2, 1, 1, "look", "here"),
        Mark(3, 1, None, "no request"),
        Mark(4, 9, 9, COMMENT, "of nothing"),
    ]
    path = write_capture(tmp_path / "x.upcap", [*small_capture(), *marks])
    lines = run("show", path).out.splitlines()
    assert [line.strip() for line in lines[3:5]] == ["# taken already", "# look here"]
    assert len(lines) == 6
    assert run("show", "--json", path).objects == JUDGED


@pytest.mark.parametrize(
    "path", [*TRANSCRIPTS, *sorted(GOLDEN.glob("*.pcap"))], ids=lambda p: p.name
)
def test_every_recording_can_be_shown_as_it_is(path: Path) -> None:
    ended = run("show", "--json", path)
    assert (ended.code, ended.err) == (0, "")
    assert ended.out.isascii()
    assert len(ended.objects) == len(load(path).operations)
    assert run("show", path).code == 0


@pytest.mark.parametrize(
    ("expression", "keys"),
    [
        ("ret < 0", [(1, 1)]),
        ("unanswered or ret == 0", [(1, 0), (2, 0)]),
        ("errno == EEXIST and latency < 1ms", [(1, 1)]),
        ("op == add_cpu", []),
    ],
)
def test_a_filter_chooses_operations(
    capture: Path, expression: str, keys: list[tuple[int, int]]
) -> None:
    ended = run("show", "--json", "--filter", expression, capture)
    assert ended.code == 0
    assert [(o["conn"], o["request"]) for o in ended.objects] == keys
    assert len(run("show", "--filter", expression, capture).out.splitlines()) == 1 + len(keys)


def test_a_filter_that_is_none_is_wrong_usage(capture: Path) -> None:
    ended = run("show", "--filter", "latncy > 5ms", capture)
    assert (ended.code, ended.out) == (ExitCode.USAGE, "")
    assert ended.err == (
        "upcall-trace: filter, at character 1 ('latncy > 5ms'): "
        "'latncy' is not known; did you mean latency?\n"
    )


FRAMES: list[tuple[int, int, str | None, int | None, str]] = [
    (0, 1, None, None, "opened"),
    (0, 1, ">", None, "CONNECT line: CONNECT 219\\n"),
    (0, 1, "<", None, "OK line: OK 1024\\n"),
    (0, 1, ">", None, "service byte 0x64: device manager"),
    (0, 1, "<", None, "CONNECT message: the service is ready"),
    (1000, 1, ">", 0, "request 0: add_mmio 0xe0006000+0x2000 irq=5"),
    (4000, 1, "<", 0, "reply to request 0: ret 0"),
    (5000, 1, ">", 1, "request 1: add_mmio 0xe0006000+0x2000 irq=5"),
    (7000, 1, "<", 1, "reply to request 1: ret -17"),
    (8000, 1, None, None, "closed by the client"),
    (8100, 2, None, None, "opened inside the guest, port 219"),
    (8200, 2, ">", None, "service byte 0x64: device manager"),
    (8300, 2, "<", None, "CONNECT message: the service is ready"),
    (8400, 2, ">", 0, "request 0: add_mem"),
]


def test_frames_as_json(capture: Path) -> None:
    raw = [
        "", b"CONNECT 219\n".hex(), b"OK 1024\n".hex(), "64", HELLO.hex(),
        DISK.encode().hex(), DISK.reply().encode().hex(),
        DISK.encode().hex(), DISK.reply(-17).encode().hex(),
        "", "", "64", HELLO.hex(), ADD_MEM.encode().hex(),
    ]  # fmt: skip
    expected = [
        {
            "v": 1, "frame": number, "t_ns": t_ns, "conn": conn, "dir": way, "request": request,
            "text": text, "bytes": raw[number],
        }
        for number, (t_ns, conn, way, request, text) in enumerate(FRAMES)
    ]  # fmt: skip
    assert run("show", "--frames", "--json", capture) == Outcome(0, lines_of(expected), "")


def test_frames_as_text(capture: Path) -> None:
    ended = run("show", "--frames", capture)
    assert ended.code == 0
    lines = ended.out.splitlines()
    assert len(lines) == len(FRAMES)
    assert lines[1] == "     1    0.000000    1 > CONNECT line: CONNECT 219\\n"
    for line, (_, _, way, _, text) in zip(lines, FRAMES, strict=True):
        assert line.endswith(f" {way or '-'} {text}")


def test_frames_of_the_operations_that_match(capture: Path) -> None:
    ended = run("show", "--frames", "--json", "--filter", "ret < 0", capture)
    assert [(o["frame"], o["request"]) for o in ended.objects] == [(7, 1), (8, 1)]


def test_hex_shows_the_bytes_of_each_frame(capture: Path) -> None:
    lines = run("show", "--hex", "--filter", "ret < 0", capture).out.splitlines()
    assert lines[0].endswith("> request 1: add_mmio 0xe0006000+0x2000 irq=5")
    assert lines[1] == "  0000  00 01 4d 44 18 00 00 00  05 00 00 00 00 00 00 00  ..MD............"
    assert lines[2] == "  0010  00 60 00 e0 00 00 00 00  00 20 00 00 00 00 00 00  .`....... ......"
    assert "      *" in lines


UNUSUAL: list[tuple[list[Record], str]] = [
    ([Open(0, 1, peer=(42, 1000, 7))], "opened, by pid 42 uid 1000"),
    ([Open(0, 1, Begins.MIDDLE)], "first seen in the middle"),
    ([Open(0, 1, Begins.OTHER, 1024, False)], "opened, not upcall, port 1024, refused"),
    ([Open(0, 1), ask(b"CONNECT x\n", 1)], "CONNECT line: CONNECT x\\n (malformed)"),
    ([Open(0, 1), ask(b"passfd\n", 1)], "passfd: a descriptor takes over"),
    ([*connect()[:2], ask(b"d", 1)], "service byte 0x64: device manager, before OK"),
    ([*connect()[:3], ask(b"x", 1)], "service byte 0x78: no service that is known"),
    ([*connect()[:2], Chunk(1, 1, False, b"NO\n")], "OK line: NO\\n (malformed)"),
    ([*connect()[:4], Chunk(1, 1, False, bytes(1024))], "not a CONNECT message"),
    ([*connect()[:4], Chunk(1, 1, False, b"half")], "4 bytes of an unfinished whole"),
    ([*connect(9, port=80)[:2], ask(b"x" * 7, 2, 9)], "7 bytes with no meaning here"),
    ([*connect(), ask(DISK.encode()[:40], 1)],
     "request 0: add_mmio 0xe0006000+0x2000 irq=5 (40 bytes, over those of the request before)"),
    ([*connect(), ask(DISK.encode()[:40], 1), ask(DISK.encode()[40:], 2)],
     ("request 1: connect (984 bytes, over those of the request before)"
     " (rest of split request 0)")),
    ([*connect(), ask(DISK.encode() + b"x" * 9, 1)],
     ("request 1: type_120 (9 bytes, over those of the request before)"
     " (left over from request 0)")),
    ([*connect(), answer(ADD_MEM, 1, ret=-1)], "reply to nothing that was asked: ret -1"),
    ([Close(0, 1, by_guest=True, how=How.RESET)], "reset by the guest"),
    ([Close(0, 1, by_guest=False, how=How.HALF)], "half-closed by the client"),
    ([GaveUp(0, 1, 2_000_000_000)], "the client waited 2.00s, and nothing came"),
    ([Vmm(0, "vCPU 1 created")], "VMM: vCPU 1 created"),
    ([Gap(0, 0, False, 9, "the disk was full")], "9 bytes not recorded: the disk was full"),
    ([*connect(), Gap(1, 1, True, 9, "x")], "9 bytes are not in the recording"),
    ([Mark(0, None, None, "start", "of it")], "mark start of it"),
]  # fmt: skip


@pytest.mark.parametrize(("recorded", "text"), UNUSUAL, ids=lambda value: str(value)[:30])
def test_what_else_a_frame_can_be(tmp_path: Path, recorded: list[Record], text: str) -> None:
    path = write_capture(tmp_path / "x.upcap", recorded)
    objects = run("show", "--frames", "--json", path).objects
    assert objects[-1]["text"] == text
    assert run("show", "--frames", path).out.splitlines()[-1].endswith(f" {text}")


def test_a_cpu_reply_in_a_frame_says_its_load(tmp_path: Path) -> None:
    request = cpu_request(MessageType.ADD_CPU, [1])
    path = write_capture(tmp_path / "x.upcap", [*connect(), ask(request, 1), answer(request, 2)])
    assert run("show", "--frames", "--json", path).objects[-1]["text"] == (
        "reply to request 0: ret 0 apic_index=1"
    )


@pytest.mark.parametrize("option", ["--frames", "--hex"])
def test_following_shows_operations_only(capture: Path, option: str) -> None:
    ended = run("show", "--follow", option, capture)
    assert ended.code == ExitCode.USAGE
    assert ended.err == "upcall-trace: --follow shows operations; leave --frames and --hex out\n"


def test_only_captures_can_be_followed() -> None:
    ended = run("show", "--follow", golden("framing"))
    assert ended.code == ExitCode.USAGE
    assert ended.err.endswith("is not a capture: only captures grow\n")


def test_following_a_capture_at_rest_shows_it_and_ends(capture: Path) -> None:
    assert run("show", "--follow", "--json", capture) == Outcome(0, lines_of(FOLLOWED), "")
    assert run("show", "--follow", capture) == run("show", capture)


def test_following_fills_the_codes_that_are_known_by_then() -> None:
    path = GOLDEN.parents[1] / "captures" / "cpu_lifecycle.upcap"
    followed, shown = run("show", "--follow", "--json", path), run("show", "--json", path)
    for now, then in zip(followed.objects, shown.objects, strict=True):
        assert set(now["codes"]) <= set(then["codes"])
        assert now | {"codes": ()} == then | {"codes": ()}
    refused = [each["codes"] for each in followed.objects if each["ret"] < 0]
    assert all(refused)


def test_following_tells_what_is_missing(capture: Path) -> None:
    capture.write_bytes(capture.read_bytes()[:-5])
    ended = run("show", "--follow", "--json", capture)
    assert (ended.code, ended.out) == (ExitCode.LOST, lines_of(FOLLOWED))
    assert "the end is torn at offset" in ended.err


class Following:
    """`show --follow` in a process of its own, on a file that this process writes."""

    def __init__(self, path: Path, *options: str) -> None:
        self._file = path.open("wb", buffering=0)
        fcntl.flock(self._file, fcntl.LOCK_EX)
        self.write(MAGIC + encode(Header("test")))
        self.process = subprocess.Popen(
            command("show", "--follow", *options, path),
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def write(self, raw: bytes) -> None:
        self._file.write(raw)

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline()

    def end(self) -> tuple[int, str, str]:
        """Let go of the file; how the process ended and what it still said."""
        self._file.close()
        with self.process:
            out, err = self.process.communicate(timeout=30)
        return self.process.returncode, out, err

    def stop(self) -> None:
        self._file.close()
        if self.process.poll() is None:
            self.process.kill()
            self.process.communicate()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "growing.upcap"


@pytest.fixture
def following(path: Path) -> Iterator[Following]:
    following = Following(path, "--json")
    yield following
    following.stop()


def test_a_refusal_has_its_code_at_once(following: Following) -> None:
    first, again = (ask(DISK, 10), answer(DISK, 20)), (ask(DISK, 30), answer(DISK, 40, ret=-17))
    for record in [*connect(), *first, *again]:
        following.write(encode(record))
    told = [json.loads(following.line()) for _ in range(2)]
    assert [each["codes"] for each in told] == [[], ["UP301", "UP701"]]


def test_a_growing_capture_is_shown_operation_by_operation(following: Following) -> None:
    *before, last = small_capture()
    for record in before:
        following.write(encode(record))
    assert [json.loads(following.line()) for _ in range(2)] == FOLLOWED[:2]
    following.write(encode(last) + encode(End(9400)))
    assert json.loads(following.line()) == FOLLOWED[2]
    assert following.end() == (0, "", "")


def test_half_a_frame_is_waited_for(following: Following) -> None:
    raw = b"".join(map(encode, small_capture()[:7]))
    for begin in range(0, len(raw), 50):
        following.write(raw[begin : begin + 50])
        time.sleep(0.002)
    assert json.loads(following.line()) == FOLLOWED[0]
    code, out, err = following.end()
    assert (code, out) == (ExitCode.LOST, "")
    assert err.count("\n") == 1
    assert "the recording was not closed cleanly" in err


def test_a_reply_that_never_comes_is_shown_when_the_recording_ends(following: Following) -> None:
    for record in [*connect(1, 1000), ask(DISK, 2000), End(3000)]:
        following.write(encode(record))
    shown = json.loads(following.line())
    assert (shown["op"], shown["ret"]) == ("add_mmio", None)
    assert following.end() == (0, "", "")


def test_a_recorder_that_is_killed_ends_the_following(following: Following) -> None:
    for record in small_capture()[:7]:
        following.write(encode(record))
    assert json.loads(following.line()) == FOLLOWED[0]
    following.write(encode(small_capture()[7])[:-3])
    code, out, err = following.end()
    assert (code, out) == (ExitCode.LOST, "")
    assert "the end is torn at offset" in err


def test_following_with_a_filter(path: Path) -> None:
    following = Following(path, "--json", "--filter", "ret < 0 or unanswered")
    try:
        for record in [*small_capture(), End(9400)]:
            following.write(encode(record))
        code, out, err = following.end()
        assert [json.loads(line) for line in out.splitlines()] == FOLLOWED[1:]
        assert (code, err) == (0, "")
    finally:
        following.stop()


def test_ctrl_c_ends_the_following(following: Following) -> None:
    for record in small_capture()[:7]:
        following.write(encode(record))
    assert json.loads(following.line()) == FOLLOWED[0]
    following.process.send_signal(signal.SIGINT)
    out, err = following.process.communicate(timeout=30)
    assert (following.process.returncode, out) == (ExitCode.INTERRUPTED, "")
    assert err.strip() == "interrupted"


def test_a_capture_that_is_still_recorded_can_be_shown(following: Following, path: Path) -> None:
    for record in small_capture():
        following.write(encode(record))
    ended = run("show", "--json", path)
    assert ended.code == 0
    assert ended.objects == JUDGED
    assert ended.err == ""


def test_since_and_until_go_by_the_captures_wall_clock(tmp_path: Path) -> None:
    header = Header("test", wall_ns=1_788_256_800_000_000_000)
    path = write_capture(tmp_path / "x.upcap", small_capture(), header)
    all_of_it = run("show", "--json", path).objects
    at = "2026-09-01T10:00:00.000005+00:00"
    assert run("show", "--json", "--since", at, path).objects == all_of_it[1:]
    assert run("show", "--json", "--until", at, path).objects == all_of_it[:1]
    assert run("show", "--json", "--until", "2026-08-01T10:00", path).objects == []
    assert run("show", "--json", "--since", "-1d", path).code == ExitCode.EXPECTED
    told = run("show", "--since", "-10m", write_capture(tmp_path / "y.upcap", small_capture()))
    assert (told.code, "wall clock" in told.err) == (ExitCode.USAGE, True)
    assert run("show", "--since", "soon", path).code == ExitCode.USAGE


def listed(*options: str | Path) -> list[str]:
    first = (line.split()[0] for line in run("show", *options).out.splitlines()[1:])
    return [name for name in first if name[0].isdigit()]


def test_the_slowest_the_first_and_the_last_of_them() -> None:
    path = golden("cpu_lifecycle")
    found = run("show", "--json", path).objects
    everything = [f"{op['conn']}.{op['request']}" for op in found]
    assert listed("--limit", "3", path) == everything[:3]
    assert listed("--tail", "2", path) == everything[-2:]
    slowest = sorted(found, key=lambda op: -op["latency_ns"])
    assert listed("--sort", "latency", "--limit", "4", path) == [
        f"{op['conn']}.{op['request']}" for op in slowest[:4]
    ]
    refused = run("show", "--follow", "--tail", "1", path)
    assert (refused.code, "leave --sort" in refused.err) == (ExitCode.USAGE, True)


def test_the_time_of_day(tmp_path: Path) -> None:
    header = Header("proxy", wall_ns=1_790_000_000_000_000_000)
    path = write_capture(tmp_path / "x.upcap", small_capture(), header)
    (line, *_) = run("show", "--time", "absolute", path).out.splitlines()[1:]
    assert line.split()[1].startswith("14:13:20.0000")
