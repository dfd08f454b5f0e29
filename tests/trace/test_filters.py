"""The filter language against a plain evaluation of every operation, one by one."""

from __future__ import annotations

import operator
import random
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dissectors.constants import ERRNO_NAMES, MessageType
from dissectors.messages import (
    Request,
    bare_request,
    cpu_request,
    mmio_request,
    pci_request,
)
from dissectors.services import Service
from dissectors.tables import FieldRow, MessageRow, MessageTable
from tests.support import golden
from upcall_trace.errors import ExitCode
from upcall_trace.trace.filters import FIELDS, FLAGS, BadFilter, parse
from upcall_trace.trace.opening import load
from upcall_trace.trace.operation_table import OperationTable
from upcall_trace.trace.operations import ANOMALY_BIT, Operation, Operations

_T = MessageType
_REQUESTS: list[Request] = [
    cpu_request(_T.ADD_CPU, []),
    cpu_request(_T.ADD_CPU, [1]),
    cpu_request(_T.DEL_CPU, [3, 2]),
    cpu_request(_T.ADD_CPU, list(range(255)), apic_ver=0x15),
    cpu_request(_T.ADD_CPU, 2),
    cpu_request(_T.DEL_CPU, 255),
    mmio_request(_T.ADD_MMIO, 0xE0006000, 0x2000, 5),
    mmio_request(_T.DEL_MMIO, 0xE0006000, 0x2000, 6),
    mmio_request(_T.ADD_MMIO, (1 << 64) - 1, (1 << 64) - 1, 0xFFFFFFFF),
    pci_request(_T.ADD_PCI, 0, 6),
    pci_request(_T.DEL_PCI, 9, 31, 7),
    bare_request(_T.ADD_MEM),
    bare_request(_T.CONNECT),
    bare_request(77),
    bare_request(0xFFFFFFFF),
]


OTHER = Service(
    "not installed",
    MessageTable(
        byte=0x6F,
        request_size=8,
        reply_size=8,
        request_header=(),
        reply_header=(FieldRow(0, "ret", "i32", "the result"),),
        messages=(
            MessageRow(
                5,
                "add_cpu",
                (
                    FieldRow(0, "mmio_base", "u32", "as ours"),
                    FieldRow(4, "count", "u32", "as ours"),
                ),
            ),
        ),
    ),
)
"""A service that was installed once, with names of ours in its messages."""


def pool() -> tuple[Operations, list[Request | None]]:
    """Operations of every layout, answered and not, with any anomalies; and what was asked."""
    rng = random.Random(219)
    table = OperationTable()
    asked: list[Request | None] = []
    for row in range(90):
        request = None if row % 10 == 9 else rng.choice(_REQUESTS)
        asked.append(request)
        bits = rng.choice([0, 0, *ANOMALY_BIT.values()]) | rng.choice([0, *ANOMALY_BIT.values()])
        size = rng.choice([1024, 1024, 500, 16])
        conn, number, t_ns = rng.randrange(1, 4), rng.randrange(5), 1000 + rng.randrange(10**10)
        table.append(
            conn, number, t_ns, 0, 0, size, request or OTHER.decode_request(bytes(8)), bits
        )
        if rng.random() < 0.8:
            ret = rng.choice([0, 0, 1, -1, -5, -16, -17, -19, -22, -99, 5])
            asking = request or bare_request(3)
            reply = asking.reply(ret, rng.choice([0, 1, 3]) if "cpu" in asking.op else None)
            table.answer(row, reply, rng.choice([10, 999, 250_000_000, 250_000_001, 10**10]), 0)
    return Operations(table.columns(), 1000), asked


POOL, ASKED = pool()
OBJECTS = list(POOL)
FOUND = {name for name, field in FIELDS.items() if field.kind in ("code", "severity")}
"""Fields that are not in the traffic: a diagnosis finds them out."""
ON_THE_WIRE = sorted(FIELDS.keys() - FOUND)
OWN_FIELDS = "mmio_base mmio_size mmio_irq busno devfn slot function count apic_ver".split()


