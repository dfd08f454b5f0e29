"""upcall-trace: record, decode and simulate guest hotplug over Dragonball's upcall channel.

The names in `__all__` are for programs: they are documented in docs/api.md and stay as they are.
Each is imported when it is first asked for. Everything below is ours to change.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from .api import connect as connect
    from .api import diagnose_capture as diagnose_capture
    from .api import export_capture as export_capture
    from .api import open_capture as open_capture
    from .api import record_traffic as record_traffic
    from .api import replay_capture as replay_capture
    from .codes import Severity as Severity
    from .diagnose.finding import Finding as Finding
    from .diagnose.whole_capture import WholeCapture as WholeCapture
    from .errors import Unreachable as Unreachable
    from .errors import UnreadableInput as UnreadableInput
    from .errors import UpcallError as UpcallError
    from .errors import UserError as UserError
    from .errors import WrongUsage as WrongUsage
    from .exports import Loss as Loss
    from .kernel.world import World as World
    from .kernel.world import kata_pod as kata_pod
    from .kernel.world import load_worlds as load_worlds
    from .replay.verdict import Verdict as Verdict
    from .simulated.on_socket import SimulatedGuest as SimulatedGuest
    from .sockets.client import UpcallClient as UpcallClient
    from .trace.decoding import Connection as Connection
    from .trace.operations import Operation as Operation

__version__ = "0.1.0"

_HOMES: Final = {
    "open_capture": "api",
    "WholeCapture": "diagnose.whole_capture",
    "Operation": "trace.operations",
    "Connection": "trace.decoding",
    "diagnose_capture": "api",
    "Finding": "diagnose.finding",
    "Severity": "codes",
    "export_capture": "api",
    "Loss": "exports",
    "SimulatedGuest": "simulated.on_socket",
    "World": "kernel.world",
    "kata_pod": "kernel.world",
    "load_worlds": "kernel.world",
    "connect": "api",
    "UpcallClient": "sockets.client",
    "record_traffic": "api",
    "replay_capture": "api",
    "Verdict": "replay.verdict",
    "UpcallError": "errors",
    "UserError": "errors",
    "WrongUsage": "errors",
    "UnreadableInput": "errors",
    "Unreachable": "errors",
}
__all__ = [*_HOMES]  # the order is that of docs/api.md


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_HOMES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
