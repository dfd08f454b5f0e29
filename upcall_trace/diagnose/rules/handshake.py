"""UP101 to UP108: how connections begin, from the CONNECT line to the CONNECT message.

The ones that nobody answers, and answers that are none, are in `connecting.py`.
"""

from __future__ import annotations

from typing import Final

from dissectors.constants import (
    CONNECT_LINE_LIMIT,
    MAGIC_VERSION,
    RECONNECT_LIMIT,
    SERVICE_BYTE_LIMIT_NS,
)
from dissectors.services import DEVICE_MANAGER

from ... import codes
from ...capture.records import How
from ...views.text import duration, safe
from ..finding import Told
from ..lives import LOOP_LENGTH
from ..situation import ConnectionSituation
from .registry import Cue, rule

_NEARLY_LIMIT_NS: Final = SERVICE_BYTE_LIMIT_NS * 9 // 10
_SHOWN: Final = 60
"""Characters of a client's own text in a sentence."""


def _closed(at: ConnectionSituation) -> str:
    return "reset" if at.connection.how is How.RESET else "closed"


def _byte(value: int | None) -> str:
    """A service byte as people read it: `the service byte 0x78 ('x')`."""
    if value is None:
        return "a service byte"
    letter = f" ('{chr(value)}')" if 0x21 <= value < 0x7F else ""
    return f"the service byte {value:#04x}{letter}"


def _in(waited_ns: int | None) -> str:
    return "" if waited_ns is None else f" in {duration(waited_ns)}"


def refused(at: ConnectionSituation) -> bool:
    """The guest's side ended it without OK and without any other word."""
    connection = at.connection
    nothing = not connection.accepted and not at.received and not at.half_closed
    return nothing and connection.closed_by_guest and at.to_upcall


def before(at: ConnectionSituation) -> str:
    """What a refusal means when the guest had answered before."""
    return (
        f"The guest had answered on connection {at.worked_before}: since then it ended, or "
        "started anew, or lost its vsock device."
    )


@rule(codes.NO_LISTENER, {Cue.CLOSED: lambda at: refused(at) and at.refusals < LOOP_LENGTH})
def no_listener(at: ConnectionSituation) -> Told:
    """A connection to the upcall port was closed without OK.

    **What it says.** The client asked for the upcall port, and the stream ended before any OK. In
    the guest nobody accepts connections on that port: it has not booted far enough, its kernel has
    no upcall, or the server was moved to another port.

    **Why it matters.** Without this connection nothing can be hot-plugged. Dragonball answers such
    operations with `UpcallServerNotReady`. A few refusals while the guest boots are normal.

    **On the wire.** `CONNECT 219`, then the end of the stream. Inside the guest: a connection
    request that is answered with a reset. docs/protocol.md section 2.

    **Example.** No recording has it. In `handshake`, connection 1 ends in this way, but it asks for
    port 9999, which is not the upcall port.

    **Limits.** The multiplexer gives no reason, so it cannot be told from its end of the stream
    which of the three it was. Only connections to the upcall port count.

    **What to do.** If a later connection gets OK, the guest was only not ready. If none does, check
    that the guest kernel has DRAGONBALL_UPCALL_SRV, and look for `db-upcall-srv` in its console.
    """
    connection = at.connection
    port = "the upcall port" if connection.port is None else f"port {connection.port}"
    why = (
        "Nobody accepts on that port in the guest: it is still booting, its kernel has no "
        "upcall, or the server is on another port."
    )
    return Told(
        what=f"Connection {connection.number} to {port} was {_closed(at)} without OK.",
        why=before(at) if at.worked_before else why,
        so="Dragonball tries again 10 ms later; until it gets an OK, hotplug fails with "
        "UpcallServerNotReady.",
        next="If no later connection gets OK, check the guest's kernel for DRAGONBALL_UPCALL_SRV "
        "and its console for db-upcall-srv.",
    )


