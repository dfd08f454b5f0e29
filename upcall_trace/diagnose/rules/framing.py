"""UP505 to UP508 and UP510: requests that are not one send of 1024 bytes, replies too many."""

from __future__ import annotations

from dissectors.constants import MESSAGE_SIZE

from ... import codes
from ...logs.evidence import Evidence
from ..finding import Ref, Told
from ..situation import ConnectionSituation, Situation
from .registry import Cue, rule
from .wording import pointing


def _other(at: Situation, number: int) -> Ref:
    """Another request of the same connection."""
    return Ref(at.ref.conn, number)


def _title(ref: Ref) -> str:
    return str(ref).capitalize()


@rule(codes.SPLIT_REQUEST, {Cue.PIECE: lambda at: at.event.continues is not None})
def split_request(at: Situation) -> Told:
    """One request reached the guest in pieces.

    **What it says.** The client meant these bytes and those of an earlier request as one. The guest
    does not wait for 1024 bytes: it takes what one receive gives for a whole request, so it
    executed both pieces, each on its own.

    **Why it matters.** Bytes of the request before it completed the first piece, so the guest may
    have done something that nobody asked for. There are two replies, and a client that reads one of
    them is out of step from then on.

    **On the wire.** A send of fewer than 1024 bytes, then another without the magic at its start;
    two replies, the second mostly of type 0. docs/protocol.md section 4.

    **Example.** `framing`, request 2.1: the last 524 bytes of request 2.0, whose first 500 were
    executed as an ADD_MMIO. Request 3.1 is another.

    **Limits.** A recording on the VMM's socket shows sends, not what the guest received. A second
    piece that happens to begin with the magic counts as a request of its own.

    **What to do.** Make the client write the 1024 bytes at once. Check what the first piece did.
    """
    first = at.event.continues
    assert first is not None  # it is what makes a request the rest of one
    ref = _other(at, first)
    return Told(
        what=f"{_title(at.ref)} is the rest of {ref}: {at.event.size} bytes that came apart from "
        "its beginning.",
        why="The guest takes whatever one receive gives it for a whole request, so it executed the "
        "pieces one by one.",
        so=f"{_title(ref)} was completed with bytes that were in the buffer before, and each "
        "piece gets a reply, where the client expects one.",
        next=f"Write all {MESSAGE_SIZE} bytes of a request at once, and check in the guest what "
        f"{ref} did.",
        evidence=pointing(ref, "the piece before"),
    )


@rule(codes.SHORT_REQUEST, {Cue.WHOLE: lambda at: at.event.size < len(at.event.raw)})
def short_request(at: Situation) -> Told:
    """Fewer than 1024 bytes came, and nothing followed.

    **What it says.** The guest executed a request of which it got only the beginning. The rest is
    what its buffer held from the request before; on a fresh connection, zeros.

    **Why it matters.** Address, size or ids of the command may be those of another request. The
    guest answers as if all were well.

    **On the wire.** One send of fewer than 1024 bytes with one reply. docs/protocol.md section 4.

    **Example.** `framing`, request 1.2: the 16 bytes of a header, completed by request 1.1.

    **Limits.** If the rest is sent later, it is a split request (UP505). A gap after it may have
    the rest: then nothing is said.

    **What to do.** Send 1024 bytes, padded with zeros. What the list shows for this request is what
    the guest executed; compare it with what was meant.
    """
    before = at.event.number - 1
    if before < 0:
        source = "what its buffer held, zeros on a fresh connection"
        evidence: tuple[Evidence, ...] = ()
    else:
        source = f"what {_other(at, before)} left in its buffer"
        evidence = pointing(_other(at, before), "its bytes are the rest of this request")
    return Told(
        what=f"{_title(at.ref)} is {at.event.size} bytes instead of {MESSAGE_SIZE}, and no rest "
        "followed.",
        why=f"The guest does not wait for more: it completed the request with {source}.",
        so=f"It ran as {at.op}, which can differ from what the client meant, and the reply does "
        "not tell.",
        next=f"Compare that with what the client meant, and send all {MESSAGE_SIZE} bytes, padded "
        "with zeros.",
        evidence=evidence,
    )


def _overlaps(at: Situation) -> bool:
    piece = at.event.continues is not None or at.event.rest_of is not None
    return at.event.overlaps is not None and not piece


