"""The parts of docs/plugins.md: the example packages, and what the program says of them."""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import invalidate_caches
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from click.testing import CliRunner

from upcall_trace import plugins
from upcall_trace.cli import cli
from upcall_trace.plugins import PREFIX, SEAMS

from .markdown import code, fenced, table

_EXAMPLES: Final = Path(__file__).resolve().parent.parent / "docs" / "examples" / "plugins"


def seams() -> str:
    """What a package can add, by the group of its entry point."""
    return table(
        ("group", "what it adds"), [(code(PREFIX + name), what) for name, what in SEAMS.items()]
    )


def package() -> str:
    """How an example is packed."""
    return fenced((_EXAMPLES / "command" / "pyproject.toml").read_text(encoding="utf-8"), "toml")


def source() -> str:
    """The example of a source."""
    return _module("source")


def export() -> str:
    """The example of an export."""
    return _module("export")


def rule() -> str:
    """The example of a rule."""
    return _module("rule")


def service() -> str:
    """The example of a service."""
    return _module("service")


def command() -> str:
    """The example of a command."""
    return _module("command")


def listing() -> str:
    """What `plugins` says where all examples are installed."""
    with _all_installed():
        told = CliRunner().invoke(cli, ["plugins"], catch_exceptions=False).stdout
    return fenced(f"$ upcall-trace plugins\n{told}", "console")


def _module(example: str) -> str:
    (path,) = (_EXAMPLES / example).glob("upcall_*.py")
    return fenced(path.read_text(encoding="utf-8"), "python")


@contextmanager
def _all_installed() -> Iterator[None]:
    """Every example as pip would leave it, in a folder where Python looks for a while."""
    before = list(sys.path), set(sys.modules)
    with TemporaryDirectory() as site:
        for project in _EXAMPLES.glob("*/pyproject.toml"):
            told = tomllib.loads(project.read_text(encoding="utf-8"))["project"]
            info = Path(site) / f"{told['name'].replace('-', '_')}-{told['version']}.dist-info"
            info.mkdir()
            named = f"Metadata-Version: 2.1\nName: {told['name']}\nVersion: {told['version']}\n"
            (info / "METADATA").write_text(named, encoding="utf-8")
            groups = [
                f"[{group}]\n" + "".join(f"{name} = {target}\n" for name, target in entries.items())
                for group, entries in told["entry-points"].items()
            ]
            (info / "entry_points.txt").write_text("\n".join(groups), encoding="utf-8")
            sys.path.append(str(project.parent))
        sys.path.append(site)
        invalidate_caches()
        plugins.forget()
        try:
            yield
        finally:
            sys.path[:] = before[0]
            for name in set(sys.modules) - before[1]:
                if name.startswith("upcall_") and not name.startswith("upcall_trace"):
                    del sys.modules[name]
            plugins.forget()
