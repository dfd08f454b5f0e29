"""UP504, UP509, UP511, UP512 and UP599: types, headers and results that do not fit."""

from __future__ import annotations

from typing import Final

from dissectors.constants import (
    CPU_TYPES,
    EPERM,
    MAGIC_VERSION,
    MMIO_TYPES,
    PCI_TYPES,
    RESERVED_TYPES,
    RESULT_MEANINGS,
    MessageType,
    errno_name,
    op_name,
)

from ... import codes
from ..finding import Cause, Ref, Told, sure
from ..situation import Situation
from .registry import ANY_TYPE, Cue, explains, rule
from .wording import pointing

_OPTIONS: Final = (
    (CPU_TYPES, "DRAGONBALL_HOTPLUG_CPU"),
    (MMIO_TYPES, "DRAGONBALL_HOTPLUG_VIRTIO_MMIO"),
    (PCI_TYPES, "DRAGONBALL_HOTPLUG_PCI"),
)


@explains(Cue.REPLY, ANY_TYPE)
def not_executed(at: Situation) -> list[Cause] | None:
    """Why a request was not even looked at; None when it was, and its family knows more."""
    ret = at.ret
    if at.request.magic_version != MAGIC_VERSION:
        return sure(codes.BAD_MAGIC, codes.STALE_ERROR if ret else codes.STALE_SUCCESS)
    if ret == EPERM and not (at.is_pci and at.last_ret in (ret, None)):
        # Also what a kernel without one of the hotplug options answers to a type it knows.
        reserved = at.request.msg_type in RESERVED_TYPES
        return sure(codes.RESERVED_MEMORY_OP if reserved else codes.UNKNOWN_TYPE)
    return None


def _option(msg_type: int) -> str | None:
    """The kernel option that the type's handler needs."""
    return next((option for types, option in _OPTIONS if msg_type in types), None)


def _type_name(msg_type: int) -> str:
    name = op_name(msg_type)
    return name if name == f"type_{msg_type}" else f"{name} ({msg_type})"


@rule(codes.UNKNOWN_TYPE)
def unknown_type(at: Situation) -> Told:
    """The guest has no handler for this msg_type.

    **What it says.** The guest looked the type up, found nothing, and answered -1. The number is
    not meant as EPERM, though it reads like it.

    **Why it matters.** Nothing was executed. The client is either not made for this guest, or it
    sends something that is no request at all.

    **On the wire.** Reply with the request's own type, `ret` -1 and `msg_size` 0. docs/protocol.md
    section 4.

    **Example.** `stale_results`, request 1.10: type 77. Request 1.9 is a CONNECT, which only the
    guest may send.

    **Limits.** ADD_MEM and DEL_MEM get the same answer and have a code of their own, UP511.

    **What to do.** Compare the client's version with the guest kernel's patches and options. The
    console has `Not found valid command`.
    """
    msg_type = at.request.msg_type
    option = _option(msg_type)
    if msg_type == MessageType.CONNECT:
        why = "Type 0 is the CONNECT message: the guest sends it and does not expect one."
    elif option is not None:
        why = f"Its kernel may have been built without {option}."
    else:
        why = "No known kernel has a command of that number; the known ones are 1 to 8."
    return Told(
        what=f"The guest has no handler for {_type_name(msg_type)}, and answered {at.result}.",
        why=why,
        so="Nothing was executed; what the client wanted to plug or unplug is as it was in the "
        "guest.",
        next="Compare the client with the guest kernel's upcall patches and options; the -1 is not "
        "about permissions.",
    )


@rule(codes.REPLY_MISMATCH, {Cue.REPLY: lambda at: at.misfit})
def reply_mismatch(at: Situation) -> Told:
    """The reply is not of the kind that the request calls for.

    **What it says.** A guest writes the right magic into every reply and repeats the request's
    type. This reply has another magic or another type.

    **Why it matters.** It may be the answer to a different request. Then every result after it is
    one off as well, success and failure alike. Dragonball checks neither magic nor type nor size
    and notices nothing.

    **On the wire.** Offset 0 of the reply is not `00 01 4d 44`, or `msg_type` at offset 8 differs
    from the request's. docs/protocol.md section 3.

    **Example.** No recording has it.

    **Limits.** Replies are matched with requests by their order alone. Bytes that the recording
    lacks can break that order without anything being wrong.

    **What to do.** Look for gaps, for split requests (UP505) and for requests that overlap (UP507)
    earlier on the connection.
    """
    return Told(
        what=f"The reply to {at.ref}, {at.op}, does not fit it: {_misfit(at)}.",
        why="A guest repeats the request's type under the right magic, so this reply is another "
        "request's, or damaged, or not upcall.",
        so="Dragonball checks neither magic nor type and takes its ret for the answer, right or "
        "wrong.",
        next="Look on this connection for gaps, split or overlapping requests before it: replies "
        "may be one off.",
    )


def _misfit(at: Situation) -> str:
    reply = at.reply
    assert reply is not None  # a reply is what does not fit
    if reply.magic_version != MAGIC_VERSION:
        return f"its magic is {reply.magic_version:#010x}, not {MAGIC_VERSION:#x}"
    if reply.msg_type != at.request.msg_type:
        return f"it is of {_type_name(reply.msg_type)}"
    return f"its msg_size is {reply.msg_size} and its msg_flags {reply.msg_flags:#x}"


