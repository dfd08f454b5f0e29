"""Capture from a vsockmon interface: the wire as the guest's kernel sees it.

Stock Dragonball's own upcall client never crosses the Unix socket, so inside the guest is the only
place where its traffic is visible. docs/vantage-points.md.
"""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final

from dissectors.vsockmon import VIRTIO_SIZE, VSOCKMON_SIZE

from ..capture.records import Gap
from ..errors import Unreachable, WrongUsage
from ..sources.vsock_records import PacketRecords
from .recorder import Records

_ETH_P_ALL: Final = 3
_ARPHRD_VSOCKMON: Final = 826
_SOL_PACKET: Final = 263
_PACKET_STATISTICS: Final = 6
_STATISTICS: Final = struct.Struct("II")
_PACKET_SIZE: Final = 1 << 18
_RECEIVE_BUFFER: Final = 8 << 20
_LOOK_UP_S: Final = 0.2
_SYSFS: Final = Path("/sys/class/net")


def open_interface(name: str, sysfs: Path = _SYSFS) -> socket.socket:
    """A packet socket on the vsockmon interface `name`.

    Raises Unreachable when there is no such interface, WrongUsage when it is of another kind or
    may not be captured from.
    """
    try:
        kind = int((sysfs / Path(name).name / "type").read_text())
    except (OSError, ValueError):
        raise Unreachable(
            f"there is no interface {name}; make it with: ip link add {name} type vsockmon && "
            f"ip link set {name} up (needs a guest kernel with CONFIG_VSOCKMON, which "
            "depends on CONFIG_VHOST_VSOCK)"
        ) from None
    if kind != _ARPHRD_VSOCKMON:
        raise WrongUsage(f"{name} is not a vsockmon interface")
    try:
        packets = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_ALL))
    except PermissionError:
        raise WrongUsage(f"capturing from {name} needs root, or CAP_NET_RAW") from None
    try:
        packets.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER)
        packets.bind((name, 0))
    except OSError as error:
        packets.close()
        raise Unreachable(f"cannot capture from {name}: {error.strerror}") from None
    return packets


def record_packets(
    packets: socket.socket,
    recorder: Records,
    stop: threading.Event,
    count_drops: Callable[[socket.socket], int],
    upcall_port: int,
) -> None:
    """Record until `stop` is set; packets that the kernel had no room for become gaps."""
    converter = PacketRecords(upcall_port)
    packets.settimeout(_LOOK_UP_S)
    while not stop.is_set():
        try:
            packet = packets.recv(_PACKET_SIZE)
        except TimeoutError:
            packet = b""
        now = recorder.now()
        for record in converter.packet(now, packet) if packet else ():
            recorder.record(record)
        recorder.settle()
        if not packet and (drops := count_drops(packets)):
            reason = f"the kernel had no room for {drops} packets, of these many bytes at least"
            recorder.record(Gap(now, 0, False, drops * (VSOCKMON_SIZE + VIRTIO_SIZE), reason))
    for record in converter.finish():
        recorder.record(record)


def dropped_packets(packets: socket.socket) -> int:
    """Packets that the kernel dropped since the last call."""
    raw = packets.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, _STATISTICS.size)
    _, drops = _STATISTICS.unpack(raw)
    return int(drops)
