"""`conform` against a live guest: a stock kernel with our module, whose answers are the model's."""

from __future__ import annotations

import time

import pytest

from tests.live.conftest import Start
from tests.support import run

LIMIT_S = 120


@pytest.mark.parametrize("machine", ["pc", "microvm"])
def test_a_live_guest_agrees(machine: str, live_guest: Start) -> None:
    guest = live_guest("--machine", machine)
    ended = run("conform", "--to", guest.address, "--count", "400", "--seed", "11")
    assert ended.code == 0, ended.out
    assert ended.out == "400 requests in 2 cases, seed 11: agree\n"


@pytest.mark.torture
@pytest.mark.parametrize("machine", ["pc", "microvm"])
def test_2000_requests_take_under_two_minutes(machine: str, live_guest: Start) -> None:
    guest = live_guest("--machine", machine)
    begun = time.monotonic()
    ended = run("conform", "--to", guest.address, "--count", "2000")
    assert ended.code == 0, ended.out
    assert time.monotonic() - begun < LIMIT_S
