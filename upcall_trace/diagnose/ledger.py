"""What a recording's replies tell of a guest, thing by thing: what is known, what only inferred.

It needs no model of the guest. A success is known; a refusal often tells something as well, and a
request that fails half-way or has no answer leaves things open. docs/protocol.md section 4.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Final

from dissectors.constants import (
    ADDING_TYPES,
    EBUSY,
    EEXIST,
    EINVAL,
    EIO,
    ENODEV,
    MAGIC_VERSION,
    SHAREABLE_IRQ,
    Arch,
    MessageType,
)
from dissectors.messages import MmioRequest, PciRequest

from .. import codes
from ..codes import Code
from .finding import Cause, Ref
from .lock import LOCK_HOLDERS, proves_free
from .situation import Situation

_BOOT_CPU: Final = 0


@dataclass(frozen=True, slots=True, order=True)
class Cpu:
    """A CPU by its APIC id on x86-64, by its number on aarch64."""

    kind: ClassVar[str] = "cpu"
    name: int
    number: int | None = field(default=None, compare=False)
    """The kernel's number, where it is known."""

    def fields(self) -> dict[str, Any]:
        return {"cpu": self.name, "number": self.number}


@dataclass(frozen=True, slots=True, order=True)
class CpusOnline:
    """How many CPUs an aarch64 guest has; None when that is open."""

    kind: ClassVar[str] = "cpus_online"
    count: int | None = field(default=None, compare=False)

    def fields(self) -> dict[str, Any]:
        return {"count": self.count}


@dataclass(frozen=True, slots=True, order=True)
class Mmio:
    """A registered window with its interrupt; `role` is what the world says is behind it."""

    kind: ClassVar[str] = "mmio"
    mmio_base: int
    mmio_size: int
    mmio_irq: int
    role: str = field(default="", compare=False)

    def fields(self) -> dict[str, Any]:
        return {
            "mmio_base": self.mmio_base,
            "mmio_size": self.mmio_size,
            "mmio_irq": self.mmio_irq,
            "role": self.role,
        }

    def crosses(self, other: Claim) -> bool:
        """Whether the kernel's overlap check would find the two in each other's way."""
        ends = self.mmio_base + self.mmio_size, other.mmio_base + other.mmio_size
        return self.mmio_base < ends[1] - 1 and other.mmio_base < ends[0] - 1


@dataclass(frozen=True, slots=True, order=True)
class Pci:
    """A registered PCI function."""

    kind: ClassVar[str] = "pci"
    busno: int
    devfn: int
    role: str = field(default="", compare=False)

    def fields(self) -> dict[str, Any]:
        return {
            "busno": self.busno,
            "devfn": self.devfn,
            "slot": self.devfn >> 3,
            "function": self.devfn & 7,
            "role": self.role,
        }


@dataclass(frozen=True, slots=True, order=True)
class Claim:
    """Something unknown that stood in the way of this window."""

    kind: ClassVar[str] = "claim"
    mmio_base: int
    mmio_size: int
    mmio_irq: int

    def fields(self) -> dict[str, Any]:
        return {
            "mmio_base": self.mmio_base,
            "mmio_size": self.mmio_size,
            "mmio_irq": self.mmio_irq,
        }


Thing = Cpu | CpusOnline | Mmio | Pci | Claim
KINDS: Final = (Cpu, CpusOnline, Mmio, Pci, Claim)


@dataclass(frozen=True, slots=True)
class Entry:
    """A thing: there, not there, or open (None).

    `since` is the request that made it so, or with `why` the last one that says so; None for what
    was so before the recording. `why` is empty for what is known.
    """

    thing: Thing
    there: bool | None
    since: Ref | None
    why: str = ""


@dataclass(frozen=True, slots=True)
class Lock:
    """The kernel's hotplug lock: `free`, `stuck` or `unknown`; `why` is empty for what is known."""

    state: str
    since: Ref | None
    why: str = ""


@dataclass(frozen=True, slots=True)
class Dead:
    """A connection whose thread in the guest answers no more, since this request.

    `fate` is `died`, `hangs` or `cut-off` by the kernel model, or `silent` for what was seen.
    """

    since: Ref
    fate: str
    why: str = ""