@rule(codes.CONNECT_REFUSED_LOOP, {Cue.REFUSED: lambda at: at.refusals >= LOOP_LENGTH})
def connect_refused_loop(at: ConnectionSituation) -> Told:
    """Connections to the upcall port are refused again and again.

    **What it says.** Several connections in a row ended without OK, about 10 ms apart: this is how
    Dragonball tries to reach a guest that does not answer.

    **Why it matters.** Dragonball tries 501 times in its life, and no success resets that count.
    After the last try it stays unconnected for good, and all hotplug fails with
    `UpcallServerNotReady`. 501 tries are used up in little more than five seconds.

    **On the wire.** `CONNECT 219` and the end of the stream, every 10 ms, with never an OK.
    docs/protocol.md section 5.

    **Example.** No recording has it. kata #6054 reports one: the guest kernel had no upcall.

    **Limits.** Tries before the recording began are not counted, and neither are successes before
    them, so the client may be nearer to its limit than the number says.

    **What to do.** Boot a guest kernel that was built with upcall (docs/protocol.md section 6). If
    it was, look in its console for `Init server err` and for what held up the boot.
    """
    apart = "" if at.interval_ns is None else f", the last two {duration(at.interval_ns)} apart"
    if at.refusals >= RECONNECT_LIMIT:
        so = (
            f"Dragonball gives up after {RECONNECT_LIMIT} tries: hotplug fails with "
            "UpcallServerNotReady for the rest of the VM's life."
        )
    else:
        so = (
            f"Dragonball gives up for good after {RECONNECT_LIMIT} tries, 10 ms apart; "
            "hotplug fails with UpcallServerNotReady meanwhile."
        )
    why = "Dragonball reconnects 10 ms after each refusal, and nobody in the guest accepts."
    advice = (
        "Check that the guest kernel was built with upcall, then its console for "
        "'Init server err' or a boot that hangs."
    )
    if at.worked_before:
        why = before(at)
        advice = "Look when the guest's console stops, and in the host's log for the VMM's end."
    return Told(
        what=f"{at.refusals} connections in a row, up to connection {at.connection.number}, ended "
        f"without OK{apart}.",
        why=why,
        so=so,
        next=advice,
    )


def _malformed(at: ConnectionSituation) -> bool:
    line, port = at.connection.line, at.connection.port
    return bool(at.unfinished) or (bool(line) and port is None and not line.startswith(b"passfd"))


@rule(codes.MALFORMED_CONNECT_LINE, {Cue.CLOSED: _malformed})
def malformed_connect_line(at: ConnectionSituation) -> Told:
    """The client's first line is not a CONNECT line.

    **What it says.** A connection to the VMM's socket begins with a line of at most 32 bytes: the
    word CONNECT in any case, one space, a decimal number of 32 bits and a newline. This one does
    not.

    **Why it matters.** The multiplexer closes the stream and gives no reason. The guest never
    learns of the connection, so nothing shows up in its console either.

    **On the wire.** The line, then the end of the stream. docs/protocol.md section 2.

    **Example.** `handshake`, connection 2: the line is `HELLO`. Connection 3 asks for port `abc`.

    **Limits.** A recording made inside the guest cannot have it: such a line ends at the
    multiplexer.

    **What to do.** Correct the client: `CONNECT 219` and a newline, nothing before and nothing
    between.
    """
    raw = at.connection.line or at.unfinished
    line = safe(raw)
    so = "The multiplexer closes such a stream and gives no reason, and the guest never sees it."
    if at.unfinished:
        so = "The multiplexer waits for the newline and says nothing, and the guest sees nothing."
    shown = line if len(line) <= _SHOWN else f"{line[: _SHOWN - 1]}…"
    return Told(
        what=f"The first line on connection {at.connection.number} is not a CONNECT line: "
        f"'{shown}'.",
        why=f"It should be CONNECT, a space, a port and a newline; {_flaw(raw)}.",
        so=so,
        next="Correct the client: the line for upcall is 'CONNECT 219' and a newline.",
    )


