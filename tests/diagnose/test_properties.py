"""Random traffic of random guests: findings never contradict what the kernel model did.

With the guest's world the causes that are found are the model's, code by code. Without it, or in a
recording that lacks something, what is certain is true, and the rest says that it is inferred.
"""

from __future__ import annotations

import pytest

from tests.diagnose.comparing import LACKING, Compared, compared, is_cause
from tools import measure_accuracy
from upcall_trace.diagnose.finding import Ref
from upcall_trace.diagnose.rules.registry import rules

ORDINARY = range(120)
TORTURE = range(10_000, 30_000)
FROM_LOGS = {"UP211", "UP307", "UP404"}

NOT_IN_TRAFFIC = {"UP208", "UP214", "UP599"}
"""Whether a CPU can be taken offline depends on what runs on it, whether it was offline on what the
guest did by itself; and a guest that follows the model gives no result that the model cannot."""
NEVER_BLIND = {"UP308"}
"""A channel's own PCI device can be added once more, and then looks like one that was added."""

NEVER_BESIDE = {"UP206": "UP603"}
"""Where the lock is held for ever, that explains a removal's silence; that it would have died of
its id as well is possible and far less likely."""

each_lack = pytest.mark.parametrize("lacking", LACKING)
blind_or_not = pytest.mark.parametrize("with_world", [False, True], ids=["blind", "world"])


def all_compared(lacking: str, seeds: range, with_world: bool) -> dict[int, Compared]:
    """By seed, so that a failure can be tried again with `compared`."""
    found = ((seed, compared(lacking, seed, with_world)) for seed in seeds)
    return {seed: one for seed, one in found if one is not None}


def check_with_world(seeds: range) -> set[str]:
    """The codes that occurred."""
    codes: set[str] = set()
    for seed, one in all_compared("nothing", seeds, True).items():
        assert one.different() == {}, seed
        assert not any(one.inferred[ref] for ref in one.made.settled), seed
        codes.update(*map(one.true, one.made.settled))
    return codes


def check_blind(seeds: range) -> tuple[int, int]:
    """How many requests were explained for certain, and how many by inference alone."""
    certain = inferred = 0
    for seed, one in all_compared("nothing", seeds, False).items():
        missed = {
            ref: code
            for ref, code in one.missed().items()
            if code not in NEVER_BLIND and NEVER_BESIDE.get(code) not in one.found(ref)
        }
        assert missed == {}, seed
        certain += sum(bool(codes) for codes in one.certain.values())
        inferred += sum(bool(codes) for ref, codes in one.inferred.items() if not one.certain[ref])
    return certain, inferred


def check_certain(lacking: str, seeds: range, with_world: bool) -> int:
    """How many certain codes there were."""
    certain = 0
    for seed, one in all_compared(lacking, seeds, with_world).items():
        assert one.wrong(one.certain) == {}, seed
        certain += sum(map(len, one.certain.values()))
    return certain


def test_with_the_world_the_causes_are_the_models() -> None:
    found = check_with_world(ORDINARY)
    known = {code for code in rules() if is_cause(code)}
    # Rare ones come in the long run; here most of them have to.
    assert len(found) >= len(known - FROM_LOGS - NOT_IN_TRAFFIC) - 4


def test_without_the_world_the_decisive_cause_is_among_the_findings() -> None:
    certain, inferred = check_blind(ORDINARY)
    assert certain > inferred > 50


@pytest.mark.parametrize("seed", [10_199, 10_347])
def test_a_silent_add_may_have_died_where_the_lock_may_be_held_too(seed: int) -> None:
    """Seeds of the long run, where the lock alone was found."""
    check_blind(range(seed, seed + 1))


def test_a_cpu_that_may_have_failed_before_is_not_called_one_that_was_not_started() -> None:
    """Another seed of the long run: the earlier answer came to nobody."""
    assert check_certain("nothing", range(23_864, 23_865), with_world=False) > 0


@blind_or_not
@each_lack
def test_what_is_certain_is_true_whatever_is_missing(lacking: str, with_world: bool) -> None:
    assert check_certain(lacking, ORDINARY, with_world) > 150


@pytest.mark.torture
def test_with_the_world_the_causes_are_the_models_for_long() -> None:
    known = {code for code in rules() if is_cause(code)}
    assert check_with_world(TORTURE) == known - FROM_LOGS - NOT_IN_TRAFFIC


@pytest.mark.torture
def test_without_the_world_the_decisive_cause_is_found_for_long() -> None:
    check_blind(TORTURE)


@pytest.mark.torture
@blind_or_not
@each_lack
def test_what_is_certain_is_true_for_long(lacking: str, with_world: bool) -> None:
    check_certain(lacking, TORTURE, with_world)


def test_the_comparison_notices_what_is_wrong() -> None:
    """Or the tests above could not fail."""
    one = compared("nothing", 0, True)
    assert one is not None
    ref = next(ref for ref in one.made.settled if one.true(ref))
    (code, *_) = one.made.causes(ref)
    one.certain[ref].discard(code)
    one.certain[Ref(9, 9)].add("UP301")
    assert one.different() == {ref: {code}}
    assert one.missed() == {ref: code}
    assert one.wrong(one.certain) == {Ref(9, 9): {"UP301"}}


def test_the_page_is_what_measuring_gives() -> None:
    page = measure_accuracy.PAGE.read_text("utf-8")
    made = measure_accuracy.page(range(4))
    table = [line for line in page.splitlines() if line.startswith("|")]
    anew = [line for line in made.splitlines() if line.startswith("|")]
    assert [row.split("|")[1:3] for row in table] == [row.split("|")[1:3] for row in anew]
    assert table[0] == anew[0]
    wrong = table[0].split("|").index(" certain and wrong ")
    assert {row.split("|")[wrong].strip() for row in table[2:]} == {"0"}
    assert f"{len(measure_accuracy.SEEDS):,} recordings" in page
