"""`send`: the operations as words, what is shown of the answer, and how it ends."""

from __future__ import annotations

import re
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from dissectors.constants import Arch, MessageType
from dissectors.messages import (
    Request,
    bare_request,
    cpu_request,
    mmio_request,
    pci_request,
)
from tests.guests import HELLO, wait_until
from tests.support import Outcome, command, run
from tests.terminals import on_terminal
from upcall_trace.diagnose.verdict import verdict
from upcall_trace.errors import ExitCode
from upcall_trace.kernel.faults import parse_fault
from upcall_trace.kernel.world import kata_pod
from upcall_trace.simulated.machine import Habits
from upcall_trace.simulated.on_socket import SimulatedGuest
from upcall_trace.sockets.addresses import socket_folder

ADD_CPU, DEL_CPU = MessageType.ADD_CPU, MessageType.DEL_CPU
ADD_MMIO, DEL_MMIO = MessageType.ADD_MMIO, MessageType.DEL_MMIO
ADD_PCI, DEL_PCI = MessageType.ADD_PCI, MessageType.DEL_PCI


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A folder for sockets: a worker's own may be longer than the kernel takes."""
    with socket_folder() as folder:
        yield Path(folder)


@pytest.fixture
def guest() -> Iterator[SimulatedGuest]:
    with SimulatedGuest(kata_pod(cpus=4)) as simulated:
        yield simulated


def send(guest: SimulatedGuest, *words: str | Path) -> Outcome:
    return run("send", "--to", guest.path, *words)


WORDS: list[tuple[str, Request]] = [
    ("add-cpu 4 5", cpu_request(ADD_CPU, [4, 5])),
    ("add-cpu 0x1f", cpu_request(ADD_CPU, [31])),
    ("del-cpu 3 2", cpu_request(DEL_CPU, [3, 2])),
    ("add-mmio 0xe0006000 0x2000 5", mmio_request(ADD_MMIO, 0xE0006000, 0x2000, 5)),
    (
        "add-mmio 0xffffffffffffffff 0b1 0o7",
        mmio_request(ADD_MMIO, 0xFFFFFFFFFFFFFFFF, 1, 7),
    ),
    ("del-mmio 0xe0000000 8192 5", mmio_request(DEL_MMIO, 0xE0000000, 8192, 5)),
    ("add-pci 0 4", pci_request(ADD_PCI, 0, 4)),
    ("add-pci 255 31.7", pci_request(ADD_PCI, 255, 31, 7)),
    ("del-pci 0 0x8.0", pci_request(DEL_PCI, 0, 8)),
]
ARM_WORDS: list[tuple[str, Request]] = [
    ("add-cpu 2", cpu_request(ADD_CPU, 2)),
    ("del-cpu 0", cpu_request(DEL_CPU, 0)),
    ("add-mmio 0x60109000 0x2000 40", mmio_request(ADD_MMIO, 0x60109000, 0x2000, 40)),
]


def sent_bytes(shown: str) -> bytes:
    """The request in what `--hex` prints."""
    dump = shown.partition("request, 1024 bytes\n")[2].partition("reply, ")[0]
    raw = bytearray(1024)
    for line in dump.splitlines():
        if "*" not in line[:8]:
            offset, row = int(line[2:6], 16), bytes.fromhex(line[8:56])
            raw[offset : offset + len(row)] = row
    return bytes(raw)


@pytest.mark.parametrize(("words", "request_"), WORDS, ids=[words for words, _ in WORDS])
def test_words_become_the_request_that_they_mean(
    guest: SimulatedGuest, words: str, request_: Request
) -> None:
    outcome = send(guest, "--hex", *words.split())
    assert sent_bytes(outcome.out) == request_.encode()
    (shown,) = send(guest, "--json", *words.split()).objects
    assert (shown["op"], shown["fields"]) == (request_.op, request_.fields())


