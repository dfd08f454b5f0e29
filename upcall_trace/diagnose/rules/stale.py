"""UP501 to UP503: what a reply holds that the guest did not write for it."""

from __future__ import annotations

from typing import Final

from dissectors.constants import ENODEV, EPERM, MAGIC_VERSION, MESSAGE_SIZE, REPLY_LOAD_OFFSET, Arch

from ... import codes
from ...logs.evidence import Evidence
from ..finding import Ref, Told
from ..situation import Situation
from .registry import POSSIBLY, Cue, Likelihood, rule
from .wording import pointing

_ZEROS: Final = bytes(MESSAGE_SIZE)
_REAL: Final = {
    ENODEV: ("a real refusal looks the same on the wire", "Could not find PCI"),
    EPERM: ("a kernel without PCI hotplug gives the same", "Not found valid command"),
}
"""What a PCI reply may say in earnest: why it looks alike, and the console's line for it."""


def _is_piece(at: Situation) -> bool:
    return at.event.continues is not None or at.event.rest_of is not None


def _named(at: Situation) -> str:
    """The request by its number and, unless it is a piece of another, by what it asks."""
    return str(at.ref) if _is_piece(at) else f"{at.ref}, {at.op},"


def _cure(at: Situation) -> str:
    """What to do about a wrong magic."""
    if _is_piece(at):
        return "correct how the client writes, as this is a piece of another request"
    return f"correct the magic to {MAGIC_VERSION:#x} and send the request again"


def _ret_left_by(at: Situation) -> Ref | None:
    """The request at whose reply `ret` was in the buffer already; None when that is not known."""
    return at.last_ref if at.last_ret is not None and at.last_ret == at.ret else None


def _origin(at: Situation) -> str:
    """Where an unwritten `ret` comes from, as far as the recording tells."""
    ref = _ret_left_by(at)
    if ref is not None:
        return f"it was there at the reply to {ref}"
    if at.last_ret == 0 == at.ret:
        return "a connection starts with 0 there"
    return "this recording does not show what wrote it"


def _ret_evidence(at: Situation) -> tuple[Evidence, ...]:
    return pointing(_ret_left_by(at), "its reply held the same ret")


@rule(codes.STALE_SUCCESS)
def stale_success(at: Situation) -> Told:
    """The reply says 0, and the guest never wrote that 0.

    **What it says.** The guest dropped the request for its wrong `magic_version`. It then sends
    its reply buffer with a new header only; `ret` keeps the value of the reply before, or the 0
    with which a connection starts.

    **Why it matters.** The client looks at `ret` alone and takes the request for done. The guest
    did nothing.

    **On the wire.** A request whose first four bytes are not `00 01 4d 44`, and a reply with `ret`
    0 and `msg_size` 0. docs/protocol.md section 4.

    **Example.** `stale_results`, request 1.0: an ADD_MMIO with a wrong magic on a fresh connection.

    **Limits.** None: the guest never executes a wrong magic. UP512 goes with it and tells how the
    magic came to be wrong.

    **What to do.** Do not trust the 0. Correct the magic and send the request again.
    """
    return Told(
        what=f"The reply to {_named(at)} says 0, and the guest did not write that 0.",
        why=f"With a wrong magic the guest leaves ret as it was: {_origin(at)}.",
        so="The guest did nothing, while a client that goes by ret, as Dragonball does, believes "
        "that it did.",
        next=f"Do not trust the 0; {_cure(at)}.",
        evidence=_ret_evidence(at),
    )


@rule(codes.STALE_ERROR)
def stale_error(at: Situation) -> Told:
    """The errno in the reply is that of an earlier one.

    **What it says.** Two kinds of replies leave `ret` as it was: the one to a wrong magic, and that
    of a PCI command that worked. If an earlier command on the connection failed, they repeat its
    errno.

    **Why it matters.** A PCI device that was added or removed looks as if that had failed, and the
    error is looked for in the wrong place. Every later PCI command on the connection says the same,
    until an MMIO or CPU command succeeds.

    **On the wire.** `ret` is the value of the reply before on that connection. docs/protocol.md
    section 4.

    **Example.** `pci_memory`, request 1.6: a DEL_PCI that worked, with the -19 of request 1.5. For
    a wrong magic: `stale_results`, request 1.3.

    **Limits.** -19 (ENODEV) is also what a real PCI refusal says, and on the wire the two are
    alike. The finding is inferred then; the guest's console or its known state decides. -1 is also
    what a kernel without PCI hotplug says. Any other errno of a PCI command is stale.

    **What to do.** Look in the guest's console for `Could not find PCI`: a real refusal prints it.
    Or ask again on a new connection, whose buffer is clean.
    """
    if at.request.magic_version != MAGIC_VERSION:
        return _stale_refusal(at)
    return _stale_pci(at)