@rule(codes.OVERLAPPING_REQUESTS, {Cue.PIECE: _overlaps})
def overlapping_requests(at: Situation) -> Told:
    """A request was sent while another was unanswered.

    **What it says.** Upcall is ping-pong: one request, one reply. Here the client did not wait.

    **Why it matters.** The guest serves a connection in order, so the later request waits, and its
    latency includes the earlier one. If the earlier one is never answered, neither is this.
    Replies carry no number: a client that mixes them up cannot notice.

    **On the wire.** Two requests to the guest with no reply between them. docs/protocol.md
    section 1.

    **Example.** `framing`, request 1.1: sent in one write with request 1.0. Both were answered.

    **Limits.** A reply counts from when it was recorded. One that the recorder saw late can make a
    patient client look hasty.

    **What to do.** Wait for the reply. Dragonball refuses a second request by itself, with `upcall
    is busy now`, so look for another client or for two writers on one connection.
    """
    open_one = at.event.overlaps
    assert open_one is not None  # it is what makes requests overlap
    ref = _other(at, open_one)
    return Told(
        what=f"{_title(at.ref)} was sent while {ref} had no reply.",
        why="The protocol allows one request at a time; the guest works on a connection's requests "
        "in their order.",
        so=f"{_title(at.ref)} has to wait for {ref}; Dragonball itself refuses such a send with "
        "'upcall is busy now'.",
        next="Make the client wait for each reply, or look for two writers on this connection.",
        evidence=pointing(ref, "was still unanswered"),
    )


def _is_rest(at: Situation) -> bool:
    return at.event.continues is None and at.event.rest_of is not None


@rule(codes.OVER_LONG_REQUEST, {Cue.PIECE: _is_rest})
def over_long_request(at: Situation) -> Told:
    """One send had more than 1024 bytes, and the rest was taken for a request.

    **What it says.** The guest reads 1024 bytes for one request. What was left of the send became
    the next one, although it is none.

    **Why it matters.** The rest is laid over the bytes of the request before and looked at as a
    request. Mostly it has no magic and is not executed, but it gets a reply, and a client that
    expects one is out of step from then on.

    **On the wire.** A send of more than 1024 bytes whose second part does not begin with the magic;
    two replies. docs/protocol.md section 4.

    **Example.** `framing`, request 4.1: the last 476 bytes of a send of 1500.

    **Limits.** Two whole requests in one send are not this but UP507.

    **What to do.** Correct the client: a message has 1024 bytes, and `msg_size` does not count them
    but the load alone.
    """
    before = at.event.rest_of
    assert before is not None  # it is what makes a request the rest of a send
    ref = _other(at, before)
    return Told(
        what=f"{_title(at.ref)} is {at.event.size} bytes that were left over from the send that "
        f"holds {ref}.",
        why=f"The guest reads {MESSAGE_SIZE} bytes for a request, and takes what is left for the "
        "next one.",
        so=f"There is one reply more than the client meant to ask for, so it may take it for the "
        f"answer to what it asks after {ref}.",
        next=f"Correct the client: a request has {MESSAGE_SIZE} bytes, whatever its msg_size says.",
        evidence=pointing(ref, "the beginning of the same send"),
    )


@rule(codes.UNSOLICITED_REPLY, {Cue.HANDSHAKE: lambda at: at.connection.unsolicited > 0})
def unsolicited_reply(at: ConnectionSituation) -> Told:
    """The guest sent a message while no request was open.

    **What it says.** The guest speaks only when asked, apart from the CONNECT message. Here there
    are more messages from it than requests to it.

    **Why it matters.** Either the recording is not complete, or the guest saw more requests than
    were sent: a send that reached it in two pieces gets two replies. A client that does not check
    the type takes the surplus reply for the answer to its next request.

    **On the wire.** 1024 bytes from the guest with nothing unanswered before. docs/protocol.md
    section 1.

    **Example.** No recording has it.

    **Limits.** Which of the replies is the surplus one cannot be told: they carry no number.

    **What to do.** Look whether the recording has gaps. A recording made inside the guest shows in
    which pieces the requests arrived.
    """
    connection = at.connection
    count = connection.unsolicited
    messages = "a message" if count == 1 else f"{count} messages"
    if connection.lost:
        why = (
            f"The recording lacks bytes of this connection ({connection.lost}), perhaps a request."
        )
    else:
        why = (
            "A guest only answers: a request is missing from the recording, or one send reached it "
            "in two pieces."
        )
    return Told(
        what=f"The guest sent {messages} on connection {connection.number} with no request open.",
        why=why,
        so="Dragonball checks no reply's type, so it can take such a message for the answer to its "
        "next request.",
        next="Check the recording for gaps, and record inside the guest to see in which pieces "
        "requests arrive.",
    )