@pytest.mark.parametrize(("words", "request_"), ARM_WORDS, ids=[words for words, _ in ARM_WORDS])
def test_words_for_arm(words: str, request_: Request) -> None:
    with SimulatedGuest(kata_pod(Arch.AARCH64, cpus=2)) as guest:
        outcome = send(guest, "--arch", "aarch64", "--hex", *words.split())
        assert sent_bytes(outcome.out) == request_.encode()
        assert outcome.code == ExitCode.EXPECTED
        shown = send(guest, "--arch", "aarch64", "--json", "add-cpu", "0").objects[0]
        assert shown["fields"] == {"count": 0}
        assert shown["reply"]["cpu_id"] == len(guest.state()["cpus_online"])


def test_a_success_and_a_refusal(guest: SimulatedGuest) -> None:
    words = ("add-mmio", "0xe0006000", "0x2000", "5")
    done, refused = send(guest, *words), send(guest, *words)
    assert (done.code, done.err) == (ExitCode.EXPECTED, "")
    assert done.out.splitlines()[1].endswith(" add_mmio 0xe0006000+0x2000 irq=5 ok")
    assert done.out.splitlines()[2:] == ["Dragonball: done"]
    assert (refused.code, refused.err) == (ExitCode.DIFFERENT, "")
    assert "EEXIST (-17) window or IRQ already taken" in refused.out
    assert "the device is silently lost" in refused.out.splitlines()[-1]
    assert len(guest.state()["mmio"]) == 4


def test_json_is_an_operation_and_what_dragonball_makes_of_it(guest: SimulatedGuest) -> None:
    outcome = send(guest, "--json", "add-cpu", "3")
    (shown,) = outcome.objects
    assert outcome.code == ExitCode.DIFFERENT
    assert outcome.out.isascii()
    latency = shown.pop("latency_ns")
    assert 0 < latency < 5_000_000_000
    assert shown == {
        "v": 1,
        "conn": 1,
        "request": 0,
        "t_ns": 0,
        "op": "add_cpu",
        "fields": {"count": 1, "apic_ver": 20, "apic_ids": [3]},
        "ret": -22,
        "errno": "EINVAL",
        "reply": {"msg_type": 1, "msg_size": 0, "apic_index": 0},
        "anomalies": [],
        "codes": [],
        "dragonball": verdict(ADD_CPU, -22, latency),
    }


def test_no_answer() -> None:
    with SimulatedGuest(faults=[parse_fault("any:drop")]) as guest:
        outcome = send(guest, "--timeout", "0.2", "--json", "add-pci", "0", "4")
        assert outcome.code == ExitCode.DIFFERENT
        assert outcome.err == "no reply within 0.2 s\n"
        (shown,) = outcome.objects
        assert (shown["ret"], shown["latency_ns"], shown["reply"]) == (None, None, None)
        text = send(guest, "--timeout", "0.2", "--hex", "add-pci", "0", "4")
        assert "no answer" in text.out
        assert text.out.endswith("reply, 0 bytes\n")


def test_a_guest_that_closes_at_once_is_no_guest_that_is_late() -> None:
    with SimulatedGuest(faults=[parse_fault("any:close")]) as guest:
        outcome = send(guest, "add-pci", "0", "4")
    assert outcome.code == ExitCode.DIFFERENT
    assert outcome.err == "the guest closed the connection instead of a reply\n"


def test_a_reply_that_ends_in_the_middle(short_path: Path) -> None:
    with torn_reply(short_path / "s", 100) as path:
        outcome = run("send", "--to", path, "add-pci", "0", "4")
    assert outcome.err.endswith(
        "the guest closed the connection instead of a reply; 100 bytes of one had come\n"
    )


