"""Where lines are missing nothing is certain that others would have decided."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.diagnose.dresses import json_lines
from tests.diagnose.test_log_stories import CONSOLE, FIRST_US, INIT, READY, VMM, Line, entries, told
from tests.support import diagnosed_log, run
from upcall_trace.errors import ExitCode

DROPPED = [
    "Nov 22 15:14:47 n1 systemd-journald[301]: Suppressed 1743 messages from containerd.service",
    "Nov 22 15:14:47 n1 systemd-journald[301]: Suppressed 9 messages from kubepods-pod1.slice",
    "Nov 22 15:14:47 n1 rsyslogd: imjournal: 4411 messages lost due to rate-limiting",
    "Nov 22 15:14:47 n1 rsyslogd: imuxsock lost 31 messages from pid 812 due to rate-limiting",
    "slog-async: logger dropped messages due to channel overflow, count: 17",
    "[...]",
    "> [snip]",
    "Nov 22 15:14:47 n1 systemd-journald[301]: Missed 12 kernel messages",
    "[   13.000000] systemd-journald[88]: /dev/kmsg buffer overrun, some messages lost.",
    "** 214 printk messages dropped **",
    "[   13.000000] printk: 33 messages suppressed.",
    "[   13.000000] virtio_mmio_probe: 12 callbacks suppressed",
]
OF_OTHERS = [
    "Nov 22 15:14:47 n1 systemd-journald[301]: Suppressed 1743 messages from nginx.service",
    "[   13.000000] net_ratelimit: 12 callbacks suppressed",
    "-- Boot 4f1f2d0c5c2f4b6fb7e3b7b5b7a0c9d1 --",
    "[   13.000000] a[...]b",
]
KNOWN = "Nov 22 15:14:40 n1 kata[41]: upcall connect service success\n"
SUPPRESSED = "Suppressed 1743 messages from containerd.service"


def with_gap(lines: Sequence[Line], after: int) -> bytes:
    """A journal of one guest, of which lines are missing after so many."""
    gap = {
        "__REALTIME_TIMESTAMP": str(FIRST_US + lines[after - 1][0] * 1000), "_PID": "301",
        "SYSLOG_IDENTIFIER": "systemd-journald", "MESSAGE": SUPPRESSED,
    }  # fmt: skip
    return entries(lines[:after]) + json_lines([gap]) + entries(lines[after:])


def certain(said: str) -> set[str]:
    return {each for each in said.split() if not each.endswith("?")}


@pytest.mark.parametrize("line", DROPPED)
def test_it_is_told_that_lines_are_missing(line: str, tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text(f"{KNOWN}{line}\n")
    read, findings, code = diagnosed_log(log)
    assert (read["understood"], read["lost"], findings, code) == (1, 1, [], 0)
    ended = run("diagnose", log)
    assert "lines are missing at 1 places, the first is line 2" in ended.err
    assert "nothing found; what stood at the 1 places without lines cannot be told" in ended.out


@pytest.mark.parametrize("line", OF_OTHERS)
def test_lines_of_others_are_not_missed(line: str, tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text(f"{KNOWN}{line}\n")
    assert diagnosed_log(log)[0]["lost"] == 0


@pytest.mark.parametrize("line", [*DROPPED, *OF_OTHERS])
def test_alone_they_say_nothing_of_upcall(line: str, tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text(f"{line}\n")
    assert run("diagnose", log).code == ExitCode.NOTHING_RUN


@pytest.mark.parametrize("name", VMM)
def test_no_finding_becomes_certain_by_what_is_missing(name: str, tmp_path: Path) -> None:
    _, lines = VMM[name]
    whole = certain(told(tmp_path, entries(lines)))
    for after in range(1, len(lines) + 1):
        assert certain(told(tmp_path, with_gap(lines, after))) <= whole, after


@pytest.mark.parametrize("name", CONSOLE)
def test_no_operation_of_a_console_is_put_together_over_a_gap(name: str, tmp_path: Path) -> None:
    _, lines = CONSOLE[name]
    for after in range(1, len(lines)):
        cut = [*lines[:after], "** 214 printk messages dropped **", *lines[after:]]
        said = told(tmp_path, "".join(f"{line}\n" for line in cut).encode())
        assert not certain(said), after


REFUSED = "upcall connect server check failed, upcall server connect error: connection reset"
LOOP = [*INIT, *((100 + 10 * n, REFUSED) for n in range(501))]
ASKED = [*READY, (5000, "resize vcpu: now: 1, desire: 3")]
NOT_READY = (5100, "resize vcpus: vmm action error: UpcallServerNotReady")


@pytest.mark.parametrize(
    ("lines", "after", "without", "expected"),
    [
        pytest.param(LOOP, len(LOOP), "UP102", "UP102?", id="a success may have followed"),
        pytest.param(LOOP, 2, "UP102", "UP102", id="nothing of the loop is missing"),
        pytest.param([*ASKED, NOT_READY], 5, "UP604", "UP604?", id="it may have been answered"),
        pytest.param([*INIT, NOT_READY], 2, "UP604", "UP604?", id="it may have been ready"),
        pytest.param(
            [*INIT, (900, "Received KVM_EXIT_SHUTDOWN signal")], 2, "UP802", "UP802?",
            id="it may have come up",
        ),
        pytest.param(
            [*ASKED, (5250, "resize vcpus: timed out waiting on channel"),
             (9000, "get vcpu event, cpu_index 2 success Success")], 6, "UP601", "UP601?",
            id="it may be of a later request",
        ),
    ],
)  # fmt: skip
def test_what_rests_on_lines_that_are_not_there_is_possible_only(
    tmp_path: Path, lines: Sequence[Line], after: int, without: str, expected: str
) -> None:
    assert told(tmp_path, entries(lines)) == without
    assert told(tmp_path, with_gap(lines, after)) == expected


def test_a_finding_over_a_gap_shows_the_line_that_tells_of_it(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(with_gap([*ASKED, NOT_READY], len(ASKED)))
    _, (finding,), _ = diagnosed_log(log)
    assert any("Suppressed 1743" in evidence["text"] for evidence in finding["evidence"])


def test_a_reset_after_a_gap_names_no_request_from_before_it(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(with_gap([*ASKED, (5200, "upcall response failed x")], len(ASKED)))
    _, (finding,), _ = diagnosed_log(log)
    assert (finding["code"], finding["inferred"]) == ("UP605", False)
    assert not any("resize vcpu" in evidence["text"] for evidence in finding["evidence"])


def test_after_a_boot_of_the_host_a_process_number_is_another_guests(tmp_path: Path) -> None:
    said = (
        "Nov 22 15:14:40 n1 kata[41]: VM upcall init",
        "Nov 22 15:14:41 n1 kata[41]: upcall connect service success",
        "Nov 22 15:14:42 n1 kata[41]: resize vcpu: now: 1, desire: 3",
    )
    refusal = "Nov 22 15:20:00 n1 kata[41]: vmm action error: UpcallServerNotReady"
    before = "".join(f"{line}\n" for line in said).encode()
    assert told(tmp_path, before + refusal.encode()) == "UP604"
    boot = b"-- Boot 4f1f2d0c5c2f4b6fb7e3b7b5b7a0c9d1 --\n"
    assert told(tmp_path, before + boot + refusal.encode()) == "UP604?"


def test_a_journal_without_such_entries_says_so(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("-- No entries --\n")
    assert "the answer of a journal that has no such entries" in run("diagnose", log).err
