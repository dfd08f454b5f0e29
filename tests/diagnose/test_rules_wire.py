"""The words and pages of the codes about handshakes, stale replies, framing and types."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import astuple, replace
from functools import cache
from typing import Any, Final

import pytest

from dissectors.constants import MAGIC_VERSION, Arch, MessageType
from dissectors.events import RequestReceived
from dissectors.messages import (
    Request,
    bare_request,
    cpu_request,
    decode_reply,
    mmio_request,
    pci_request,
)
from upcall_trace.capture.records import Begins, How
from upcall_trace.codes import Severity
from upcall_trace.diagnose.finding import Ref, Told
from upcall_trace.diagnose.history import History
from upcall_trace.diagnose.rules import framing, handshake, stale, types
from upcall_trace.diagnose.rules.registry import Rule, rules
from upcall_trace.diagnose.situation import ConnectionSituation, Situation
from upcall_trace.logs.evidence import Evidence
from upcall_trace.trace.decoding import Connection
from upcall_trace.trace.opening import Capture, load
from upcall_trace.trace.operations import Operation
from upcall_trace.trace.samples import sample

MODULES = (handshake, stale, framing, types)
OURS: Final[dict[str, Rule]] = {
    code: entry
    for code, entry in rules().items()
    if entry.tell.__module__ in {module.__name__ for module in MODULES}
}
TABLE = {
    "UP101": ("no-listener", Severity.ERROR),
    "UP102": ("connect-refused-loop", Severity.ERROR),
    "UP103": ("malformed-connect-line", Severity.ERROR),
    "UP104": ("unknown-service", Severity.ERROR),
    "UP105": ("service-byte-timeout", Severity.ERROR),
    "UP106": ("no-hello", Severity.ERROR),
    "UP107": ("bad-hello", Severity.ERROR),
    "UP108": ("early-service-byte", Severity.WARNING),
    "UP501": ("stale-success", Severity.ERROR),
    "UP502": ("stale-error", Severity.ERROR),
    "UP503": ("stale-load", Severity.NOTE),
    "UP504": ("unknown-type", Severity.ERROR),
    "UP505": ("split-request", Severity.ERROR),
    "UP506": ("short-request", Severity.WARNING),
    "UP507": ("overlapping-requests", Severity.WARNING),
    "UP508": ("over-long-request", Severity.ERROR),
    "UP509": ("reply-mismatch", Severity.ERROR),
    "UP510": ("unsolicited-reply", Severity.ERROR),
    "UP511": ("reserved-memory-op", Severity.ERROR),
    "UP512": ("bad-magic", Severity.ERROR),
    "UP599": ("unexplained-result", Severity.ERROR),
}

ADD_MMIO = mmio_request(MessageType.ADD_MMIO, 0xE0006000, 0x2000, 5)
ADD_PCI = pci_request(MessageType.ADD_PCI, 0, 6)
ADD_CPU = cpu_request(MessageType.ADD_CPU, [1, 2])
WRONG_MAGIC = replace(ADD_MMIO, magic_version=0x444D0200)
HIGHEST_U64 = (1 << 64) - 1


def asked(
    request: Request,
    ret: int | None = None,
    *,
    load: int = 0,
    number: int = 6,
    size: int = 1024,
    raw: bytes | None = None,
    facts: dict[str, int] | None = None,
    **known: Any,
) -> Situation:
    """Request 2.`number` with a reply of `ret`, whose bytes at the load are `load`."""
    event = RequestReceived(number, size, request, request.encode(), 0, **(facts or {}))
    at = Situation(
        Ref(2, number), event, request, 0, History(), known.pop("arch", Arch.X86_64), **known
    )
    if ret is not None:
        raw = raw or request.reply(ret).encode()
        at.reply_raw = raw[:20] + load.to_bytes(4, "little") + raw[24:] if load else raw
        at.reply = decode_reply(at.reply_raw, at.arch)
    return at


def connected(number: int = 3, **facts: Any) -> ConnectionSituation:
    """Connection `number` to the upcall port; `refusals` and times go to the situation."""
    names = ("refusals", "interval_ns", "waited_ns")
    own = {name: facts.pop(name) for name in names if name in facts}
    connection = Connection(number, 0, Begins.LINE, 219, None, None, line=b"CONNECT 219\n")
    for name, value in facts.items():
        setattr(connection, name, value)
    return ConnectionSituation(connection, **own)


EARLIER = Ref(2, 4)
LEFT_EEXIST: Final[dict[str, Any]] = {"last_ret": -17, "last_ref": EARLIER}
LEFT_ENODEV: Final[dict[str, Any]] = {"last_ret": -19, "last_ref": EARLIER}
ARM: Final[dict[str, Any]] = {"arch": Arch.AARCH64}
ARM_CPUS = cpu_request(MessageType.ADD_CPU, 2)
LONG_LOAD = ADD_CPU.reply(0).encode()[:-1] + b"x"


def line(raw: bytes) -> ConnectionSituation:
    return connected(port=None, line=raw)


Case = tuple[str, Situation | ConnectionSituation, tuple[str, ...]]
CASES: list[Case] = [
    (
        "UP101",
        connected(7),
        (
            "Connection 7 to port 219 was closed without OK",
            "DRAGONBALL_UPCALL_SRV",
            "UpcallServerNotReady",
        ),
    ),
    ("UP101", connected(how=How.RESET), ("was reset without OK",)),
    ("UP101", connected(port=None), ("to the upcall port",)),
    (
        "UP102",
        connected(40, refusals=40, interval_ns=10_100_000),
        (
            "40 connections in a row, up to connection 40,",
            "the last two 10.1ms apart",
            "gives up for good after 501 tries, 10 ms apart",
        ),
    ),
    ("UP102", connected(refusals=501), ("for the rest of the VM's life",)),
    ("UP103", line(b"HELLO\n"), (r"'HELLO\n'", "does not begin with CONNECT and a space")),
    ("UP103", line(b"connect abc\n"), ("not one decimal number of 32 bits",)),
    ("UP103", line(b"CONNECT 1 2\n"), ("not one decimal number of 32 bits",)),
    ("UP103", line(b"CONNECT 21" + b"9" * 22), ("the first 32 bytes have no newline",)),
    ("UP103", line(b"\x1b" * 32), (r"\x1b",)),
    ("UP103", line(b""), ("no whole line came",)),
    ("UP104", connected(service=0x78), ("connection 3 after the service byte 0x78 ('x')",)),
    ("UP104", connected(service=7), ("the service byte 0x07.",)),
    ("UP105", connected(6, waited_ns=10_080_000_000), ("6 10.08s after accepting it",)),
    ("UP105", connected(), ("waits 10 s",)),
    (
        "UP106",
        connected(service=0x64),
        ("after the service byte 0x64 ('d').", "did not start or did not live"),
    ),
    (
        "UP106",
        connected(service=0x64, waited_ns=2_000_000_000, lost=12),
        ("in 2.00s", "The recording lacks bytes of it (12)"),
    ),
    (
        "UP107",
        connected(hello=False),
        ("connection 3 is not a valid CONNECT message", "upcall connect service check failed"),
    ),
    (
        "UP108",
        connected(service=0x64, hello=True),
        ("0x64 ('d') on connection 3 before OK", "Nothing came of it this time"),
    ),
    ("UP108", connected(service=0x64), ("No valid CONNECT message followed",)),
    (
        "UP501",
        asked(WRONG_MAGIC, 0),
        (
            "request 2.6, add_mmio 0xe0006000+0x2000 irq=5, says 0",
            "a connection starts with 0 there",
            "correct the magic to 0x444d0100",
        ),
    ),
    ("UP501", asked(WRONG_MAGIC, 0, last_ref=EARLIER), ("at the reply to request 2.4",)),
    ("UP501", asked(WRONG_MAGIC, 0, last_ret=None), ("does not show what wrote it",)),
    (
        "UP501",
        asked(WRONG_MAGIC, 0, facts={"continues": 5}),
        ("reply to request 2.6 says 0", "piece of another"),
    ),
    (
        "UP502",
        asked(WRONG_MAGIC, -17, **LEFT_EEXIST),
        ("says -17 (EEXIST), which is not about this request", "at the reply to request 2.4"),
    ),
    ("UP502", asked(WRONG_MAGIC, -17, last_ret=None), ("does not show what wrote it",)),
    (
        "UP502",
        asked(ADD_PCI, -19, **LEFT_ENODEV),
        (
            "repeats the -19 (ENODEV) of the reply before it",
            "there at the reply to request 2.4",
            "a real refusal looks the same on the wire",
            "If it is left over, the command worked",
            "'Could not find PCI'",
        ),
    ),
    ("UP502", asked(ADD_PCI, -19, last_ret=None), ("may be older than the request",)),
    (
        "UP502",
        asked(ADD_PCI, -17, **LEFT_EEXIST),
        ("one that fails says ENODEV", "The command worked although"),
    ),
    (
        "UP502",
        asked(ADD_PCI, -1, last_ret=-1),
        ("a kernel without PCI hotplug gives the same", "If it is left over"),
    ),
    (
        "UP503",
        asked(ADD_MMIO, -17, load=1, last_load=1),
        ("1 byte beyond its load is not zero: apic_index would read 1.",),
    ),
    (
        "UP503",
        asked(ADD_MMIO, -17, load=0x102, last_load=0x102),
        ("2 bytes beyond its load are not zero: apic_index would read 258.",),
    ),
    ("UP503", asked(ADD_MMIO, 0, load=4, last_load=4, **ARM), ("cpu_id would read 4",)),
    (
        "UP503",
        asked(ADD_MMIO, 0, load=4, last_load=4, load_ref=EARLIER),
        ("Left over from the reply to request 2.4",),
    ),
    ("UP503", asked(ADD_MMIO, 0, load=4, last_load=None), ("does not show what left them",)),
    (
        "UP503",
        asked(ADD_MMIO, 0, load=4, last_load=3, load_ref=EARLIER),
        ("does not show what left them",),
    ),
    (
        "UP503",
        asked(ARM_CPUS, -5, load=4, last_load=3, **ARM),
        ("this command wrote it without counting it",),
    ),
    ("UP503", asked(ADD_CPU, 0, raw=LONG_LOAD), ("1 byte beyond its load is not zero.",)),
    (
        "UP504",
        asked(bare_request(77), -1),
        ("no handler for type_77, and answered -1 (EPERM)", "the known ones are 1 to 8"),
    ),
    ("UP504", asked(bare_request(0), -1), ("the guest sends it and does not expect one",)),
    (
        "UP504",
        asked(ADD_PCI, -1),
        ("no handler for add_pci (7)", "without DRAGONBALL_HOTPLUG_PCI"),
    ),
    ("UP504", asked(ADD_CPU, -1), ("without DRAGONBALL_HOTPLUG_CPU",)),
    ("UP504", asked(ADD_MMIO, -1), ("without DRAGONBALL_HOTPLUG_VIRTIO_MMIO",)),
    (
        "UP505",
        asked(ADD_MMIO, number=8, size=524, facts={"continues": 6}),
        (
            "Request 2.8 is the rest of request 2.6: 524 bytes",
            "check in the guest what request 2.6 did",
        ),
    ),
    (
        "UP506",
        asked(ADD_MMIO, size=16),
        (
            "Request 2.6 is 16 bytes instead of 1024",
            "what request 2.5 left in its buffer",
            "It ran as add_mmio 0xe0006000+0x2000 irq=5",
        ),
    ),
    ("UP506", asked(ADD_MMIO, size=16, number=0), ("zeros on a fresh connection",)),
    (
        "UP507",
        asked(ADD_MMIO, facts={"overlaps": 4}),
        ("Request 2.6 was sent while request 2.4 had no reply", "upcall is busy now"),
    ),
    (
        "UP508",
        asked(ADD_MMIO, size=476, facts={"rest_of": 5}),
        ("Request 2.6 is 476 bytes that were left over", "the send that holds request 2.5"),
    ),
    (
        "UP509",
        asked(ADD_MMIO, 0, raw=bare_request(6).reply().encode()),
        ("request 2.6, add_mmio 0xe0006000+0x2000 irq=5, does not fit", "it is of del_mmio (6)"),
    ),
    ("UP509", asked(ADD_MMIO, 0, raw=bytes(1024)), ("its magic is 0x00000000, not 0x444d0100",)),
    (
        "UP509",
        asked(ADD_MMIO, 0, raw=replace(ADD_MMIO.reply(), msg_size=4, msg_flags=2).encode()),
        ("its msg_size is 4 and its msg_flags 0x2",),
    ),
    ("UP510", connected(unsolicited=1), ("The guest sent a message on connection 3",)),
    (
        "UP510",
        connected(unsolicited=2),
        ("The guest sent 2 messages on connection 3", "one send reached it in two pieces"),
    ),
    ("UP510", connected(unsolicited=2, lost=24), ("lacks bytes of this connection (24)",)),
    (
        "UP511",
        asked(bare_request(3), -1),
        ("no handler for add_mem (3), and answered -1 (EPERM)", "No memory was added"),
    ),
    (
        "UP511",
        asked(bare_request(4), -1),
        ("No memory was removed", "ADD_MMIO of a virtio-mem device"),
    ),
    (
        "UP512",
        asked(WRONG_MAGIC, 0),
        (
            "Request 2.6 begins with 0x444d0200 instead of the magic 0x444d0100",
            "although the reply says 0",
        ),
    ),
    ("UP512", asked(WRONG_MAGIC, -17), ("the -17 (EEXIST) in the reply is not about this",)),
    ("UP512", asked(WRONG_MAGIC), ("whatever a reply may say",)),
    ("UP512", asked(WRONG_MAGIC, facts={"continues": 4}), ("It is the rest of request 2.4",)),
    ("UP512", asked(WRONG_MAGIC, facts={"rest_of": 5}), ("the send that holds request 2.5",)),
    (
        "UP599",
        asked(ADD_MMIO, -12),
        (
            "with -12 (ENOMEM), which is unusual for this request",
            "is not known to give ENOMEM here",
            "it counts the request as done",
        ),
    ),
    ("UP599", asked(ADD_MMIO, -600), ("is not known to give -600 here",)),
    ("UP599", asked(ADD_CPU, 1), ("CPU was already online", "any ret but 0 for a failure")),
    ("UP599", asked(ADD_CPU, 9), ("where this number comes from is not known",)),
    ("UP599", asked(ADD_PCI, -1), ("may lack DRAGONBALL_HOTPLUG_PCI",)),
    (
        "UP599",
        asked(bare_request(77), 0),
        ("A type without a handler gets -1", "what the guest did with it is not known"),
    ),
]

HUGE = mmio_request(MessageType.DEL_MMIO, HIGHEST_U64, HIGHEST_U64, (1 << 32) - 1)
MANY_CPUS = cpu_request(MessageType.ADD_CPU, [*range(0, 255, 2)])
LOWEST_RET = -(1 << 31)
FAR = Ref((1 << 32) - 1, (1 << 32) - 1)


def far(at: Situation) -> Situation:
    """The same with the longest numbers there are."""

    def longest(number: int | None) -> int | None:
        return None if number is None else FAR.request

    event = replace(
        at.event,
        number=FAR.request,
        continues=longest(at.event.continues),
        rest_of=longest(at.event.rest_of),
        overlaps=longest(at.event.overlaps),
    )
    return replace(
        at, ref=FAR, event=event, last_ref=at.last_ref and FAR, load_ref=at.load_ref and FAR
    )


def extreme(code: str, request: Request) -> Case:
    """A rule about a request with the longest values."""
    if code in ("UP501", "UP502", "UP512"):
        request = replace(request, magic_version=1)
    raw = request.reply(LOWEST_RET).encode()[:20] + b"\xff" * 1004
    at = asked(request, LOWEST_RET, raw=raw, last_ret=LOWEST_RET, last_load=0xFFFFFFFF)
    return (code, far(replace(at, last_ref=EARLIER, load_ref=EARLIER)), ())


EXTREMES = [
    *((code, far(at), words) for code, at, words in CASES if isinstance(at, Situation)),
    *(
        extreme(code, request)
        for request in (HUGE, MANY_CPUS)
        for code in ("UP501", "UP502", "UP503", "UP506", "UP509", "UP512", "UP599")
    ),
]


def told(code: str, at: Situation | ConnectionSituation) -> Told:
    return OURS[code].tell(at)


def sentences(words: Told) -> tuple[str, str, str, str]:
    return (words.what, words.why, words.so, words.next)


def test_each_code_has_its_name_and_severity() -> None:
    assert {code: (entry.name, entry.severity) for code, entry in OURS.items()} == TABLE


def test_every_code_has_a_case() -> None:
    assert {code for code, _, _ in CASES} == set(TABLE)


@pytest.mark.parametrize(("code", "at", "words"), CASES)
def test_the_words_are_those_of_the_case(
    code: str, at: Situation | ConnectionSituation, words: tuple[str, ...]
) -> None:
    text = " ".join(sentences(told(code, at)))
    for expected in words:
        assert expected in text


@pytest.mark.parametrize(("code", "at", "words"), CASES + EXTREMES)
def test_sentences_are_short_and_plain(
    code: str, at: Situation | ConnectionSituation, words: tuple[str, ...]
) -> None:
    for sentence in sentences(told(code, at)):
        assert sentence.endswith(".")
        assert not sentence.endswith("..")
        assert sentence.isprintable()
        assert len(sentence) <= 200, sentence
        assert "None" not in sentence
        assert "  " not in sentence
        assert sentence[0].isupper() or sentence[0].isdigit() or sentence.startswith("-1 ")


REQUESTS = [(code, at) for code, at, _ in CASES if isinstance(at, Situation)]


@pytest.mark.parametrize(("code", "at"), REQUESTS)
def test_evidence_is_a_request_that_the_sentences_name(code: str, at: Situation) -> None:
    words = told(code, at)
    for evidence in words.evidence:
        assert evidence.source == "request"
        assert evidence.conn is not None
        assert evidence.request is not None
        named = Ref(evidence.conn, evidence.request)
        assert str(named) in " ".join(sentences(words)).lower()


def test_evidence_of_a_stale_reply_is_the_reply_that_left_it() -> None:
    proof = (2, 4)
    for code, request, ret in (
        ("UP501", WRONG_MAGIC, 0),
        ("UP502", WRONG_MAGIC, -17),
        ("UP502", ADD_PCI, -19),
        ("UP503", ADD_MMIO, -17),
    ):
        at = asked(
            request, ret, load=1, last_ret=ret, last_load=1, last_ref=EARLIER, load_ref=EARLIER
        )
        assert [(e.conn, e.request) for e in told(code, at).evidence] == [proof]
        assert told(code, replace(at, last_ref=None, load_ref=None)).evidence == ()
        after_a_gap = replace(at, last_ret=None, last_load=None)
        assert told(code, after_a_gap).evidence == ()
        assert "does not show" in told(code, after_a_gap).why
    other = asked(ADD_MMIO, 0, load=4, last_load=3, load_ref=EARLIER)
    assert told("UP503", other).evidence == ()


@pytest.mark.parametrize("code", ["UP505", "UP507", "UP508"])
def test_what_concerns_two_requests_names_both(code: str) -> None:
    at = asked(ADD_MMIO, size=10, facts={"continues": 3, "overlaps": 3, "rest_of": 3})
    words = told(code, at)
    assert "request 2.6" in words.what.lower()
    assert "request 2.3" in words.what
    assert [(e.conn, e.request) for e in words.evidence] == [(2, 3)]


PARAGRAPHS = "What it says|Why it matters|On the wire|Example|Limits|What to do".split("|")


@pytest.mark.parametrize("code", OURS)
def test_the_page_has_its_paragraphs_in_order(code: str) -> None:
    first, *parts = OURS[code].page.split("\n\n")
    assert first.endswith(".")
    assert "\n" not in first
    heads = [re.match(r"\*\*(.+?)\.\*\* \S", part) for part in parts]
    assert [head and head[1] for head in heads] == PARAGRAPHS
    assert all(part.endswith(".") for part in parts)
    assert "docs/protocol.md section" in " ".join(OURS[code].page.split())


SHOWN: dict[str, Callable[[Operation], bool]] = {
    "UP501": lambda op: "stale-success" in op.anomalies,
    "UP502": lambda op: "stale-error" in op.anomalies,
    "UP503": lambda op: "stale-load" in op.anomalies and op.op == "add_cpu",
    "UP504": lambda op: op.ret == -1 and op.op in ("connect", "type_77"),
    "UP505": lambda op: "split-request" in op.anomalies,
    "UP506": lambda op: "short-request" in op.anomalies,
    "UP507": lambda op: "overlapping-requests" in op.anomalies,
    "UP508": lambda op: "over-long-request" in op.anomalies,
    "UP509": lambda op: "reply-mismatch" in op.anomalies,
    "UP511": lambda op: op.ret == -1 and op.op in ("add_mem", "del_mem"),
    "UP512": lambda op: "bad-magic" in op.anomalies,
    "UP599": lambda op: op.meaning == "not a known result" and "stale-error" not in op.anomalies,
}
BEGUN: dict[str, Callable[[Connection], bool]] = {
    "UP101": lambda c: c.port == 219 and c.accepted is None and c.closed_by_guest,
    "UP102": lambda c: c.port == 219 and c.accepted is None and c.closed_by_guest,
    "UP103": lambda c: c.line != b"" and c.port is None,
    "UP104": lambda c: c.service not in (None, 0x64) and c.closed_by_guest,
    "UP105": lambda c: bool(c.accepted) and c.service is None and c.closed_by_guest,
    "UP106": lambda c: c.service == 0x64 and c.hello is None,
    "UP107": lambda c: c.hello is False,
    "UP510": lambda c: c.unsolicited > 0,
}


@cache
def captures() -> dict[str, Capture]:
    names = sorted(path.stem for path in sample("framing").parent.glob("*.upcap"))
    return {name: load(sample(name)) for name in names}


def example(code: str) -> str:
    parts = OURS[code].page.split("\n\n")
    return " ".join(next(part for part in parts if part.startswith("**Example.**")).split())


@pytest.mark.parametrize("code", SHOWN)
def test_the_page_names_a_request_of_that_kind_or_says_that_there_is_none(code: str) -> None:
    text = example(code)
    if "No recording has it." in text:
        for capture in captures().values():
            assert not any(SHOWN[code](op) for op in capture.operations)
        return
    named = re.findall(r"`(\w+)`, request (\d+)\.(\d+)", text)
    assert named
    for name, conn, request in named:
        key = (int(conn), int(request))
        found = [op for op in captures()[name].operations if (op.conn, op.request) == key]
        assert len(found) == 1
        assert SHOWN[code](found[0])


@pytest.mark.parametrize("code", BEGUN)
def test_the_page_names_a_connection_of_that_kind_or_says_that_there_is_none(code: str) -> None:
    text = example(code)
    if "No recording has it." in text:
        for capture in captures().values():
            assert not any(BEGUN[code](connection) for connection in capture.connections)
        return
    named = re.findall(r"`(\w+)`, connection (\d+)", text)
    assert named
    for name, number in named:
        found = [c for c in captures()[name].connections if c.number == int(number)]
        assert len(found) == 1
        assert BEGUN[code](found[0])


def test_each_page_is_checked_against_the_recordings() -> None:
    assert {*SHOWN, *BEGUN} == set(TABLE) - {"UP108"}
    assert "No recording has it." in example("UP108")  # they all wait for OK: see the frames


def test_a_situation_is_not_changed_by_what_is_said_of_it() -> None:
    at = asked(WRONG_MAGIC, -17, last_ret=-17, last_ref=EARLIER)
    before = astuple(at)
    assert told("UP502", at) == told("UP502", at)
    assert astuple(at) == before
    assert at.request.magic_version != MAGIC_VERSION
    assert all(isinstance(item, Evidence) for item in told("UP502", at).evidence)
