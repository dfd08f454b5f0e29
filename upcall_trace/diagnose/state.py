"""What a guest had at one moment of a recording: its CPUs, devices, lock and connections.

With the guest's world the kernel model tells, for as long as it predicts the recording. Without,
and from then on, the ledger tells what the replies show. docs/state.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from dissectors.constants import MAGIC_VERSION, MessageType
from dissectors.events import Event

from .. import codes
from ..capture.records import Gap, Header, Record
from ..codes import Code
from ..kernel.cpus import X86Cpus
from ..kernel.model import Guest
from ..kernel.outcome import Fate
from ..kernel.world import World
from ..sources import open_source
from ..trace.opening import Capture, Progress
from ..trace.operation_table import NoTable
from .engine import Diagnosis
from .finding import Cause, Finding, Ref
from .ledger import KINDS, Cpu, Dead, Entry, Ledger, Lock, Mmio, Pci, Thing
from .situation import Situation

if TYPE_CHECKING:
    from .log_matching import ConsoleMatcher

_PROGRESS_EVERY: Final = 4096
_KEPT: Final = 64
_FATES: Final = {Fate.THREAD_DIED: "died", Fate.HANGS: "hangs", Fate.CUT_OFF: "cut-off"}


@dataclass(frozen=True, slots=True)
class Waiting:
    """A request without an answer at that moment; `answered` says whether one came later."""

    ref: Ref
    op: str
    answered: bool


@dataclass(frozen=True, slots=True)
class Device:
    """A device that VMM and guest disagree about at the end, by the code of the finding."""

    code: Code
    since: Ref
    thing: Thing
    inferred: bool


@dataclass(frozen=True, slots=True)
class GuestState:
    """What the guest had.

    `model` is None without a world. Otherwise it is `in step`, `parted` when it does not predict
    the recording any more, and `incomplete` when the capture lacks connections. `parted` is the
    request from which on it does not, None when that cannot be told. `devices` is None but at the
    end.
    """

    model: str | None
    parted: Ref | None
    entries: tuple[Entry, ...]
    lock: Lock
    dead: tuple[Dead, ...]
    waiting: tuple[Waiting, ...]
    devices: tuple[Device, ...] | None = None


@dataclass(slots=True)
class _Modelled:
    """What the model's guest has, and which request is to be thanked for it."""

    things: dict[Thing, Thing] = field(default_factory=dict)
    since: dict[Thing, Ref] = field(default_factory=dict)
    gone: dict[Thing, Ref] = field(default_factory=dict)
    stuck_since: Ref | None = None
    dead: dict[int, Dead] = field(default_factory=dict)
    unconfirmed: set[Ref] = field(default_factory=set)
    """Requests that the model has answered and the recording has not."""


class _Counted(NoTable):
    """Counts the operations as they come, in the order in which `show` lists them."""

    rows = 0

    def append(self, *_: object) -> int:
        self.rows += 1
        return self.rows - 1


def _not_known(_: int) -> bool:
    """For a recording whose future is not known: whatever waits has no answer so far."""
    return False


