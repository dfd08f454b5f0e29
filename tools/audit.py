"""Known holes in what the lock names, by pip-audit; a package not looked up is no pass.

`python -m tools.audit PIP_AUDIT`. Ends with 0 when every package was looked up and none has a known
hole, with 1 when one has, and with 4 when something was not looked up: an index may answer without
knowing any advisories, and pip-audit then ends with 0.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

LOCKED = Path("requirements/test.txt")


def main(pip_audit: str) -> int:
    """Run pip-audit on the lock and say what came of it."""
    done = subprocess.run(
        [pip_audit, "--require-hashes", "--disable-pip", "-r", LOCKED, "--format", "json"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    try:
        found = json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError):
        last = done.stderr.strip().splitlines()[-1:] or ["it said nothing"]
        sys.stderr.write(f"audit: pip-audit gave no answer: {last[0]}\n")
        return 4
    code, told = verdict(found)
    sys.stderr.write(f"audit: {told}\n")
    return code


def verdict(found: list[dict[str, Any]]) -> tuple[int, str]:
    """The exit code and the sentence for the `dependencies` of pip-audit's JSON."""
    holes = [f"{each['name']} {each['version']}" for each in found if each.get("vulns")]
    skipped = [each for each in found if "skip_reason" in each]
    if holes:
        return 1, f"known holes in {', '.join(holes)}"
    if skipped or not found:
        return 4, f"{len(skipped)} of {len(found)} packages were not looked up: no pass"
    return 0, f"{len(found)} packages have no known holes"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
