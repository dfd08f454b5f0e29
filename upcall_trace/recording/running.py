"""One recording of sockets from beginning to end, with all that runs beside it."""

from __future__ import annotations

import contextlib
import os
import queue
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from ..control.order_socket import serve_orders
from ..control.orders import BadOrder
from ..errors import UserError
from ..sockets.serving import StreamServer
from ..vantage.apart import ApartRecorder
from ..vantage.store import BOUNDS_S
from .findings import FindingsFollower, run_command
from .live_faults import LiveFaults
from .metrics import Metric, MetricsSocket
from .service import Notifier
from .snapshot import Snapshots
from .sockets import SocketRecording

STOP_S: Final = 2.0
_LOOK_S: Final = 0.05
_LOOK_ROUND_S: Final = 0.5
_WAITING: Final = 1000


class RunningRecording:
    """What runs beside the proxies: looks around, metrics, orders, findings, the watchdog."""

    def __init__(
        self,
        sockets: SocketRecording,
        recorder: ApartRecorder,
        say: Callable[[str], None],
        faults: LiveFaults | None,
        snapshots: Snapshots | None = None,
    ) -> None:
        self._sockets = sockets
        self._recorder = recorder
        self._say = say
        self._faults = faults
        self._began_s = time.monotonic()
        self._beside = contextlib.ExitStack()
        self._notifier = Notifier()
        self.snapshots = snapshots

    def serve_metrics(self, path: Path) -> None:
        """Answer at this Unix socket; raises WrongUsage."""
        self._beside.callback(MetricsSocket(path, self.metrics).close)

    def take_orders(self, path: Path) -> None:
        """Take orders at this Unix socket; raises WrongUsage."""
        server = StreamServer(path, lambda stream: serve_orders(stream, self._obey))
        self._beside.callback(server.close)

    def heed_findings(self, hear: Callable[[dict[str, Any]], None]) -> None:
        """Have what is recorded diagnosed as it grows."""
        self._beside.callback(FindingsFollower(self._recorder.path, hear).close)

    def run(self, stop: threading.Event) -> None:
        """Until `stop` is set."""
        self._notifier.tell("READY=1", "STATUS=recording")
        watchdog_s = self._notifier.watchdog_s
        looked = barked = time.monotonic()
        while not stop.wait(_LOOK_S):
            now = time.monotonic()
            if now - looked >= _LOOK_ROUND_S:
                looked = now
                self._sockets.look()
                if self.snapshots is not None:
                    self.snapshots.look()
            if watchdog_s is not None and now - barked >= watchdog_s and self._is_well():
                barked = now
                self._notifier.tell("WATCHDOG=1")
        self._notifier.tell("STOPPING=1")

    def _is_well(self) -> bool:
        """Whether the loop still turns."""
        answered = threading.Event()
        assert self._sockets.loop is not None
        self._sockets.loop.call(answered.set)
        return answered.wait(_LOOK_ROUND_S)

    def reopen(self) -> None:
        """Go on in a new file."""
        self._recorder.reopen()

    def close(self) -> None:
        """End what runs beside."""
        with contextlib.suppress(OSError, UserError):
            self._beside.close()

    def _obey(self, order: dict[str, Any]) -> dict[str, Any]:
        match order:
            case {"fault": list(rules)}:
                if self._faults is None:
                    raise BadOrder("this recording was not begun with --fault")
                try:
                    self._faults.change(str(rule) for rule in rules)
                except UserError as error:
                    raise BadOrder(str(error)) from None
            case {"rotate": True}:
                self._recorder.reopen()
            case {"snapshot": True} if self.snapshots is not None:
                self.snapshots.ask("an order")
            case {"state": True}:
                return {"ok": True, "metrics": "".join(m.text() for m in self.metrics())}
            case _:
                raise BadOrder('orders are {"fault": ["SPEC"]}, {"rotate": true}, {"state": true}')
        return {"ok": True}

    def metrics(self) -> list[Metric]:
        """What there is to say in numbers."""
        account, loop = self._recorder.account, self._sockets.loop
        assert loop is not None
        counts = [proxy.counts for each in self._sockets.tapped for proxy in each.proxies]
        result = Metric("operations_total", "counter", "Operations by what came of them.")
        for key, count in sorted(account.results.items()):
            op, _, came = key.partition(" ")
            result.add(count, op=op, result=came)
        latency = Metric("latency_seconds", "histogram", "From a request's end to its reply's.")
        total = 0
        for bound, count in zip((*BOUNDS_S, "+Inf"), account.latencies, strict=True):
            total += count
            latency.add(total, "_bucket", le=str(bound))
        latency.add(account.latency_ns / 1e9, "_sum").add(total, "_count")
        lag = max(0.0, (self._recorder.now() - account.written_ns) / 1e9)
        own = os.times()
        return [
            Metric("up_seconds", "gauge", "How long the recording runs.").add(
                time.monotonic() - self._began_s),
            Metric("connections_open", "gauge", "Open just now.").add(loop.open),
            Metric("connections_room", "gauge", "How many there is room for.").add(loop.room),
            Metric("connections_total", "counter", "Accepted.").add(
                sum(each.opened for each in counts)),
            Metric("connections_upcall_total", "counter", "Of these, for upcall.").add(
                sum(each.upcall for each in counts)),
            Metric("connections_refused_total", "counter", "Refused, no room left.").add(
                sum(each.refused for each in counts)),
            Metric("connections_away_total", "counter", "For which no VMM was there.").add(
                sum(each.away for each in counts)),
            Metric("messages_total", "counter", "Receives that were recorded.").add(
                account.messages),
            Metric("bytes_total", "counter", "Bytes of upcall that were recorded.").add(
                account.traffic),
            Metric("lost_bytes_total", "counter", "Bytes that crossed and were not recorded.").add(
                account.lost),
            Metric("written_bytes", "gauge", "Size of the file that is written.").add(
                account.size),
            Metric("files_total", "counter", "Files that were begun.").add(account.files),
            Metric("disk_lag_seconds", "gauge", "Since the disk last had everything.").add(lag),
            Metric("cpu_seconds_total", "counter", "Of the process that moves bytes.").add(
                own.user + own.system),
            result,
            latency,
        ]  # fmt: skip


def for_findings(
    least: str, ranks: list[str], act: Callable[[dict[str, Any]], None]
) -> Callable[[dict[str, Any]], None]:
    """Hears every finding and acts on those of at least one severity; `ranks` begin with it."""
    wanted = set(ranks[ranks.index(least) :])

    def hear(finding: dict[str, Any]) -> None:
        if finding.get("severity") in wanted:
            act(finding)

    return hear


def commanding(command: str, say: Callable[[str], None]) -> Callable[[dict[str, Any]], None]:
    """Runs the command for each finding that it hears, one after the other."""
    waiting: queue.Queue[dict[str, Any]] = queue.Queue(_WAITING)

    def work() -> None:
        while True:
            run_command(command, waiting.get(), say)

    def act(finding: dict[str, Any]) -> None:
        try:
            waiting.put_nowait(finding)
        except queue.Full:
            say(f"{command} is too slow: it was not run for {finding.get('code')}")

    threading.Thread(target=work, name="commands", daemon=True).start()
    return act
