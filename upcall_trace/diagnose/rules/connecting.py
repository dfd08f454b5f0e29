"""UP109 to UP111: connections that nobody answers, and answers that are no OK."""

from __future__ import annotations

from typing import Any, Final

from ... import codes
from ...codes import Side
from ...views.text import duration, safe
from ..finding import Told
from ..situation import ConnectionSituation
from .registry import POSSIBLY, Cue, Likelihood, rule
from .wording import pointing

_PATIENCE_NS: Final = 1_000_000_000
"""Dragonball waits 2 s for OK; a client that leaves sooner has not waited for anything."""
_SHOWN: Final = 60
_HELLO: Final = b"\x00\x01MD"


def _unanswered(at: Any) -> bool | Likelihood:
    if not isinstance(at, ConnectionSituation):
        return False
    connection = at.connection
    asked = at.to_upcall and not at.unfinished and not at.half_closed and not connection.lost
    nothing = connection.accepted is not True and not at.received and not connection.requests
    if not asked or not nothing or connection.closed_by_guest:
        return False
    if not (connection.line or at.in_guest) or (at.waited_ns or 0) < _PATIENCE_NS:
        return False
    return POSSIBLY if at.at_end else True


@rule(codes.CONNECT_UNANSWERED, {Cue.CLOSED: _unanswered, Cue.END: _unanswered})
def connect_unanswered(at: ConnectionSituation) -> Told:
    """Nobody answered the request to connect, and nobody refused it.

    **What it says.** The client asked for the upcall port and got neither OK nor the end of the
    stream until it gave up. A guest whose port nobody listens on refuses; this one said nothing.

    **Why it matters.** Without this connection nothing can be hot-plugged. Dragonball gives up
    after 2 s and reconnects.

    **On the wire.** `CONNECT 219`, then silence, then the client's end of the stream. In packets
    inside the guest: a request to connect without an answer, then the client's reset.

    **Example.** `channel_removed_5_10`, connection 3: request 1.0 had removed the device that the
    channel runs on.

    **Limits.** Silence does not tell its reason. The guest's vsock driver may not be up yet, the
    guest may hang or stand still, or its vsock device may be gone. After a restore the guest may
    still hold a connection with the same ports, and take the new one for a part of that.

    **What to do.** Look whether the guest runs at all: its console, or another port. After a
    restore try again: the next connection has other ports.
    """
    waited = duration(at.waited_ns or 0)
    cut_off = at.cut_off_by
    if cut_off is not None:
        why = f"{str(cut_off).capitalize()} may have removed the device that the channel runs on."
    elif at.worked_before:
        why = (
            "The guest had answered before: it hangs or stands still, or was restored and still "
            "holds a connection with these ports."
        )
    else:
        why = (
            "The guest's vsock driver is not up or hangs; after a restore the guest may still hold "
            "a connection with these ports."
        )
    return Told(
        what=f"Nobody answered connection {at.connection.number} for {waited}: no OK, no refusal.",
        why=why,
        so="Dragonball gives up after 2 s and reconnects; hotplug fails with "
        "UpcallServerNotReady meanwhile.",
        next="Look in the guest's console whether it runs, and try to connect again.",
        evidence=pointing(cut_off, "removed a device"),
    )


def _not_ok(at: ConnectionSituation) -> bool:
    return bool(at.received) and at.connection.accepted is not True and at.to_upcall


@rule(codes.NOT_OK, {Cue.HANDSHAKE: _not_ok, Cue.CLOSED: _not_ok})
def not_ok(at: ConnectionSituation) -> Told:
    """What came back for CONNECT is not an OK line.

    **What it says.** A multiplexer answers `OK`, a space, a number and a newline. Something else
    came.

    **Why it matters.** The client cannot go on. Dragonball drops the stream and reconnects.

    **On the wire.** Bytes to the client after `CONNECT 219` that are no OK line.

    **Example.** No recording of a real guest has it.

    **Limits.** Only the author of the words knows what they mean.

    **What to do.** Read what came. Text is a refusal in words, from a proxy or another multiplexer.
    A CONNECT message means that the socket leads to the service itself: then leave the CONNECT line
    out.
    """
    raw = at.received
    text = safe(raw.rstrip(b"\r\n\0"))
    shown = text if len(text) <= _SHOWN else f"{text[: _SHOWN - 1]}…"
    side = Side.UNKNOWN
    if raw.startswith(_HELLO):
        what = f"A CONNECT message came back on connection {at.connection.number} in place of OK."
        why = "The socket leads to the service itself; no multiplexer is in between."
        advice = "Connect to the VMM's own vsock socket, or leave the CONNECT line out."
        side = Side.CLIENT
    elif raw[:1].isascii() and shown.isprintable() and raw[:1].isalpha():
        what = f"The answer on connection {at.connection.number} is not OK but '{shown}'."
        why = "The program on the socket refused in words, or is not a multiplexer."
        advice = "Find out which program listens on the socket, and what these words mean."
    else:
        begin = raw[:8].hex(" ")
        what = f"The answer on connection {at.connection.number} is not OK but bytes: {begin}."
        why = "The program on the socket is not a multiplexer that speaks in lines."
        advice = "Find out which program listens on the socket, and whether it is the VMM's."
    return Told(
        what=what,
        why=why,
        so="Dragonball expects OK, so it drops the stream and reconnects 10 ms later.",
        next=advice,
        side=side,
    )


def _half_closed(at: ConnectionSituation) -> bool:
    nothing = at.connection.accepted is not True and not at.received
    return at.half_closed and nothing and at.to_upcall


@rule(codes.HALF_CLOSED_EARLY, {Cue.CLOSED: _half_closed})
def half_closed_early(at: ConnectionSituation) -> Told:
    """The client closed its sending half before OK.

    **What it says.** The client sent its line and said at once that it will send no more. No OK
    came after that: a multiplexer takes the end of the client's half for the end of the stream.

    **Why it matters.** The client cannot ask anything in this way, and waits for an answer that
    does not come.

    **On the wire.** `CONNECT 219`, the end of the client's half, and no OK.

    **Example.** No recording of a real guest has it. A shell pipe into a program such as
    `nc -N` or `socat` does this.

    **Limits.** That nobody listens in the guest (UP101) ends a stream as well, so this is the
    likelier reason of two.

    **What to do.** Keep the stream open until OK has come, and send the service byte then.
    """
    end = "was reset" if at.connection.closed_by_guest else "ended"
    return Told(
        what=f"The client closed its sending half on connection {at.connection.number} before OK, "
        f"and the stream {end}.",
        why="A multiplexer takes the end of the client's half for the end of the connection.",
        so="No OK can come, so nothing can be asked on this connection.",
        next="Keep the stream open: wait for OK, then send the service byte.",
    )
