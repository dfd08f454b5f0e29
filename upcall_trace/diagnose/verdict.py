"""What Dragonball makes of an answer, in one sentence. docs/protocol.md section 5."""

from __future__ import annotations

from typing import Final

from dissectors.constants import CALLER_TIMEOUT_NS, CPU_TYPES, MessageType

_RESIZE_FAILED: Final = (
    "nothing is reported; the caller times out after 250 ms and every later resize is refused "
    "with VcpuIsHotplugging"
)


def verdict(msg_type: int, ret: int | None, latency_ns: int | None) -> str:
    """What Dragonball and the Kata runtime make of an answer, in one sentence.

    `ret` and `latency_ns` are None when no answer came; docs/protocol.md section 5.
    """
    late = latency_ns is None or latency_ns > CALLER_TIMEOUT_NS
    if msg_type in CPU_TYPES:
        if ret is None:
            return f"the channel stays busy, {_RESIZE_FAILED}"
        if ret != 0:
            return _RESIZE_FAILED
        if late:
            return "the resize is done, but the caller has timed out after 250 ms before"
        return "done" if msg_type == MessageType.ADD_CPU else "done: it stops the vCPU threads"
    match msg_type:
        case MessageType.ADD_MMIO | MessageType.ADD_PCI if late:
            return (
                "a block device: the caller times out, the device stays in the VMM's list, and "
                "a retry says that it already exists; others: nobody waits for the answer"
            )
        case MessageType.ADD_MMIO | MessageType.ADD_PCI if ret:
            return "counted as done, the error is dropped: the device is silently lost"
        case MessageType.DEL_MMIO | MessageType.DEL_PCI if late:
            return "a block device: the caller times out and the VMM never removes the device"
        case MessageType.DEL_MMIO | MessageType.DEL_PCI if ret:
            return "the error is dropped, and the VMM removes the device all the same"
        case (
            MessageType.ADD_MMIO | MessageType.ADD_PCI | MessageType.DEL_MMIO | MessageType.DEL_PCI
        ):
            return "done"
    return "it never sends this"
