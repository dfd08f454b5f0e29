"""`diagnose --memory`: why a VM hangs, from its memory or an image of it, in one step."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dissectors.constants import MessageType
from dissectors.messages import cpu_request, pci_request
from tests.support import run
from tests.vantage.guest_memory.cutouts import image
from tests.vantage.guest_memory.vmm_process import vmm_process
from tests.vantage.guest_memory.whole_guest import WholeGuest
from upcall_trace.errors import ExitCode

DEL_77 = cpu_request(MessageType.DEL_CPU, [77]).encode()
TOLD = pci_request(MessageType.ADD_PCI, 0, 4).reply(-19).encode()


def findings(*words: str | Path) -> dict[str, Any]:
    """The finding of each code."""
    outcome = run("diagnose", *words, "--json")
    return {each["code"]: each for each in json.loads(outcome.out)["findings"]}


@pytest.mark.parametrize("kernel", ["lab", "kata_5_10", "kata_6_1"])
def test_a_request_that_waits_is_named_and_its_cause_is_possible(kernel: str) -> None:
    """Nobody knows from an image how long it has waited."""
    found = findings("--memory", image(kernel))["UP206"]
    assert found["inferred"]
    assert found["time"] is None


def test_where_the_thread_is_gone_it_is_certain_that_it_died(tmp_path: Path) -> None:
    path = tmp_path / "ram"
    path.write_bytes(WholeGuest(DEL_77, TOLD, 2, 1, thread=False).raw)
    found = findings("--memory", path)["UP206"]
    assert (found["inferred"], found["request"]) == (False, 1)
    path.write_bytes(WholeGuest(DEL_77, TOLD, 2, 1).raw)
    assert findings("--memory", path)["UP206"]["inferred"]


def test_a_running_vm_is_diagnosed_and_nothing_is_left_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with vmm_process() as vmm:
        vmm.put(0, bytes(WholeGuest(DEL_77, TOLD, 2, 1, thread=False).raw))
        assert not findings("--memory", str(vmm.pid))["UP206"]["inferred"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        (["--memory", "4000000"], ExitCode.UNREACHABLE, "there is no process 4000000"),
        (["--memory", "/nowhere"], ExitCode.UNREADABLE, "No such file"),
        (["--memory", "1", "--follow"], ExitCode.USAGE, "record --memory watches it"),
        (["--memory", "1", "--journal"], ExitCode.USAGE, "give no files with it"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(
    words: list[str], code: ExitCode, sentence: str
) -> None:
    outcome = run("diagnose", *words)
    assert outcome.code == code
    assert sentence in outcome.err
    assert outcome.err.count("\n") == 1
