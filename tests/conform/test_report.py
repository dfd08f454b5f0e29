"""A difference as a person reads it, as JSON and as JUnit."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

from dissectors.constants import MessageType
from dissectors.messages import cpu_request, mmio_request
from tests.conform.wrong_guests import of_stale_loads, wrong_guest
from upcall_trace.conform.asking import Asker, Differs
from upcall_trace.conform.cases import Ask, Step, Tell, rehearse
from upcall_trace.conform.report import as_junit, as_object, text
from upcall_trace.conform.run import Conformity, Wish
from upcall_trace.conform.shrinking import Shrunk
from upcall_trace.kernel.world import kata_pod
from upcall_trace.sockets.addresses import UnixAddress

POD = kata_pod(cpus=2)
WISH = Wish(POD, seed=7)
WINDOW = mmio_request(MessageType.ADD_MMIO, 0xE0004000, 0x2000, 9).encode()
STEPS: tuple[Step, ...] = (
    Tell({"start_vcpu": 2}),
    Ask(1, cpu_request(MessageType.ADD_CPU, [2]).encode()),
    Ask(1, WINDOW + WINDOW[:16]),
)


def differing(tmp_path: Path) -> Differs:
    with wrong_guest(of_stale_loads, POD, tmp_path) as guest:
        one = Asker(UnixAddress(guest.path), POD, 219, tmp_path / "control", 2.0, 0.1)
        differs = one.play(STEPS)
    assert differs is not None
    assert differs.steps == STEPS
    return differs


SAID = """\
case 3 differs; the shortest that does: 2 requests
     on the VMM's side: {"start_vcpu": 2}
  1  add_cpu apic_ids=2
  1  add_mmio 0xe0004000+0x2000 irq=9 + add_mmio 0xe0004000+0x2000 irq=9  (1040 bytes)
     model: EEXIST (-17) window or IRQ already taken + EEXIST (-17) window or IRQ already taken
     guest: EEXIST (-17) window or IRQ already taken + EEXIST (-17) window or IRQ already taken
     byte 20: model 0x01, guest 0x00, and 1 more
800 requests in 4 cases, seed 7: 1 of 4 cases differ"""


def test_both_answers_and_the_first_byte_are_told(tmp_path: Path) -> None:
    differs = differing(tmp_path)
    ran = Conformity(4, 800, {3: Shrunk(differs, again=True, tries=12)})
    assert "\n".join(text(WISH, ran, can_reset=True)) == SAID
    told = list(text(WISH, Conformity(4, 800, {3: Shrunk(differs, again=False, tries=1)}), True))
    assert told[0] == "case 3 differs; all of it: 2 requests"
    assert told[-2].strip() == "it did not come again on a guest that was booted anew"
    told = list(text(WISH, Conformity(1, 800, {0: Shrunk(differs, again=False, tries=0)}), False))
    assert told[-2].strip().startswith("it cannot be made shorter without --control")
    ended = Shrunk(differs, again=True, tries=3, ended=True)
    told = list(text(WISH, Conformity(1, 800, {0: ended}, interrupted=True), True))
    assert told[-2].strip() == "interrupted: there may be a shorter one"
    assert told[-1].endswith("1 of 1 case differ, interrupted")


def test_silence_and_pieces_of_an_answer() -> None:
    (_, expected, _) = rehearse(POD, STEPS)
    assert expected is not None
    for got, said in ((b"", "no answer"), (bytes(7), "7 bytes")):
        ran = Conformity(1, 2, {0: Shrunk(Differs(STEPS[:2], expected, got), again=True, tries=1)})
        told = "\n".join(text(WISH, ran, can_reset=True))
        assert f"guest: {said}\n" in told
        assert f"model 1024 bytes, guest {len(got)}" in told


def test_the_tail_of_a_long_case_is_shown() -> None:
    steps = (*STEPS[:2], *[Ask(1, WINDOW)] * 40)
    expected = rehearse(POD, steps)[-1]
    assert expected is not None
    ran = Conformity(1, 41, {0: Shrunk(Differs(steps, expected, b""), again=False, tries=0)})
    told = list(text(WISH, ran, can_reset=False))
    assert told[1].strip() == "… 26 steps before these, which --json has"
    assert len(told) == 2 + 16 + 5


def test_json(tmp_path: Path) -> None:
    ran = Conformity(
        4, 800, {3: Shrunk(differing(tmp_path), again=True, tries=12)}, ended="it is gone"
    )
    told = as_object(WISH, ran, world_known=True)
    (difference,) = told.pop("differences")
    assert told == {
        "v": 1, "seed": 7, "count": 2000, "recording": None, "world_known": True, "cases": 4,
        "asked": 800, "agree": False, "interrupted": False, "ended": "it is gone",
    }  # fmt: skip
    window = {"op": "add_mmio",
              "fields": {"mmio_base": 0xE0004000, "mmio_size": 0x2000, "mmio_irq": 9}}  # fmt: skip
    steps = difference.pop("steps")
    assert steps[0] == {"order": {"start_vcpu": 2}}
    assert steps[2]["conn"] == 1
    assert bytes.fromhex(steps[2]["hex"]) == WINDOW + WINDOW[:16]
    assert steps[2]["requests"] == [window, window]
    expected, got = difference.pop("expected"), difference.pop("got")
    assert difference == {"case": 3, "again": True, "tries": 12}
    assert expected["rets"] == got["rets"] == [-17, -17]
    assert expected["hex"] != got["hex"]


def test_junit(tmp_path: Path) -> None:
    ran = Conformity(
        4, 800, {3: Shrunk(differing(tmp_path), again=True, tries=12)}, ended="it is gone"
    )
    (suite,) = ElementTree.fromstring(as_junit(WISH, ran, can_reset=True))
    assert suite.attrib["failures"] == suite.attrib["errors"] == "1"
    names = [case.attrib["name"] for case in suite]
    assert names == [*(f"seed 7 case {number}" for number in range(4)), "the guest"]
    (failure,) = suite[3]
    assert failure.text == "\n".join(SAID.splitlines()[:-1])
    assert len(suite[0]) == 0
    assert suite[4][0].attrib["message"] == "it is gone"