def _flaw(line: bytes) -> str:
    if not line:
        return "no whole line came"
    if line.endswith(b"\r"):
        return "it ends in a carriage return, and no newline followed"
    if not line.endswith(b"\n") and len(line) < CONNECT_LINE_LIMIT:
        return "it has no newline at its end"
    if not line.endswith(b"\n"):
        return f"here the first {CONNECT_LINE_LIMIT} bytes have no newline"
    if not line.lower().startswith(b"connect "):
        return "it does not begin with CONNECT and a space"
    return "what follows CONNECT is not one decimal number of 32 bits"


def _unknown_service(at: ConnectionSituation) -> bool:
    connection = at.connection
    known = connection.service in (None, DEVICE_MANAGER.byte)
    asked = connection.accepted and not known and not connection.requests
    return bool(asked and connection.closed_by_guest)


@rule(codes.UNKNOWN_SERVICE, {Cue.CLOSED: _unknown_service})
def unknown_service(at: ConnectionSituation) -> Told:
    """The guest closed the connection because of its service byte.

    **What it says.** The first byte after OK picks a service. The guest has none for this one, and
    closed.

    **Why it matters.** The client gets neither a CONNECT message nor a reason. Dragonball always
    sends `d` (0x64), the device manager, so this is most likely another program.

    **On the wire.** OK, one byte, then the end of the stream. docs/protocol.md section 4.

    **Example.** `handshake`, connection 5: the byte is `x`.

    **Limits.** A guest may have services that this tool does not know; those do not close.

    **What to do.** Send 0x64. If the byte is meant for a service of your own, check that the guest
    kernel has it: its console says `Client connection closed, error code: -1`.
    """
    return Told(
        what=f"The guest closed connection {at.connection.number} after "
        f"{_byte(at.connection.service)}.",
        why="The first byte after OK picks a service, and the guest has none for this one.",
        so="The client gets no CONNECT message and no reason; Dragonball always sends 0x64 ('d').",
        next="Send 0x64 for the device manager, or find out which program uses the upcall port.",
    )


def _no_service_byte(at: ConnectionSituation) -> bool:
    connection = at.connection
    none = bool(connection.accepted) and connection.service is None
    return none and connection.closed_by_guest and (at.waited_ns or 0) >= _NEARLY_LIMIT_NS


@rule(codes.SERVICE_BYTE_TIMEOUT, {Cue.CLOSED: _no_service_byte})
def service_byte_timeout(at: ConnectionSituation) -> Told:
    """The guest closed the connection because no service byte came.

    **What it says.** The guest accepted, the client then sent nothing, and after about 10 s the
    guest closed.

    **Why it matters.** Nothing can be asked on a connection that has no service. The client either
    hangs before its first byte, or that byte was lost: vhost-device-vsock drops what comes before
    its OK.

    **On the wire.** OK, 10 s of silence, the end of the stream. docs/protocol.md section 4.

    **Example.** `handshake`, connection 6: closed after a little more than 10 s.

    **Limits.** A byte that the multiplexer dropped looks the same in a recording made inside the
    guest.

    **What to do.** Find out what the client does between OK and its first byte. It must wait for OK
    and then send 0x64.
    """
    after = "" if at.waited_ns is None else f" {duration(at.waited_ns)} after accepting it"
    return Told(
        what=f"The guest closed connection {at.connection.number}{after}; no service byte had "
        "come.",
        why="The guest waits 10 s for the byte that picks a service, then closes.",
        so="No service was started, so nothing could be asked on this connection.",
        next="Find out why the client sent nothing: Dragonball sends its byte as soon as it has "
        "OK.",
    )


def _no_hello(at: ConnectionSituation) -> bool:
    connection = at.connection
    asked = bool(connection.accepted) and connection.service == DEVICE_MANAGER.byte
    return asked and connection.hello is None and not connection.lost


