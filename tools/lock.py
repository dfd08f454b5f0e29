"""Whether the lock is as new as the dependencies that pyproject.toml names."""

from __future__ import annotations

import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]


def stale(root: Path = ROOT) -> str | None:
    """One sentence on what the lock does not know, or None."""
    project = tomllib.loads((root / "pyproject.toml").read_text("utf-8"))
    lock = tomllib.loads((root / "uv.lock").read_text("utf-8"))
    ours = canonicalize_name(project["project"]["name"])
    (entry,) = (each for each in lock["package"] if each["name"] == ours)
    known = entry["metadata"]["requires-dist"]
    known += [each for group in entry["metadata"]["requires-dev"].values() for each in group]
    named = list(_requirements(project))
    locked = {_words(canonicalize_name(each["name"]), each.get("specifier", "")) for each in known}
    wanted = {_words(canonicalize_name(each.name), str(each.specifier)) for each in named}
    differ = sorted(name for name, _ in wanted ^ locked if name != ours)
    exported = {
        line.split("==")[0]
        for path in ("test", "release", "node-locked")
        for line in (root / "requirements" / f"{path}.txt").read_text("ascii").splitlines()
        if "==" in line
    }
    differ += sorted({name for name, _ in wanted} - exported - {ours} - set(differ))
    if not differ:
        return None
    return f"the lock is older than the dependencies ({', '.join(differ)}): run `make lock`"


def _requirements(project: dict[str, object]) -> list[Requirement]:
    table = project["project"]
    assert isinstance(table, dict)
    groups = project["dependency-groups"]
    assert isinstance(groups, dict)
    lists = [table["dependencies"], *table["optional-dependencies"].values(), *groups.values()]
    return [Requirement(text) for each in lists for text in each]


def _words(name: str, specifier: str) -> tuple[str, str]:
    return name, ",".join(sorted(specifier.replace(" ", "").split(",")))
