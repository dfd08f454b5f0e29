"""A recording and a console are laid side by side: by content and order first, by time last."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from dissectors.constants import MessageType
from dissectors.messages import Request, cpu_request, pci_request
from tests.diagnose.dresses import json_lines
from tests.support import GOLDEN, answer, ask, connect, run, write_capture
from upcall_trace.capture.records import Close, Header, Record
from upcall_trace.diagnose.log_inputs import read_logs
from upcall_trace.diagnose.log_matching import ConsoleMatcher
from upcall_trace.diagnose.run import diagnose
from upcall_trace.trace.opening import load

SECOND = 1_000_000_000
Step = tuple[int, float, int]
"""A CPU that is added: its APIC id, the second on the host's clock, and `ret`."""


def adds(path: Path, steps: Sequence[Step]) -> Path:
    def records() -> Iterator[Record]:
        yield from connect(1, 0)
        for cpu, second, ret in steps:
            request: Request = cpu_request(MessageType.ADD_CPU, [cpu])
            yield ask(request, round(second * SECOND))
            yield answer(request, round(second * SECOND) + 5_000_000, ret=ret)
        yield Close(round(steps[-1][1] * SECOND) + SECOND, 1, by_guest=False)

    return write_capture(path, records(), Header("proxy", arch="x86_64"))


def console(path: Path, steps: Sequence[Step]) -> Path:
    lines = []
    for cpu, second, ret in steps:
        lines.append(f"[{second:12.6f}] db-dev-mgr: add vcpu number: 1")
        lines.append(f"[{second:12.6f}] db-dev-mgr: adding vcpu apic_id {cpu}")
        end = "cpu event notification: apic ids index 1"
        if ret:
            end = f"cpu {cpu} cannot be added, cpu up failed: {ret}"
            lines.append(f"[{second:12.6f}] db-dev-mgr: {end}")
            end = f"db_devmgr_process : Command run failed, err: {ret}"
        lines.append(f"[{second:12.6f}] db-dev-mgr: {end}")
    path.write_text("\n".join(lines) + "\n")
    return path


def test_a_clock_that_stood_still_is_told_and_loses_no_line(tmp_path: Path) -> None:
    host = [(n, float(n), 0) for n in range(1, 9)]
    guest = [(n, 100.0 + n, 0) for n in range(1, 9)]
    slipped = [(n, second + (20 if n > 4 else 0), 0) for n, second, _ in host]
    capture = adds(tmp_path / "x.upcap", slipped)
    log = console(tmp_path / "log", guest)
    found = diagnose(capture, logs=read_logs(log))
    (still,) = [f for f in found.findings if f.code == "UP609"]
    assert (still.conn, still.request) == (1, 4)
    assert "1.00s of 21.00s" in still.what
    assert found.matched.startswith("8 operations of the recording found in the console")
    alike = diagnose(adds(tmp_path / "y.upcap", host), logs=read_logs(log))
    assert "UP609" not in [f.code for f in alike.findings]


@pytest.mark.parametrize("part", [slice(0, 3), slice(3, 6), slice(5, 8)])
def test_a_part_of_a_console_fits(tmp_path: Path, part: slice) -> None:
    steps = [(n, float(n), -5 if n == 4 else 0) for n in range(1, 9)]
    capture = load(adds(tmp_path / "x.upcap", steps))
    guests = read_logs(console(tmp_path / "log", [(c, s + 50, r) for c, s, r in steps[part]]))
    (guest,) = guests.guests
    fit = ConsoleMatcher(guest.console.operations, list(capture.operations)).fit
    assert not fit.refused
    assert [asked.request for asked, _ in fit.pairs] == [*range(8)][part]


def test_a_console_whose_errno_or_ids_differ_is_refused(tmp_path: Path) -> None:
    steps = [(n, float(n), 0) for n in range(1, 6)]
    capture = adds(tmp_path / "x.upcap", steps)
    for other in ([(c, s, -5) for c, s, _ in steps], [(c + 10, s, 0) for c, s, _ in steps]):
        log = console(tmp_path / "log", other)
        told = run("diagnose", "--json", capture, log)
        assert "does not fit this recording" in told.err
        assert "another guest" in told.err
        assert '"UP201"' not in told.out


def test_of_several_guests_the_one_that_fits_is_joined(tmp_path: Path) -> None:
    names = ["guest_oops", "cpu_lifecycle", "pci_memory"]
    entries = []
    for number, name in enumerate(names):
        for line in (GOLDEN / f"{name}.console.log").read_text(errors="replace").splitlines():
            who = str(number) * 64
            entries.append({"MESSAGE": line, "SOURCE": who, "SUBSYSTEM": "dmesg"})
    (tmp_path / "node.log").write_bytes(json_lines(entries))
    told = diagnose(GOLDEN / "cpu_lifecycle.jsonl", logs=read_logs(tmp_path / "node.log"))
    assert "joined with 1111" in told.matched
    own = [f for f in told.findings if f.conn is not None]
    assert {f.sandbox for f in own} == {"1" * 64}
    assert {f.sandbox for f in told.findings} == {"0" * 64, "1" * 64, "2" * 64}


def test_operations_that_the_console_has_not_are_missing_and_nothing_else(tmp_path: Path) -> None:
    request = pci_request(MessageType.ADD_PCI, 0, 6)
    records = [*connect(1, 0), ask(request, SECOND), answer(request, SECOND + 1000)]
    capture = write_capture(tmp_path / "x.upcap", records, Header("proxy", arch="x86_64"))
    log = tmp_path / "log"
    log.write_text("[    5.0] db-upcall-srv: Client connection closed, error code: -1\n")
    found = diagnose(capture, logs=read_logs(log))
    assert [f.code for f in found.findings] == [f.code for f in diagnose(capture).findings]