class Following:
    """Feed it records; `state` is what the guest had before the next one.

    `before` is the operation before which `stopped_at` is taken, as its number in the capture.
    `answered` tells of an operation whether the recording has an answer to it, later on. With the
    `answered` that it begins with, and until `finish`, it can be pickled: that is how a browser
    keeps its place at many points of a recording.
    """

    def __init__(
        self,
        header: Header,
        world: World | None = None,
        dragonball: bool = True,
        before: int | None = None,
        answered: Callable[[int], bool] = _not_known,
        console: ConsoleMatcher | None = None,
    ) -> None:
        self._console = console
        self._diagnosis = Diagnosis(header, world, dragonball, console)
        self._diagnosis.witness = self
        self._model = self._diagnosis.model
        self.stopped_at: GuestState | None = None
        self.before = before
        self.answered = answered
        self._counted = self._diagnosis.session.table = _Counted()
        self._row = 0
        self._ledger = Ledger()
        self._modelled = _Modelled()
        self._last: Ref | None = None
        self._settled = True
        self._parted_at: Ref | None = None
        self._open: dict[Ref, tuple[int, Situation]] = {}
        self._plugged: dict[Thing, Ref] = {}
        self._refused: dict[Thing, Ref] = {}
        self._lost_devices: dict[Ref, Finding] = {}
        if self._model and self._model.guest:
            self._modelled.things = {thing: thing for thing in _things(self._model.guest)}

    @property
    def rows(self) -> int:
        """How many operations have come so far."""
        return self._counted.rows

    @property
    def events(self) -> Sequence[Event]:
        """What the last record was taken for."""
        return self._diagnosis.events

    @property
    def clock_offset_ns(self) -> int | None:
        """What to add to the console's clock to get the recording's, as far as that is clear."""
        return self._console.offset_ns if self._console else None

    def feed(self, record: Record, offset: int = 0) -> list[Finding]:
        """Take the record that stands at `offset` of its file; returns what it brings to light."""
        self._row = self._counted.rows
        found = self._diagnosis.feed(record, offset)
        if isinstance(record, Gap) and (record.to_guest or record.conn == 0):
            self._ledger.lost()
        for finding in found:
            if (
                finding.code == codes.DEVICE_SILENTLY_LOST
                and finding.conn
                and finding.request is not None
            ):
                self._lost_devices[Ref(finding.conn, finding.request)] = finding
        if len(self._lost_devices) > _KEPT + 2 * len(self._refused):
            last = set(self._refused.values())  # a device's earlier refusals are never asked for
            self._lost_devices = {r: f for r, f in self._lost_devices.items() if r in last}
        passed = self.before is not None and self._counted.rows > self.before
        if passed and self.stopped_at is None:  # of a service that no guest's state hangs on
            self.stopped_at = self.state()
        return found

    def finish(self) -> list[Finding]:
        """The recording is over: what that brings to light. Once, and nothing is fed after it."""
        return self._diagnosis.finish()

    def asked(self, at: Situation) -> None:
        self._settle(at.ref)
        if self._row == self.before and self.stopped_at is None:
            self.stopped_at = self.state()
        self._open[at.ref] = self._row, at
        self._row += 1
        self._last = at.ref
        self._settled = False
        self._modelled.unconfirmed.add(at.ref)

    def judged(self, at: Situation, causes: list[Cause]) -> None:
        self._settle(at.ref)
        self._open.pop(at.ref, None)
        if at.reply is not None:
            self._modelled.unconfirmed.discard(at.ref)
        self._ledger.take(at, causes)
        self._track(at)

    def lost(self, at: Situation) -> None:
        self._open.pop(at.ref, None)
        self._ledger.take(at, (), answer_lost=True)

    def state(self) -> GuestState:
        """What the guest has now."""
        self._settle(None)
        open_now = sorted(self._open.items(), key=lambda item: item[1][0])
        waiting = tuple(Waiting(ref, at.op, self.answered(row)) for ref, (row, at) in open_now)
        ledger = self._ledger.copy() if waiting else self._ledger
        for (_, (_, at)), request in zip(open_now, waiting, strict=True):
            if not request.answered:
                ledger.take(at, self._diagnosis.if_never_answered(at))
        overdue = any(
            not request.answered and self._model and self._model.overdue(at)
            for (_, (_, at)), request in zip(open_now, waiting, strict=True)
        )
        if self._follows and not overdue:
            entries = list(self._by_model())
            stuck = self._modelled.stuck_since
            lock = Lock("stuck" if stuck else "free", stuck)
            dead = self._modelled.dead
        else:
            entries = [*ledger.entries.values(), *self._left_of_the_model(ledger)]
            lock, dead = ledger.lock, ledger.dead
        model = None
        if self._model:
            model = "incomplete" if self._model.guest and not overdue else "parted"
            model = "in step" if self._follows and not overdue else model
        entries.sort(key=lambda entry: (KINDS.index(type(entry.thing)), entry.thing))
        in_order = tuple(dead[conn] for conn in sorted(dead))
        return GuestState(model, self._parted_at, tuple(entries), lock, in_order, waiting)

    def devices(self) -> tuple[Device, ...]:
        """Ends the recording: devices that were not removed, or that the VMM has alone."""
        after = {entry.thing: entry.there for entry in self.state().entries}
        left = {ref: thing for thing, ref in self._plugged.items()}
        found = [
            Device(codes.DEVICE_SILENTLY_LOST, ref, thing, self._lost_devices[ref].inferred)
            for thing, ref in self._refused.items()
            if ref in self._lost_devices and not after.get(thing)
        ]
        for finding in self.finish():
            ref = Ref(finding.conn or 0, finding.request or 0)
            if finding.code == codes.DEVICE_LEAKED and ref in left:
                found.append(Device(codes.DEVICE_LEAKED, ref, left[ref], finding.inferred))
        return tuple(sorted(found, key=lambda device: (device.since, device.code)))

    @property
    def _follows(self) -> bool:
        """The model predicts the recording, and the recording has every connection."""
        return bool(self._model and self._model.guest) and self._diagnosis.has_every_connection

    def _settle(self, ref: Ref | None) -> None:
        """Take over what the model made of the last request; `ref` is the one at hand."""
        guest = self._model.guest if self._model else None
        if guest is None:
            if self._model and self._parted_at is None:
                self._parted_at = ref
            return
        last, modelled = self._last, self._modelled
        if last is None or self._settled:
            return
        self._settled = True
        things = {thing: thing for thing in _things(guest)}
        for thing in things.keys() - modelled.things.keys():
            modelled.since[thing] = last
            modelled.gone.pop(thing, None)
        for thing in modelled.things.keys() - things.keys():
            modelled.gone[thing] = last
        modelled.things = things
        if guest.lock.stuck and modelled.stuck_since is None:
            modelled.stuck_since = last
        assert self._model is not None  # it has a guest
        fate = self._model.fate(last.conn)
        if fate is not Fate.ANSWERED:
            modelled.unconfirmed.discard(last)
            modelled.dead.setdefault(last.conn, Dead(last, _FATES[fate]))

    def _by_model(self) -> Iterator[Entry]:
        modelled = self._modelled
        for thing in modelled.things.values():
            since = modelled.since.get(thing)
            yield Entry(thing, True, since, self._unconfirmed(since))
        for thing, since in modelled.gone.items():
            yield Entry(thing, False, since, self._unconfirmed(since))

    def _unconfirmed(self, since: Ref | None) -> str:
        return "no answer to it yet" if since in self._modelled.unconfirmed else ""

    def _left_of_the_model(self, ledger: Ledger) -> Iterator[Entry]:
        """What only the model told, up to where it left the recording."""
        why = "by the world alone"
        for entry in self._by_model():
            if entry.thing not in ledger.entries:
                yield Entry(entry.thing, entry.there, entry.since, why)

    def _track(self, at: Situation) -> None:
        """Devices that this recording shows being added, for what is left of them at its end."""
        thing: Thing
        if at.mmio is not None:
            key = (at.mmio.mmio_base, at.mmio.mmio_size, at.mmio.mmio_irq)
            thing, shown, gone = (
                Mmio(*key), at.history.windows.get(key), at.history.removed_windows.get(key)
            )  # fmt: skip
        elif at.pci is not None:
            place = (at.pci.busno, at.pci.devfn)
            thing, shown, gone = (
                Pci(*place), at.history.pci.get(place), at.history.removed_pci.get(place)
            )  # fmt: skip
        else:
            return
        if at.request.magic_version != MAGIC_VERSION or at.reply is None:
            return
        if at.request.msg_type in (MessageType.ADD_MMIO, MessageType.ADD_PCI):
            worked = shown == at.ref
            (self._plugged if worked else self._refused)[thing] = at.ref
            if worked:
                self._refused.pop(thing, None)
        else:
            self._refused.pop(thing, None)
            if gone == at.ref:
                self._plugged.pop(thing, None)


