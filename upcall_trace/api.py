"""What a program does with captures and guests, one function each; docs/api.md.

`import upcall_trace` offers these. What a function needs is imported when it is called.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    from .diagnose.finding import Finding
    from .diagnose.whole_capture import WholeCapture
    from .exports import Loss
    from .kernel.world import World
    from .replay.verdict import Verdict
    from .sockets.client import UpcallClient

FilePath = str | os.PathLike[str]


def open_capture(path: FilePath) -> WholeCapture:
    """Open a capture, or any file that `import` reads.

    Raises UnreadableInput when the file is missing or is none of these.
    """
    from .diagnose.whole_capture import WholeCapture

    return WholeCapture(Path(path))


def diagnose_capture(
    path: FilePath,
    *,
    world: World | None = None,
    console: FilePath | None = None,
    vmm_log: FilePath | None = None,
    dragonball: bool = True,
) -> list[Finding]:
    """Say why operations of a capture failed; docs/codes.md has every code.

    `world` is the guest at boot, `console` and `vmm_log` are logs of the same time. With
    `dragonball` False nothing is said of what Dragonball and Kata make of a failure. Raises
    UnreadableInput.
    """
    from .diagnose.log_inputs import read_logs
    from .diagnose.run import diagnose

    logs = read_logs(Path(console) if console else None, Path(vmm_log) if vmm_log else None)
    return diagnose(Path(path), world, dragonball, logs).findings


def export_capture(path: FilePath, name: str, out: BinaryIO) -> list[Loss]:
    """Write a capture to a binary stream in the format called `name`; docs/formats.md lists them.

    Returns what of the capture has no place there. Raises WrongUsage for an unknown name,
    UnreadableInput for the capture, and OSError when `out` cannot be written.
    """
    from .exports import export_format

    _, write = export_format(name)
    return write(open_capture(path), out)


def connect(address: FilePath, *, timeout_s: float = 15.0) -> UpcallClient:
    """Connect to a guest's device manager: a Unix socket path, or `vsock://CID[:PORT]`.

    Raises WrongUsage for what is no address, and Unreachable when there is no service within
    `timeout_s`.
    """
    from .sockets.addresses import parse_address
    from .sockets.client import UpcallClient

    return UpcallClient(parse_address(os.fspath(address)), connect_s=timeout_s)


@contextmanager
def record_traffic(
    listen: FilePath,
    upstream: FilePath,
    output: FilePath,
    *,
    notes: Mapping[str, str] | None = None,
    overwrite: bool = False,
) -> Iterator[None]:
    """Record into the capture `output` until the context ends.

    A proxy listens at the path `listen` and relays to `upstream`, a Unix socket path or
    `vsock://CID[:PORT]`. `notes` are kept in the capture. Raises Unreachable when nobody listens
    upstream, WrongUsage when a path cannot be used, and at the end SomethingLost when traffic
    crossed that is not in the capture.
    """
    import threading
    from contextlib import closing

    from .errors import SomethingLost
    from .sockets.addresses import check_reachable, parse_address
    from .sockets.listening import Listener
    from .vantage.proxy import Proxy
    from .vantage.recorder import Recorder, live_header
    from .vantage.store import OnStoreError

    address = parse_address(os.fspath(upstream))
    check_reachable(address)
    header = live_header("proxy", None, notes=dict(notes or {}))
    with closing(Listener(Path(listen))) as listener:
        recorder = Recorder(Path(output), header, OnStoreError.PASS, threading.Event(), overwrite)
        with closing(recorder):
            proxy = Proxy(address, recorder, lambda _: None)
            proxy.listen(listener.socket)
            try:
                yield
            finally:
                proxy.stop()
    if recorder.failure or recorder.unwritten:
        raise SomethingLost(f"{output} does not have all of the traffic")


def replay_capture(
    path: FilePath,
    to: FilePath,
    *,
    world: World | None = None,
    allow: Collection[str] = (),
    reset: bool = False,
) -> Verdict:
    """Send a capture's requests again and compare every reply; docs/replay.md.

    `to` is a Unix socket path or `vsock://CID[:PORT]`, `world` the guest behind it where no note
    beside the socket tells. `allow` names the dangers to begin in spite of, `reset` has the VMM
    boot the guest first. Raises WrongUsage, before anything is sent, for a danger that is not
    allowed, Unreachable, and UnreadableInput.
    """
    from .replay.run import Replay, Terms, patience_with, read_recording
    from .replay.target import arch_of, look_at
    from .replay.tempo import Patience
    from .sockets.addresses import parse_address

    recording = read_recording(Path(path))
    arch = arch_of(recording.capture.header)
    target = look_at(parse_address(os.fspath(to)), world, arch=arch)
    patience = patience_with(target, Patience().reply_s, None)
    terms = Terms(patience=patience, reset=reset, allow=allow)
    with Replay(recording, target, terms=terms) as replay:
        for _ in replay.play():
            pass  # the verdict takes note
        return replay.verdict
