"""What is put to a guest, and what the model of the kernel says of it. No IO. docs/conform.md.

A case is a sequence of steps for a guest that has just booted. The model's answers are bytes, or
None for silence.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from dissectors.constants import MESSAGE_SIZE, MessageType
from dissectors.messages import MmioRequest, PciRequest, Request, decode_request

from .. import codes
from ..codes import Code
from ..errors import NothingRun
from ..kernel.model import Guest, ServiceThread
from ..kernel.outcome import Fate, Outcome
from ..kernel.vmm_actions import carry_out, order_of, words_of
from ..kernel.world import PciDevice, World
from ..trace.script import Act, Script, Send

BOOT_DEVICES: Final = "boot-devices"
DANGERS: Final[dict[str, str]] = {
    BOOT_DEVICES: "devices that the guest booted with are removed, its disks among them",
    codes.VCPU_NOT_STARTED: "a vCPU that does not start takes 10 s, and on 5.10 never starts again",
    codes.REMOVE_UNFINDABLE_CPU: "the thread that is asked dies",
    codes.REMOVAL_ORDER: "a thread dies, and the hotplug lock is lost",
    codes.ADD_BEYOND_POSSIBLE: "a thread dies, and the hotplug lock is lost",
    codes.CPU_LOST_ITS_ID: "a CPU loses its APIC id until the next boot",
    codes.MMIO_WITHOUT_BOOT_DEVICE: "the thread that is asked dies",
    codes.DRIVER_HANGS: "a disk's driver waits for ever, and the hotplug lock is lost",
    codes.HOTPLUG_LOCK_STUCK: "with the hotplug lock lost a thread waits for ever",
    codes.CHANNEL_REMOVED: "every connection is cut off; only recordings ask that",
}
"""What is asked only when it is allowed by name, and what it does."""


@dataclass(frozen=True, slots=True)
class Ask:
    """One write on a connection, which is opened when it is first used."""

    conn: int
    raw: bytes = field(repr=False)

    @property
    def pieces(self) -> list[bytes]:
        """What the guest receives of it, one by one."""
        return [self.raw[at : at + MESSAGE_SIZE] for at in range(0, len(self.raw), MESSAGE_SIZE)]


@dataclass(frozen=True, slots=True)
class Tell:
    """One order for the VMM's side."""

    order: dict[str, Any]


Step = Ask | Tell


@dataclass(frozen=True, slots=True)
class ModelAnswer:
    """What the model says of one write: the replies, whole, and whether silence follows them.

    `requests` are those that the guest sees in its buffer, `delay_ns` is what they take.
    """

    replies: bytes = field(repr=False)
    silent: bool
    requests: tuple[Request, ...]
    causes: tuple[Code, ...]
    delay_ns: int
    dangers: tuple[str, ...]


class Modelled:
    """A guest and its connections, asked step by step; `copy` is one that can be tried on."""

    def __init__(self, world: World) -> None:
        self.guest = Guest(world)
        self._threads: dict[int, ServiceThread] = {}
        self._buffers: dict[int, bytes] = {}

    def copy(self) -> Modelled:
        """One of its own in the same state."""
        world = self.guest.world
        return copy.deepcopy(self, {id(world): world})

    def is_silent(self, conn: int) -> bool:
        """Whether nobody answers on this connection any more."""
        thread = self._threads.get(conn)
        return thread is not None and thread.fate is not Fate.ANSWERED

    def ask(self, step: Ask) -> ModelAnswer:
        """What comes of one write."""
        thread = self._threads.setdefault(step.conn, self.guest.connect())
        buffer = self._buffers.get(step.conn, bytes(MESSAGE_SIZE))
        replies, delay_ns = b"", 0
        requests: list[Request] = []
        causes: list[Code] = []
        dangers: dict[str, None] = {}
        for piece in step.pieces:
            buffer = piece + buffer[len(piece) :]
            request = decode_request(buffer, self.guest.world.arch)
            at_boot = _is_of_the_boot(request, self.guest)
            outcome = thread.receive(piece)
            requests.append(request)
            causes += outcome.causes
            replies += outcome.reply or b""
            delay_ns += outcome.delay_ns
            dangers |= dict.fromkeys(_dangers(outcome, at_boot))
        self._buffers[step.conn] = buffer
        silent = thread.fate is not Fate.ANSWERED
        return ModelAnswer(
            replies, silent, tuple(requests), tuple(causes), delay_ns, tuple(dangers)
        )

    def tell(self, order: dict[str, Any]) -> None:
        """The VMM's side follows an order."""
        carry_out(self.guest, words_of(order) or "")


def _is_of_the_boot(request: Request, guest: Guest) -> bool:
    """Whether a request would remove a device that the guest booted with."""
    world = guest.world
    match request:
        case MmioRequest() if request.msg_type == MessageType.DEL_MMIO:
            return any(window.base == request.mmio_base for window in world.mmio)
        case PciRequest() if request.msg_type == MessageType.DEL_PCI:
            return PciDevice(request.busno, request.slot, request.function) in world.pci
    return False


def _dangers(outcome: Outcome, at_boot: bool) -> list[str]:
    """Names of `DANGERS`."""
    found: list[str] = [code for code in outcome.causes if code in DANGERS]
    if at_boot and outcome.fate is Fate.ANSWERED:
        found.append(BOOT_DEVICES)
    return found


def rehearse(world: World, steps: Iterable[Step]) -> list[ModelAnswer | None]:
    """What the model says of each step of a case; None for orders."""
    modelled = Modelled(world)
    told: list[ModelAnswer | None] = []
    for step in steps:
        if isinstance(step, Ask):
            told.append(modelled.ask(step))
        else:
            modelled.tell(step.order)
            told.append(None)
    return told


def is_allowed(expected: Sequence[ModelAnswer | None], allowed: Iterable[str]) -> bool:
    """Whether nothing in a case is dangerous that nobody has allowed."""
    permitted = set(allowed)
    return all(permitted.issuperset(each.dangers) for each in expected if each is not None)


def recorded_case(script: Script) -> list[Step]:
    """What a recording asked, and what its VMM did, as a case; raises NothingRun for nothing."""
    steps: list[Step] = []
    for step in script.steps:
        if isinstance(step, Send) and step.what == "request" and script.greetings.get(step.conn):
            steps.append(Ask(step.conn, step.data))
        elif isinstance(step, Act) and (order := order_of(step.action)):
            steps.append(Tell(order))
    if not any(isinstance(step, Ask) for step in steps):
        raise NothingRun("the recording has no request that could be asked")
    return steps
