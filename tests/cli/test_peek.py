"""`peek`: text, JSON, a capture of what is in order, and what never leaves a VM's memory."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

import pytest

from tests.support import records_of, run
from tests.vantage.guest_memory.cutouts import (
    ASKED,
    KERNELS,
    TOLD,
    conversation,
    held,
    image,
    packet,
    page,
)
from tests.vantage.guest_memory.vmm_process import vmm_process
from upcall_trace.capture.records import Chunk, Gap, Mark
from upcall_trace.errors import ExitCode
from upcall_trace.trace.opening import load

SECRET = b"correct horse battery staple"


def peeked(*words: str | Path) -> dict[str, Any]:
    outcome = run("peek", *words, "--json")
    assert outcome.code == ExitCode.EXPECTED, outcome.err
    told: dict[str, Any] = json.loads(outcome.out)
    return told


@pytest.mark.parametrize("kernel", KERNELS)
def test_the_last_request_and_reply_of_each_connection(kernel: str) -> None:
    told = peeked(image(kernel))
    assert told["v"] == 1
    by_request = {
        (each["request"]["op"], json.dumps(each["request"]["fields"])): each
        for each in told["connections"]
    }
    died = conversation(kernel, 3)[-1].reply is None
    last = by_request["del_cpu", json.dumps({"count": 1, "apic_ver": 20, "apic_ids": [77]})]
    assert last["state"] == ("waiting" if died else "answered")
    assert last["unanswered"] is died
    idle = by_request["del_mem", "{}"]
    assert (idle["state"], idle["reply"]["ret"], idle["reply"]["errno"]) == (
        "answered", -1, "EPERM",
    )  # fmt: skip
    assert set(told) >= {"connections", "unplaced"}


def test_the_history_is_in_order_and_has_what_is_left() -> None:
    told = peeked(image("lab"))
    idle = next(each for each in told["connections"] if each["request"]["op"] == "del_mem")
    assert [(each["request"], each["op"]) for each in idle["history"]] == [
        (0, "del_pci"), (1, "add_pci"), (2, "del_mem"),
    ]  # fmt: skip
    closed = [each["request"] for each in told["unplaced"]]
    assert closed == [*range(11), 12, 13, 15]


def test_text_names_the_request_that_waits() -> None:
    outcome = run("peek", image("kata_6_1"))
    assert outcome.code == ExitCode.EXPECTED
    assert "connection 2 at 0x1008: waiting (certain)" in outcome.out
    assert "last request 2: del_cpu apic_ids=77" in outcome.out
    assert "not answered; the reply buffer still has the one before:" in outcome.out


@pytest.mark.parametrize("kernel", KERNELS)
def test_as_a_capture_it_is_read_like_another(kernel: str, tmp_path: Path) -> None:
    output = tmp_path / "found.upcap"
    assert run("peek", image(kernel), "-o", output).code == ExitCode.EXPECTED
    assert stat.S_IMODE(output.stat().st_mode) == 0o600
    header, _ = records_of(output)
    assert header.source == "guest-memory"
    assert header.notes["times"] == "none: memory has an order alone"
    capture = load(output)
    for operation in capture.operations:
        truths = [each for conn in (1, 2, 3) for each in conversation(kernel, conn)]
        assert operation.op in {"add_pci", "del_pci", "add_cpu", "del_cpu", "add_mmio", "del_mem",
                                "type_9"}  # fmt: skip
        assert truths
    unanswered = [each for each in capture.operations if each.ret is None and each.op == "del_cpu"]
    died = conversation(kernel, 3)[-1].reply is None
    named = [each for each in unanswered if each.fields["apic_ids"] == [77]]
    assert len(named) == died
    findings = json.loads(run("diagnose", output, "--json").out)["findings"]
    assert any(each["code"] == "UP206" for each in findings) is died


def test_what_is_missing_is_a_gap_of_its_size_and_the_order_stays(tmp_path: Path) -> None:
    memory, output = tmp_path / "ram", tmp_path / "found.upcap"
    third = ASKED[:16] + b"\0\x30" + ASKED[18:]
    memory.write_bytes(
        page(packet(ASKED, 1024), 0)
        + page(packet(third, 3 * 1024), 0)
        + page(packet(TOLD, 1 + 3 * 1024, to_guest=False), 0)
    )
    assert run("peek", memory, "-o", output).code == ExitCode.EXPECTED
    _, records = records_of(output)
    told = [
        (type(record).__name__, record.to_guest)
        for record in records
        if isinstance(record, Chunk | Gap)
    ]
    assert told == [
        ("Chunk", True), ("Gap", False),                   # service byte, CONNECT message
        ("Chunk", True), ("Gap", False),                   # request 0, its reply is gone
        ("Gap", True), ("Gap", False),                     # exchange 1
        ("Chunk", True), ("Chunk", False),                 # exchange 2
    ]  # fmt: skip
    assert [each.request for each in load(output).operations] == [0, 2]
    remarks = [record.text for record in records if isinstance(record, Mark)]
    assert "its reply is not in the guest's memory any more" in remarks


def test_a_secret_beside_what_is_found_never_leaves(tmp_path: Path) -> None:
    """Around an object, in the rest of freed buffers, behind a payload that was written over."""
    secret = SECRET * 40
    dirty = ASKED[:40] + secret[: 1024 - 40]
    memory, output = tmp_path / "ram", tmp_path / "found.upcap"
    memory.write_bytes(
        secret[:1000]
        + held()
        + secret
        + page(packet(dirty, 1024), 0)
        + secret
        + held(request=dirty)
        + secret
        + ASKED
        + secret
    )
    outcome = run("peek", memory, "-o", output)
    assert outcome.code == ExitCode.EXPECTED
    left = [outcome.out.encode(), run("peek", memory, "--json").out.encode()]
    left += [bytes(record.data) for record in records_of(output)[1] if isinstance(record, Chunk)]
    left += [output.read_bytes(), run("show", output, "--frames", "--hex").out.encode()]
    for told in left:
        assert SECRET[:6] not in told
        assert SECRET[:6].hex().encode() not in told
    bundle = tmp_path / "bundle.tar.gz"
    run("bundle", output, "-o", bundle)
    import tarfile

    with tarfile.open(bundle) as archive:
        for member in archive.getmembers():
            file = archive.extractfile(member)
            assert file is None or SECRET[:6] not in file.read()


def test_a_running_vmm_is_peeked_into() -> None:
    with vmm_process() as vmm:
        vmm.put(4096 + 0x18, held(ASKED, bytes(TOLD[:8]) + b"\x08" + TOLD[9:]))
        told = peeked("--pid", str(vmm.pid))
        assert [each["state"] for each in told["connections"]] == ["waiting"]
        assert told["seen"].endswith("Z")  # since when it is known to wait


def test_a_name_from_outside_begins_no_line_and_steers_no_terminal(tmp_path: Path) -> None:
    path = tmp_path / "ram\n\x1b]0;owned\x07"
    path.write_bytes(image("kata_6_1").read_bytes())
    outcome = run("peek", path)
    assert outcome.code == ExitCode.EXPECTED
    assert "\x1b" not in outcome.out + outcome.err
    assert "ram\\n\\x1b]0;owned\\x07: 2 connection objects" in outcome.out.splitlines()[0]


def test_where_nothing_is_it_is_not_green(tmp_path: Path) -> None:
    empty = tmp_path / "ram"
    empty.write_bytes(bytes(1 << 20))
    outcome = run("peek", empty)
    assert outcome.code == ExitCode.NOTHING_RUN
    assert "no upcall connection stands in the 1.0 MiB" in outcome.err


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        (["--pid", "4000000"], ExitCode.UNREACHABLE, "there is no process 4000000"),
        (["--sandbox", "zzz"], ExitCode.UNREACHABLE, "no sandbox 'zzz' runs on this machine"),
        (["/nowhere/ram"], ExitCode.UNREADABLE, "No such file"),
        ([], ExitCode.USAGE, "give one of --pid N, --sandbox ID and an image"),
        (["--pid", "1", "ram"], ExitCode.USAGE, "give one of"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(
    words: list[str], code: ExitCode, sentence: str
) -> None:
    outcome = run("peek", *words)
    assert outcome.code == code
    assert sentence in outcome.err
    assert outcome.err.count("\n") == 1


def test_an_output_that_exists_is_kept(tmp_path: Path) -> None:
    output = tmp_path / "found.upcap"
    output.write_bytes(b"precious")
    outcome = run("peek", image("lab"), "-o", output)
    assert outcome.code == ExitCode.USAGE
    assert output.read_bytes() == b"precious"
    assert run("peek", image("lab"), "-o", output, "--overwrite").code == ExitCode.EXPECTED
