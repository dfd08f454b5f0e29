"""What `import upcall_trace` offers: a list that stays, loaded name by name."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import upcall_trace
from dissectors.constants import MessageType
from dissectors.messages import bare_request, cpu_request
from tests.support import DISK, GOLDEN, answer, ask, connect, golden, write_capture
from tests.test_imports import HEAVY, loaded, users
from tools.api_blocks import api
from upcall_trace.diagnose.run import diagnose

FROZEN = """
    open_capture WholeCapture Operation Connection
    diagnose_capture Finding Severity
    export_capture Loss
    SimulatedGuest World kata_pod load_worlds connect UpcallClient
    record_traffic replay_capture Verdict
    UpcallError UserError WrongUsage UnreadableInput Unreachable
""".split()
"""A name that goes away, or changes, breaks programs: that needs a new major version."""


def test_the_public_names_are_these_and_each_is_on_the_page() -> None:
    assert upcall_trace.__all__ == FROZEN
    assert set(FROZEN) <= set(dir(upcall_trace))
    for name in FROZEN:
        value = getattr(upcall_trace, name)
        assert value.__doc__, name
        assert f"### {name}\n" in api()
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        upcall_trace.nothing  # noqa: B018
    assert users("upcall_trace.api") == {"upcall_trace"}


def test_a_public_name_is_not_that_of_a_module() -> None:
    """Python would put the module in its place."""
    here = Path(upcall_trace.__file__).parent
    assert not {path.stem for path in here.iterdir()} & set(FROZEN)


def test_the_import_costs_nothing_until_a_name_is_asked_for() -> None:
    assert loaded("import upcall_trace") & HEAVY == set()
    assert "numpy" not in loaded("from upcall_trace import UpcallError, World, connect")


def test_a_capture_is_asked_for_everything(tmp_path: Path) -> None:
    path = write_capture(
        tmp_path / "x.upcap",
        [*connect(t_ns=500), ask(DISK, 1000), answer(DISK, 5000), ask(DISK, 6000),
         answer(DISK, 9000, ret=-17)],
    )  # fmt: skip
    capture = upcall_trace.open_capture(str(path))
    assert isinstance(capture, upcall_trace.WholeCapture)
    assert capture.header.source == "test"
    assert [operation.ret for operation in capture.operations] == [0, -17]
    assert [operation.request for operation in capture.select("failed")] == [1]
    assert [connection.requests for connection in capture.connections] == [2]
    assert capture.column("latency_ns").tolist() == [4000, 3000]
    assert capture.column("t_ns").tolist() == [500, 5500]  # from the first record
    assert {len(column) for column in capture.columns.values()} == {2}
    assert all(isinstance(column, np.ndarray) for column in capture.columns.values())
    assert len([*capture.records()]) == 10
    assert (capture.complete, capture.damage, capture.marks) == (True, [], [])
    (overlap,) = (finding for finding in capture.findings if finding.code == "UP301")
    assert (overlap.request, overlap.severity) == (1, upcall_trace.Severity.ERROR)


def test_any_source_can_be_opened_and_what_is_none_says_so(tmp_path: Path) -> None:
    transcript = upcall_trace.open_capture(golden("mmio_lifecycle"))
    packets = upcall_trace.open_capture(GOLDEN / "mmio_lifecycle.vsockmon.pcap")
    assert len(transcript.operations) == len(packets.operations) > 10
    with pytest.raises(upcall_trace.UnreadableInput, match="No such file"):
        upcall_trace.open_capture(tmp_path / "none")
    with pytest.raises(upcall_trace.WrongUsage):
        transcript.select("nonsense")


def test_a_diagnosis_takes_a_world_and_logs() -> None:
    path, console = golden("guest_oops"), GOLDEN / "guest_oops.console.log"
    world = upcall_trace.load_worlds(GOLDEN / "worlds.toml")["microvm"]
    alone = upcall_trace.diagnose_capture(path)
    joined = upcall_trace.diagnose_capture(path, world=world, console=console)
    assert alone == diagnose(path).findings
    assert "UP206" in {finding.code for finding in joined}
    sources = {evidence.source for finding in joined for evidence in finding.evidence}
    assert "console" in sources


def test_an_export_goes_to_any_stream() -> None:
    out = io.BytesIO()
    assert upcall_trace.export_capture(golden("framing"), "transcript", out) == []
    assert out.getvalue() == golden("framing").read_bytes()
    with pytest.raises(upcall_trace.WrongUsage, match="no format is called 'x'"):
        upcall_trace.export_capture(golden("framing"), "x", out)


@pytest.fixture
def guest() -> Iterator[upcall_trace.SimulatedGuest]:
    with upcall_trace.SimulatedGuest(upcall_trace.kata_pod(cpus=2)) as guest:
        yield guest


def test_traffic_is_recorded_and_replayed(guest: upcall_trace.SimulatedGuest) -> None:
    here = guest.path.parent
    add = cpu_request(MessageType.ADD_CPU, [5])
    capture = here / "x.upcap"
    with (
        upcall_trace.record_traffic(here / "proxy", guest.path, capture, notes={"pod": "x"}),
        upcall_trace.connect(here / "proxy") as client,
    ):
        assert client.ask(add.encode(), timeout_s=5) is not None
        assert client.ask(bare_request(MessageType.ADD_MEM).encode(), timeout_s=5) is not None
    opened = upcall_trace.open_capture(capture)
    assert [(op.op, op.ret) for op in opened.operations] == [("add_cpu", 0), ("add_mem", -1)]
    assert (opened.complete, opened.header.notes) == (True, {"pod": "x"})
    guest.reset()
    again = upcall_trace.replay_capture(capture, guest.path)
    assert (again.asked, again.same, again.divergences) == (2, 2, [])
    other = upcall_trace.replay_capture(capture, guest.path)  # the CPU is there by now
    assert other.first is not None
    taken = upcall_trace.record_traffic(here / "proxy", guest.path, capture)
    with pytest.raises(upcall_trace.WrongUsage, match="exists"), taken:
        pass


def test_a_danger_is_refused_before_anything_is_sent(guest: upcall_trace.SimulatedGuest) -> None:
    with pytest.raises(upcall_trace.WrongUsage, match="refused: "):
        upcall_trace.replay_capture(golden("guest_oops"), guest.path)
    assert guest.state()["apic_ids"] == [0, 1]


def test_nobody_upstream_is_unreachable(tmp_path: Path) -> None:
    for path in (tmp_path / "none", tmp_path / "x" / "none"):
        with pytest.raises(upcall_trace.Unreachable):
            upcall_trace.connect(path)
        recording = upcall_trace.record_traffic(tmp_path / "p", path, tmp_path / "x.upcap")
        with pytest.raises(upcall_trace.Unreachable), recording:
            pass
    assert [*tmp_path.iterdir()] == []
