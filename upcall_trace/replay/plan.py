"""What a replay would do to a guest, before it does anything: predictions, changes, dangers.

What kills a guest's thread, blocks its hotplug lock or cuts the channel off is a danger, whether
the model predicts it or the recording shows it; a target that is not known to be simulated or a
lab is one too. No IO. docs/replay.md.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from typing import Final

from dissectors.constants import EEXIST, MAGIC_VERSION, MessageType
from dissectors.messages import MmioRequest, PciRequest, Request

from .. import codes
from ..diagnose.finding import Finding
from ..kernel.outcome import Fate
from ..kernel.world import World
from ..simulated.rehearsal import Rehearsal, Rehearsed, adds, thing_of
from ..trace.script import Asked, Await, Key, Script

REAL_GUEST: Final = "real-guest"
OTHER_TARGET: Final = "other-target"
DANGERS: Final = {
    codes.REMOVE_UNFINDABLE_CPU: (
        "to remove a CPU that the guest cannot find kills the thread that is asked"
    ),
    codes.REMOVAL_ORDER: (
        "to remove CPUs in this order kills the guest's thread, the hotplug lock held"
    ),
    codes.ADD_BEYOND_POSSIBLE: (
        "to add more CPUs than are possible kills the guest's thread, the hotplug lock held"
    ),
    codes.CHANNEL_REMOVED: (
        "to remove the device that the channel runs on cuts every connection off"
    ),
    codes.MMIO_WITHOUT_BOOT_DEVICE: (
        "an MMIO device kills the thread of a guest that booted without one"
    ),
    codes.DRIVER_HANGS: (
        "a working disk with a wrong interrupt is waited for without end, the hotplug lock held"
    ),
    codes.CPU_LOST_ITS_ID: "the CPU loses its APIC id until the next boot",
    codes.HOTPLUG_LOCK_STUCK: "with the hotplug lock stuck the guest's thread waits for ever",
    REAL_GUEST: "nothing beside the socket says that a simulated guest or a lab is behind it",
    OTHER_TARGET: "the recording is tied to another target",
}
"""What `--allow` can name, and why it has to be."""
_LASTING: Final = {Fate.THREAD_DIED, Fate.HANGS, Fate.CUT_OFF}


@dataclass(frozen=True, slots=True)
class Danger:
    """A reason not to begin; `key` is None when it is about the target."""

    code: str
    why: str
    key: Key | None = None

    def __str__(self) -> str:
        at = f"request {self.key[0]}.{self.key[1]}: " if self.key else ""
        return f"{at}{self.why} ({self.code})"


@dataclass(slots=True)
class Plan:
    """Every request in its order as the model answers it, and the reasons not to begin.

    `guessed` is true when nobody told what the target looks like: `world` is then a default one.
    """

    script: Script
    world: World
    guessed: bool
    rehearsed: dict[Key, Rehearsed] = field(default_factory=dict)
    dangers: list[Danger] = field(default_factory=list)

    def refused(self, allowed: Collection[str]) -> list[Danger]:
        """The dangers that nobody allowed."""
        return [danger for danger in self.dangers if danger.code not in allowed]


def make_plan(
    script: Script,
    world: World,
    guessed: bool = False,
    recorded: Callable[[], Iterable[Finding]] = tuple,
    about_target: Iterable[Danger] = (),
    rounds: int = 1,
) -> Plan:
    """Put the script to a model of `world`, so many times; raises nothing.

    `recorded` gives the findings about the recording; it is called only if a danger can be among
    them. With `guessed` it is not known which device
    the channel runs on.
    """
    plan = Plan(script, world, guessed, dangers=list(about_target))
    predicted: dict[Key, list[str]] = {}
    rehearsal = Rehearsal(world, script)
    added: set[object] = set()
    roles = {window.role for window in world.mmio} | {device.role for device in world.pci}
    channel = "vsock" in roles
    hidden = guessed or (not channel and any(d.code == REAL_GUEST for d in plan.dangers))
    for number in range(rounds):
        for step in script.steps:
            if isinstance(step, Await):
                continue  # a third of all steps, and nothing comes of it
            for rehearsed in rehearsal.take(step):
                asked = rehearsed.asked
                key = asked.key
                found = _dangers(rehearsed)
                if hidden and _removes_unknown(asked, added):
                    found.append(codes.CHANNEL_REMOVED)
                if found:
                    predicted.setdefault(key, []).extend(found)
                if number == 0:
                    plan.rehearsed[key] = rehearsed
                if hidden and _has_added(asked):
                    added.add(thing_of(asked.message))
    doubtful = any(shows_danger(asked) for asked in script.asked.values())
    for finding in recorded() if doubtful else ():
        key = (finding.conn or 0, finding.request or 0)
        if finding.code not in DANGERS or key not in plan.rehearsed or script.asked[key].cut_off:
            continue
        if not finding.inferred or key not in predicted:  # of possible ones the first is likeliest
            predicted.setdefault(key, []).append(finding.code)
    for key in plan.rehearsed if predicted else ():
        found = predicted.get(key, [])
        plan.dangers += [Danger(code, DANGERS[code], key) for code in dict.fromkeys(found)]
    return plan


def _dangers(rehearsed: Rehearsed) -> list[str]:
    if not rehearsed.codes:
        return []
    lasts = rehearsed.fate in _LASTING
    return [
        code
        for code in rehearsed.codes
        if code in DANGERS and (lasts or code == codes.CPU_LOST_ITS_ID)
    ]


def shows_danger(asked: Asked) -> bool:
    """Whether the recording can show one of the dangers here: a guest that met one does not answer,
    but for a CPU that loses its id."""
    if asked.reply is None:
        return not asked.cut_off
    if asked.reply.ret != EEXIST or not isinstance(asked.message, Request):
        return False
    return asked.message.msg_type == MessageType.ADD_CPU


def _has_added(asked: Asked) -> bool:
    """Whether the recording shows that this request has added something."""
    right = isinstance(asked.message, Request) and asked.message.magic_version == MAGIC_VERSION
    return right and adds(asked.message) and asked.reply is not None and asked.reply.ret == 0


def _removes_unknown(asked: Asked, added: set[object]) -> bool:
    """Whether a device goes that this recording has not added: it may be the channel's own."""
    device = isinstance(asked.message, (MmioRequest, PciRequest))
    return device and not adds(asked.message) and thing_of(asked.message) not in added
