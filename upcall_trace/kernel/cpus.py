"""The kernel's CPU table: who is known under which number, and what may come and go.

docs/protocol.md sections 4 and 7. What was not seen on a real kernel says "by reading" where it is
decided.
"""

from __future__ import annotations

from typing import Final

from dissectors.constants import EBUSY, EEXIST, EINVAL, EIO
from dissectors.messages import CpuRequestArm, CpuRequestX86

from .. import codes
from ..errors import UpcallError
from .outcome import Changes, FailedError, HotplugLock, OopsError
from .world import World

CPU_START_LIMIT_NS: Final = 10_000_000_000
"""How long the kernel waits for a vCPU to come up, the hotplug lock held."""
_BOOT_CPU: Final = 0
_WAS_ALREADY: Final = 1
_LEAST_BAD_APIC_ID: Final = 255
"""The first APIC id that a kernel without x2APIC does not start."""


class NoSuchCpu(UpcallError):
    """The guest cannot set this CPU on or off by itself."""


class X86Cpus:
    """CPUs named by APIC id.

    `table` maps the numbers of the CPUs in the kernel's table to their ids, `online` has the
    numbers of those that run. A CPU that runs and is not in the table has lost its id: nothing
    finds it any more. `_numbers` is the mapping from id to number, which persists once it was made.
    """

    def __init__(
        self, world: World, lock: HotplugLock, changes: Changes, running: set[int]
    ) -> None:
        self._is_old = world.is_old
        self._starts_once = world.starts_once
        self._limit = world.nr_cpu_ids
        self._lock = lock
        self._changes = changes
        self._running = running
        self.table = dict(enumerate(world.cpus_online))
        self.online = set(self.table)
        self.lost: set[int] = set()
        """Numbers of CPUs that run without an APIC id: nothing brings it back."""
        self.forbidden = False
        """A PCI device is being probed: no CPU may come or go."""
        self._dead: set[int] = set()
        """Numbers whose CPU did not start once and, on 5.10, never will."""
        ids = list(world.cpus_online)
        if not world.is_old:
            ids += [cpu for cpu in world.boot_table if cpu not in world.cpus_online]
        self._numbers = {cpu: number for number, cpu in enumerate(ids[: world.nr_cpu_ids])}

    def online_ids(self) -> list[int]:
        """APIC ids of the CPUs that are online and have one, by number."""
        return [self.table[number] for number in sorted(self.online & self.table.keys())]

    def switch(self, number: int, on: bool) -> None:
        """The guest sets one of its CPUs on or off by itself; raises NoSuchCpu."""
        if number == _BOOT_CPU or number not in self.table:
            raise NoSuchCpu
        (self.online.add if on else self.online.discard)(number)

    def add(self, request: CpuRequestX86 | CpuRequestArm) -> int:
        """ADD_CPU: the number of ids handled; raises FailedError or HangError."""
        ids = _ids(request)
        for cpu in ids:
            if self._look_up(cpu) is not None:
                raise FailedError(EINVAL, codes.CPU_ALREADY_KNOWN)
        for done, cpu in enumerate(ids):
            self._lock.take()
            partly = (codes.PARTIAL_CPU_ADD,) if done else ()
            number = self._number_for(cpu)
            if number is None:
                raise FailedError(EINVAL, codes.NO_CPU_NUMBER, *partly)
            if number in self.online:
                # Its device object is zeroed before sysfs refuses a second one of that name.
                self.table.pop(number, None)
                self.lost.add(number)
                if cpu in self._changes.came:
                    self._changes.came.remove(cpu)
                raise FailedError(EEXIST, codes.CPU_LOST_ITS_ID, *partly)
            if self.forbidden:
                raise FailedError(EBUSY, codes.CPU_BUSY, *partly)
            if cpu >= _LEAST_BAD_APIC_ID:
                raise FailedError(EINVAL, codes.NO_CPU_NUMBER, *partly)
            if number in self._dead:
                raise FailedError(EIO, codes.CPU_NEVER_AGAIN, *partly)
            if cpu not in self._running:
                if self._starts_once:
                    self._dead.add(number)
                raise FailedError(EIO, codes.VCPU_NOT_STARTED, *partly, delay_ns=CPU_START_LIMIT_NS)
            self.table[number] = cpu
            self.online.add(number)
            self._changes.came.append(cpu)
        return len(ids)

    def remove(self, request: CpuRequestX86 | CpuRequestArm) -> int:
        """DEL_CPU: the number of ids handled; raises FailedError, OopsError or HangError."""
        ids = _ids(request)
        if len(ids) >= (self._counted if self._is_old else len(self.online)):
            raise FailedError(EINVAL, codes.REMOVE_ALL_CPUS, load=0)
        for cpu in ids:
            if self._look_up(cpu) is None:
                raise OopsError(codes.REMOVE_UNFINDABLE_CPU, lock_held=False)
        for cpu in ids:
            number = self._look_up(cpu)
            if number == _BOOT_CPU:
                raise FailedError(EINVAL, codes.REMOVE_BOOT_CPU)
            self._lock.take()
            if number is None:
                raise OopsError(
                    codes.REMOVAL_ORDER if self._is_old else codes.REMOVE_UNFINDABLE_CPU,
                    lock_held=True,
                )
            if number not in self.online:
                raise FailedError(_WAS_ALREADY, codes.CPU_ALREADY_OFFLINE)
            if self.forbidden:
                raise FailedError(EBUSY, codes.CPU_BUSY)
            self.online.discard(number)
            del self.table[number]
            self._changes.went.append(cpu)
        return len(ids)

    @property
    def _counted(self) -> int:
        """How many CPUs an old kernel believes to have; those without an id count."""
        return len(self.table) + len(self.lost)

    def _look_up(self, cpu: int) -> int | None:
        """The number of an id, as far as the kernel's scan reaches.

        Old kernels scan as many numbers as there are CPUs in the table, so a gap in the numbers
        hides the highest ones.
        """
        number = self._numbers.get(cpu)
        if number is None or self.table.get(number) != cpu:
            return None
        reach = self._counted if self._is_old else self._limit
        return number if number < reach else None

    def _number_for(self, cpu: int) -> int | None:
        """The number for an id that is to come up, None when there is none to be had."""
        number = self._numbers.get(cpu)
        if not self._is_old:
            return number
        if self._counted >= self._limit:
            return None
        if number is None and len(self._numbers) < self._limit:
            number = self._numbers[cpu] = len(self._numbers)
        return number