@rule(codes.RESERVED_MEMORY_OP)
def reserved_memory_op(at: Situation) -> Told:
    """ADD_MEM and DEL_MEM have numbers, but no kernel handles them.

    **What it says.** The client asked for memory by types 3 or 4. They are reserved, and a guest
    answers -1 as to any type that it does not know.

    **Why it matters.** No memory was added or removed. Memory hotplug takes another way: the VMM
    creates a virtio-mem device and announces it with ADD_MMIO.

    **On the wire.** Type 3 or 4, and a reply of the same type with `ret` -1. docs/protocol.md
    section 3.

    **Example.** `stale_results`, request 1.7. The recordings use these types as harmless probes.

    **Limits.** A kernel outside Kata's series may handle them; then there is no -1.

    **What to do.** Correct the client. Dragonball does not send them, so look for what did.
    """
    verb = "added" if at.request.msg_type == MessageType.ADD_MEM else "removed"
    return Told(
        what=f"The guest has no handler for {_type_name(at.request.msg_type)}, and answered "
        f"{at.result}.",
        why="The type is reserved: it has a number, and no kernel series does anything with it.",
        so=f"No memory was {verb}; Dragonball never uses this type, but ADD_MMIO of a virtio-mem "
        "device.",
        next="Find the client that sends it, and look for ADD_MMIO requests to see what the VMM "
        "does about memory.",
    )


@rule(codes.BAD_MAGIC)
def bad_magic(at: Situation) -> Told:
    """The request does not begin with the magic, so the guest did not execute it.

    **What it says.** The first four bytes of a request must be 0x444d0100. With anything else the
    guest executes nothing and prints nothing, but it still sends a reply.

    **Why it matters.** That reply's `ret` is not about this request (UP501, UP502), so a request
    that was not executed can look like a success.

    **On the wire.** Offset 0 is not `00 01 4d 44`; the reply has the right magic and repeats
    whatever stood at the type's place. docs/protocol.md section 4.

    **Example.** `stale_results`, request 1.0: an ADD_MMIO with a wrong magic. In `framing`, request
    2.1 is the second half of another one.

    **Limits.** Type and fields that are shown for such a request are what stands in those places.
    They mean nothing when it is a piece of something else.

    **What to do.** If it is a piece, correct how the client writes (UP505, UP508). Else correct the
    magic, or look for another protocol version.
    """
    whole, why = _no_magic(at)
    if at.reply is None:
        so = "Nothing was executed, whatever a reply may say."
    elif at.ret == 0:
        so = "Nothing was executed, although the reply says 0, which a client takes for success."
    else:
        so = f"Nothing was executed; the {at.result} in the reply is not about this request."
    return Told(
        what=f"{str(at.ref).capitalize()} begins with {at.request.magic_version:#010x} instead of "
        f"the magic {MAGIC_VERSION:#x}.",
        why=why,
        so=so,
        next="Correct the magic that the client writes, or its byte order, and send it again."
        if whole is None
        else f"Correct how the client writes its requests; this one belongs to {whole}.",
        evidence=pointing(whole, "it is a piece of this"),
    )


def _no_magic(at: Situation) -> tuple[Ref | None, str]:
    """The request that this is a piece of, and why the magic is missing."""
    if at.event.continues is not None:
        whole = Ref(at.ref.conn, at.event.continues)
        return whole, f"It is the rest of {whole}, so it has no header where the guest looks."
    if at.event.rest_of is not None:
        whole = Ref(at.ref.conn, at.event.rest_of)
        return whole, f"It is left over from the send that holds {whole}; it has no header."
    return (
        None,
        "The guest checks these four bytes first, and looks at nothing else if they differ.",
    )


@rule(codes.UNEXPLAINED_RESULT)
def unexplained_result(at: Situation) -> Told:
    """The result is none of those that are known for the request.

    **What it says.** For each request it is known which results the guest's code gives. This one is
    not among them, or is known only from the source: +1 when a CPU was in the wanted state before.

    **Why it matters.** The guest did something that is not described. For a CPU request Dragonball
    counts any `ret` but 0 as a failure, +1 included.

    **On the wire.** `ret` at offset 16 of the reply. docs/protocol.md section 4 has the table.

    **Example.** No recording has it.

    **Limits.** Kernels with other patches can give other results; so can the hotplug code that
    upcall calls.

    **What to do.** Read the guest's console around that time, and check in the guest what is there.
    A -1 for a known type hints at a kernel option that is off.
    """
    return Told(
        what=f"The guest answered {at.op} with {at.result}, which is unusual for this request.",
        why=_explanation(at),
        so=_consequence(at),
        next="Read the guest's console around this time, and check in the guest what is there now.",
    )


def _explanation(at: Situation) -> str:
    ret = at.ret
    assert ret is not None  # silence is no result
    msg_type = at.request.msg_type
    option = _option(msg_type)
    if option is None:
        return "A type without a handler gets -1; this kernel may have one that is not known here."
    meaning = RESULT_MEANINGS.get((msg_type, ret), "") if ret > 0 else ""
    if meaning:
        return f"By the kernel's source it stands for: {meaning}."
    if ret >= 0:
        return "A result is 0 or a negative errno; where this number comes from is not known."
    if ret == EPERM:
        return f"-1 is the answer to a type without a handler: the kernel may lack {option}."
    return (
        f"The upcall server itself is not known to give {errno_name(ret) or ret} here; the kernel "
        "code that it calls may."
    )


def _consequence(at: Situation) -> str:
    if at.is_cpu and at.ret:
        return (
            "Dragonball takes any ret but 0 for a failure that it never finishes: the caller times "
            "out and later resizes are refused."
        )
    if at.is_mmio or at.is_pci:
        return "Dragonball ignores ret here: it counts the request as done, whatever the guest did."
    return "Dragonball uses no such request; what the guest did with it is not known."