def test_an_answer_that_kata_would_not_have_waited_for() -> None:
    with SimulatedGuest(faults=[parse_fault("any:delay=300ms")]) as guest:
        outcome = send(guest, "del-pci", "0", "4")
    assert outcome.code == ExitCode.EXPECTED
    told = r"the reply took [\d.]+m?s; Kata waits 250 ms for most of them\n"
    assert re.fullmatch(told, outcome.err)
    assert "the VMM never removes the device" in outcome.out


# Raw bytes.


def raw_file(directory: Path, raw: bytes) -> Path:
    path = directory / "raw"
    path.write_bytes(raw)
    return path


def test_raw_bytes_go_out_as_they_are(guest: SimulatedGuest, tmp_path: Path) -> None:
    request = replace(bare_request(77), msg_flags=5, padding=b"\xaa" * 1008)
    outcome = send(guest, "--hex", "raw", raw_file(tmp_path, request.encode()))
    assert sent_bytes(outcome.out) == request.encode()
    assert "type_77" in outcome.out
    assert outcome.code == ExitCode.DIFFERENT


def test_a_bad_magic_is_no_success_though_it_is_answered_with_0(
    guest: SimulatedGuest, tmp_path: Path
) -> None:
    request = replace(cpu_request(ADD_CPU, [9]), magic_version=0x444D0200)
    outcome = send(guest, "--json", "raw", raw_file(tmp_path, request.encode()))
    (shown,) = outcome.objects
    assert (shown["ret"], shown["anomalies"]) == (0, ["bad-magic", "stale-success"])
    assert outcome.code == ExitCode.DIFFERENT
    assert 9 not in guest.state()["apic_ids"]


def test_part_of_a_request_is_shown_as_the_guest_takes_it(
    guest: SimulatedGuest, tmp_path: Path
) -> None:
    raw = mmio_request(ADD_MMIO, 0xE0006000, 0x2000, 5).encode()[:20]
    (shown,) = send(guest, "--json", "raw", raw_file(tmp_path, raw)).objects
    assert shown["fields"] == {"mmio_base": 0xE0006000, "mmio_size": 0, "mmio_irq": 0}
    assert (shown["ret"], shown["anomalies"]) == (-22, ["short-request"])


def test_several_requests_in_one_write_and_the_first_is_shown(
    guest: SimulatedGuest, tmp_path: Path
) -> None:
    requests = [cpu_request(ADD_CPU, [4]), cpu_request(ADD_CPU, [5])]
    raw = b"".join(request.encode() for request in requests)
    outcome = send(guest, "--json", "raw", raw_file(tmp_path, raw))
    assert outcome.code == ExitCode.EXPECTED
    assert outcome.objects[0]["fields"]["apic_ids"] == [4]
    wait_until(lambda: guest.state()["apic_ids"] == [0, 1, 2, 3, 4, 5])


@contextmanager
def torn_reply(path: Path, size: int) -> Iterator[Path]:
    """A guest that gives so many bytes of its first reply, and closes."""

    def serve() -> None:
        stream, _ = listening.accept()
        with stream:
            stream.recv(64)
            stream.sendall(b"OK 1024\n")
            stream.recv(1)
            stream.sendall(HELLO)
            stream.recv(1024)
            stream.sendall(bytes(size))

    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen()
        serving = threading.Thread(target=serve)
        serving.start()
        yield path
        serving.join()


# Values that were left out.


@pytest.mark.parametrize(
    ("name", "needs"),
    [
        ("add-cpu", "ID…, on aarch64 a COUNT"),
        ("del-cpu", "ID…, on aarch64 a COUNT"),
        ("add-mmio", "BASE SIZE IRQ"),
        ("del-pci", "BUS SLOT[.FN]"),
    ],
)
def test_without_a_terminal_values_that_were_left_out_are_named(
    tmp_path: Path, name: str, needs: str
) -> None:
    outcome = run("send", "--to", tmp_path / "gone", name)
    assert (outcome.code, outcome.out) == (ExitCode.USAGE, "")
    assert outcome.err == f"upcall-trace: {name} needs {needs}; nothing was sent\n"