class ArmCpus:
    """CPUs counted, not named: the next offline or the last online ones are taken.

    By reading here: a vCPU that does not start gives -EIO after 10 s, and -EBUSY while a PCI
    device is probed leaves the number online in the load too.
    """

    def __init__(
        self, world: World, lock: HotplugLock, changes: Changes, running: set[int]
    ) -> None:
        self._world = world
        self._lock = lock
        self._changes = changes
        self._running = running
        self.online = set(world.cpus_online)
        self.forbidden = False
        """A PCI device is being probed: no CPU may come or go."""

    def online_ids(self) -> list[int]:
        """The numbers of the CPUs that are online."""
        return sorted(self.online)

    def switch(self, number: int, on: bool) -> None:
        """The guest sets one of its CPUs on or off by itself; raises NoSuchCpu."""
        if number == _BOOT_CPU or number >= self._world.nr_cpu_ids:
            raise NoSuchCpu
        (self.online.add if on else self.online.discard)(number)

    def add(self, request: CpuRequestX86 | CpuRequestArm) -> int:
        """ADD_CPU: CPUs online afterwards; raises FailedError, OopsError or HangError."""
        for done in range(request.count):
            self._lock.take()
            partly = (codes.PARTIAL_CPU_ADD,) if done else ()
            offline = (n for n in range(self._world.nr_cpu_ids) if n not in self.online)
            number = next(offline, None)
            if number is None:
                raise OopsError(codes.ADD_BEYOND_POSSIBLE, lock_held=True)
            load = len(self.online)
            if self.forbidden:
                raise FailedError(EBUSY, codes.CPU_BUSY, *partly, load=load)
            if number not in self._running:
                raise FailedError(
                    EIO, codes.VCPU_NOT_STARTED, *partly, load=load, delay_ns=CPU_START_LIMIT_NS
                )
            self.online.add(number)
            self._changes.came.append(number)
        return len(self.online)

    def remove(self, request: CpuRequestX86 | CpuRequestArm) -> int:
        """DEL_CPU: CPUs still online; raises FailedError or HangError."""
        if request.count >= len(self.online):
            raise FailedError(EINVAL, codes.REMOVE_ALL_CPUS, load=0)
        for number in sorted(self.online, reverse=True)[: request.count]:
            self._lock.take()
            if self.forbidden:
                raise FailedError(EBUSY, codes.CPU_BUSY, load=len(self.online))
            self.online.discard(number)
            self._changes.went.append(number)
        return len(self.online)


def _ids(request: CpuRequestX86 | CpuRequestArm) -> bytes:
    """The ids that a request means; an arm-sized one sent to an x86 guest is read as x86."""
    if isinstance(request, CpuRequestX86):
        return request.apic_ids[: request.count]
    return (request.padding[1 : 1 + request.count]).ljust(request.count, b"\0")
