"""One file with the program and what a node needs: `python -m tools.make_pyz SHIV OUTPUT`.

It unpacks itself once into $SHIV_ROOT or ~/.shiv, because numpy does not run from a zip. It runs on
the Python version, processor and C library that it was made with.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]


def main(shiv: str, output: Path) -> None:
    """Install the locked packages and the project into a folder, and pack it."""
    environment = {**os.environ, "SOURCE_DATE_EPOCH": "1580601600"}  # of no file, of no clock
    pip: list[str | Path] = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
    ]
    with tempfile.TemporaryDirectory() as folder:
        into: list[str | Path] = ["--target", folder, "--no-compile"]
        locked = ROOT / "requirements" / "node-locked.txt"
        subprocess.run([*pip, *into, "--require-hashes", "-r", locked], check=True)
        project: list[str | Path] = [*into, "--no-deps", "--no-build-isolation", "--upgrade", ROOT]
        subprocess.run([*pip, *project], check=True)
        subprocess.run(
            [shiv, "--site-packages", folder, "--console-script", "upcall-trace", "--compressed",
             "--reproducible", "--python", "/usr/bin/env python3",
             "--output-file", output],
            check=True, env=environment,
        )  # fmt: skip
    _try(output.resolve())


def _try(made: Path) -> None:
    """What was made diagnoses a recording by itself, with no package and no home around it."""
    arguments: list[str | Path] = ["diagnose", ROOT / "captures" / "guest_oops.upcap"]
    here = subprocess.run(
        [sys.executable, "-m", "upcall_trace", *arguments], capture_output=True, check=True
    )
    with tempfile.TemporaryDirectory() as root:
        alone = subprocess.run(
            [sys.executable, "-I", "-S", made, *arguments],
            capture_output=True, cwd=root, env={"SHIV_ROOT": root}, check=True,
        )  # fmt: skip
    assert alone.stdout == here.stdout, alone.stdout


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
