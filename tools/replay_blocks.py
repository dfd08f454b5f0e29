"""Examples and tables of replays, made by replaying against a simulated guest."""

from __future__ import annotations

import re
from contextlib import chdir
from pathlib import Path
from typing import Any, Final

from dissectors.constants import UPCALL_PORT
from upcall_trace.compare.matchers import ERRNO_CLASSES, FIELDS
from upcall_trace.conform.asking import Asker
from upcall_trace.conform.cases import DANGERS as RISKS
from upcall_trace.conform.report import text as conform_text
from upcall_trace.conform.run import Wish, run
from upcall_trace.kernel.faults import parse_fault
from upcall_trace.kernel.world import kata_pod, load_worlds
from upcall_trace.replay.plan import DANGERS
from upcall_trace.replay.report import plan_lines, verdict_lines
from upcall_trace.replay.run import Replay, read_recording
from upcall_trace.replay.target import look_at
from upcall_trace.simulated.machine import Backend, Habits
from upcall_trace.simulated.on_socket import SimulatedGuest
from upcall_trace.sockets.addresses import UnixAddress, socket_folder

from .markdown import code, fenced, table

_ROOT: Final = Path(__file__).parent.parent
_WORLDS: Final = _ROOT / "tests" / "golden" / "worlds.toml"


def _replayed(recording: str, *faults: str, live: bool) -> str:
    """What `replay` prints for a recording that was made on microvm, in front of this prompt."""
    with socket_folder() as name, chdir(_ROOT):
        path, rules = Path(name) / "guest.sock", [parse_fault(text) for text in faults]
        world = load_worlds(_WORLDS)["microvm"]
        with SimulatedGuest(world, Habits(Backend.VHOST), rules, path=path) as guest:
            read = read_recording(Path("captures") / f"{recording}.upcap")
            with Replay(read, look_at(UnixAddress(guest.path))) as replay:
                if live:
                    for _ in replay.play():
                        pass
                    lines = list(verdict_lines(replay, 0.01))
                else:
                    lines = list(plan_lines(replay, ()))
    told = "\n".join(lines).replace(str(path), "guest.sock")
    prompt = f"$ upcall-trace replay captures/{recording}.upcap --to guest.sock"
    shown = re.sub(r"[ \t]+$", "", told, flags=re.MULTILINE)
    return fenced(f"{prompt}{' --live' if live else ''}\n{shown}", "console")


def plan_example() -> str:
    """A plan that is refused."""
    return _replayed("guest_oops", live=False)


def divergence_example() -> str:
    """A guest that does not remove a device."""
    return _replayed("mmio_lifecycle", "del_mmio:ret=-16:when=2", live=True)


def conform_dangers() -> str:
    """What `conform --allow` can name."""
    return table(("code", "what happens"), [(code(name), why) for name, why in RISKS.items()])


def conform_example() -> str:
    """A guest that says of a window it removes that it was busy."""
    with socket_folder() as name:
        path, control = Path(name) / "guest.sock", Path(name) / "control.sock"
        wrong = [parse_fault("del_mmio:ret=-16")]
        with SimulatedGuest(kata_pod(), faults=wrong, path=path, control=control):
            wish = Wish(kata_pod(), count=200)
            asker = Asker(UnixAddress(path), wish.world, UPCALL_PORT, control)
            lines = list(conform_text(wish, run(wish, asker), asker.can_reset))
    return fenced(
        "\n".join(["$ upcall-trace conform --to guest.sock --count 200", *lines]), "console"
    )


def dangers() -> str:
    """What `--allow` can name."""
    rows: list[list[Any]] = [[code(name), why] for name, why in DANGERS.items()]
    return table(["code", "why it is refused"], rows)


def matcher_fields() -> str:
    """What rules can be about."""
    return table(["field", "what it is"], [[code(name), text] for name, text in FIELDS.items()])


def errno_classes() -> str:
    """Results that `ret=class` takes for alike."""
    rows = [
        [name, ", ".join(code(number) for number in sorted(numbers))]
        for name, numbers in ERRNO_CLASSES.items()
    ]
    return table(["class", "results"], rows)
