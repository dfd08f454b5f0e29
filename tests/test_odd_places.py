"""The places that `make odd` takes the tests to are those of the page, and tests fail there."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tools.odd_places import PLACES, main

ROOT = Path(__file__).parents[1]


def test_the_page_names_every_place() -> None:
    page = (ROOT / "docs" / "robustness.md").read_text("utf-8")
    table = page.partition("## Tests in odd places")[2]
    assert re.findall(r"^\| ([a-z][^|]*?) \|", table, re.MULTILINE)[1:] == list(PLACES)


def test_a_place_that_is_none() -> None:
    assert main(["nowhere"]) == 2


@pytest.mark.parametrize(
    "place",
    ["a terminal", "an ordinary user", "no git",
     pytest.param("a newer Python", marks=pytest.mark.torture)],
)  # fmt: skip
def test_a_place_is_what_it_promises(place: str) -> None:
    if not shutil.which(PLACES[place].needs):
        pytest.skip(f"there is no {PLACES[place].needs}")
    probe = f"tests/probe_of_a_place.py::test_{place.replace(' ', '_')}"
    words = ["-m", "tools.odd_places", place, "--", "-s", probe]
    done = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed" in done.stdout


def test_a_test_that_fails_there_fails_the_run() -> None:
    words = ["-m", "tools.odd_places", "a closed umask", "--", "-x", "no_such_test.py"]
    done = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert "a closed umask" in done.stderr
    assert "FAILED" in done.stderr
