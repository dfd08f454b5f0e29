"""Faults on demand: the grammar, when they strike, and that they do so again with the same seed."""

from __future__ import annotations

import pytest

from dissectors.constants import MessageType, op_name
from upcall_trace.errors import WrongUsage
from upcall_trace.kernel.faults import ACTIONS, CONDITIONS, Fault, Faults, parse_fault

ADD_CPU, DEL_CPU = MessageType.ADD_CPU, MessageType.DEL_CPU


@pytest.mark.parametrize(
    ("text", "op", "action", "value", "first", "last", "chance"),
    [
        ("add_cpu:ret=-16:when=2+", "add_cpu", "ret", -16, 2, None, 1.0),
        ("any:ret=0", "any", "ret", 0, 1, None, 1.0),
        ("any:ret=2147483647", "any", "ret", 2147483647, 1, None, 1.0),
        ("any:ret=-2147483648", "any", "ret", -2147483648, 1, None, 1.0),
        ("del_mmio:drop", "del_mmio", "drop", 0, 1, None, 1.0),
        ("add_pci:close:when=3", "add_pci", "close", 0, 3, 3, 1.0),
        ("add_mem:garbage:when=2-4", "add_mem", "garbage", 0, 2, 4, 1.0),
        ("type_77:split=500:chance=0.25", "type_77", "split", 500, 1, None, 0.25),
        ("any:split=1", "any", "split", 1, 1, None, 1.0),
        ("any:split=1023", "any", "split", 1023, 1, None, 1.0),
        ("type_4294967295:delay=300ms", "type_4294967295", "delay", 300_000_000, 1, None, 1.0),
        ("any:delay=0.5s", "any", "delay", 500_000_000, 1, None, 1.0),
        ("any:delay=20us", "any", "delay", 20_000, 1, None, 1.0),
        ("any:delay=86400s", "any", "delay", 86_400_000_000_000, 1, None, 1.0),
        ("any:when=1-1:chance=1:drop", "any", "drop", 0, 1, 1, 1.0),
        ("connect:chance=0:drop", "connect", "drop", 0, 1, None, 0.0),
    ],
)
def test_the_grammar(
    text: str, op: str, action: str, value: int, first: int, last: int | None, chance: float
) -> None:
    assert parse_fault(text) == Fault(text, op, action, value, first, last, chance)


MISTAKES = {
    "": "'' is no operation; known are add_cpu, add_mem, add_mmio, add_pci, any, ",
    "add_cpus:drop": "'add_cpus' is no operation; known are ",
    "type_:drop": "'type_' is no operation; known are ",
    "type_5:drop": "'type_5' is no operation; known are ",
    "type_4294967296:drop": "'type_4294967296' is no operation; known are ",
    "add_cpu": "'add_cpu' has no action; there are ret, delay, drop, split, close, garbage",
    "add_cpu:when=2": "'add_cpu:when=2' has no action; there are ret, ",
    "add_cpu:": "'' is not known; known are ret, delay, drop, split, close, garbage, when, chance",
    "add_cpu:dropp": "'dropp' is not known; known are ret, ",
    "add_cpu:drop:close": "'close' is a second action besides drop",
    "add_cpu:drop:drop": "'drop' is a second drop",
    "add_cpu:drop:when=1:when=3": "'when=3' is a second when",
    "add_cpu:drop=1": "'drop=1' takes no value: write drop",
    "add_cpu:close=": "'close=' takes no value: write close",
    "add_cpu:ret": "'ret' needs a number from -2147483648 to 2147483647",
    "add_cpu:ret=EBUSY": "'ret=EBUSY' needs a number from -2147483648 to 2147483647",
    "add_cpu:ret=2147483648": "'ret=2147483648' needs a number from -2147483648 to 2147483647",
    "add_cpu:split": "'split' needs a number from 1 to 1023",
    "add_cpu:split=0": "'split=0' needs a number from 1 to 1023",
    "add_cpu:split=1024": "'split=1024' needs a number from 1 to 1023",
    "add_cpu:delay": "'delay' needs a time with its unit, such as delay=300ms",
    "add_cpu:delay=300": "'delay=300' needs a time with its unit, such as delay=300ms",
    "add_cpu:delay=-1s": "'delay=-1s' needs a time with its unit, such as delay=300ms",
    "add_cpu:delay=86401s": "'delay=86401s' is more than a day",
    f"add_cpu:delay={'9' * 400}s": f"'delay={'9' * 400}s' needs a time with its unit",
    "add_cpu:drop:when": "'when' needs an occasion counted from 1: when=2, when=2+ or when=2-4",
    "add_cpu:drop:when=0": "'when=0' needs an occasion counted from 1",
    "add_cpu:drop:when=2-": "'when=2-' needs an occasion counted from 1",
    "add_cpu:drop:when=4-2": "'when=4-2' ends before it begins",
    f"add_cpu:drop:when={'9' * 5000}": f"'when={'9' * 5000}' needs an occasion counted from 1",
    "add_cpu:drop:chance": "'chance' needs a number from 0 to 1",
    "add_cpu:drop:chance=1.1": "'chance=1.1' needs a number from 0 to 1",
    "add_cpu:drop:chance=-0.1": "'chance=-0.1' needs a number from 0 to 1",
    "add_cpu:drop:chance=nan": "'chance=nan' needs a number from 0 to 1",
    "add_cpu:drop:chance=often": "'chance=often' needs a number from 0 to 1",
}


