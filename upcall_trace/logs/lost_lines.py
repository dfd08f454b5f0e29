"""The rows of what says that lines are missing: of loggers that drop, and of people who cut.

From the sources of systemd, rsyslog, Linux, slog-async and `journalctl`. From lines that may be
missing nothing is concluded: docs/log-lines.md.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from .meaning import Match, Meaning, Speaker

_L: Final = Speaker.LOGGER

_OTHERS: Final = re.compile(
    r"(?!containerd|crio|docker|k3s|k0s|rke2|kata|kubelet|snap\.|microk8s|dragonball|init\.)"
    r"[\w@.\\-]{1,128}\.service"
)
"""Services that no guest's lines come from."""

SUPPRESSED: Final = Meaning(
    _L, "Suppressed ", "Suppressed {n} messages from {unit}",
    "the journal dropped lines of a service that wrote too many. It counts for services that run "
    "guests, for scopes and for slices",
    "Suppressed 1743 messages from containerd.service", upcall=False,
    pattern=re.compile(r"Suppressed \d{1,10} messages? from (\S{1,160})"),
)  # fmt: skip
RATE_LIMITED: Final = Meaning(
    _L, "due to rate-limiting", "{input} lost {n} messages … due to rate-limiting",
    "rsyslog dropped lines",
    "imjournal: 4411 messages lost due to rate-limiting", upcall=False,
    pattern=re.compile(r"messages lost due to rate-limiting|(?:lost|drop) .{0,80}due to rate-lim"),
)  # fmt: skip
OVERFLOW: Final = Meaning(
    _L, "dropped messages due to", "logger dropped messages due to channel overflow",
    "the runtime dropped lines of its own, as it wrote them faster than they were taken",
    "slog-async: logger dropped messages due to channel overflow, count: 17", upcall=False,
    pattern=re.compile(r"logger dropped messages due to channel overflow"),
)  # fmt: skip
CUT: Final = Meaning(
    _L, "[...]|[snip]|<snip>|[truncated]", "[...], [snip], <snip> or [truncated] on its own line",
    "somebody cut lines out of the log",
    "[...]", upcall=False,
    pattern=re.compile(r"(?:\A|\n)[\s>|]{0,16}(?:\[\.\.\.\]|\[snip\]|<snip>|\[truncated\])\s{0,8}\Z"),
)  # fmt: skip
HOST_BOOT: Final = Meaning(
    _L, "-- Boot |-- Reboot --", "-- Boot {id} --; -- Reboot --",
    "the host booted: what ran before is gone, and its process numbers begin again",
    "-- Boot 4f1f2d0c5c2f4b6fb7e3b7b5b7a0c9d1 --", upcall=False,
    pattern=re.compile(r"-- Boot [0-9a-f]{32} --|-- Reboot --"),
)  # fmt: skip
MISSED: Final = Meaning(
    _L, "kernel messages", "Missed {n} kernel messages",
    "the journal read the kernel's lines too late to have all of them",
    "Missed 12 kernel messages", upcall=False,
    pattern=re.compile(r"Missed \d{1,10} kernel messages"),
)  # fmt: skip
OVERRUN: Final = Meaning(
    _L, "buffer overrun, some messages", "/dev/kmsg buffer overrun, some messages lost.",
    "the same", "/dev/kmsg buffer overrun, some messages lost.", upcall=False,
)  # fmt: skip
PRINTK_DROPPED: Final = Meaning(
    _L, "printk messages dropped", "** {n} printk messages dropped **",
    "the console was too slow for the kernel's lines",
    "** 214 printk messages dropped **", upcall=False,
    pattern=re.compile(r"\*\* \d{1,10} printk messages dropped"),
)  # fmt: skip
PRINTK_SUPPRESSED: Final = Meaning(
    _L, "messages suppressed|callbacks suppressed",
    "printk: {n} messages suppressed.; {function}: {n} callbacks suppressed",
    "the kernel left out lines that it had printed too often; those of the network do not count",
    "printk: 33 messages suppressed.", upcall=False,
    pattern=re.compile(
        r"printk: \d{1,10} messages suppressed"
        r"|\b(?!net_ratelimit|audit)\w{1,64}: \d{1,10} callbacks suppressed"
    ),
)  # fmt: skip

OF_HOST: Final = (SUPPRESSED, RATE_LIMITED, OVERFLOW, CUT, HOST_BOOT)
OF_KERNEL: Final = (MISSED, OVERRUN, PRINTK_DROPPED, PRINTK_SUPPRESSED)
ROWS: Final = (*OF_HOST, *OF_KERNEL)
"""In the order in which a line's rows are told."""


def of_loggers_alone(matches: Sequence[Match]) -> bool:
    """Whether nobody but loggers spoke in a line: it is no guest's and no VMM's."""
    return all(match.meaning.speaker is _L for match in matches)


def is_gap(match: Match) -> bool:
    """Whether a row says that lines are missing, and those of guests can be among them."""
    row = match.meaning
    if row.speaker is not _L or row is HOST_BOOT:
        return False
    return row is not SUPPRESSED or _OTHERS.match(match[1]) is None