def values_of(field: str, op: Operation, request: Request | None) -> list[int]:
    """The values of a field that an operation has: none, one, or several."""
    ours = op.msg_type is not None
    if field in OWN_FIELDS:
        return [op.fields[field]] if ours and field in op.fields else []
    found: dict[str, Callable[[], int | None]] = {
        "op": lambda: op.msg_type,
        "msg_type": lambda: op.msg_type,
        "msg_size": lambda: request.msg_size if request else None,
        "conn": lambda: op.conn,
        "request": lambda: op.request,
        "t": lambda: op.t_ns,
        "size": lambda: op.size,
        "ret": lambda: op.ret,
        "errno": lambda: op.ret,
        "latency": lambda: op.latency_ns,
        "apic_index": lambda: (op.reply or {}).get("apic_index"),
        "cpu_id": lambda: (op.reply or {}).get("cpu_id"),
    }
    if field == "apic_id":
        return list(op.fields["apic_ids"]) if ours and "apic_ids" in op.fields else []
    value = found[field]()
    return [] if value is None else [value]


def flagged(flag: str, op: Operation) -> bool:
    match flag:
        case "answered":
            return op.ret is not None
        case "unanswered":
            return op.ret is None
        case "failed":
            return op.ret is None or op.ret < 0
        case "stale":
            return any(name.startswith("stale-") for name in op.anomalies)
    return flag in op.anomalies


