"""The guests of a node, as logs tell of them: each line goes to the story of its own guest."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from ..logs import lost_lines
from ..logs import other_lines as others
from ..logs.guest_console import ConsoleReader
from ..logs.lines import LogLine
from ..logs.lost_lines import is_gap, of_loggers_alone
from ..logs.meaning import Match, Understood
from ..logs.whose import Guests
from .log_vmm import VmmStory

_VICTIMS = ("kata", "containerd-shim", "dragonball")
"""How the kernel calls the process that Dragonball runs in."""
Wanted = Callable[[str | None], bool]


@dataclass(slots=True)
class LoggedGuest:
    """What logs tell of one guest; `sandbox` is None where its lines do not say whose they are."""

    sandbox: str | None
    console: ConsoleReader = field(default_factory=ConsoleReader)
    vmm: VmmStory = field(default_factory=lambda: VmmStory(keyed=True))
    lines: int = 0
    console_keyed: bool = True
    """Whether the console's lines say that they are this guest's."""

    @property
    def is_other(self) -> bool:
        """Whether its VMM is one without upcall."""
        return bool(self.vmm.vmms) and not self.vmm.is_dragonball and not self.console.heard

    @property
    def concerns_upcall(self) -> bool:
        return not self.is_other and bool(self.vmm.heard or self.console.heard or self.registered)

    @property
    def registered(self) -> bool:
        """Whether a device came while it ran."""
        return any(o.window is not None and not o.at_boot for o in self.console.operations)


@dataclass(slots=True)
class Stories:
    """Every guest by its key, fed with understood lines in their order."""

    wanted: Wanted = lambda sandbox: True
    guests: dict[str | None, LoggedGuest] = field(default_factory=dict)
    _whose: Guests = field(default_factory=Guests)

    def feed(self, said: Understood) -> str | None:
        """One line; the guest that it was taken for."""
        line, matches = said
        sandbox = self._whose.of(line)
        while self._whose.renamed:
            self._rename(*self._whose.renamed.pop())
        for match in matches:
            if match.meaning is others.KILLED:
                self._killed(said, match)
            elif match.meaning is lost_lines.HOST_BOOT:
                self._host_boots()
            elif is_gap(match):
                self._lines_lost(said.line, match, sandbox)
        if of_loggers_alone(matches):
            return sandbox
        if not self.wanted(sandbox):
            return sandbox
        guest = self.guests.get(sandbox)
        if guest is None:
            guest = LoggedGuest(sandbox)
            guest.vmm.keyed = guest.console_keyed = sandbox is not None
            self.guests[sandbox] = guest
        guest.lines += 1
        guest.vmm.feed(line, matches)
        if any(match.meaning.of_guest for match in matches):
            guest.console.feed(line, matches)
        return sandbox

    def feed_again(self, said: Understood) -> None:
        """One line that was told before: the boot that seemed to begin before it is no other."""
        guest = self.guests.get(self._whose.of(said.line))
        if guest is not None:
            guest.console.tells_again()

    def _rename(self, pid: str, sandbox: str) -> None:
        """A guest that was known by its process only has told its name."""
        guest = self.guests.get(pid)
        if guest is not None and sandbox not in self.guests:
            guest.sandbox = sandbox
            self.guests = {(sandbox if g is guest else k): g for k, g in self.guests.items()}

    def _host_boots(self) -> None:
        """Process numbers begin again, and no guest is left."""
        self._whose = Guests()
        for guest in self.guests.values():
            guest.vmm.vm_is_gone()

    def _lines_lost(self, line: LogLine, match: Match, sandbox: str | None) -> None:
        """Of one guest, where the line says whose it is, else of any."""
        for key, guest in self.guests.items():
            if sandbox in (None, key):
                guest.console.lines_lost()
                if match.meaning in lost_lines.OF_HOST:
                    guest.vmm.lines_lost(line)

    def _killed(self, said: Understood, match: Match) -> None:
        if not match[2].startswith(_VICTIMS):
            return
        sandbox = self._whose.of_process(match[1])
        guest = self.guests.get(sandbox or match[1])
        if guest is not None:
            guest.vmm.was_killed(said.line, match)

    def finish(self) -> None:
        """The logs are over. A console without names that is given with the log of one guest is
        that guest's, though its lines do not say so."""
        nameless = self.guests.get(None)
        named = [g for k, g in self.guests.items() if k is not None and not g.is_other]
        if nameless is not None and len(named) == 1 and not named[0].console.boots:
            (guest,) = named
            alone = nameless.vmm.heard == 0 and not nameless.vmm.vmms
            if alone and not guest.console.operations and not guest.console.incidents:
                guest.console, guest.console_keyed = nameless.console, False
                del self.guests[None]
        for guest in self.guests.values():
            guest.console.finish()

    @property
    def sandboxes(self) -> list[str]:
        """Those that are named, in their order."""
        return [sandbox for sandbox in self.guests if sandbox is not None]
