"""Metrics of a recording: Prometheus text on a Unix socket, plain or as an answer to HTTP."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path
from typing import Final

from ..sockets.serving import StreamServer

_PATIENCE_S: Final = 0.5
_REQUEST: Final = 4096

Sample = tuple[str, dict[str, str], float]


class Metric:
    """One metric with its samples."""

    def __init__(self, name: str, kind: str, about: str) -> None:
        self.name = f"upcall_trace_{name}"
        self.kind = kind
        self.about = about
        self.samples: list[Sample] = []

    def add(self, value: float, suffix: str = "", **labels: str) -> Metric:
        """One more sample."""
        self.samples.append((suffix, labels, value))
        return self

    def text(self) -> str:
        """In Prometheus' format."""
        lines = [f"# HELP {self.name} {self.about}", f"# TYPE {self.name} {self.kind}"]
        for suffix, labels, value in self.samples:
            inner = ",".join(f'{key}="{_escaped(text)}"' for key, text in labels.items())
            shown = f"{{{inner}}}" if inner else ""
            lines.append(f"{self.name}{suffix}{shown} {value:.10g}")
        return "\n".join(lines) + "\n"


def _escaped(text: str) -> str:
    text = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return text.encode("utf-8", "replace").decode()


class MetricsSocket:
    """Serves what `collect` gives at `path`; raises WrongUsage."""

    def __init__(self, path: Path, collect: Callable[[], list[Metric]]) -> None:
        self._collect = collect
        self._server = StreamServer(path, self._serve)

    def close(self) -> None:
        """Serve no more."""
        self._server.close()

    def _serve(self, stream: socket.socket) -> None:
        stream.settimeout(_PATIENCE_S)
        try:
            asked = stream.recv(_REQUEST)
        except TimeoutError:
            asked = b""
        body = "".join(metric.text() for metric in self._collect()).encode()
        if asked.startswith((b"GET ", b"HEAD ")):
            head = (
                "HTTP/1.0 200 OK\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\n"
                f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
            )
            stream.sendall(head.encode())
        if not asked.startswith(b"HEAD "):
            stream.sendall(body)
