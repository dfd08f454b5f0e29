"""Every row of the cheat sheet leads to a code that an example of it really gives."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Final

import pytest

from tests.diagnose.test_log_stories import CONSOLE, VMM, entries
from tests.support import GOLDEN, run
from tools.generate_docs import ROOT

ROWS: Final = [
    line
    for line in (ROOT / "docs" / "cheat-sheet.md").read_text("utf-8").splitlines()
    if "(codes.md#" in line
]
EXAMPLES: Final[dict[str, str]] = {
    # The beginning of a row: the name of a short log, or of a recording.
    "`timed out waiting on channel` when CPUs": "case:one-journal-for-both",
    "`timed out waiting on channel`, and": "case:src-cpu-late",
    "`timed out waiting on channel` when a disk": "vmm:disk-late",
    "`get vcpu event, cpu_index 0 success Failed`": "vmm:rescpu-late10",
    "`VcpuIsHotplugging`": "vmm:hotplugging",
    "`UpcallServerNotReady` while": "vmm:balloon-own",
    "`UpcallServerNotReady` later": "case:src-retries-spent-busy",
    "`UpcallServerNotReady` when a host": "case:src-vfio-remove-own-request",
    "`upcall server's max": "vmm:gaveup",
    "pod start stuck": "vmm:500-booting",
    "the log floods": "vmm:flood-resize",
    "`get vcpu event, cpu_index 0 success Success`": "vmm:n0",
    "`VM upcall init failed`": "case:src-upcall-init-failed",
    "`Timeout after 3s": "case:kata-11238-uevent-timeout",
    "a disk is missing": "case:node-two-consoles",
    "the same, and the console has": "console:magic",
    "`already exists`": "case:src-block-add-no-prefix",
    "a volume cannot be removed": "console:noslot-del",
    "CPUs cannot be removed": "console:boot-cpu",
    "an oops of `db_dev_mgr`": "console:del-oops-1id",
    "`task db_dev_mgr:112": "console:hung-only",
    "`Kernel panic`": "console:panic",
    "a device is not answered": "golden:mmio_wrong_interrupt_5_10",
    "a CPU is refused at once": "golden:cpu_retry_5_10",
    "CONNECT is neither": "case:firecracker-1253-no-answer",
    "it worked, and now": "scene:guest_killed",
    "a resize fails with": "vmm:rollback",
    "your own client is cut off": "golden:handshake",
    "your own client gets answers": "golden:framing",
}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[2:40])
def test_a_rows_example_gives_one_of_its_codes(row: str, tmp_path: Path) -> None:
    (example,) = [each for begins, each in EXAMPLES.items() if row.startswith(f"| {begins}")]
    kind, _, name = example.partition(":")
    path = tmp_path / "log"
    match kind:
        case "vmm":
            path.write_bytes(entries(VMM[name][1]))
        case "console":
            path.write_text("".join(f"{line}\n" for line in CONSOLE[name][1]))
        case "case":
            folder = ROOT / "tests" / "cases" / name
            (path,) = [*folder.glob("*.log"), *folder.glob("*.jsonl")]
        case "scene":
            path = ROOT / "tests" / "scenes" / f"{name}.jsonl"
        case _:
            path = GOLDEN / f"{name}.jsonl"
    found = json.loads(run("diagnose", "--json", path).out)["findings"]
    assert {f["code"] for f in found} & set(re.findall(r"\[(UP\d+)\]", row))


def test_every_row_has_an_example_of_its_own() -> None:
    assert len(ROWS) == len(EXAMPLES) == len(set(EXAMPLES.values()))
