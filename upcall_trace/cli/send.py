"""`send`: one hand-made request, the decoded answer, and what Dragonball would make of it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final

import click

from dissectors.constants import CALLER_TIMEOUT_NS, UPCALL_PORT, Arch
from dissectors.layouts import DEVICE_MANAGER_TABLE
from dissectors.messages import hello
from dissectors.services import DEVICE_MANAGER, Service, registered
from dissectors.tables import MessageRow

from ..capture.records import Begins, Chunk, Header, Open
from ..diagnose.verdict import verdict
from ..errors import ExitCode, UnreadableInput, WrongUsage
from ..kernel.world import kata_pod
from ..replay.plan import DANGERS, make_plan
from ..replay.target import Target, look_at
from ..sockets.addresses import check_reachable, parse_address
from ..sockets.client import Answer, UpcallClient
from ..trace.decoding import Session
from ..trace.operations import Operation, Operations
from ..trace.scripting import read_script
from ..views.asking import BadWord, usage, values_of
from ..views.json_objects import operation_object
from ..views.text import HEADING, duration, hex_lines, operation_text
from .support.options import color_option
from .support.output import has_terminal, out, out_json, say, talk

_TIMEOUT_S: Final = 15.0
_RAW_LIMIT: Final = 64 << 10
_OPERATIONS: Final = {
    message.name.replace("_", "-"): usage(DEVICE_MANAGER_TABLE, message)
    for message in DEVICE_MANAGER_TABLE.messages
    if message.request
}
_HELP: Final = f"""Send one request and show what the guest answers.

OPERATION is {
    ", ".join(f"{name} {words}".partition(", on ")[0] for name, words in _OPERATIONS.items())
}, or raw FILE, which sends the file's bytes in one write. Numbers may be
hexadecimal. The operations of other packages' services can be sent, too. On a terminal, values that
you leave out are asked for. Ends with 1 when the guest refuses or says nothing.
"""


@click.command("send", help=_HELP, context_settings={"ignore_unknown_options": True})
@click.option("--to", "address", metavar="ADDRESS", required=True, help="The guest to send it to.")
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
@click.option("--allow", multiple=True, type=click.Choice(list(DANGERS)), metavar="CODE",
              help="Send it in spite of this danger, to a guest that may be real.")  # fmt: skip
@click.option("--hex", "with_hex", is_flag=True, help="Also the bytes of request and reply.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead.")
@color_option
@click.argument("operation", nargs=-1, required=True)
def send_command(
    address: str,
    port: int,
    arch: str,
    timeout_s: float,
    allow: tuple[str, ...],
    with_hex: bool,
    as_json: bool,
    operation: tuple[str, ...],
) -> ExitCode:
    """Send one request; `_HELP` tells the rest."""
    guest_arch = Arch(arch)
    service, raw = _request(operation, guest_arch)
    to = parse_address(address)
    check_reachable(to)
    if service is DEVICE_MANAGER:
        _guard(look_at(to, arch=guest_arch), raw, guest_arch, allow)
    with UpcallClient(to, port, arch=guest_arch, service=service) as client:
        answer = client.ask(raw, timeout_s)
    shown = _operation(service, raw, answer, guest_arch)
    ours = service is DEVICE_MANAGER
    opinion = verdict(shown.msg_type or 0, shown.ret, shown.latency_ns) if ours else _NOT_OURS
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
        talk(_no_reply(client, timeout_s))
    elif answer.latency_ns > CALLER_TIMEOUT_NS:
        talk(f"the reply took {duration(answer.latency_ns)}; Kata waits 250 ms for most of them")
    done = shown.ret == 0 and "bad-magic" not in shown.anomalies
    return ExitCode.EXPECTED if done else ExitCode.DIFFERENT


def _no_reply(client: UpcallClient, timeout_s: float) -> str:
    """Why there is none: the guest's end of the connection, or the end of our patience."""
    whole = f"; {client.received} bytes of one had come" if client.received else ""
    if client.ended_by_guest:
        return f"the guest closed the connection instead of a reply{whole}"
    return f"no reply within {timeout_s:g} s{whole}"


