"""`send`: one hand-made request, the decoded answer, and what Dragonball would make of it."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import click

from dissectors.constants import CALLER_TIMEOUT_NS, UPCALL_PORT, Arch, MessageType
from dissectors.messages import (
    Request,
    cpu_request,
    hello,
    mmio_request,
    pci_request,
)

from ..capture.records import Begins, Chunk, Header, Open
from ..diagnose.verdict import verdict
from ..errors import ExitCode, UnreadableInput, WrongUsage
from ..sockets.addresses import parse_address
from ..sockets.client import Answer, UpcallClient
from ..trace.decoding import Session
from ..trace.operations import Operation, Operations
from ..views.json_objects import operation_object
from ..views.text import HEADING, duration, hex_lines, operation_text
from .support.output import out, out_json, talk

_TIMEOUT_S: Final = 15.0
_RAW_LIMIT: Final = 64 << 10
_OPERATIONS: Final = {
    "add-cpu": (MessageType.ADD_CPU, "ID…, on aarch64 a COUNT"),
    "del-cpu": (MessageType.DEL_CPU, "ID…, on aarch64 a COUNT"),
    "add-mmio": (MessageType.ADD_MMIO, "BASE SIZE IRQ"),
    "del-mmio": (MessageType.DEL_MMIO, "BASE SIZE IRQ"),
    "add-pci": (MessageType.ADD_PCI, "BUS SLOT[.FN]"),
    "del-pci": (MessageType.DEL_PCI, "BUS SLOT[.FN]"),
}


@click.command("send", context_settings={"ignore_unknown_options": True})
@click.option("--to", "address", metavar="ADDRESS", required=True, help="Whom to send it to.")
@click.option(
    "--port", type=click.IntRange(0, 0xFFFFFFFF), default=UPCALL_PORT, show_default=True,
    help="Port in the CONNECT line.",
)  # fmt: skip
@click.option(
    "--arch", type=click.Choice([arch.value for arch in Arch]), default=Arch.X86_64.value,
    show_default=True, help="The guest's: it decides how CPUs are named.",
)  # fmt: skip
@click.option(
    "--timeout", "timeout_s", type=click.FloatRange(0.001, 3600), default=_TIMEOUT_S,
    show_default=True, help="Seconds to wait for the reply; a guest may take ten.",
)  # fmt: skip
@click.option("--hex", "with_hex", is_flag=True, help="Also the bytes of request and reply.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead.")
@click.argument("operation", nargs=-1, required=True)
def send_command(
    address: str,
    port: int,
    arch: str,
    timeout_s: float,
    with_hex: bool,
    as_json: bool,
    operation: tuple[str, ...],
) -> ExitCode:
    """Send one request and show what the guest answers.

    OPERATION is add-cpu ID…, del-cpu ID…, add-mmio BASE SIZE IRQ, del-mmio BASE SIZE IRQ,
    add-pci BUS SLOT[.FN], del-pci BUS SLOT[.FN], or raw FILE, which sends the file's bytes in one
    write. Numbers may be hexadecimal. Ends with 1 when the guest refuses or says nothing.
    """
    guest_arch = Arch(arch)
    raw = _request(operation, guest_arch)
    with UpcallClient(parse_address(address), port, arch=guest_arch) as client:
        answer = client.ask(raw, timeout_s)
    shown = _operation(raw, answer, guest_arch)
    opinion = verdict(shown.msg_type or 0, shown.ret, shown.latency_ns)
    if as_json:
        out_json(operation_object(shown) | {"dragonball": opinion})
    else:
        out(HEADING)
        out(operation_text(shown), "red" if shown.failed else None)
        out(f"Dragonball: {opinion}")
    if with_hex and not as_json:
        for title, message in (("request", raw), ("reply", answer.raw if answer else b"")):
            out(f"{title}, {len(message)} bytes")
            for line in hex_lines(message):
                out(line)
    if answer is None:
        talk(f"no reply within {timeout_s:g} s, or the guest closed")
    elif answer.latency_ns > CALLER_TIMEOUT_NS:
        talk(f"the reply took {duration(answer.latency_ns)}; Kata waits 250 ms for most of them")
    done = shown.ret == 0 and "bad-magic" not in shown.anomalies
    return ExitCode.EXPECTED if done else ExitCode.DIFFERENT


def _operation(raw: bytes, answer: Answer | None, arch: Arch) -> Operation:
    """The first request on a fresh connection, doubts included, as if it had been recorded."""
    session = Session(Header("send", arch=arch.value))
    session.feed(Open(0, 1, Begins.SERVICE, accepted=True))
    for sent, to_guest in ((b"d", True), (hello().encode(), False), (raw, True)):
        session.feed(Chunk(0, 1, to_guest, sent))
    if answer is not None:
        session.feed(Chunk(answer.latency_ns, 1, False, answer.raw))
    session.finish()
    return Operations(session.table.columns(), 0).operation(0)


def _request(words: tuple[str, ...], arch: Arch) -> bytes:
    """The bytes that an OPERATION means; raises WrongUsage, which names the word that is wrong."""
    name, *arguments = words
    if name == "raw":
        return _raw(arguments)
    if name not in _OPERATIONS:
        raise WrongUsage(f"{name!r} is no operation; known are {', '.join([*_OPERATIONS, 'raw'])}")
    msg_type, usage = _OPERATIONS[name]
    try:
        return _built(msg_type, arguments, arch).encode()
    except _BadWordError as error:
        raise WrongUsage(f"{name} {usage}: {error}") from None


class _BadWordError(ValueError):
    pass


def _built(msg_type: MessageType, words: list[str], arch: Arch) -> Request:
    if msg_type in (MessageType.ADD_CPU, MessageType.DEL_CPU):
        if arch is Arch.AARCH64:
            _count(words, 1)
            return cpu_request(msg_type, _number(words[0], 0xFF))
        _count(words, 0, 0xFF)
        return cpu_request(msg_type, [_number(word, 0xFF) for word in words])
    if msg_type in (MessageType.ADD_MMIO, MessageType.DEL_MMIO):
        _count(words, 3)
        base, size = (_number(word, (1 << 64) - 1) for word in words[:2])
        return mmio_request(msg_type, base, size, _number(words[2], (1 << 32) - 1))
    _count(words, 2)
    slot, dot, function = words[1].partition(".")
    where = (_number(words[0], 0xFF), _number(slot, 31), _number(function, 7) if dot else 0)
    return pci_request(msg_type, *where)


def _count(words: list[str], least: int, most: int | None = None) -> None:
    if not least <= len(words) <= (least if most is None else most):
        raise _BadWordError(f"{len(words)} values were given")


def _number(word: str, most: int) -> int:
    try:
        number = int(word, 0)
    except ValueError:
        raise _BadWordError(f"{word!r} is not a number") from None
    if not 0 <= number <= most:
        raise _BadWordError(f"{word} is not within 0 and {most:#x}")
    return number


def _raw(arguments: list[str]) -> bytes:
    if len(arguments) != 1:
        raise WrongUsage("raw needs one file")
    try:
        raw = Path(arguments[0]).read_bytes()
    except OSError as error:
        raise UnreadableInput(f"{arguments[0]}: {error.strerror}") from None
    if not 0 < len(raw) <= _RAW_LIMIT:
        raise UnreadableInput(f"{arguments[0]} has {len(raw)} bytes; 1 to {_RAW_LIMIT} can be sent")
    return raw