Truth = Callable[[Operation, Request | None], bool]
_SIGNS: dict[str, Callable[[int, int], bool]] = {
    "==": operator.eq,
    "=": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_UNITS = {"ns": 1, "us": 10**3, "ms": 10**6, "s": 10**9}
_SEEN = {
    name: sorted({v for op, q in zip(OBJECTS, ASKED, strict=True) for v in values_of(name, op, q)})
    for name in ON_THE_WIRE
}


def matches(truth: Truth) -> list[bool]:
    return [truth(op, request) for op, request in zip(OBJECTS, ASKED, strict=True)]


@st.composite
def values(draw: st.DrawFn, field: str) -> tuple[str, int]:
    """A value of a field as it is written, and what it stands for."""
    kind = FIELDS[field].kind
    near = st.sampled_from(_SEEN[field] or [0])
    if kind == "op":
        number = draw(near | st.sampled_from([3, 4, 99]))
        named = number in list(MessageType)
        name = MessageType(number).name.lower() if named else f"type_{number}"
        return (name if draw(st.booleans()) else str(number)), number
    if kind == "errno":
        number = draw(st.sampled_from(sorted(ERRNO_NAMES)) | st.just(17))
        return ERRNO_NAMES[number], -number
    number = draw(near.flatmap(lambda n: st.sampled_from([n, n + 1, n - 1])) | st.integers())
    if kind == "duration":
        unit = draw(st.sampled_from([u for u, size in _UNITS.items() if number % size == 0]))
        return f"{number // _UNITS[unit]}{draw(st.sampled_from(['', ' ']))}{unit}", number
    if abs(number) >= 1 << 120:
        number = 0
    return draw(
        st.sampled_from([str(number), hex(number), hex(number).upper().replace("X", "x")])
    ), number


def _any_of(field: str, test: Callable[[int], bool]) -> Truth:
    return lambda op, request: any(test(value) for value in values_of(field, op, request))


def _against(sign: str, number: int) -> Callable[[int], bool]:
    return lambda value: _SIGNS[sign](value, number)


@st.composite
def atoms(draw: st.DrawFn) -> tuple[str, Truth]:
    """One comparison or flag and its truth."""
    if draw(st.integers(0, 3)) == 0:
        flag = draw(st.sampled_from(sorted(FLAGS)))
        return flag, lambda op, _: flagged(flag, op)
    field = draw(st.sampled_from(ON_THE_WIRE))
    named = FIELDS[field].kind in ("op", "errno")
    signs = ["==", "=", "!="] if named else sorted(_SIGNS)
    match draw(st.integers(0, 3)):
        case 0:
            low, high = draw(values(field)), draw(values(field))
            return (
                f"{field} in {low[0]}..{high[0]}",
                _any_of(field, lambda value: low[1] <= value <= high[1]),
            )
        case 1:
            wanted = draw(st.lists(values(field), min_size=1, max_size=4))
            numbers = {number for _, number in wanted}
            listed = ", ".join(text for text, _ in wanted)
            return f"{field} in ({listed})", _any_of(field, lambda value: value in numbers)
    sign, (text, number) = draw(st.sampled_from(signs)), draw(values(field))
    space = draw(st.sampled_from(["", " "]))
    return f"{field}{space}{sign}{space}{text}", _any_of(field, _against(sign, number))


def _joined(
    word: str, combine: Callable[[list[bool]], bool], bind: str
) -> Callable[[list[tuple[str, Truth]]], tuple[str, Truth]]:
    def join(parts: list[tuple[str, Truth]]) -> tuple[str, Truth]:
        texts = [f"({text})" if f" {bind} " in text else text for text, _ in parts]
        return (
            f" {word} ".join(texts),
            lambda op, request: combine([truth(op, request) for _, truth in parts]),
        )

    return join


def _negated(part: tuple[str, Truth]) -> tuple[str, Truth]:
    text, truth = part
    return f"not ({text})", lambda op, request: not truth(op, request)


def expressions() -> st.SearchStrategy[tuple[str, Truth]]:
    return st.recursive(
        atoms(),
        lambda inner: st.one_of(
            st.lists(inner, min_size=2, max_size=3).map(_joined("or", any, "OR")),
            st.lists(inner, min_size=2, max_size=3).map(_joined("and", all, "or")),
            inner.map(_negated),
        ),
        max_leaves=6,
    )


@given(expressions())
def test_any_expression_is_what_a_look_at_each_operation_says(
    expression: tuple[str, Truth],
) -> None:
    text, truth = expression
    assert parse(text).mask(POOL).tolist() == matches(truth), text


@pytest.mark.parametrize("field", ON_THE_WIRE)
@pytest.mark.parametrize("sign", _SIGNS)
def test_every_field_with_every_operator(field: str, sign: str) -> None:
    kind = FIELDS[field].kind
    tried = 0
    for number in _SEEN[field]:
        text = {"duration": f"{number}ns"}.get(kind, str(number))
        if kind == "errno":
            if -number not in ERRNO_NAMES:
                continue
            text = ERRNO_NAMES[-number]
        elif kind == "op":
            text = f"type_{number}"
        if kind in ("op", "errno") and sign in ("<", "<=", ">", ">="):
            with pytest.raises(BadFilter, match="only == and != make sense"):
                parse(f"{field} {sign} {text}")
            return
        found = parse(f"{field} {sign} {text}").mask(POOL).tolist()
        assert found == matches(_any_of(field, _against(sign, number)))
        tried += len(set(found)) == 2
    assert tried, "no value tells operations apart"


@pytest.mark.parametrize("flag", FLAGS)
def test_every_flag(flag: str) -> None:
    found = parse(flag).mask(POOL).tolist()
    assert found == [flagged(flag, op) for op in OBJECTS]
    assert set(found) == {True, False}
    assert parse(f"not {flag}").mask(POOL).tolist() == [not hit for hit in found]


def select(text: str) -> list[int]:
    return np.flatnonzero(parse(text).mask(POOL)).tolist()


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("failed or stale and conn == 2", "failed or (stale and conn == 2)"),
        ("stale and conn == 2 or failed", "(stale and conn == 2) or failed"),
        ("not failed and stale", "(not failed) and stale"),
        ("not failed or stale", "(not failed) or stale"),
        ("not not failed", "failed"),
        ("not conn == 2 and failed", "failed and conn != 2"),
        ("FAILED Or Stale AND cOnN == 2", "failed or stale and conn == 2"),
        ("OP == Add_Cpu", "op == add_cpu"),
        ("errno == eexist", "ret == -17"),
        ("op == add_cpu", "op == 1"),
        ("op == type_77", "msg_type == 77"),
        ("op in add_cpu..add_mmio", "msg_type in 1..5"),
        ("mmio_base=0xE0006000", "mmio_base == 3758120960"),
        ("ret<-16", "ret < -16"),
        ("ret == -0x11", "ret == -17"),
        ("latency == 250ms", "latency == 0.25s"),
        ("latency == 250000001ns", "latency == 250.000001ms"),
        ("latency in 1ms .. 1 s", "latency >= 1ms and latency <= 1s"),
        ("conn in(1,3)", "conn == 1 or conn == 3"),
        (" \t\nfailed\n ", "failed"),
        ("((((failed))))", "failed"),
        ("conn == 007", "conn == 7"),
    ],
)
def test_two_ways_to_say_the_same(text: str, same: str) -> None:
    assert select(text) == select(same)


