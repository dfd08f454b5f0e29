"""The places that `make odd` takes the tests to are those of the page, and tests fail there."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from tools.odd_places import PLACES, main

ROOT = Path(__file__).parents[1]


def test_the_page_names_every_place() -> None:
    page = (ROOT / "docs" / "robustness.md").read_text("utf-8")
    table = page.partition("## Tests in odd places")[2]
    assert re.findall(r"^\| ([a-z][^|]*?) \|", table, re.MULTILINE)[1:] == list(PLACES)


def test_a_place_that_is_none() -> None:
    assert main(["nowhere"]) == 2


def test_a_test_that_fails_there_fails_the_run() -> None:
    words = ["-m", "tools.odd_places", "a closed umask", "--", "-x", "no_such_test.py"]
    done = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert "a closed umask" in done.stderr
    assert "FAILED" in done.stderr
