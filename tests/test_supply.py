"""What is installed is what was locked, may be passed on, and can be built again by a stranger."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import distributions
from pathlib import Path
from sysconfig import get_path

import pytest
from packaging.utils import canonicalize_name

from tools.audit import verdict
from tools.lock import stale

ROOT = Path(__file__).parents[1]


def test_the_lock_is_as_new_as_the_dependencies() -> None:
    told = stale()
    assert told is None, told


@pytest.mark.parametrize("added", ["somelib>=1", "click>=8.2"])
def test_a_lock_that_is_older_says_so_in_a_sentence(tmp_path: Path, added: str) -> None:
    shutil.copytree(ROOT / "requirements", tmp_path / "requirements")
    shutil.copy(ROOT / "uv.lock", tmp_path)
    text = (ROOT / "pyproject.toml").read_text("utf-8")
    changed = text.replace("\ndependencies = [\n", f'\ndependencies = [\n    "{added}",\n')
    (tmp_path / "pyproject.toml").write_text(changed, "utf-8")
    name = added.partition(">")[0]
    told = stale(tmp_path)
    assert told is not None
    assert re.fullmatch(
        rf"the lock is older than the dependencies \(.*{name}.*\): run `make lock`", told
    )


@pytest.mark.parametrize("name", ["test", "release", "node-locked"])
def test_every_locked_package_has_its_version_and_hashes(name: str) -> None:
    text = (ROOT / "requirements" / f"{name}.txt").read_text("ascii").replace("\\\n", " ")
    for line in text.splitlines():
        assert re.match(r"[a-z0-9.-]+==[0-9][^ ]*( ; [^-]+)?( +--hash=sha256:[0-9a-f]{64})+$", line)


def test_the_gate_installs_from_the_lock_and_nothing_else() -> None:
    makefile = (ROOT / "Makefile").read_text("ascii")
    for line in re.findall(r"pip install .*", makefile):
        allowed = "--require-hashes" in line or "--no-deps --no-build-isolation" in line
        assert allowed or "'uv>=" in line, line  # `make lock` makes the lock


def test_scapy_and_the_lab_s_qmp_are_the_packages_under_a_gpl() -> None:
    lock = tomllib.loads((ROOT / "uv.lock").read_text("utf-8"))
    locked = {package["name"] for package in lock["package"]}
    gpl = {
        name
        for each in distributions()
        if (name := canonicalize_name(each.metadata["Name"])) in locked
        and re.search(
            r"\bA?GPL|General Public",
            str([each.metadata.get_all(field) for field in ("License-Expression", "Classifier")]),
        )
    }
    assert gpl == {"scapy", "qemu-qmp"}
    ours = [*(ROOT / "upcall_trace").rglob("*.py"), *(ROOT / "dissectors").rglob("*.py")]
    imported = {word for path in ours for word in re.findall(r"qemu\.qmp\b.*", path.read_text())}
    assert imported
    assert not any(re.search("legacy", line) for line in imported)


# Hatchling and what it needs are pure Python, so that any interpreter can use ours.
_HATCHLING = ("hatchling", "packaging", "pathspec", "pluggy", "trove_classifiers")
_BUILD = """
import os, sys
os.umask(int(sys.argv[2], 8))
sys.path.append(sys.argv[3])
from hatchling.build import build_wheel
build_wheel(sys.argv[1])
"""


def _other_python() -> str:
    """An interpreter of another minor version where there is one that runs, else this one."""
    mine = f"python3.{sys.version_info.minor}"
    for name in ("python3.14", "python3.13", "python3.12", "python3.11"):
        found = shutil.which(name)
        if found and name != mine and subprocess.run([found, "-c", ""]).returncode == 0:
            return found
    return sys.executable


def _wheel(source: Path, python: str, umask: str, **environment: str) -> tuple[str, str]:
    """The name and digest of the wheel that a folder gives."""
    out = source.parent / "out"
    out.mkdir()
    site = source.parent / "site"
    site.mkdir()
    for name in _HATCHLING:
        (site / name).symlink_to(Path(get_path("purelib")) / name)
    subprocess.run(
        [python, "-B", "-S", "-c", _BUILD, out, umask, site],
        cwd=source, check=True, capture_output=True,
        env={"PATH": os.environ["PATH"], **environment},
    )  # fmt: skip
    (made,) = out.glob("*.whl")
    return made.name, hashlib.sha256(made.read_bytes()).hexdigest()


def test_two_unlike_builds_give_the_same_wheel_to_the_byte(tmp_path: Path) -> None:
    copies = [tmp_path / "a" / "one", tmp_path / "a longer way to it, wíth" / "two"]
    for copy in copies:
        for name in ("upcall_trace", "dissectors", "captures", "docs"):
            shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        for name in ("pyproject.toml", "README.md", "LICENSE", "hatch_build.py"):
            shutil.copy(ROOT / name, copy)
    for path in copies[1].rglob("*"):  # other times, modes and owners than in the first
        os.utime(path, (1e9, 1e9))
        path.chmod(0o755 if path.is_dir() else 0o664)
        if os.geteuid() == 0:
            os.chown(path, 65534, 65534)
    one = _wheel(copies[0], sys.executable, "022", TZ="UTC", LANG="C.UTF-8")
    two = _wheel(copies[1], _other_python(), "077", TZ="Pacific/Chatham", LANG="tr_TR.UTF-8")
    assert one == two


def test_a_package_that_was_not_looked_up_is_no_pass() -> None:
    clean = {"name": "click", "version": "8", "vulns": []}
    skipped = {"name": "rich", "skip_reason": "Dependency not found"}
    hole = {"name": "jinja2", "version": "1", "vulns": [{"id": "CVE"}]}
    assert verdict([clean]) == (0, "1 packages have no known holes")
    assert verdict([clean, skipped]) == (4, "1 of 2 packages were not looked up: no pass")
    assert verdict([]) == (4, "0 of 0 packages were not looked up: no pass")
    assert verdict([hole, skipped]) == (1, "known holes in jinja2 1")


def test_every_action_of_the_workflows_is_pinned_by_its_commit() -> None:
    for path in (ROOT / ".github" / "workflows").glob("*.yml"):
        used = re.findall(r"uses: (.*)", path.read_text("utf-8"))
        assert used
        for action in used:
            assert re.fullmatch(r"[a-z/-]+@[0-9a-f]{40} # v[0-9.]+", action), action


def test_every_line_of_the_threat_model_names_a_test_that_exists() -> None:
    table = re.findall(r"^\| .* \|$", (ROOT / "SECURITY.md").read_text("utf-8"), re.MULTILINE)[1:]
    assert len(table) > 10
    for line in table:
        (path, name) = re.search(r"`(tests/[\w/]+\.py)::(\w+)` \|$", line).groups()  # type: ignore[union-attr]  # else it fails
        assert f"\ndef {name}(" in (ROOT / path).read_text("utf-8"), line