def test_precedence_makes_a_difference_here() -> None:
    assert select("failed or stale and conn == 2") != select("(failed or stale) and conn == 2")
    assert select("not failed and stale") != select("not (failed and stale)")


def test_a_duration_is_exact_to_the_nanosecond() -> None:
    """A float could not tell these two apart."""
    table = OperationTable()
    for t_ns in (123456789_123456788, 123456789_123456789):
        table.append(1, 0, t_ns, 0, 0, 1024, bare_request(3), 0)
    operations = Operations(table.columns(), 0)
    assert parse("t == 123456789.123456789s").mask(operations).tolist() == [False, True]
    assert parse("t > 123456789123456788ns").mask(operations).tolist() == [False, True]


@pytest.mark.parametrize(
    "text",
    [
        "conn == 99999999999999999999",
        "mmio_base == 0xffffffffffffffffff",
        "ret < -99999999999999999999",
        "ret == 9999999999",
        "latency > 99999999999999999999s",
        "conn in 5..3",
        "apic_id == 256",
    ],
)
def test_numbers_that_no_operation_can_have_match_nothing(text: str) -> None:
    assert select(text) == []


def test_no_operations_match_nothing() -> None:
    empty = Operations(OperationTable().columns(), 0)
    for text in ("failed", "apic_id == 1", "not failed", "conn in (1, 2) or ret < 0"):
        assert parse(text).mask(empty).tolist() == []


def test_apic_ids_belong_to_their_own_request() -> None:
    """Ids lie one behind the other in one column: neighbours must not answer for each other."""
    found = load(golden("cpu_lifecycle")).operations
    for number in range(5):
        expected = [number in op.fields.get("apic_ids", ()) for op in found]
        assert parse(f"apic_id == {number}").mask(found).tolist() == expected
    assert parse("apic_id in 2..3").mask(found).tolist() == [
        any(2 <= number <= 3 for number in op.fields["apic_ids"]) for op in found
    ]


# Expression, position from 0, what the message says.
MISTAKES = [
    ("", 0, "the expression is empty"),
    ("   ", 3, "the expression is empty"),
    ("rett < 5", 0, "'rett' is not known; did you mean ret?"),
    ("ret < 0 and latncy > 5ms", 12, "'latncy' is not known; did you mean latency?"),
    ("mmio_bas == 5", 0, "did you mean mmio_base?"),
    ("unansered", 0, "did you mean unanswered?"),
    ("stal or failed", 0, "did you mean stale?"),
    ("zzzzzz == 1", 0, "known are op, conn, request"),
    ("zzzzzz", 0, "known are answered, unanswered"),
    ("op == add_cp", 6, "'add_cp' is not known; did you mean add_cpu?"),
    ("op == type_x", 6, "'type_x' is not known"),
    ("op == type_" + "9" * 50, 6, "is not known"),
    ("errno == EEXISTS", 9, "did you mean eexist?"),
    ("errno == 17x", 11, "expected"),
    ("errno == -17", 9, "errno is compared with an errno, such as EEXIST"),
    ("errno == 17", 9, "errno is compared with an errno, such as EEXIST"),
    ("errno < EEXIST", 6, "errno has names: only == and != make sense"),
    ("op >= add_cpu", 3, "op has names: only == and != make sense"),
    ("ret", 0, "ret needs a comparison"),
    ("not ret", 4, "ret needs a comparison"),
    ("stale == 1", 0, "stale stands alone, without a comparison"),
    ("stale in (1)", 0, "stale stands alone, without a comparison"),
    ("latency > 5", 10, "latency is compared with a time with its unit, such as 250ms or 1.5s"),
    ("latency > soon", 10, "latency is compared with a time with its unit"),
    ("ret < 5ms", 6, "ret is compared with a number, such as 5 or 0xe0006000"),
    ("conn in (1, 2ms)", 12, "conn is compared with a number"),
    ("conn in 1..x", 11, "conn is compared with a number"),
    ("ret < 1.5", 7, "expected"),
    ("ret ==", 6, "something is missing at the end"),
    ("ret == ", 7, "something is missing at the end"),
    ("stale and", 9, "something is missing at the end"),
    ("(stale", 6, "something is missing at the end"),
    ("conn in (1, 2", 13, "something is missing at the end"),
    ("conn in 1", 9, "something is missing at the end"),
    ("not", 3, "something is missing at the end"),
    ("stale)", 5, "expected a field, a comparison, and, or, not, or a bracket"),
    ("ret < 0 conn == 1", 8, "expected"),
    ("ret === 5", 6, "expected"),
    ("ret $ 5", 4, "expected"),
    ("()", 1, "expected"),
    ("conn in ()", 9, "expected"),
    ("stale\nand\nrett < 5", 10, "did you mean ret?"),
    ("stale\nand\nret $ 5", 14, "expected"),
    ("ret == " + "9" * 5000, 7, "the number is too long"),
    ("ret == 0x" + "f" * 5000, 7, "the number is too long"),
    ("latency == " + "9" * 400 + "s", 11, "the number is too long"),
    ("\x1b[31m", 0, "expected"),
    ("rét < 5", 1, "expected"),
    ("ret < \udcff", 6, "expected"),
]