def _things(guest: Guest) -> Iterator[Thing]:
    for number in sorted(guest.cpus.online):
        # One that has lost its APIC id is shown by its number.
        name = guest.cpus.table.get(number, number) if isinstance(guest.cpus, X86Cpus) else number
        yield Cpu(name, number)
    for window in guest.windows:
        yield Mmio(window.base, window.size, window.irq, window.role)
    for device in sorted(guest.pci):
        yield Pci(device.bus, device.devfn, device.role)


def state_of(
    path: Path,
    capture: Capture,
    before: int | None = None,
    world: World | None = None,
    dragonball: bool = True,
    progress: Progress | None = None,
) -> GuestState:
    """What the guest had before an operation of the capture at `path`, or with None at its end.

    The operation has to be there. Raises UnreadableInput.
    """
    answered = capture.operations.column("answered")
    with open_source(path) as source:
        following = Following(
            source.header,
            world,
            dragonball,
            before,
            lambda row: bool(answered[row : row + 1].any()),
        )
        for count, (offset, record) in enumerate(source.records()):
            following.feed(record, offset)
            if following.stopped_at is not None:
                return following.stopped_at
            if progress is not None and count % _PROGRESS_EVERY == 0:
                progress(offset)
        state = following.state()
        return replace(state, devices=following.devices())
