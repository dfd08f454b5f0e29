"""Logs of every kind, and the failures that users reported, told apart by them.

The log lines of the reports are made up in the formats that docs/log-texts.md documents:
no real Kata journal was at hand.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from dissectors.constants import EEXIST, MessageType
from dissectors.hvsock import connect_line, ok_line
from dissectors.messages import Request, cpu_request, hello, mmio_request
from upcall_trace.capture.records import Chunk, Close, Header, Open, Record
from upcall_trace.capture.writer import CaptureWriter
from upcall_trace.diagnose.finding import Finding
from upcall_trace.diagnose.log_inputs import read_logs
from upcall_trace.diagnose.run import diagnose, diagnose_logs
from upcall_trace.errors import UnreadableInput
from upcall_trace.kernel.world import load_worlds
from upcall_trace.logs.console_operations import ConsoleOperation
from upcall_trace.logs.entries import Scanner
from upcall_trace.logs.guest_console import ConsoleReader
from upcall_trace.logs.lines import read_lines
from upcall_trace.logs.opening import LogFile
from upcall_trace.logs.table import understood, wanted

GOLDEN = Path(__file__).parents[1] / "golden"
CAUSES = [f"UP{n}" for n in (*range(201, 211), *range(301, 310), *range(401, 405), 502)]
MS = 1_000_000


def causes(findings: Sequence[Finding]) -> list[tuple[int | None, int | None, str, bool]]:
    return [(f.conn, f.request, f.code, f.inferred) for f in findings if f.code in CAUSES]


def codes(findings: Sequence[Finding]) -> list[str]:
    return [finding.code for finding in findings]


# Consoles.


def read_console(path: Path) -> list[ConsoleOperation]:
    reader = ConsoleReader()
    for line, matches in understood(Scanner(wanted()), LogFile(path).blocks(), None):
        reader.feed(line, matches)
    reader.finish()
    return reader.operations


@pytest.mark.parametrize(
    "name", ["cpu_lifecycle", "pci_memory", "guest_oops", "framing", "mmio_lifecycle",
             "stale_results", "cpu_lifecycle_6_12", "aarch64_lifecycle"]
)  # fmt: skip
def test_a_console_decides_what_the_wire_cannot(name: str) -> None:
    """With the console and no world: every label that it can decide is found, and is certain."""
    logs = read_logs(GOLDEN / f"{name}.console.log", None)
    found = diagnose(GOLDEN / f"{name}.jsonl", logs=logs).findings
    by_request: dict[tuple[int | None, int | None], set[str]] = {}
    for finding in found:
        by_request.setdefault((finding.conn, finding.request), set()).add(finding.code)
    for label in json.loads((GOLDEN / f"{name}.findings.json").read_text()):
        key = (label["conn"], label["request"])
        for any_of in label["codes"] + label.get("with_console", []):
            assert by_request.get(key, set()) & set(any_of), (key, any_of)
    decided = [f for f in found if f.code in CAUSES and f.code[2] in "24"]
    assert not [f for f in decided if f.inferred]


def test_it_is_told_how_sure_the_clocks_offset_is() -> None:
    logs = read_logs(GOLDEN / "cpu_lifecycle.console.log", None)
    told = diagnose(GOLDEN / "cpu_lifecycle.jsonl", logs=logs).matched
    assert told.startswith("11 operations of the recording found in the console; ")
    assert "(11 matches)" in told
    few = read_logs(GOLDEN / "framing.console.log", None)
    told = diagnose(GOLDEN / "framing.jsonl", logs=few).matched
    assert told.endswith("too few to compare the clocks")


@pytest.mark.parametrize("name", ["framing", "mmio_lifecycle"])
def test_with_world_and_console_nothing_is_missing_and_nothing_is_false(name: str) -> None:
    world = load_worlds(GOLDEN / "worlds.toml")["microvm"]
    logs = read_logs(GOLDEN / f"{name}.console.log", None)
    found = diagnose(GOLDEN / f"{name}.jsonl", world, logs=logs).findings
    labels = json.loads((GOLDEN / f"{name}.findings.json").read_text())
    wanted = {
        (label["conn"], label["request"], any_of[0])
        for label in labels
        for any_of in label["codes"] + label.get("with_console", [])
        if any_of[0] in CAUSES
    }
    assert {(f.conn, f.request, f.code) for f in found if f.code in CAUSES} == wanted
    assert not any(f.inferred for f in found)
    (first, *_) = [f for f in found if f.code == "UP307"]
    assert "Wrong magic value" in first.evidence[0].text
    assert first.evidence[0].line is not None


def test_a_console_alone_rebuilds_the_operations_and_infers_everything(tmp_path: Path) -> None:
    console = GOLDEN / "cpu_lifecycle.console.log"
    found = diagnose_logs(read_logs(console, None)).findings
    assert codes(found) == ["UP201", "UP202", "UP205", "UP204"]
    assert all(f.inferred and f.conn is None and f.request is None for f in found)
    assert "apic_ids=1" in found[0].what
    assert {evidence.source for f in found for evidence in f.evidence} == {"console"}


@pytest.mark.parametrize("name", ["guest_oops", "guest_oops_6_12"])
def test_an_oops_in_a_console_alone(name: str) -> None:
    console = GOLDEN / f"{name}.console.log"
    found = diagnose_logs(read_logs(console, None)).findings
    assert "UP206" in codes(found)


LINE = "db-dev-mgr: add vcpu number: 1"


@pytest.mark.parametrize(
    "raw",
    [
        f"[    2.220727] {LINE}",
        f"<6>[    2.220727] {LINE}",
        LINE,
        f"Nov 22 15:14:47 node-1 kernel: {LINE}",
        f"2026-11-22T15:14:47.123456789Z stdout F [    2.220727] {LINE}",
        json.dumps({"MESSAGE": LINE, "__REALTIME_TIMESTAMP": "1795360339128107"}),
        json.dumps({"msg": f"[    2.220727] {LINE}", "level": "INFO", "subsystem": "dmesg",
                    "ts": "2026-11-22T15:12:19.128107250+00:00"}),
        json.dumps({"MESSAGE": json.dumps({"msg": LINE, "subsystem": "dmesg"})}),
        json.dumps({"MESSAGE": list(LINE.encode())}),
        f"\x1b[0m\x1b[6n{LINE}\r",
    ],
)  # fmt: skip
def test_a_line_is_understood_in_every_dress(tmp_path: Path, raw: str) -> None:
    (tmp_path / "log").write_text(raw + "\n")
    (operation,) = read_console(tmp_path / "log")
    assert (operation.msg_type, operation.count) == (MessageType.ADD_CPU, 1)


def test_times_of_lines(tmp_path: Path) -> None:
    entry = {"MESSAGE": f"[    2.5] {LINE}", "__REALTIME_TIMESTAMP": "1795360339128107"}
    (tmp_path / "log").write_text(json.dumps(entry) + f"\n2026-11-22T15:12:19.5Z {LINE}\n{LINE}\n")
    first, second, third = read_lines(tmp_path / "log")
    assert (first.guest_ns, first.wall_ns) == (2_500_000_000, 1795360339128107000)
    assert second.wall_ns is not None
    assert second.wall_ns % 1_000_000_000 == 500_000_000
    assert (third.guest_ns, third.wall_ns, third.number) == (None, None, 3)


def test_nothing_is_concluded_from_a_missing_last_line(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("db-dev-mgr: add pci device of busno: 00, devfn: 30\n")
    (operation,) = read_console(tmp_path / "log")
    assert operation.ret is None
    assert diagnose_logs(read_logs(tmp_path / "log", None)).findings == []


def test_hostile_logs_are_bounded_and_never_raise(tmp_path: Path) -> None:
    lines = [
        b"db-dev-mgr: adding vcpu apic_id " + b"9" * 5000,
        b"db-dev-mgr: db_devmgr_process : Command run failed, err: -" + b"9" * 5000,
        b'{"msg": ' + b"[" * 50_000 + b"db-dev-mgr",
        b'{"msg": {"a": 1}, "x": "db-dev-mgr"}',
        b'{"ts": "9999999-99-99T99:99:99Z", "msg": "db-dev-mgr: del vcpu number : 1"}',
        b"\xff\xfe\x00db-dev-mgr: \x1b]0;owned\x07 cannot remove all vcpus",
        b"virtio-mmio: Registering device virtio-mmio.1 at 0x" + b"f" * 400 + b"-0x0, IRQ 5.",
        b"x" * 300_000 + b"db-dev-mgr",
        b"db-dev-mgr: db_devmgr_process : Command run failed, err: -17",
    ]
    (tmp_path / "log").write_bytes(b"\n".join(lines))
    begun = time.monotonic()
    logs = read_logs(tmp_path / "log", tmp_path / "log")
    found = diagnose_logs(logs).findings
    assert time.monotonic() - begun < 5
    assert codes(found) == ["UP204"]


@pytest.mark.parametrize("name", ["missing", "."])
def test_a_log_that_cannot_be_read(tmp_path: Path, name: str) -> None:
    with pytest.raises(UnreadableInput):
        read_console(tmp_path / name)
    with pytest.raises(UnreadableInput):
        read_logs(None, tmp_path / name)


# Reported failures.


def kata_log(path: Path, *messages: str, level: str = "INFO") -> Path:
    """A Kata log of JSON lines, one message each, a second apart."""
    with path.open("w") as file:
        for second, message in enumerate(messages):
            stamp = f"2026-11-22T15:14:{second % 60:02}.000000000Z"
            fields = {"msg": message, "level": level, "ts": stamp, "source": SANDBOX}
            file.write(json.dumps(fields) + "\n")
    return path


def capture(path: Path, records: Iterator[Record]) -> Path:
    with CaptureWriter(path, Header("proxy", arch="x86_64")) as writer:
        for record in records:
            writer.write(record)
    return path


def conversation(
    conn: int, exchanges: Sequence[tuple[Request, int | None]], begin_ns: int = 0
) -> Iterator[Record]:
    """A connection on which each request gets its `ret`, or with None no answer, after 1 ms."""
    now = begin_ns
    yield Open(now, conn)
    yield Chunk(now, conn, True, connect_line().raw)
    yield Chunk(now, conn, False, ok_line(1).raw)
    yield Chunk(now, conn, True, b"d")
    yield Chunk(now, conn, False, hello().encode())
    for request, ret in exchanges:
        now += 10 * MS
        yield Chunk(now, conn, True, request.encode())
        if ret is not None:
            yield Chunk(now + MS, conn, False, request.reply(ret).encode())


ADD_DISK = mmio_request(MessageType.ADD_MMIO, 0xE0006000, 0x2000, 5)
ADD_CPU = cpu_request(MessageType.ADD_CPU, [1])
SANDBOX = "6b76768740b5d88f4eac4a1d65bafa3ffdc46eb38c487d8f7312e34561764022"
CONNECTED = ("VM upcall init", "upcall connect server success", "upcall connect service success")


def test_kata_6054_a_kernel_without_upcall(tmp_path: Path) -> None:
    """CONNECT is answered by a reset every 10 ms, 501 times."""

    def refusals() -> Iterator[Record]:
        for number in range(1, 503):
            begun = number * 10 * MS
            yield Open(begun, number)
            yield Chunk(begun, number, True, connect_line().raw)
            yield Close(begun + MS, number, by_guest=True)

    found = diagnose(capture(tmp_path / "c.upcap", refusals())).findings
    assert codes(found) == ["UP101", "UP101", "UP102"]
    assert "50" in found[-1].what + found[-1].why
    assert not any(finding.inferred for finding in found)
    log = kata_log(
        tmp_path / "log", "VM upcall init", "upcall connect server check failed, Broken pipe",
        "upcall server's max reconnect time exceed", "vmm action error: UpcallServerNotReady",
    )  # fmt: skip
    alone = diagnose_logs(read_logs(None, log)).findings
    assert codes(alone) == ["UP102", "UP604"]
    assert "given up" in alone[1].why


def test_kata_9902_a_resize_while_the_vm_still_boots(tmp_path: Path) -> None:
    log = kata_log(
        tmp_path / "log", "VM upcall init", "upcall client init success",
        'vmm action error: "UpcallServerNotReady"', *CONNECTED[1:],
    )  # fmt: skip
    (finding,) = diagnose_logs(read_logs(None, log)).findings
    assert finding.code == "UP604"
    assert "booting" in finding.why
    assert not finding.inferred
    assert finding.evidence[0].line == 3


@pytest.mark.parametrize("device", ["hotplug balloon device: b0", "hot-add memory device: m0"])
def test_kata_10275_and_9915_a_device_before_the_service_is_ready(
    tmp_path: Path, device: str
) -> None:
    log = kata_log(
        tmp_path / "log", "VM upcall init", device, "UpcallServerNotReady", *CONNECTED[1:]
    )
    (finding,) = diagnose_logs(read_logs(None, log)).findings
    assert (finding.code, "booting" in finding.why) == ("UP604", True)


def test_kata_13287_the_vmm_fails_before_it_asks_the_guest(tmp_path: Path) -> None:
    """A vCPU cannot be added again: the VMM itself says EEXIST, and no frame follows."""
    recorded = capture(tmp_path / "c.upcap", conversation(1, [(ADD_CPU, 0)]))
    log = kata_log(
        tmp_path / "log", *CONNECTED, "resize vcpu: now: 1, desire: 2",
        "vmm action error: ResizeVcpu(Vcpu(VcpuIoctl(EEXIST File exists)))",
    )  # fmt: skip
    found = diagnose(recorded, logs=read_logs(None, log)).findings
    (finding,) = [f for f in found if f.code == "UP703"]
    assert "no request for it was sent" in finding.why
    assert "guest is not the cause" in finding.next
    assert "EEXIST" in finding.what
    assert "UP604" not in codes(found)


def test_kata_11716_overlapping_requests_find_the_channel_busy(tmp_path: Path) -> None:
    recorded = capture(tmp_path / "c.upcap", conversation(1, [(ADD_DISK, None)]))
    log = kata_log(tmp_path / "log", *CONNECTED, "vmm action error: UpcallServerNotReady")
    found = diagnose(recorded, logs=read_logs(None, log)).findings
    (finding,) = [f for f in found if f.code == "UP604"]
    assert "takes one at a time" in finding.why
    assert (finding.evidence[-1].conn, finding.evidence[-1].request) == (1, 0)


def test_kata_5234_and_13440_an_error_that_nobody_is_told_of(tmp_path: Path) -> None:
    recorded = capture(
        tmp_path / "c.upcap", conversation(1, [(ADD_DISK, 0), (ADD_DISK, EEXIST), (ADD_CPU, -22)])
    )
    found = diagnose(recorded).findings
    by_request = {n: codes([f for f in found if f.request == n]) for n in range(3)}
    assert by_request[1] == ["UP301", "UP701"]
    assert {"UP202", "UP203", "UP702"} == set(by_request[2])
    log = kata_log(
        tmp_path / "log", *CONNECTED, "timed out waiting on channel",
        "vmm action error: VcpuIsHotplugging", "vcpu is in hotplug process",
    )  # fmt: skip
    alone = diagnose_logs(read_logs(None, log)).findings
    assert codes(alone) == ["UP602", "UP702"]
    assert all(finding.inferred for finding in alone)


def test_many_lines_of_one_kind_are_one_finding(tmp_path: Path) -> None:
    """The runtime tries 500 times."""
    log = kata_log(tmp_path / "log", *CONNECTED, *["UpcallServerNotReady"] * 500)
    assert codes(diagnose_logs(read_logs(None, log)).findings) == ["UP604"]


def test_the_real_clients_log_is_read() -> None:
    log = GOLDEN / "real_client_simple.vmm.log"
    logs = read_logs(None, log)
    assert [told.understood for told in logs.inputs] == [2]
    assert logs.findings() == []
    recording = GOLDEN / "real_client_simple.vsockmon.pcap"
    with_log = diagnose(recording, logs=read_logs(None, log)).findings
    assert codes(with_log) == codes(diagnose(recording).findings)