@rule(codes.NO_HELLO, {Cue.CLOSED: _no_hello})
def no_hello(at: ConnectionSituation) -> Told:
    """The guest accepted and got a service byte, but no CONNECT message came.

    **What it says.** After the service byte the guest starts a thread, whose first act is to send
    the CONNECT message. It is not in the recording.

    **Why it matters.** Dragonball does not ask anything before it has that message. Until then
    hotplug fails with `UpcallServerNotReady`.

    **On the wire.** OK, the service byte, and no 1024 bytes from the guest. docs/protocol.md
    section 1.

    **Example.** No recording has it.

    **Limits.** A client that closes at once, or a recording that stops early, looks the same.

    **What to do.** Look at how long the client waited and who closed. Then look in the guest's
    console for an oops or for `db-upcall-srv` lines.
    """
    connection = at.connection
    if connection.lost:
        why = f"The recording lacks bytes of it ({connection.lost}), perhaps this very message."
    else:
        why = (
            "The guest's thread for the connection did not start or did not live, or the "
            "connection ended before it could write."
        )
    return Told(
        what=f"No CONNECT message came on connection {connection.number} after "
        f"{_byte(connection.service)}{_in(at.waited_ns)}.",
        why=why,
        so="Dragonball asks nothing before it has this message: hotplug fails with "
        "UpcallServerNotReady.",
        next="See who ended the connection and when, and look in the guest's console for an oops "
        "or db-upcall-srv lines.",
    )


@rule(codes.BAD_HELLO, {Cue.HANDSHAKE: lambda at: at.connection.hello is False})
def bad_hello(at: ConnectionSituation) -> Told:
    """The guest's first message is not a CONNECT message.

    **What it says.** The first 1024 bytes from the guest should have the header of a CONNECT
    message: the magic 0x444d0100 and zeros for size, type and flags. They have another.

    **Why it matters.** Dragonball checks this one header and drops the stream when it is wrong. It
    then reconnects, up to 501 times in its life, and hotplug does not work meanwhile.

    **On the wire.** 1024 bytes after the service byte, whose first 16 are not `00 01 4d 44` and
    twelve zeros. docs/protocol.md section 3.

    **Example.** No recording has it.

    **Limits.** Bytes that were lost before it, in the recording or on the way, have the same
    effect.

    **What to do.** Look at the bytes. Compare the guest kernel's upcall patches with the VMM's
    version, or look for what else may listen on that port.
    """
    return Told(
        what=f"The guest's first message on connection {at.connection.number} is not a valid "
        "CONNECT message.",
        why=f"Its header must have the magic {MAGIC_VERSION:#x} and zeros for size, type and "
        "flags; this one does not.",
        so="Dragonball drops such a stream, logs 'upcall connect service check failed' and "
        "reconnects 10 ms later.",
        next="Look at the bytes, and compare the guest kernel's upcall patches with the VMM's "
        "version.",
    )


@rule(codes.EARLY_SERVICE_BYTE, {Cue.HANDSHAKE: lambda at: at.early})
def early_service_byte(at: ConnectionSituation) -> Told:
    """The client sent bytes before OK.

    **What it says.** The service byte was sent before the multiplexer said that the guest has
    accepted.

    **Why it matters.** Some multiplexers drop what comes early; vhost-device-vsock does. The guest
    then waits 10 s for a service byte and closes. With others all goes well, so such a client works
    on one host and hangs on another.

    **On the wire.** A byte to the guest between the CONNECT line and the OK line. docs/protocol.md
    section 2.

    **Example.** No recording has it.

    **Limits.** What counts is the order in which the recorder saw the bytes.

    **What to do.** Make the client wait for OK. Dragonball does.
    """
    if at.connection.hello:
        so = "Nothing came of it this time: the guest got the byte and sent its CONNECT message."
    else:
        so = (
            "No valid CONNECT message followed; a guest that never got the byte closes after "
            "10 s, and nothing can be plugged."
        )
    return Told(
        what=f"The client sent {_byte(at.connection.service)} on connection "
        f"{at.connection.number} before OK.",
        why="Some multiplexers, such as vhost-device-vsock, drop what they get before their OK.",
        so=so,
        next="Make the client wait for OK before it sends anything, as Dragonball does.",
    )
