"""Words that several families of rules say in the same way."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from ...logs.evidence import Evidence
from ...views.text import safe
from ..finding import Ref
from ..situation import Situation

ADD_LOST: Final = (
    "Dragonball drops the error and believes the device is plugged; the guest has none."
)
DEL_IGNORED: Final = (
    "Nothing changed in the guest; Dragonball ignores the answer and drops its device."
)
SENT_TWICE: Final = "Look in the VMM's log for a second removal, or for an add of it that failed."
LOCK_LOST: Final = (
    "The kernel's hotplug lock stays taken: CPU and MMIO requests that need it hang on every "
    "connection until the VM restarts."
)
_QUOTE: Final = 90
_NAMED: Final = 4


def refused(at: Situation) -> str:
    """What happened, for a request that was answered with an error."""
    return f"The guest refused {at.op}: {at.result}."


def unanswered(at: Situation) -> str:
    """What happened, for a request without a reply; the capture may just have ended."""
    if at.ref.conn == 0:
        return f"The guest's console does not show an end of {at.op}."
    return f"This recording has no answer to {at.op}."


def since(ref: Ref | None) -> str:
    """How a device came to be there."""
    return "has been there since boot" if ref is None else f"was added by {ref}"


def up_since(ref: Ref | None) -> str:
    """How long a CPU has been up."""
    return "since boot" if ref is None else f"since {ref}"


def pointing(ref: Ref | None, text: str) -> tuple[Evidence, ...]:
    """Evidence that points at an earlier request, where there was one."""
    if ref is None:
        return ()
    return (Evidence("request", text, conn=ref.conn, request=ref.request),)


def apic(ids: Sequence[int]) -> str:
    """Ids as a sentence names them: `APIC id 3`, `APIC ids 1, 2 and 3`; at most a few."""
    if len(ids) < 2:
        return f"APIC id {ids[0]}" if ids else "a CPU"
    if len(ids) <= _NAMED:
        return f"APIC ids {', '.join(map(str, ids[:-1]))} and {ids[-1]}"
    named = ", ".join(map(str, ids[: _NAMED - 1]))
    return f"APIC ids {named} and {len(ids) - _NAMED + 1} more"


def console_lines(at: Situation) -> tuple[Evidence, ...]:
    """The lines of the guest's console that concern this request."""
    return tuple(item for item in at.evidence if item.source == "console")


def quote(lines: Sequence[Evidence]) -> str:
    """The first of some lines in quotation marks, cut, with nothing that steers a terminal."""
    text = safe(lines[0].text.strip())
    return f'"{text if len(text) <= _QUOTE else text[: _QUOTE - 1] + "…"}"'


def resize_never_ends(outcome: str) -> str:
    """What the guest is left with, and what Dragonball makes of any vCPU request that fails."""
    return (
        f"{outcome}; Dragonball reports nothing, the resize times out after 250 ms, "
        "and later ones are refused (VcpuIsHotplugging)."
    )