def test_on_a_terminal_values_that_were_left_out_are_asked_for(guest: SimulatedGuest) -> None:
    ended, shown = on_terminal(["send", "--to", str(guest.path), "add-cpu"], "4 5\n")
    assert "add-cpu needs ID…, on aarch64 a COUNT: 4 5" in shown
    assert "add_cpu apic_ids=4,5" in shown
    assert ended == ExitCode.EXPECTED
    assert guest.state()["apic_ids"] == [0, 1, 2, 3, 4, 5]


def test_an_empty_answer_sends_nothing(guest: SimulatedGuest) -> None:
    before = guest.state()
    ended, shown = on_terminal(["send", "--to", str(guest.path), "add-cpu"], "\n")
    assert ended == ExitCode.USAGE
    assert "add-cpu needs ID…, on aarch64 a COUNT; nothing was sent" in shown
    assert guest.state() == before


# Mistakes: one sentence, and the code for it.


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ("add-cpus 1", "'add-cpus' is no operation; known are add-cpu, del-cpu, add-mmio, del-"),
        ("--colour add-cpu", "'--colour' is no operation; known are "),
        ("add-cpu one", "add-cpu ID…, on aarch64 a COUNT: 'one' is not a number"),
        ("add-cpu 256", "add-cpu ID…, on aarch64 a COUNT: 256 is not within 0 and 0xff"),
        ("add-cpu -1", "add-cpu ID…, on aarch64 a COUNT: -1 is not within 0 and 0xff"),
        (f"del-cpu {'1 ' * 256}", "del-cpu ID…, on aarch64 a COUNT: 256 values were given"),
        ("--arch aarch64 del-cpu 1 2", "del-cpu ID…, on aarch64 a COUNT: 2 values were given"),
        ("add-mmio 1 2", "add-mmio BASE SIZE IRQ: 2 values were given"),
        ("del-mmio 1 2 3 4", "del-mmio BASE SIZE IRQ: 4 values were given"),
        ("add-mmio 0x10000000000000000 1 5", "add-mmio BASE SIZE IRQ: 0x10000000000000000 is not "),
        ("add-mmio 1 1 0x100000000", "add-mmio BASE SIZE IRQ: 0x100000000 is not within 0 and "),
        ("add-mmio 1 08 5", "add-mmio BASE SIZE IRQ: '08' is not a number"),
        ("add-pci 0", "add-pci BUS SLOT[.FN]: 1 values were given"),
        ("add-pci 256 1", "add-pci BUS SLOT[.FN]: 256 is not within 0 and 0xff"),
        ("del-pci 0 32", "del-pci BUS SLOT[.FN]: 32 is not within 0 and 0x1f"),
        ("del-pci 0 1.8", "del-pci BUS SLOT[.FN]: 8 is not within 0 and 0x7"),
        ("del-pci 0 1.", "del-pci BUS SLOT[.FN]: '' is not a number"),
        ("raw", "raw needs one file"),
        ("raw a b", "raw needs one file"),
    ],
    ids=lambda words: words[:40],
)  # fmt: skip
def test_a_wrong_word_is_named(tmp_path: Path, words: str, why: str) -> None:
    """Before anything is connected: nobody listens here."""
    outcome = run("send", "--to", tmp_path / "gone", *words.split())
    assert (outcome.code, outcome.out) == (ExitCode.USAGE, "")
    assert outcome.err.startswith(f"upcall-trace: {why}")
    assert outcome.err.count("\n") == 1


@pytest.mark.parametrize(("size", "said"), [(0, "no"), (65537, "more than 65536")])
def test_a_raw_file_of_another_size(tmp_path: Path, size: int, said: str) -> None:
    path = raw_file(tmp_path, bytes(size))
    outcome = run("send", "--to", tmp_path / "gone", "raw", path)
    assert outcome.code == ExitCode.UNREADABLE
    assert outcome.err == f"upcall-trace: {path} has {said} bytes; 1 to 65536 can be sent\n"


