"""Capture from an interface: packets as vsockmon gives them, through a datagram socket.

A vsockmon interface needs a kernel module that few machines have; the socket stands in for it.
"""

from __future__ import annotations

import socket
import threading
from pathlib import Path

import pytest
from scapy.utils import RawPcapReader

from upcall_trace.capture.records import Header
from upcall_trace.errors import Unreachable, WrongUsage
from upcall_trace.trace.opening import Capture, load
from upcall_trace.vantage.interface import open_interface, record_packets
from upcall_trace.vantage.recorder import Recorder
from upcall_trace.vantage.store import OnStoreError

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.mark.parametrize("name", ["framing", "handshake", "aarch64_lifecycle"])
def test_live_packets_give_the_same_operations_as_the_file(tmp_path: Path, name: str) -> None:
    recording = GOLDEN / f"{name}.vsockmon.pcap"
    with RawPcapReader(str(recording)) as reader:
        packets = [raw for raw, _ in reader]
    theirs, ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    stop = threading.Event()
    drops = iter([7])
    recorder = Recorder(tmp_path / "c", Header("vsockmon"), OnStoreError.STOP, stop)
    capturing = threading.Thread(
        target=record_packets, args=(ours, recorder, stop, lambda _: next(drops, 0), 219)
    )
    capturing.start()
    for packet in packets:
        theirs.send(packet)
    threading.Event().wait(0.5)
    stop.set()
    capturing.join(10)
    recorder.close()
    theirs.close()
    ours.close()
    live, imported = load(tmp_path / "c"), load(recording)

    def told(capture: Capture) -> list[tuple[object, ...]]:
        return [
            (op.conn, op.request, op.op, op.fields, op.ret, op.reply, op.anomalies)
            for op in capture.operations
        ]

    assert told(live) == told(imported)
    assert [c.port for c in live.connections] == [c.port for c in imported.connections]
    assert live.lost_bytes == 7 * 76  # seven packets without payload


def test_an_interface_of_another_kind_or_none(tmp_path: Path) -> None:
    for name, kind in (("eth9", "1"), ("vsockmon9", "826")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "type").write_text(f"{kind}\n")
    with pytest.raises(WrongUsage, match="not a vsockmon interface"):
        open_interface("eth9", tmp_path)
    with pytest.raises((Unreachable, WrongUsage), match=r"vsockmon9"):
        open_interface("vsockmon9", tmp_path)
    with pytest.raises(Unreachable, match="ip link add"):
        open_interface("vsockmon8", tmp_path)