@pytest.mark.parametrize(("text", "position", "why"), MISTAKES, ids=lambda v: repr(v)[:40])
def test_a_mistake_is_told_with_its_place(text: str, position: int, why: str) -> None:
    with pytest.raises(BadFilter) as caught:
        parse(text)
    assert caught.value.position == position
    assert caught.value.exit_code is ExitCode.USAGE
    said = str(caught.value)
    assert said.startswith(f"filter, at character {position + 1} (")
    assert why in said
    assert len(said) < 600


@pytest.mark.parametrize(
    "text",
    [
        "(" * 100_000 + "stale" + ")" * 100_000,
        "not " * 100_000 + "stale",
        "(" * 65 + "stale" + ")" * 65,
        "not " * 65 + "stale",
        "not(" * 40 + "stale" + ")" * 40,
        "NOT " * 65 + "stale",
        "(stale and (failed or " * 200 + "stale" + "))" * 200,
        " or ".join(["stale"] * 100_000),
        "conn in (" + ", ".join(["1"] * 100_000) + ")",
        "x" * 1_000_000,
        " " * 1_000_000,
        "\0" * 9000,
        "(" * 5000,
        ")" * 5000,
    ],
    ids=lambda text: f"{text[:12]}-{len(text)}",
)
def test_a_hostile_expression_is_a_mistake_like_any_other(text: str) -> None:
    begin = time.process_time()
    with pytest.raises(BadFilter):
        parse(text)
    assert time.process_time() - begin < 2


def test_the_deepest_expressions_that_are_allowed_can_be_evaluated() -> None:
    """Also by somebody who is far down the stack himself."""
    deep = "(stale or conn == 1 and " * 64 + "failed" + ")" * 64
    plain = parse(deep)
    negated = parse("not " * 64 + "stale")

    def far_down(steps: int) -> list[int]:
        if steps:
            return far_down(steps - 1)
        return [int(plain.mask(POOL).sum()), int(negated.mask(POOL).sum())]

    hits = matches(lambda op, _: flagged("stale", op) or (op.conn == 1 and flagged("failed", op)))
    assert far_down(300) == [sum(hits), sum(flagged("stale", op) for op in OBJECTS)]


def test_the_longest_expressions_that_are_allowed_can_be_evaluated() -> None:
    text = " or ".join(["conn == 1"] * 600)
    assert len(text) < 8192
    begin = time.process_time()
    assert select(text) == select("conn == 1")
    assert time.process_time() - begin < 5


def is_filter_or_mistake(text: str) -> bool:
    try:
        return len(parse(text).mask(POOL)) == len(POOL)
    except BadFilter as error:
        return 0 <= error.position <= len(text)


@given(st.text(max_size=60))
def test_any_text_is_a_filter_or_a_mistake(text: str) -> None:
    assert is_filter_or_mistake(text)


_WORDS = st.sampled_from(
    [*FIELDS, *FLAGS, "and", "or", "not", "in", "(", ")", "..", ",", "==", "<", "5", "0x5", "5ms",
     "add_cpu", "EEXIST", "\n"]
)  # fmt: skip


@given(st.lists(_WORDS, max_size=14).map(" ".join))
def test_any_words_are_a_filter_or_a_mistake(text: str) -> None:
    assert is_filter_or_mistake(text)


def test_fields_and_flags_do_not_share_names() -> None:
    assert not FIELDS.keys() & FLAGS.keys()
    everything: list[Any] = [*FIELDS, *FLAGS]
    assert everything == [name.lower() for name in everything]
