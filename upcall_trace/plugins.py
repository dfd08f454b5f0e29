"""What other packages add to the program, by entry points. docs/plugins.md.

A package names an object under one of the groups in `SEAMS`. Names are read from the packages'
metadata; the packages themselves are imported when what they add is used, and never before. A
plugin is foreign code: whatever it raises becomes a `BrokenPlugin`, one sentence that names the
package. Whoever can go on without the plugin gives that to `note`, and the command line tells it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any, Final, TypeVar

from .errors import UserError

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

PREFIX: Final = "upcall_trace."
SEAMS: Final[dict[str, str]] = {
    "sources": "a file format that is read as a capture",
    "exports": "a file format that a capture is written as",
    "rules": "a finding of `diagnose`",
    "commands": "a command",
    "services": "the messages behind another service byte",
}
"""What can be added, by the last word of its entry point group, and what it is."""

_REASON_LIMIT: Final = 300
_Wanted = TypeVar("_Wanted")


class BrokenPlugin(UserError):
    """A plugin that cannot be loaded, is not what its group asks for, or raised in use."""


@dataclass(frozen=True, slots=True)
class Plugin:
    """One entry point of an installed package; nothing of the package is imported yet."""

    seam: str
    name: str
    package: str
    version: str
    target: str
    """What is loaded, as `module:attribute`."""
    clash: str
    """Whom it has its name in common with, so that neither can be used; mostly empty."""
    _entry: EntryPoint = field(repr=False, compare=False)

    def __str__(self) -> str:
        return f"{self.seam.removesuffix('s')} plugin {self.name!r} ({self.package} {self.version})"

    def load(self, wanted: type[_Wanted]) -> _Wanted:
        """The object, which has to be a `wanted`; raises BrokenPlugin for whatever goes wrong."""
        if self.clash:
            raise self.broken(f"has the name of another one, of {self.clash}")
        with self.in_use("cannot be loaded"):
            loaded = self._entry.load()
        if not isinstance(loaded, wanted):
            raise self.broken(f"is no {wanted.__name__} but of type {type(loaded).__name__}")
        return loaded

    @contextmanager
    def in_use(
        self, doing: str = "failed", passes: tuple[type[BaseException], ...] = ()
    ) -> Iterator[None]:
        """Around every call of the plugin's code: raises BrokenPlugin for whatever it raises.

        A UserError passes: it is what the plugin has to say to the user. What interrupts the
        program does, too, and what `passes` names.
        """
        passing: tuple[type[BaseException], ...] = (UserError, *passes)
        try:
            yield
        except passing:
            raise
        except (Exception, SystemExit) as error:  # sys.exit() at import would end the program
            raise self.broken(f"{doing}: {_reason(error)}") from error

    def broken(self, what: str) -> BrokenPlugin:
        """The sentence about this plugin, to be raised or noted."""
        return BrokenPlugin(f"the {self} {what}; mend or uninstall {self.package}")


def installed(seam: str) -> tuple[Plugin, ...]:
    """What is installed for one of `SEAMS`, sorted by name; imports none of it."""
    return _all_installed().get(seam, ())


_noted: dict[str, BrokenPlugin] = {}


def note(trouble: BrokenPlugin) -> None:
    """Keep a trouble that did not end the work; what is said of it is said once."""
    _noted.setdefault(str(trouble), trouble)


def take_noted() -> list[BrokenPlugin]:
    """The troubles noted since the last call, in their order."""
    taken = list(_noted.values())
    _noted.clear()
    return taken


def broken_services() -> dict[Plugin, BrokenPlugin]:
    """The services that were found to be broken since the last call, as far as they were needed.

    `dissectors` looks services up by itself: it imports nothing of this package.
    """
    services = sys.modules.get("dissectors.services")
    if services is None:
        return {}
    whys = {(name, target): why for name, target, why in services.take_troubles()}
    return {
        plugin: plugin.broken(_one_line(whys[plugin.name, plugin.target]))
        for plugin in (installed("services") if whys else ())
        if (plugin.name, plugin.target) in whys
    }


def note_services() -> None:
    """Note the broken services that were needed."""
    for trouble in broken_services().values():
        note(trouble)


def forget() -> None:
    """Look for plugins anew: what was installed since is seen then."""
    _all_installed.cache_clear()


@cache
def _all_installed() -> dict[str, tuple[Plugin, ...]]:
    if not _named_anywhere():
        return {}
    from importlib.metadata import entry_points

    found: dict[str, tuple[Plugin, ...]] = {}
    for seam in SEAMS:
        entries = sorted(entry_points(group=PREFIX + seam), key=lambda entry: entry.name)
        found[seam] = tuple(_plugin(seam, entry, entries) for entry in entries)
    return found


def _plugin(seam: str, entry: EntryPoint, others: list[EntryPoint]) -> Plugin:
    rivals = [_package(each)[0] for each in others if each.name == entry.name and each is not entry]
    return Plugin(seam, entry.name, *_package(entry), entry.value, ", ".join(rivals), entry)


def _package(entry: EntryPoint) -> tuple[str, str]:
    """The name and version of the package that an entry point is of."""
    package: Any = entry.dist
    return (str(package.name), str(package.version)) if package else ("unknown", "unknown")


def _named_anywhere() -> bool:
    """Whether a package on the path names a group of ours.

    importlib.metadata would tell, and importing it takes a third of the start of `--help`.
    """
    wanted = b"[" + PREFIX.encode()
    for place in sys.path:
        try:
            with os.scandir(place or ".") as entries:
                folders = [e.path for e in entries if e.name.endswith((".dist-info", ".egg-info"))]
        except NotADirectoryError:
            return True  # an archive; looking into it is not worth a second way
        except OSError:
            continue
        for folder in folders:
            try:
                with open(os.path.join(folder, "entry_points.txt"), "rb") as file:  # noqa: PTH118, PTH123
                    if wanted in file.read():
                        return True
            except OSError:
                continue
    return False


def _reason(error: BaseException) -> str:
    """What was raised, in one line that ends."""
    text = _one_line(str(error))
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _one_line(text: str) -> str:
    return " ".join(text.split())[:_REASON_LIMIT]