def _guard(target: Target, raw: bytes, arch: Arch, allow: tuple[str, ...]) -> None:
    """Raises WrongUsage for what would harm a guest that may be real, as a replay's plan says."""
    if target.kind is not None:
        return
    sent = ((True, bytes([DEVICE_MANAGER.byte])), (False, hello().encode()), (True, raw))
    records = [Open(0, 1, Begins.SERVICE, accepted=True)]
    script = read_script(
        Header("send", arch=arch.value), [*records, *(Chunk(0, 1, way, part) for way, part in sent)]
    )
    # With one CPU nothing would come of a removal; how many there are nobody knows here.
    for danger in make_plan(script, kata_pod(arch, cpus=2), target.guessed).refused(allow):
        raise WrongUsage(
            f"not sent: {danger.why}, and {target.address} may be a real guest; "
            f"--allow {danger.code} sends it all the same"
        )


_NOT_OURS: Final = "it does not use this service"


def _operation(service: Service, raw: bytes, answer: Answer | None, arch: Arch) -> Operation:
    """The first request on a fresh connection, doubts included, as if it had been recorded."""
    session = Session(Header("send", arch=arch.value))
    session.feed(Open(0, 1, Begins.SERVICE, accepted=True))
    ready = hello().encode() if service is DEVICE_MANAGER else bytes(service.hello_size)
    for sent, to_guest in ((bytes([service.byte]), True), (ready, False), (raw, True)):
        if sent:
            session.feed(Chunk(0, 1, to_guest, sent))
    if answer is not None:
        session.feed(Chunk(answer.latency_ns, 1, False, answer.raw))
    session.finish()
    return Operations(session.table.columns(), 0).operation(0)


def _request(words: tuple[str, ...], arch: Arch) -> tuple[Service, bytes]:
    """The service and the bytes that an OPERATION means; raises WrongUsage, which names the word
    that is wrong."""
    name, *arguments = words
    if name == "raw":
        return DEVICE_MANAGER, _raw(arguments)
    service, message = _named(name)
    layout = service.table.layout(message.number, arch)
    if not arguments and usage(service.table, message):
        arguments = _asked_for(name, usage(service.table, message))
    try:
        values = values_of(layout, arguments)
    except BadWord as error:
        raise WrongUsage(f"{name} {usage(service.table, message)}: {error}") from None
    return service, service.codec.request_with(message.number, values, arch).encode()


def _asked_for(name: str, words: str) -> list[str]:
    """The values that were left out, as they are typed now; raises WrongUsage for none."""
    arguments: list[str] = []
    if sys.stdin is not None and sys.stdin.isatty() and has_terminal():
        say(f"{name} needs {words}: ")
        arguments = sys.stdin.readline().split()
    if not arguments:
        raise WrongUsage(f"{name} needs {words}; nothing was sent")
    return arguments


def _named(name: str) -> tuple[Service, MessageRow]:
    """The message of that name, ours first; raises WrongUsage."""
    wanted = name.replace("-", "_")
    found = [
        (service, service.table.by_name[wanted])
        for service in (DEVICE_MANAGER, *registered())
        if wanted in service.table.by_name
    ]
    if not found or not (found[0][1].request or found[0][0] is not DEVICE_MANAGER):
        others = (
            message.name.replace("_", "-")
            for service in registered()
            for message in service.table.messages
        )
        known = ", ".join([*_OPERATIONS, *others, "raw"])
        raise WrongUsage(f"{name!r} is no operation; known are {known}")
    if len(found) > 1 and found[0][0] is not DEVICE_MANAGER:
        names = " and ".join(service.name for service, _ in found)
        raise WrongUsage(f"{name!r} is an operation of several services: {names}")
    return found[0]


def _raw(arguments: list[str]) -> bytes:
    if len(arguments) != 1:
        raise WrongUsage("raw needs one file")
    try:
        with Path(arguments[0]).open("rb") as file:
            raw = file.read(_RAW_LIMIT + 1)
    except OSError as error:
        raise UnreadableInput(f"{arguments[0]}: {error.strerror}") from None
    if not 0 < len(raw) <= _RAW_LIMIT:
        size = f"more than {_RAW_LIMIT}" if raw else "no"
        raise UnreadableInput(f"{arguments[0]} has {size} bytes; 1 to {_RAW_LIMIT} can be sent")
    return raw