def test_a_raw_file_that_is_not_there(tmp_path: Path) -> None:
    outcome = run("send", "--to", tmp_path / "gone", "raw", tmp_path / "no")
    assert outcome.code == ExitCode.UNREADABLE
    assert outcome.err == f"upcall-trace: {tmp_path}/no: No such file or directory\n"


@pytest.mark.parametrize("options", [["--timeout", "0"], ["--port", "-1"], ["--arch", "arm"]])
def test_wrong_options(tmp_path: Path, options: list[str]) -> None:
    outcome = run("send", "--to", tmp_path / "gone", *options, "add-cpu")
    assert outcome.code == ExitCode.USAGE
    assert "Error: Invalid value" in outcome.err


def test_an_address_that_is_none(tmp_path: Path) -> None:
    outcome = run("send", "--to", "vsock://one", "add-cpu")
    assert (outcome.code, outcome.err.count("\n")) == (ExitCode.USAGE, 1)


def test_nobody_to_ask(tmp_path: Path) -> None:
    outcome = run("send", "--to", tmp_path / "gone", "add-cpu", "1")
    assert (outcome.code, outcome.out) == (ExitCode.UNREACHABLE, "")
    assert outcome.err == (
        f"upcall-trace: nobody listens on {tmp_path}/gone: there is no such socket\n"
    )


def test_a_port_that_nobody_listens_on() -> None:
    with SimulatedGuest(habits=Habits(port=1)) as guest:
        outcome = send(guest, "add-cpu", "1")
        assert outcome.code == ExitCode.UNREACHABLE
        assert outcome.err == (
            f"upcall-trace: {guest.path} closed instead of its OK for port 219\n"
        )
        assert send(guest, "--port", "1", "add-cpu", "1").code == ExitCode.EXPECTED


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["add-cpu", "4"], ExitCode.EXPECTED),
        (["add-cpu", "1"], ExitCode.DIFFERENT),
        (["add-cpu", "x"], ExitCode.USAGE),
        (["--port", "9", "add-cpu", "4"], ExitCode.UNREACHABLE),
        (["raw", "/nowhere/at/all"], ExitCode.UNREADABLE),
    ],
)
def test_the_process_ends_with_its_code(
    guest: SimulatedGuest, words: list[str], code: ExitCode
) -> None:
    done = subprocess.run(
        command("send", "--to", guest.path, *words), capture_output=True, text=True, check=False
    )
    assert done.returncode == code
    assert done.stderr.count("\n") == (code not in (ExitCode.EXPECTED, ExitCode.DIFFERENT))


@pytest.mark.parametrize(
    "words", [["del-cpu", "9"], ["del-mmio", "0xe0004000", "0x2000", "5"], ["del-pci", "0", "3"]]
)
def test_what_would_harm_a_guest_that_may_be_real_is_not_sent(
    guest: SimulatedGuest, words: list[str]
) -> None:
    Path(f"{guest.path}.target").unlink()  # nothing says now that it is a simulated one
    before = guest.state()
    outcome = send(guest, *words)
    assert outcome.code == ExitCode.USAGE
    assert outcome.out == ""
    assert re.fullmatch(
        rf"upcall-trace: not sent: .*, and {guest.path} may be a real guest; "
        r"--allow UP\d+ sends it all the same\n",
        outcome.err,
    )
    assert guest.state() == before
    (code,) = re.findall(r"--allow (UP\d+)", outcome.err)
    assert send(guest, "--allow", code, "--timeout", "1", *words).code != ExitCode.USAGE


def test_what_harms_nobody_is_sent_to_any_guest(guest: SimulatedGuest) -> None:
    Path(f"{guest.path}.target").unlink()
    assert send(guest, "add-cpu", "5").code == ExitCode.EXPECTED
