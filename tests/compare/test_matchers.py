"""The rules for what may differ, and what they let pass."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from dissectors.constants import MessageType
from dissectors.messages import Reply, cpu_request
from tests.replay.playing import script_of
from tests.support import DISK, answer, ask, connect
from upcall_trace.capture.records import Chunk, Mark
from upcall_trace.compare.matchers import (
    FIELDS,
    Matchers,
    beside,
    parse_key,
    parse_matcher,
    parse_rules,
    read_matchers,
    write_matchers,
)
from upcall_trace.compare.replies import Got, differences
from upcall_trace.errors import UnreadableInput, WrongUsage
from upcall_trace.trace.script import Asked

CPU = cpu_request(MessageType.ADD_CPU, [1])


def asked(ret: int = 0) -> Asked:
    """An ADD_MMIO that was answered `ret` after a millisecond."""
    script = script_of([*connect(1), ask(DISK, 0), answer(DISK, 1_000_000, ret=ret)])
    return script.asked[1, 0]


def got(ret: int, latency_ns: int = 0, padding: bytes = b"") -> Got:
    raw = DISK.reply(ret).encode()
    return Got(DISK.reply(ret), raw[: len(raw) - len(padding)] + padding, latency_ns)


def fields(rules: str, recorded: int, came: int, latency_ns: int = 0) -> list[str]:
    """Which fields differ under the rules."""
    matchers = Matchers({"*": parse_rules(rules)} if rules else None)
    return [d.field for d in differences(asked(recorded), got(came, latency_ns), matchers)]


@pytest.mark.parametrize(
    ("rules", "recorded", "came", "differ"),
    [
        ("", -17, -17, []),
        ("", -17, -16, ["ret"]),
        ("ret=any", -17, 0, []),
        ("ret=exact", -17, -16, ["ret"]),
        ("ret=-17|-16", -17, -16, []),
        ("ret=-17|-16", -17, -22, ["ret"]),
        ("ret=-17..-16", -17, -16, []),
        ("ret=-17..-16", -17, 0, ["ret"]),
        ("ret=class", -17, -16, []),
        ("ret=class", -17, 0, ["ret"]),
        ("ret=class", -99, -98, ["ret"]),
        ("ret=0", -17, 0, []),
    ],
)
def test_what_a_rule_lets_pass(rules: str, recorded: int, came: int, differ: list[str]) -> None:
    # A result of 0 also has another size in its header, which is no concern here.
    found = [name for name in fields(rules, recorded, came) if name == "ret"]
    assert found == differ


def test_latency_counts_when_a_rule_says_so() -> None:
    assert fields("", 0, 0, 10**12) == []
    assert fields("latency<=250ms", 0, 0, 250_000_000) == []
    assert fields("latency<=250ms", 0, 0, 250_000_001) == ["latency"]
    assert fields("latency<=1.5s", 0, 0, 1_500_000_001) == ["latency"]


def test_latency_can_be_held_against_the_recorded_one() -> None:
    assert fields("latency<=2x", 0, 0, 2_000_000) == []
    assert fields("latency<=2x", 0, 0, 2_000_001) == ["latency"]
    assert fields("latency<=1.5x", 0, 0, 1_500_001) == ["latency"]
    assert str(parse_rules("latency<=1.5x")[0]) == "latency<=1.5x"
    with pytest.raises(WrongUsage, match="only latency"):
        parse_rules("ret<=2x")


@pytest.mark.parametrize(
    ("rules", "latency_ns", "differ"),
    [
        ("", 250_000_000, []),
        ("", 250_000_001, ["latency"]),
        ("", 10_000_000_001, ["latency"]),
        ("latency=any", 10_000_000_001, []),
        ("latency<=1s", 300_000_000, []),
    ],
)
def test_an_answer_after_the_deadline_counts_when_it_was_in_time(
    rules: str, latency_ns: int, differ: list[str]
) -> None:
    matchers = Matchers({"*": parse_rules(rules)} if rules else None)
    came = got(0, latency_ns)
    assert [d.field for d in differences(asked(), came, matchers, deadlines=True)] == differ
    late = replace(asked(), latency_ns=latency_ns)  # as late as it was
    assert differences(late, came, matchers, deadlines=True) == ()


def test_silence_is_one_difference_and_can_be_allowed() -> None:
    silent = Got(None)
    assert [d.field for d in differences(asked(), silent, Matchers())] == ["answer"]
    assert differences(asked(), silent, Matchers({"*": parse_rules("answer=any")})) == ()
    assert differences(asked(), silent, Matchers({"*": parse_rules("answer=0")})) == ()


def test_bytes_that_nobody_wrote_count_only_when_asked_for() -> None:
    stale = got(0, padding=b"\x07" * 4)
    assert differences(asked(), stale, Matchers()) == ()
    (found,) = differences(asked(), stale, Matchers(), whole_bytes=True)
    assert (found.field, found.recorded, found.got) == (
        "bytes", "00 00 00 00 at 0x03fc", "07 07 07 07 at 0x03fc",
    )  # fmt: skip
    assert differences(asked(), stale, Matchers({"*": parse_rules("bytes=any")}), True) == ()


def test_a_cpu_replys_load_counts_where_the_guest_sent_one() -> None:
    records = [*connect(1), ask(CPU, 0), Chunk(1, 1, False, CPU.reply(0, 1).encode())]
    cpu = script_of(records).asked[1, 0]
    assert [d.field for d in differences(cpu, Got(CPU.reply(0, 2)), Matchers())] == ["apic_index"]
    # An error has no load: what decodes as one is left over.
    left_over = CPU.reply(-22).encode()[:20] + b"\x05" + CPU.reply(-22).encode()[21:]
    refused = script_of([*connect(1), ask(CPU, 0), Chunk(1, 1, False, left_over)]).asked[1, 0]
    assert differences(refused, Got(CPU.reply(-22)), Matchers()) == ()


def test_the_nearest_rule_decides() -> None:
    matchers = Matchers({"*": parse_rules("ret=any")})
    matchers.add("add_mmio", parse_rules("ret=exact"))
    assert matchers.of(asked())["ret"].kind == "exact"
    matchers.add("1.0", parse_rules("ret=class latency<=1s"))
    assert {name: rule.kind for name, rule in matchers.of(asked()).items()} == {
        "ret": "class", "latency": "at most",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "a matcher needs a rule"),
        ("ret", "'ret' is no rule"),
        ("colour=red", "colour is no field; there are answer, ret"),
        ("ret=often", "often is no number"),
        ("ret=5..1", "the range is empty"),
        ("msg_size=class", "class is no number"),
        ("ret<=5ms", "only latency has a limit"),
        ("latency<=5", "only latency has a limit"),
        ("latency=5", "latency can be any, exact, or for latency <=250ms"),
        ("bytes=1|2", "bytes can be any"),
    ],
)
def test_a_rule_that_is_none_is_told_apart(text: str, says: str) -> None:
    with pytest.raises(WrongUsage, match=says):
        parse_rules(text)


@pytest.mark.parametrize("text", ["1,3 ret=any", "ADD_CPU ret=any", "1.x ret=any", ""])
def test_a_place_that_is_none(text: str) -> None:
    with pytest.raises(WrongUsage, match="is no operation"):
        parse_matcher(text)


def test_a_key() -> None:
    assert parse_key("12.345") == (12, 345)
    with pytest.raises(WrongUsage, match="'12' is no operation"):
        parse_key("12")


def test_rules_are_kept_beside_the_recording_and_come_back(tmp_path: Path) -> None:
    recording = tmp_path / "failure.upcap"
    rules = "ret=-17|0 apic_index=1..3 latency<=250ms msg_size=any bytes=exact"
    matchers = Matchers({"1.3": parse_rules(rules), "*": parse_rules("ret=class")})
    write_matchers(beside(recording), matchers)
    assert beside(recording) == tmp_path / "failure.match.toml"
    assert str(read_matchers(recording, ())) == str(matchers)
    assert not read_matchers(tmp_path / "other.upcap", ())


def test_a_mark_of_an_operation_has_the_last_word(tmp_path: Path) -> None:
    recording = tmp_path / "failure.upcap"
    write_matchers(beside(recording), Matchers({"1.0": parse_rules("ret=any")}))
    marks = [Mark(0, 1, 0, "match", "ret=class"), Mark(0, 1, 0, "comment", "ret=any")]
    assert read_matchers(recording, marks).of(asked())["ret"].kind == "class"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[match", "is not a TOML file"),
        ("[rules]\n", r"one table \[match\] is expected"),
        ("[match]\n'1.0' = 7\n", "the rules are not a text"),
        ("[match]\n'1.0' = 'ret=sometimes'\n", "sometimes is no number"),
        ("[match]\n'one' = ''\n", "a matcher needs a rule"),
    ],
)
def test_a_bad_file_is_told_in_a_sentence(tmp_path: Path, text: str, says: str) -> None:
    file = tmp_path / "x.match.toml"
    file.write_text(text)
    with pytest.raises(UnreadableInput, match=says):
        read_matchers(tmp_path / "x.upcap", ())


def test_a_named_file_must_be_there_and_a_bad_mark_is_said(tmp_path: Path) -> None:
    recording = tmp_path / "x.upcap"
    with pytest.raises(UnreadableInput, match="No such file"):
        read_matchers(recording, (), tmp_path / "none.toml")
    with pytest.raises(UnreadableInput, match=r"the mark of 1\.0 in .*: 'x' is no rule"):
        read_matchers(recording, [Mark(0, 1, 0, "match", "x")])


def test_every_field_can_have_a_rule() -> None:
    for name in FIELDS:
        assert parse_rules(f"{name}=any")[0].field == name
    assert isinstance(DISK.reply(), Reply)