@pytest.mark.parametrize(("text", "answer"), MISTAKES.items(), ids=lambda text: text[:40])
def test_a_mistake_is_named_with_the_part_that_is_wrong(text: str, answer: str) -> None:
    with pytest.raises(WrongUsage) as raised:
        parse_fault(text)
    assert str(raised.value).startswith(f"fault {text!r}: {answer}")
    assert "\n" not in str(raised.value)


def strikes(rules: list[str], occasions: list[int], seed: int = 0) -> list[str | None]:
    """The action that strikes each request of these types."""
    faults = Faults([parse_fault(text) for text in rules], seed)
    struck = [faults.strike(msg_type) for msg_type in occasions]
    return [fault.action if fault else None for fault in struck]


@pytest.mark.parametrize(
    ("when", "struck"),
    [
        ("", [1, 2, 3, 4, 5]),
        (":when=2", [2]),
        (":when=2+", [2, 3, 4, 5]),
        (":when=2-4", [2, 3, 4]),
        (":when=9", []),
        (":chance=0", []),
        (":chance=1", [1, 2, 3, 4, 5]),
    ],
)
def test_occasions_are_counted_from_1(when: str, struck: list[int]) -> None:
    said = strikes([f"add_cpu:drop{when}"], [ADD_CPU] * 5)
    assert [number for number, action in enumerate(said, start=1) if action] == struck


def test_only_requests_of_the_operation_are_occasions() -> None:
    occasions = [DEL_CPU, ADD_CPU, DEL_CPU, ADD_CPU, 77]
    assert strikes(["add_cpu:drop:when=2"], occasions) == [None, None, None, "drop", None]
    assert strikes(["type_77:drop"], occasions) == [None, None, None, None, "drop"]
    assert strikes(["any:drop:when=5"], occasions) == [None, None, None, None, "drop"]


@pytest.mark.parametrize("msg_type", [*MessageType, 9, 0xFFFFFFFF])
def test_every_type_can_be_meant(msg_type: int) -> None:
    others = [t for t in (*MessageType, 9, 0xFFFFFFFF) if t != msg_type]
    assert strikes([f"{op_name(msg_type)}:drop"], [msg_type]) == ["drop"]
    assert set(strikes([f"{op_name(msg_type)}:drop"], others)) == {None}


def test_the_first_rule_that_strikes_decides_and_all_count() -> None:
    rules = ["add_cpu:close:when=2", "any:drop:when=2-3", "any:garbage"]
    assert strikes(rules, [ADD_CPU] * 4) == ["garbage", "close", "drop", "garbage"]


def test_the_same_seed_strikes_the_same_requests() -> None:
    rule = ["any:drop:chance=0.5"]
    said = strikes(rule, [ADD_CPU] * 200, seed=7)
    assert said == strikes(rule, [ADD_CPU] * 200, seed=7)
    assert said != strikes(rule, [ADD_CPU] * 200, seed=8)
    assert 60 < said.count("drop") < 140


def test_a_chance_is_one_in_so_many() -> None:
    assert 150 < strikes(["any:drop:chance=0.1"], [ADD_CPU] * 2000).count("drop") < 250


def test_garbage_is_repeatable_and_no_message() -> None:
    garbage = Faults([], 3).garbage(1024)
    assert len(garbage) == 1024
    assert garbage == Faults([], 3).garbage(1024)
    assert garbage != Faults([], 4).garbage(1024)
    assert garbage[:4] != bytes.fromhex("00014d44")


def test_every_action_and_condition_is_explained() -> None:
    assert list(ACTIONS) == ["ret", "delay", "drop", "split", "close", "garbage"]
    assert list(CONDITIONS) == ["when", "chance"]
    assert all([*ACTIONS.values(), *CONDITIONS.values()])
