"""BUDGET1: an operation that took longer than this team allows."""

from __future__ import annotations

from typing import Final

from upcall_trace.codes import Code, Severity, Side
from upcall_trace.diagnose.finding import Told
from upcall_trace.diagnose.rules.registry import Cue, rule
from upcall_trace.diagnose.situation import Situation

ALLOWED_MS: Final = 100
OVER_BUDGET = Code("BUDGET1", "over-budget", Severity.WARNING, Side.GUEST)


def _is_over(at: Situation) -> bool:
    return (at.latency_ns or 0) > ALLOWED_MS * 1_000_000


@rule(OVER_BUDGET, {Cue.REPLY: _is_over})
def over_budget(at: Situation) -> Told:
    """An operation took longer than 100 ms.

    **What it says.** The reply came more than 100 ms after the request.

    **Why it matters.** A pod of ours has to be there within a second, and plugs eight devices.

    **Limits.** A guest under emulation is always slower than this.

    **What to do.** See what else the guest did in that time.
    """
    took_ms = (at.latency_ns or 0) / 1e6
    return Told(
        what=f"{at.op} took {took_ms:.0f} ms.",
        why=f"That is more than the {ALLOWED_MS} ms that we allow.",
        so="The pod starts later than promised.",
        next="Look at what the guest did in that time, in its console and on other connections.",
    )
