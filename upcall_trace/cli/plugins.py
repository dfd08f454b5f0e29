"""`plugins`: what other packages add, whether it can be used, and why not."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import click

from .. import exports, sources
from ..errors import ExitCode
from ..plugins import SEAMS, BrokenPlugin, Plugin, broken_services, installed
from ..views.printable import safe
from . import COMMANDS
from .support.options import color_option
from .support.output import out, out_json

VERSION: Final = 1


def _command(plugin: Plugin) -> str:
    if plugin.name in COMMANDS:
        raise plugin.broken("has the name of a command that is built in")
    return plugin.load(click.Command).get_short_help_str(100)


def _rule(plugin: Plugin) -> str:
    from ..diagnose.rules.registry import plugged_rule  # all of the diagnosis

    added = plugged_rule(plugin)
    return f"{added.code} {added.name}: {added.page.partition(chr(10))[0]}"


def _service(plugin: Plugin) -> str:
    from dissectors.services import Service  # all of the decoder

    service = plugin.load(Service)
    return f"{service.name}, byte {service.byte:#04x}: {', '.join(service.table.by_name)}"


_ABOUT: Final[dict[str, Callable[[Plugin], str]]] = {
    "sources": lambda plugin: sources.plugged_format(plugin).about,
    "exports": lambda plugin: exports.plugged_format(plugin).about,
    "rules": _rule,
    "commands": _command,
    "services": _service,
}
"""What a plugin says of itself, by what it adds; raises BrokenPlugin."""


@click.command("plugins")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead.")
@color_option
def plugins_command(as_json: bool) -> ExitCode:
    """List what installed packages add to this program, and what is broken.

    For that it loads every plugin. `upcall-trace docs plugins` shows how to write one. It only
    reports, so it ends with 0 whatever it finds.
    """
    broken = _broken_services()
    found = [_examined(plugin, broken) for seam in SEAMS for plugin in installed(seam)]
    if as_json:
        out_json({"v": VERSION, "plugins": found})
        return ExitCode.EXPECTED
    for each in found:
        package = f"{each['package']} {each['version']}"
        head = f"{each['state']:<7} {each['seam']:<9} {safe(each['name']):<16} {safe(package)}"
        out(head, "red" if each["why"] else None)
        out(f"        {safe(each['why'] or each['about'] or '')}")
    if not found:
        out("no plugin is installed; upcall-trace docs plugins tells how to write one")
    return ExitCode.EXPECTED


def _broken_services() -> Mapping[Plugin, BrokenPlugin]:
    """They are looked up together: two may claim one byte."""
    if not installed("services"):
        return {}
    from dissectors.services import registered

    registered()
    return broken_services()


def _examined(plugin: Plugin, broken: Mapping[Plugin, BrokenPlugin]) -> dict[str, Any]:
    about: str | None = None
    why: str | None = None
    try:
        if plugin in broken:
            raise broken[plugin]
        with plugin.in_use():
            about = _ABOUT[plugin.seam](plugin)
    except BrokenPlugin as trouble:
        why = str(trouble)
    return {
        "seam": plugin.seam,
        "name": plugin.name,
        "package": plugin.package,
        "version": plugin.version,
        "target": plugin.target,
        "state": "ok" if why is None else "broken",
        "about": about,
        "why": why,
    }
