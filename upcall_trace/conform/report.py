"""What a run found, as text, JSON and JUnit. docs/conform.md."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any, Final
from xml.etree import ElementTree

from dissectors.constants import MAGIC_VERSION, MESSAGE_SIZE, Arch
from dissectors.messages import Request, decode_reply
from dissectors.services import DEVICE_MANAGER

from ..views.messages import reply_text, request_text
from ..views.text import safe
from .asking import Differs
from .cases import Ask, Step, rehearse
from .run import Conformity, Wish
from .shrinking import Shrunk

VERSION: Final = 1
_SHOWN: Final = 16


def text(wish: Wish, ran: Conformity, can_reset: bool) -> Iterator[str]:
    """Every difference with both answers, and one line for all of it."""
    for number, shrunk in ran.differing.items():
        yield from _difference(wish, number, shrunk, can_reset)
    if ran.ended:
        yield f"the guest was lost: {safe(ran.ended)}"
    agree = "agree" if ran.agrees else f"{len(ran.differing)} of {_many(ran.cases, 'case')} differ"
    broken_off = ", interrupted" if ran.interrupted else ""
    asked = f"{_many(ran.asked, 'request')} in {_many(ran.cases, 'case')}"
    yield f"{asked}, seed {wish.seed}: {agree}{broken_off}"


def _many(count: int, word: str) -> str:
    return f"{count} {word}{'s' * (count != 1)}"


def _difference(wish: Wish, number: int, shrunk: Shrunk, can_reset: bool) -> Iterator[str]:
    differs = shrunk.differs
    count = sum(isinstance(step, Ask) for step in differs.steps)
    how = "the shortest that does" if shrunk.again else "all of it"
    yield f"case {number} differs; {how}: {_many(count, 'request')}"
    told = rehearse(wish.world, differs.steps)
    left_out = max(0, len(differs.steps) - _SHOWN)
    if left_out:
        yield f"  … {left_out} steps before these, which --json has"
    for step, expected in list(zip(differs.steps, told, strict=True))[left_out:]:
        if isinstance(step, Ask):
            assert expected is not None  # the model has an answer to every write
            yield f"  {step.conn}  {' + '.join(map(_request, expected.requests))}{_cut(step)}"
        else:
            yield f"     on the VMM's side: {json.dumps(step.order)}"
    requests, arch = differs.expected.requests, wish.world.arch
    yield f"     model: {_replies(requests, differs.expected.replies, arch)}"
    yield f"     guest: {_replies(requests, differs.got, arch)}"
    for line in _bytes(differs):
        yield f"     {line}"
    if not can_reset:
        yield "     it cannot be made shorter without --control, which boots the guest anew"
    elif not shrunk.again:
        yield "     it did not come again on a guest that was booted anew"
    elif shrunk.ended:
        yield "     interrupted: there may be a shorter one"


def _request(request: Request) -> str:
    magic = "" if request.magic_version == MAGIC_VERSION else f" magic={request.magic_version:#x}"
    return request_text(request) + magic


def _cut(step: Ask) -> str:
    return "" if len(step.raw) == MESSAGE_SIZE else f"  ({len(step.raw)} bytes)"


def _replies(requests: Sequence[Request], raw: bytes, arch: Arch) -> str:
    """Each whole reply in a few words."""
    if not raw:
        return "no answer"
    told = []
    for place, begin in enumerate(range(0, len(raw), MESSAGE_SIZE)):
        piece = raw[begin : begin + MESSAGE_SIZE]
        if len(piece) < MESSAGE_SIZE:
            told.append(f"{len(piece)} bytes")
            continue
        request = requests[min(place, len(requests) - 1)]
        told.append(reply_text(request, DEVICE_MANAGER.decode_reply(piece, arch, request)))
    return safe(" + ".join(told))


def _bytes(differs: Differs) -> Iterator[str]:
    """Where the first byte differs."""
    expected, got = differs.expected.replies, differs.got
    pairs = enumerate(zip(expected, got, strict=False))
    first = next((at for at, (ours, theirs) in pairs if ours != theirs), None)
    if first is not None:
        count = sum(ours != theirs for ours, theirs in zip(expected, got, strict=False))
        more = f", and {count - 1} more" if count > 1 else ""
        yield f"byte {first}: model {expected[first]:#04x}, guest {got[first]:#04x}{more}"
    if len(expected) != len(got):
        yield f"model {len(expected)} bytes, guest {len(got)}"


def as_object(wish: Wish, ran: Conformity, world_known: bool) -> dict[str, Any]:
    """`conform --json`."""
    return {
        "v": VERSION,
        "seed": wish.seed,
        "count": wish.count,
        "recording": wish.source or None,
        "world_known": world_known,
        "cases": ran.cases,
        "asked": ran.asked,
        "agree": ran.agrees,
        "interrupted": ran.interrupted,
        "ended": ran.ended or None,
        "differences": [_object(wish, number, shrunk) for number, shrunk in ran.differing.items()],
    }


def _object(wish: Wish, number: int, shrunk: Shrunk) -> dict[str, Any]:
    differs = shrunk.differs
    told = rehearse(wish.world, differs.steps)
    return {
        "case": number,
        "again": shrunk.again,
        "tries": shrunk.tries,
        "steps": [
            {"conn": step.conn, "hex": step.raw.hex(),
             "requests": [{"op": r.op, "fields": dict(r.fields())} for r in expected.requests]}
            if isinstance(step, Ask) and expected is not None
            else {"order": _order(step)}
            for step, expected in zip(differs.steps, told, strict=True)
        ],
        "expected": _answers(differs.expected.replies),
        "got": _answers(differs.got),
    }  # fmt: skip


def _order(step: Step) -> dict[str, Any] | None:
    return None if isinstance(step, Ask) else step.order


def _answers(raw: bytes) -> dict[str, Any]:
    """The replies of one write: their `ret`, and all bytes; none is silence."""
    whole = [raw[at : at + MESSAGE_SIZE] for at in range(0, len(raw), MESSAGE_SIZE)]
    rets = [decode_reply(piece).ret for piece in whole if len(piece) == MESSAGE_SIZE]
    return {"rets": rets, "hex": raw.hex()}


def as_junit(wish: Wish, ran: Conformity, can_reset: bool) -> str:
    """One test case for each case."""
    suites = ElementTree.Element("testsuites")
    suite = ElementTree.SubElement(
        suites, "testsuite", name="upcall-trace conform", tests=str(max(ran.cases, 1)),
        failures=str(len(ran.differing)), errors=str(int(bool(ran.ended))),
    )  # fmt: skip
    for number in range(ran.cases):
        case = ElementTree.SubElement(
            suite, "testcase", classname="conform", name=f"seed {wish.seed} case {number}"
        )
        if number in ran.differing:
            lines = list(_difference(wish, number, ran.differing[number], can_reset))
            failure = ElementTree.SubElement(case, "failure", message=lines[0])
            failure.text = "\n".join(lines)
    if ran.ended:
        case = ElementTree.SubElement(suite, "testcase", classname="conform", name="the guest")
        ElementTree.SubElement(case, "error", message=safe(ran.ended))
    ElementTree.indent(suites)
    return ElementTree.tostring(suites, encoding="unicode", xml_declaration=True)
