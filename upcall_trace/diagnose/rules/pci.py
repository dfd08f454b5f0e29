"""UP401 to UP403: PCI functions. docs/protocol.md section 4."""

from __future__ import annotations

from dissectors.constants import ENODEV, EPERM, PCI_TYPES, MessageType

from ... import codes
from ...logs.evidence import Evidence
from ..finding import Cause, Ref, Told, maybe, sure
from ..situation import Situation
from .registry import Cue, explains, rule
from .wording import (
    ADD_LOST,
    DEL_IGNORED,
    SENT_TWICE,
    pointing,
    refused,
    since,
)


@explains(Cue.REPLY, PCI_TYPES)
def refused_function(at: Situation) -> list[Cause]:
    """Why a PCI request got its answer. Success leaves the `ret` of the reply before it."""
    pci, ret = at.pci, at.ret
    assert pci is not None  # the type says so
    if ret == 0:
        return []
    if ret == EPERM:
        return maybe(codes.STALE_ERROR, codes.UNKNOWN_TYPE)
    if ret != ENODEV:
        # The kernel itself gives no other: what is there was left over, if something was.
        stale = at.last_ret in (ret, None)
        return sure(codes.STALE_ERROR if stale else codes.UNEXPLAINED_RESULT)
    adding = at.request.msg_type == MessageType.ADD_PCI
    real = (codes.PCI_NOTHING_THERE, codes.PCI_NO_SUCH_BUS)
    if at.last_ret is not None and at.last_ret != ret:
        return maybe(*real) if adding else sure(codes.PCI_NO_SUCH_DEVICE)
    if adding:
        return maybe(codes.STALE_ERROR, *real)
    place = (pci.busno, pci.devfn)
    if place in at.history.removed_pci and place not in at.history.pci:
        return maybe(codes.PCI_NO_SUCH_DEVICE, codes.STALE_ERROR)
    return maybe(codes.STALE_ERROR, codes.PCI_NO_SUCH_DEVICE)


def _place(at: Situation) -> str:
    pci = at.pci
    assert pci is not None  # only PCI requests get here
    return f"bus {pci.busno} slot {pci.slot}.{pci.function}"


def _there(at: Situation) -> tuple[bool, Ref | None]:
    """Whether the recording shows the function in the guest, and by which request."""
    pci = at.pci
    assert pci is not None  # only PCI requests get here
    key = (pci.busno, pci.devfn)
    return key in at.history.pci, at.history.pci.get(key)


def _removed(at: Situation) -> Ref | None:
    pci = at.pci
    assert pci is not None  # only PCI requests get here
    return at.history.removed_pci.get((pci.busno, pci.devfn))


@rule(codes.PCI_NO_SUCH_BUS)
def pci_no_such_bus(at: Situation) -> Told:
    """The guest does not have the bus.

    **What it says.** ADD_PCI names a bus number that the guest's kernel does not know.

    **Why it matters.** Dragonball counts any answer to an add as done, or does not wait for one.
    The VMM believes that the device is plugged, and the user finds it missing.

    **On the wire.** Reply type 7 with ret -19 (ENODEV). An empty slot gives the same (UP402), and
    so does a success after an earlier -19 on the connection.

    **Example.** `pci_memory`, request 1.9: ADD_PCI on bus 9 of a guest that has bus 0 only.

    **Limits.** The wire does not tell a missing bus from an empty slot: this is inferred, unless
    the guest's console says `Could not find PCI bus` or the guest's world is known.

    **What to do.** Look where the VMM got the bus from. Kata's devices are on bus 0.
    """
    pci = at.pci
    assert pci is not None  # only ADD_PCI gets here
    seen = sorted({bus for bus, _ in at.history.pci})
    shown = ""
    if seen and pci.busno not in seen:
        buses = ", ".join(map(str, seen[:4])) + (" and others" if len(seen) > 4 else "")
        shown = f"; the devices known from this recording are on bus {buses}"
    return Told(
        what=refused(at),
        why=f"The guest has no PCI bus {pci.busno}{shown}.",
        so=ADD_LOST,
        next="Look where the VMM got the bus number from: Kata's devices are on bus 0.",
    )


@rule(codes.PCI_NOTHING_THERE)
def pci_nothing_there(at: Situation) -> Told:
    """Nothing answers in the slot.

    **What it says.** The guest scanned the slot that ADD_PCI names, and no device answered there.

    **Why it matters.** Dragonball counts any answer to an add as done, or does not wait for one.
    The VMM believes that the device is plugged, and the user finds it missing.

    **On the wire.** Reply type 7 with ret -19 (ENODEV). A missing bus gives the same (UP401), and
    so does a success after an earlier -19 on the connection.

    **Example.** `pci_memory`, request 1.5: ADD_PCI of bus 0 slot 9.0, where the VMM offers nothing.

    **Limits.** After an earlier -19 on the same connection the reply proves nothing: a new
    connection, or the console, tells.

    **What to do.** Look whether the VMM had the device on its bus before it sent the request, and
    in that slot: `devfn` is the slot times 8 plus the function.
    """
    present, ref = _there(at)
    removed = _removed(at)
    why = f"Nothing answered when the guest scanned {_place(at)}"
    if removed:
        why += f"; the device that was there was removed by {removed}"
    elif present:
        why += f", although by this recording the device there {since(ref)}"
    else:
        why += ", and this recording shows no device there before"
    return Told(
        what=refused(at),
        why=f"{why}.",
        so=ADD_LOST,
        next="Look in the VMM's log whether the device was on its bus, in this slot, by then.",
        evidence=pointing(removed or ref, "added or removed the device in this slot"),
    )


@rule(codes.PCI_NO_SUCH_DEVICE)
def pci_no_such_device(at: Situation) -> Told:
    """The device to remove is not there.

    **What it says.** The guest has no PCI device where DEL_PCI says: it was removed before, or was
    never added.

    **Why it matters.** Nothing changed in the guest. Dragonball does not look at the answer to a
    removal, so the user notices nothing; but VMM and guest disagreed before already.

    **On the wire.** Reply type 8 with ret -19 (ENODEV). A success after an earlier -19 on the
    connection looks the same (UP502).

    **Example.** `pci_memory`, request 1.7: the second DEL_PCI of bus 0 slot 6.0 in a row.

    **Limits.** After an earlier -19 on the same connection the reply proves nothing. The console
    says `Could not find PCI device for slot`, followed by `devfn`.

    **What to do.** Look for a device that is removed twice, or for an add that failed.
    """
    present, ref = _there(at)
    removed = _removed(at)
    place = _place(at)
    evidence: tuple[Evidence, ...] = ()
    if removed:
        why = f"The device at {place} was already removed by {removed}"
        evidence = pointing(removed, "removed this device")
    elif present:
        why = f"The device at {place} {since(ref)}, but something removed it from the guest since"
        evidence = pointing(ref, "added this device")
    else:
        why = f"The guest has no device at {place}; no add of it is known to have worked"
    return Told(
        what=refused(at),
        why=f"{why}.",
        so=DEL_IGNORED,
        next=SENT_TWICE,
        evidence=evidence,
    )
