"""The plan for very many hosts follows from its assumptions."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest

from tools import plan_fleet
from tools.plan_fleet import Assumptions, cores, main, operations_a_day, option, plan, simulate

CALM = Assumptions(restarts=0.0)


def costs(a: Assumptions) -> dict[str, float]:
    """Dollars a month, by what they are for."""
    return {line.what: float(line.cost.strip("$").replace(",", "") or 0) for line in plan(a)}


def test_twice_the_hosts_cost_twice_as_much_in_the_store() -> None:
    one, two = costs(Assumptions()), costs(Assumptions(hosts=2_000_000))
    assert two["captures"] == pytest.approx(2 * one["captures"], abs=1)
    assert two["uploads"] == pytest.approx(2 * one["uploads"], abs=1)


def test_what_is_kept_longer_costs_more_and_nothing_else_does() -> None:
    one, other = costs(Assumptions()), costs(Assumptions(dataset_days=800))
    assert other.pop("dataset") == pytest.approx(2 * one.pop("dataset"), abs=1)
    assert other == one


def test_a_part_of_the_operations_needs_a_part_of_the_work() -> None:
    whole, part = Assumptions(), Assumptions(uploaded=0.1)
    assert plan_fleet.core_seconds_a_day(part) < 0.5 * plan_fleet.core_seconds_a_day(whole)
    assert operations_a_day(part) == operations_a_day(whole)


def test_all_that_came_is_done_or_left() -> None:
    day = simulate(Assumptions(hosts=1e8, restarts=1.0, headroom=0.5), days=5)
    assert day.came == pytest.approx(day.done + day.left)
    assert day.left > 0  # half of the processors that the mean needs


def test_hosts_that_start_at_once_make_captures_wait_and_headroom_helps() -> None:
    busy = replace(CALM, hosts=1e8)  # many processors, so that their number is no accident
    calm, storm = simulate(busy), simulate(replace(busy, restarts=1.0))
    spare = simulate(replace(busy, restarts=1.0, headroom=8.0))
    assert calm.longest_wait < spare.longest_wait < storm.longest_wait
    assert storm.busiest_mb_s > calm.busiest_mb_s


def test_the_same_seed_simulates_the_same_days() -> None:
    assert simulate(CALM, 3, seed=7) == simulate(CALM, 3, seed=7)


def test_every_assumption_is_an_option(capsys: pytest.CaptureFixture[str]) -> None:
    main([part for each in fields(Assumptions) for part in (option(each.name), "3")])
    told = capsys.readouterr().out
    for each in fields(Assumptions):
        assert f"`{option(each.name)}`" in told
        assert each.metadata["about"] in told
    assert cores(Assumptions(hosts=0)) == 1
    with pytest.raises(SystemExit):
        main(["--hosts", "-1"])
    with pytest.raises(SystemExit):
        main(["--hosts", "inf"])
