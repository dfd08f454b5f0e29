"""QEMU's monitor: QMP commands from any thread."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any, Final

from qemu.qmp import QMPClient, QMPError

from ..control.orders import BadOrder
from ..errors import Unreachable

_CONNECT_S: Final = 5.0
_COMMAND_S: Final = 20.0


class Monitor:
    """A connection to the monitor that listens at `path`; raises Unreachable."""

    def __init__(self, path: Path) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="qmp", daemon=True)
        self._thread.start()
        self._client = QMPClient("lab")
        try:
            self._run(self._client.connect(str(path)), _CONNECT_S)
        except (TimeoutError, QMPError, OSError, EOFError) as error:
            self._stop()
            raise Unreachable(f"QEMU's monitor does not answer: {error}") from None

    def execute(self, command: str, **arguments: Any) -> Any:
        """Run a QMP command; raises BadOrder with QEMU's reason, and Unreachable."""
        try:
            return self._run(self._client.execute(command, arguments or None), _COMMAND_S)
        except TimeoutError:
            raise Unreachable(f"QEMU did not answer {command} in time") from None
        except QMPError as error:
            raise BadOrder(f"QEMU refused {command}: {error}") from None
        except (EOFError, OSError, RuntimeError):
            raise Unreachable("QEMU's monitor is closed") from None

    def write_port(self, port: int, number: int) -> None:
        """Write 32 bits to an I/O port, as the guest would; raises as `execute`."""
        self.execute("human-monitor-command", **{"command-line": f"o/4 {port:#x} {number:#x}"})

    def read_port(self, port: int) -> int:
        """Read 32 bits from an I/O port; raises as `execute`."""
        said = self.execute("human-monitor-command", **{"command-line": f"i/4 {port:#x}"})
        try:
            return int(str(said).rpartition("=")[2], 16)
        except ValueError:
            raise BadOrder(f"QEMU's monitor did not read port {port:#x}: {said!r}") from None

    def close(self) -> None:
        """Disconnect; never raises."""
        if self._loop.is_closed():
            return
        try:
            self._run(self._client.disconnect(), 2.0)
        except (TimeoutError, QMPError, OSError, EOFError, RuntimeError):
            pass  # QEMU is gone already
        self._stop()

    def _run(self, coroutine: Any, timeout_s: float) -> Any:
        if self._loop.is_closed():
            coroutine.close()
            raise RuntimeError("the monitor was closed")
        future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            return future.result(timeout_s)
        except TimeoutError:
            future.cancel()
            raise

    def _stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(2.0)
        self._loop.close()