class Ledger:
    """Feed it what became of each request, in the order of the replies."""

    def __init__(self) -> None:
        self.entries: dict[Thing, Entry] = {}
        self.present: Counter[type[Thing]] = Counter()
        """How many things of each kind are there, claims apart."""
        self.lock = Lock("unknown", None, "no request that needs it has worked yet")
        self.dead: dict[int, Dead] = {}
        self._claims: set[Claim] = set()
        """Those among the entries: there are few, and they are looked through at every window."""
        self._sent_ns: dict[Thing, int] = {}
        """When the request was sent that an entry rests on."""
        self._lock_ns = 0

    def copy(self) -> Ledger:
        """Another one that has taken the same."""
        other = Ledger()
        other.entries, other.lock, other.dead = dict(self.entries), self.lock, dict(self.dead)
        other.present, other._claims = self.present.copy(), set(self._claims)
        other._sent_ns, other._lock_ns = dict(self._sent_ns), self._lock_ns
        return other

    def take(self, at: Situation, causes: Sequence[Cause], answer_lost: bool = False) -> None:
        """One request that was answered, or that never will be, or whose answer is missing.

        That something was not answered shows late; what was seen meanwhile counts more.
        """
        if at.reply is None and not answer_lost:
            self.dead.setdefault(at.ref.conn, Dead(at.ref, "silent", "no answer to it"))
        if at.request.magic_version != MAGIC_VERSION:
            return  # not executed
        told = [cause.code for cause in causes]
        if not answer_lost:
            self._take_lock(at, told)
        if at.is_cpu and at.arch is Arch.AARCH64:
            self._count(at)
        elif at.is_cpu:
            self._cpus(at, told)
        elif at.mmio is not None:
            self._mmio(at, at.mmio)
        elif at.pci is not None:
            self._pci(at, at.pci, told)

    def lost(self) -> None:
        """An unknown part of the recording is missing: what was known may have changed."""
        for thing, entry in self.entries.items():
            why = entry.why or "seen before something that the recording lacks"
            self.entries[thing] = replace(entry, why=why)
        if not self.lock.why:
            self.lock = replace(self.lock, why="seen before something that the recording lacks")

    def there(self, thing: Thing) -> bool | None:
        """Whether a thing is there, as far as anything was noted of it."""
        entry = self.entries.get(thing)
        return None if entry is None else entry.there

    def _note(
        self, thing: Thing, there: bool | None, at: Situation, why: str = "", before: bool = False
    ) -> None:
        """`before` says that the request did not bring it about, but found it so."""
        if at.reply is None and at.sent_ns < self._sent_ns.get(thing, at.sent_ns):
            return
        noted = self.entries.get(thing)
        if before and noted is not None and noted.there is there and not noted.why:
            return
        if at.doubtful:
            why = why or f"{at.ref} may have held other bytes: some are not in the recording"
        was_there = noted is not None and noted.there is True
        self.present[type(thing)] += (there is True) - was_there
        self.entries[thing] = Entry(thing, there, None if before and there else at.ref, why)
        self._sent_ns[thing] = at.sent_ns

    def _doubt(self, thing: Thing, at: Situation, why: str) -> None:
        """The request may have done what it asks for; what was so already stays."""
        if self.there(thing) is not (at.request.msg_type in ADDING_TYPES):
            self._note(thing, None, at, why)

    def _take_lock(self, at: Situation, told: list[Code]) -> None:
        if not (at.is_cpu or at.is_mmio):
            return
        if proves_free(at):
            self.lock = Lock("free", at.ref)
            self._lock_ns = at.sent_ns
        elif at.reply is None and self.lock.state != "stuck" and at.sent_ns >= self._lock_ns:
            holds = not LOCK_HOLDERS.isdisjoint(told)
            why = "its thread may have died with it" if holds else "no answer to it"
            self.lock = Lock("stuck" if holds else "unknown", at.ref, why)

    def _cpus(self, at: Situation, told: list[Code]) -> None:
        adding = at.request.msg_type == MessageType.ADD_CPU
        cpus = [Cpu(cpu) for cpu in dict.fromkeys(at.apic_ids)]
        first, last = cpus[:-1], cpus[-1:]
        ret = at.ret
        if ret == 0:
            for cpu in cpus:
                self._note(cpu, adding, at)
        elif adding and ret == EINVAL:
            self._refused_cpus(at, cpus, told)
        elif adding and ret == EIO:
            self._doubt_all(first, at, "came up if it stands before the CPU that did not start")
            for cpu in last:  # it did not start, or the kernel did not get that far
                self._note(cpu, False, at)
        elif adding and ret == 1 and not first:
            for cpu in last:
                self._note(cpu, True, at, "the guest says that it was online", before=True)
        elif not adding and ret == EBUSY:
            self._doubt_all(first, at, "gone if it stands before the CPU that was busy")
            for cpu in last:
                self._note(cpu, True, at, before=True)
        elif not adding and ret == EINVAL:
            self._kept_cpus(at, cpus, told)
        else:
            self._doubt_all(cpus, at, "no answer to it" if ret is None else f"it got {at.result}")

    def _doubt_all(self, cpus: list[Cpu], at: Situation, why: str) -> None:
        for cpu in cpus:
            self._doubt(cpu, at, why)

    def _refused_cpus(self, at: Situation, cpus: list[Cpu], told: list[Code]) -> None:
        """ADD_CPU gave -EINVAL: an id is known already, or there is no number for one."""
        if any(self.there(cpu) for cpu in cpus) and codes.NO_CPU_NUMBER not in told:
            return  # that one, so nothing changed
        if codes.CPU_ALREADY_KNOWN not in told:
            self._doubt_all(cpus[:-1], at, "came up if it stands before the id without a number")
            return
        for cpu in cpus:
            if len(cpus) > 1:
                self._doubt(
                    cpu, at, "refused with EINVAL: one of the list is up, or lacks a number"
                )
            elif self.there(cpu) is not True:
                why = "refused with EINVAL: it is up, or there is no number for it"
                self._note(cpu, True, at, why, before=True)

    def _kept_cpus(self, at: Situation, cpus: list[Cpu], told: list[Code]) -> None:
        """DEL_CPU gave -EINVAL: it would remove all, or it came to the boot CPU."""
        if codes.REMOVE_BOOT_CPU not in told:
            return
        before = cpus[: cpus.index(Cpu(_BOOT_CPU))] if Cpu(_BOOT_CPU) in cpus else []
        if codes.REMOVE_ALL_CPUS in told:
            self._doubt_all(before, at, "gone if it was not refused for removing all CPUs")
            return
        for cpu in before:
            self._note(cpu, False, at)

    def _count(self, at: Situation) -> None:
        """aarch64 counts its CPUs: `cpu_id` says how many are online."""
        online = next(iter(at.reply.fields().values()), None) if at.reply else None
        if at.ret == 0:
            self._note(CpusOnline(online), True, at)
        elif at.ret == EIO:
            self._note(CpusOnline(online), True, at, "by the cpu_id of a request that failed")
        elif at.ret != EINVAL:
            why = "no answer to it" if at.ret is None else f"it got {at.result}"
            self._note(CpusOnline(), None, at, why)

    def _mmio(self, at: Situation, mmio: MmioRequest) -> None:
        adding = at.request.msg_type == MessageType.ADD_MMIO
        key = (mmio.mmio_base, mmio.mmio_size, mmio.mmio_irq)
        window = Mmio(*key)
        if at.ret == 0:
            self._note(window, adding, at)
            self._settle_claims(window, adding)
        elif at.ret is None:
            self._doubt(window, at, "no answer to it")
        elif adding and at.ret in (EEXIST, EBUSY) and mmio.mmio_size:
            self._claim(at, Claim(*key))
        elif not adding and at.ret == ENODEV:
            self._note(window, False, at, before=True)

    def _claim(self, at: Situation, claim: Claim) -> None:
        """Something is in the way; nothing is noted when it is known what."""
        taken = at.ret == EEXIST
        private = taken and claim.mmio_irq != SHAREABLE_IRQ
        if at.history.overlapping(claim.mmio_base, claim.mmio_size) or (
            private and at.history.on_irq(claim.mmio_irq)
        ):
            return
        why = "refused with EBUSY: its range is claimed"
        if taken:
            also = f", or has IRQ {claim.mmio_irq}" if private else ""
            why = f"refused with EEXIST: a device overlaps it{also}"
        self._note(claim, True, at, why)
        if claim in self.entries:
            self._claims.add(claim)

    def _settle_claims(self, window: Mmio, added: bool) -> None:
        """A window that came is in nobody's way, and one that went may have been what was."""
        for claim in [*self._claims]:
            if window.crosses(claim) or (not added and window.mmio_irq == claim.mmio_irq):
                self._claims.remove(claim)
                del self.entries[claim]

    def _slot_scanned(self, added: Pci, at: Situation) -> None:
        """The kernel scans a slot, not a function: others that had been removed may come back."""
        for number in range(8):
            other = Pci(added.busno, added.devfn & ~7 | number)
            if other != added and self.there(other) is False:
                self._note(other, None, at, "its slot was scanned again for another function")

    def _pci(self, at: Situation, pci: PciRequest, told: list[Code]) -> None:
        adding = at.request.msg_type == MessageType.ADD_PCI
        place = (pci.busno, pci.devfn)
        function = Pci(*place)
        if adding:
            self._slot_scanned(function, at)
        shown = (at.history.pci if adding else at.history.removed_pci).get(place)
        if shown == at.ref and at.reply is not None:
            self._note(function, adding, at)
        elif at.ret is None:
            self._doubt(function, at, "no answer to it")
        elif not adding and at.ret == ENODEV:
            self._note(function, False, at, before=True)  # removed now, or not there
        elif codes.STALE_ERROR in told or at.ret != ENODEV or self.there(function):
            self._doubt(function, at, f"it got {at.result}, which may be left over")
        else:
            self._note(function, False, at, before=True)