def _stale_refusal(at: Situation) -> Told:
    return Told(
        what=f"The reply to {_named(at)} says {at.result}, which is not about this request.",
        why=f"With a wrong magic the guest leaves ret as it was: {_origin(at)}.",
        so="The request was not executed. If you follow this errno, you look for the wrong fault.",
        next=f"Ignore the errno; {_cure(at)}.",
        evidence=_ret_evidence(at),
    )


def _stale_pci(at: Situation) -> Told:
    if at.last_ret == at.ret:
        what = f"The reply to {_named(at)} repeats the {at.result} of the reply before it."
    else:
        what = f"The {at.result} in the reply to {_named(at)} may be older than the request."
    alike, line = _REAL.get(at.ret or 0, ("one that fails says ENODEV", ""))
    if line:
        so = "If it is left over, the command worked although the reply says that it failed"
        follow = f"Look for '{line}' in the guest's console; without it the command likely worked."
    else:
        so = "The command worked although the reply says that it failed"
        follow = "Look at the earlier failure for the errno; a new connection has a clean buffer."
    return Told(
        what=what,
        why=f"A PCI command that works does not write ret ({_origin(at)}); {alike}.",
        so=f"{so}; Dragonball ignores the errno of a PCI request.",
        next=follow,
        evidence=_ret_evidence(at),
    )


def _has_leftovers(at: Situation) -> bool | Likelihood:
    assert at.reply is not None  # it listens to replies
    if _ZEROS.startswith(at.reply_raw[REPLY_LOAD_OFFSET + at.reply.msg_size :]):
        return False
    return POSSIBLY if at.misfit or at.doubtful else True


@rule(codes.STALE_LOAD, {Cue.REPLY: _has_leftovers})
def stale_load(at: Situation) -> Told:
    """The reply has bytes after its load that are left over from an earlier one.

    **What it says.** The guest has one reply buffer for a connection and never clears it. Where a
    reply writes less than the one before, old bytes remain: `msg_size` says how many are its own.

    **Why it matters.** It does no harm by itself. It misleads a client that reads `apic_index`
    from a failed reply. It also shows that this connection has worked before.

    **On the wire.** Bytes that are not zero after offset 20 + `msg_size`. docs/protocol.md
    section 4.

    **Example.** `stale_results`, request 1.6: a failed ADD_CPU shows the 1 that request 1.5 left.

    **Limits.** On aarch64 a failed CPU command writes `cpu_id` although `msg_size` is 0, by the
    source. Such a number is fresh, and shows when it differs from the one before.

    **What to do.** Nothing. Read a load only when `ret` is 0, and no further than `msg_size`.
    """
    assert at.reply is not None  # there are no bytes without one
    beyond = at.reply_raw[REPLY_LOAD_OFFSET + at.reply.msg_size :]
    count = sum(byte != 0 for byte in beyond)
    size, are = ("1 byte", "is") if count == 1 else (f"{count} bytes", "are")
    return Told(
        what=f"In the reply to {_named(at)} {size} beyond its load {are} not zero{_number(at)}.",
        why=_where_from(at),
        so="It does no harm. But if you read a load there, you read a number that msg_size does "
        "not count.",
        next="Read a load only when ret is 0, and no further than msg_size says.",
        evidence=pointing(_load_left_by(at), "its reply held the same bytes"),
    )


def _load(at: Situation) -> int:
    return int.from_bytes(at.reply_raw[REPLY_LOAD_OFFSET : REPLY_LOAD_OFFSET + 4], "little")


def _number(at: Situation) -> str:
    """The leftover as the field that a CPU reply has there."""
    if at.reply is None or at.reply.msg_size or not _load(at):
        return ""
    name = "cpu_id" if at.arch is Arch.AARCH64 else "apic_index"
    return f": {name} would read {_load(at)}"


def _changed(at: Situation) -> bool:
    """The number is not the one that the buffer held."""
    if at.last_load is None or at.reply is None or at.reply.msg_size:
        return False
    return _load(at) != at.last_load


def _load_left_by(at: Situation) -> Ref | None:
    """The request whose reply wrote the load that is left; None when that is not known."""
    return None if at.last_load is None or _changed(at) else at.load_ref


def _where_from(at: Situation) -> str:
    ref = _load_left_by(at)
    if ref is not None:
        return f"Left over from the reply to {ref}: the guest has one reply buffer, never cleared."
    if _changed(at) and at.is_cpu:
        return "The buffer held another number before: this command wrote it without counting it."
    return "The guest never clears its reply buffer; the recording does not show what left them."
