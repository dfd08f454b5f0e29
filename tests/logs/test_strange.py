"""Lines about upcall in words that no row has: counted, named, and never called well."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support import diagnosed_log, run
from upcall_trace.errors import ExitCode

CASES = Path(__file__).parents[1] / "cases"
KNOWN = "Sep 01 10:00:00 n1 kata[41]: upcall connect service success\n"
STRANGE = [
    "Sep 01 10:00:01 n1 kata[41]: upcall frobnicate failed: everything is broken",
    "Sep 01 10:00:01 n1 kata[41]: vcpu manager: get vcpu event, cpu_index 2 success Timeout",
    "Sep 01 10:00:01 n1 kata[41]: the channel is gone: UpcallServerMoved",
    "[    2.200000] db-dev-mgr: cpu 2 rejected by policy: -1",
    "[    2.200000] db-upcall-srv: gave up",
    json.dumps({"msg": "upcall server moved", "subsystem": "dbs_upcall", "level": "ERRO"}),
]
OF_OTHERS = [
    "Sep 01 10:00:01 n1 kernel: RPC: AUTH_GSS upcall failed. Please check user daemon is running.",
    "Sep 01 10:00:01 n1 rpc.gssd[77]: upcall timed out",
    "[   12.000000] RPC: AUTH_GSS upcall failed.",
    "Sep 01 10:00:01 n1 cifs.upcall[12]: key description: cifs.spnego",
    "[    2.200000]  ? db_devmgr_server+0x12a/0x2c4",
]


@pytest.mark.parametrize("line", STRANGE)
def test_a_line_about_upcall_that_is_not_understood_is_counted(line: str, tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text(f"{KNOWN}{line}\n")
    told, findings, code = diagnosed_log(log)
    assert (told["understood"], told["unknown"], findings, code) == (1, 1, [], 0)
    ended = run("diagnose", log)
    assert "1 about upcall in words that are not known, the first is line 2" in ended.err
    assert "nothing found in those that are understood; what 1 more mean" in ended.out


@pytest.mark.parametrize("line", STRANGE)
def test_alone_it_is_not_called_well(line: str, tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text(f"{line}\n")
    ended = run("diagnose", log)
    assert ended.code == ExitCode.NOTHING_RUN
    assert "speaks of upcall in words that are not known here" in ended.err


@pytest.mark.parametrize("line", OF_OTHERS)
def test_upcalls_of_others_are_not_counted(line: str, tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text(f"{KNOWN}{line}\n")
    assert diagnosed_log(log)[0]["unknown"] == 0


@pytest.mark.parametrize("path", sorted(CASES.glob("*/*.log")), ids=lambda path: path.parent.name)
def test_every_line_about_upcall_in_the_cases_is_understood(path: Path) -> None:
    assert diagnosed_log(path)[0]["unknown"] == 0


def test_what_is_not_understood_is_not_in_a_redacted_archive(tmp_path: Path) -> None:
    from upcall_trace.bundle.allowed_lines import allowed_lines
    from upcall_trace.bundle.redaction import Redactor

    text = "".join(f"{line}\n" for line in STRANGE).encode()
    assert [*allowed_lines([text], Redactor().placeholder)] == [len(STRANGE)]
