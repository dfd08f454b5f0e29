"""UP301 to UP306: virtio-mmio windows and their interrupts."""

from __future__ import annotations

from typing import Final

from dissectors.constants import (
    EBUSY,
    EEXIST,
    EINVAL,
    ENODEV,
    MMIO_MSG_SIZE,
    MMIO_TYPES,
    SHAREABLE_IRQ,
    Arch,
    MessageType,
)

from ... import codes
from ...kernel.world import Window
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

_SHARED_ON_ARM: Final = 32
_ADDRESSES: Final = 1 << 64
_KEPT: Final = (
    "Dragonball ignores the refusal and removes its side; the guest keeps a device with nothing "
    "behind it."
)


_NOT_DONE: Final = (
    "Dragonball ignores the refusal and drops its side; a device that the guest has there stays, "
    "with nothing behind it."
)
_KEEPS: Final = (
    "The guest keeps the device that it has; Dragonball drops the error and counts the add as done."
)


def _span(window: Window) -> str:
    return f"{window.base:#x}+{window.size:#x}"


def _so(at: Situation) -> str:
    """What Dragonball makes of a refused add or removal."""
    return ADD_LOST if at.request.msg_type == MessageType.ADD_MMIO else _NOT_DONE


@explains(Cue.REPLY, MMIO_TYPES)
def refused_window(at: Situation) -> list[Cause]:
    """Why an MMIO request got its answer: the guest's checks in their order."""
    mmio, ret = at.mmio, at.ret
    assert mmio is not None  # the type says so
    if ret == 0:
        return []
    if ret == EINVAL:
        if mmio.msg_size != MMIO_MSG_SIZE:
            return sure(codes.MMIO_BAD_SIZE_FIELD)
        if mmio.mmio_irq and not at.arch_told:
            at.arch = Arch.AARCH64  # x86-64 refuses no other number than 0
            return maybe(codes.MMIO_BAD_IRQ)
        refusable = mmio.mmio_irq == 0 or at.arch is Arch.AARCH64
        return sure(codes.MMIO_BAD_IRQ if refusable else codes.UNEXPLAINED_RESULT)
    if at.request.msg_type == MessageType.DEL_MMIO:
        return sure(codes.MMIO_NO_SUCH_DEVICE if ret == ENODEV else codes.UNEXPLAINED_RESULT)
    if ret == EBUSY:
        return sure(codes.MMIO_RESOURCE_BUSY)
    return _taken(at) if ret == EEXIST else sure(codes.UNEXPLAINED_RESULT)


def _taken(at: Situation) -> list[Cause]:
    """-EEXIST: the window overlaps one, or the interrupt is another's. Overlap comes first."""
    mmio = at.mmio
    assert mmio is not None  # the type says so
    if mmio.mmio_irq == SHAREABLE_IRQ:
        return sure(codes.MMIO_OVERLAP)
    if at.history.overlapping(mmio.mmio_base, mmio.mmio_size):
        also = (codes.IRQ_CONFLICT,) if at.history.unsure else ()
        return maybe(codes.MMIO_OVERLAP, *also)
    either = [codes.MMIO_OVERLAP, codes.IRQ_CONFLICT]
    return maybe(*(reversed(either) if at.history.on_irq(mmio.mmio_irq) else either))


@rule(codes.MMIO_OVERLAP)
def mmio_overlap(at: Situation) -> Told:
    """The window overlaps one that is registered.

    **What it says.** The guest refused ADD_MMIO because a device is registered in part of the
    address range already. The most common reason is that the same device was added twice.

    **Why it matters.** Dragonball counts any answer to an add as done. The VMM believes that the
    device is plugged, the guest never sees it, and the user finds a missing disk or interface.

    **On the wire.** Reply type 5 with ret -17 (EEXIST). The same number means an interrupt
    conflict (UP302); the overlap is checked first.

    **Example.** `mmio_lifecycle`, request 1.2: a second ADD_MMIO of 0xfeb00400+0x200.

    **Limits.** Without the guest's world a device from boot may be the other one, so the finding
    is inferred unless the interrupt is 5, which cannot conflict.

    **What to do.** Compare the addresses that the VMM handed out; remove the old device first, or
    look for a retry of an add that had worked.
    """
    mmio = at.mmio
    assert mmio is not None  # only ADD_MMIO gets here
    other = at.history.overlapping(mmio.mmio_base, mmio.mmio_size)
    so = ADD_LOST
    if other is None:
        why = "a device that this recording does not show occupies part of that range"
        evidence: tuple[Evidence, ...] = ()
    else:
        window, ref = other
        same = (window.base, window.size, window.irq) == (
            mmio.mmio_base, mmio.mmio_size, mmio.mmio_irq,
        )  # fmt: skip
        name = "this very device" if same else _span(window)
        so = _KEEPS if same else ADD_LOST
        why = f"{name} is registered: it {since(ref)}"
        evidence = pointing(ref, "registered the other window")
    return Told(
        what=refused(at),
        why=f"The window overlaps one that it knows; {why}.",
        so=so,
        next="Look for a retry, or for two devices with one address, in the VMM's log.",
        evidence=evidence,
    )


@rule(codes.IRQ_CONFLICT)
def irq_conflict(at: Situation) -> Told:
    """The interrupt belongs to another device.

    **What it says.** The guest refused ADD_MMIO because a registered device has the same interrupt.
    Only number 5 may be shared.

    **Why it matters.** Dragonball counts any answer to an add as done. The VMM believes that the
    device is plugged, the guest never sees it, and the user finds a missing disk or interface.

    **On the wire.** Reply type 5 with ret -17 (EEXIST). The same number means that the windows
    overlap (UP301), which is checked first.

    **Example.** `mmio_lifecycle`, request 1.4: ADD_MMIO with interrupt 8, which the device of
    request 1.1 has. `aarch64_lifecycle`, request 1.16: the second device on SPI 32.

    **Limits.** Without the guest's world an overlap with a device from boot cannot be ruled out, so
    the finding is inferred.

    **What to do.** Give each device an interrupt of its own, or share number 5. On aarch64
    Dragonball shares 32, of which this kernel knows nothing: only one hot-added device can have it.
    """
    mmio = at.mmio
    assert mmio is not None  # only ADD_MMIO gets here
    irq, other = mmio.mmio_irq, at.history.on_irq(mmio.mmio_irq)
    evidence: tuple[Evidence, ...] = ()
    if other is None:
        why = f"Interrupt {irq} belongs to a device that this recording does not show"
    else:
        window, ref = other
        why = f"Interrupt {irq} belongs to the device at {_span(window)}, which {since(ref)}"
        evidence = pointing(ref, "registered the device with this interrupt")
    advice = "Give the device an interrupt of its own; the guest lets devices share number 5 only."
    if at.arch is Arch.AARCH64 and irq == _SHARED_ON_ARM:
        advice = "Give the device its own interrupt: Dragonball shares SPI 32, this kernel only 5."
    return Told(what=refused(at), why=f"{why}.", so=ADD_LOST, next=advice, evidence=evidence)


@rule(codes.MMIO_BAD_SIZE_FIELD)
def mmio_bad_size_field(at: Situation) -> Told:
    """The header's msg_size is not that of an MMIO request.

    **What it says.** The guest refused an MMIO request because `msg_size` in its header is not 24.
    It is the only kind of request for which the guest looks at that field.

    **Why it matters.** The request was not executed, and the VMM takes no notice: after an add the
    device is missing in the guest, after a removal it is still there.

    **On the wire.** Reply type 5 or 6 with ret -22 (EINVAL), and a request whose bytes 4 to 7 are
    not 24. It is the first check of all.

    **Example.** `mmio_lifecycle`, request 1.9: ADD_MMIO with msg_size 20, the fields without the
    four bytes that C adds at the end.

    **Limits.** None: the field is on the wire.

    **What to do.** Look at the program that wrote the request. Dragonball writes 24. A request that
    reached the guest in pieces can have a wrong header as well.
    """
    return Told(
        what=refused(at),
        why=f"The msg_size in its header is {at.request.msg_size}, and the guest accepts 24 only.",
        so=_so(at),
        next="Look at the client that wrote this request: Dragonball's have a msg_size of 24.",
    )


@rule(codes.MMIO_BAD_IRQ)
def mmio_bad_irq(at: Situation) -> Told:
    """The interrupt number cannot be used.

    **What it says.** The guest refused an MMIO request for its interrupt: 0 on x86-64, or on
    aarch64 a number that the interrupt controller cannot map.

    **Why it matters.** The request was not executed, and the VMM takes no notice: after an add the
    device is missing in the guest, after a removal it is still there.

    **On the wire.** Reply type 5 or 6 with ret -22 (EINVAL), and a msg_size of 24.

    **Example.** `mmio_lifecycle`, request 1.7: ADD_MMIO with interrupt 0. `aarch64_lifecycle`,
    request 1.18: SPI 2000.

    **Limits.** On aarch64 the highest usable number depends on the interrupt controller, and is not
    on the wire. There 0 is allowed.

    **What to do.** Look at the interrupt that the VMM gave the device. On aarch64 the request holds
    an SPI number, which is 32 less than the controller's own.
    """
    mmio = at.mmio
    assert mmio is not None  # only MMIO requests get here
    why = "Interrupt 0 cannot be used on x86-64."
    advice = "Look in the VMM's log for the interrupt that the device was given."
    if at.arch is Arch.AARCH64:
        why = f"The guest's interrupt controller cannot map SPI number {mmio.mmio_irq}."
        advice = "Compare the number with the SPIs that the guest's interrupt controller has."
    return Told(what=refused(at), why=why, so=_so(at), next=advice)


@rule(codes.MMIO_RESOURCE_BUSY)
def mmio_resource_busy(at: Situation) -> Told:
    """The guest could not claim the window.

    **What it says.** No upcall device is in the way, but the kernel could not reserve the address
    range: it is empty, or something in the guest has claimed a part of it.

    **Why it matters.** Dragonball counts any answer to an add as done. The VMM believes that the
    device is plugged, the guest never sees it, and the user finds a missing disk or interface.

    **On the wire.** Reply type 5 with ret -16 (EBUSY).

    **Example.** `mmio_lifecycle`, request 1.8: ADD_MMIO with a size of 0.

    **Limits.** What claimed the range is in the guest only. Two windows that share a single byte at
    the edge are no overlap to the guest's own check (UP301) and end here.

    **What to do.** Look at /proc/iomem in the guest, and at `failed to claim resource` in its
    console.
    """
    mmio = at.mmio
    assert mmio is not None  # only ADD_MMIO gets here
    base, size = mmio.mmio_base, mmio.mmio_size
    if size == 0:
        return Told(
            what=refused(at),
            why="The window is empty: its size is 0.",
            so=ADD_LOST,
            next="Look in the VMM's log where the size of 0 came from.",
        )
    why, ref = "Something in the guest has claimed that range or a part of it", None
    edge = at.history.at_edge(base, base + size - 1)
    if base + size > _ADDRESSES:
        why = "The window runs past the last address there is"
    elif edge:
        window, ref = edge
        why = f"The window shares one byte with {_span(window)}, which {since(ref)}"
    return Told(
        what=refused(at),
        why=f"{why}.",
        so=ADD_LOST,
        next="Look at /proc/iomem in the guest, and for `failed to claim resource` in its console.",
        evidence=pointing(ref, "registered the window next to it"),
    )


@rule(codes.MMIO_NO_SUCH_DEVICE)
def mmio_no_such_device(at: Situation) -> Told:
    """No registered device is exactly the one to remove.

    **What it says.** The guest finds a device by base, size and interrupt together, and none has
    all three: it was removed before, was never added, or differs in one of them.

    **Why it matters.** Dragonball throws the answer to a removal away and drops its own side. If
    the request differs from the device, the guest keeps one with nothing behind it.

    **On the wire.** Reply type 6 with ret -19 (ENODEV).

    **Example.** `mmio_lifecycle`, request 1.10: the right window with interrupt 9 instead of 8.
    `mmio_lifecycle`, request 1.12: the device was already removed by request 1.11.

    **Limits.** Which of the three it was follows from earlier requests; devices from boot are known
    only with the guest's world.

    **What to do.** Compare the three numbers with those of the add. Look for a removal that was
    sent twice, or for an add that failed.
    """
    mmio = at.mmio
    assert mmio is not None  # only DEL_MMIO gets here
    key = (mmio.mmio_base, mmio.mmio_size, mmio.mmio_irq)
    history = at.history
    if key in history.windows:
        ref = history.windows[key]
        why = f"The device {since(ref)}, but something that this recording does not show removed it"
        return _not_there(at, why, pointing(ref, "added this device"))
    similar = _similar(at, *key)
    if similar is not None:
        window, ref, difference = similar
        device = "the device there since boot" if ref is None else f"the device added by {ref}"
        return Told(
            what=refused(at),
            why=f"The request differs in its {difference} from {device}.",
            so=_KEPT,
            next="Remove the device with the base, size and interrupt that it was added with.",
            evidence=pointing(ref, f"registered {_span(window)} irq={window.irq}"),
        )
    removed = history.removed_windows.get(key)
    if removed is not None:
        why = f"The device was already removed by {removed}"
        return _not_there(at, why, pointing(removed, "removed this device"))
    return _not_there(at, "The guest has no such device; it was never added in this recording", ())


def _not_there(at: Situation, why: str, evidence: tuple[Evidence, ...]) -> Told:
    return Told(
        what=refused(at),
        why=f"{why}.",
        so=DEL_IGNORED,
        next=SENT_TWICE,
        evidence=evidence,
    )


def _similar(
    at: Situation, base: int, size: int, irq: int
) -> tuple[Window, Ref | None, str] | None:
    """The registered device that the request must have meant, and what differs."""
    found = at.history.at_base(base) or at.history.overlapping(base, size)
    if found is None:
        return None
    window, ref = found
    names = ("base", "size", "interrupt")
    theirs, ours = (window.base, window.size, window.irq), (base, size, irq)
    shown = [
        f"{name} ({our}, not {their})"
        if name == "interrupt"
        else f"{name} ({our:#x}, not {their:#x})"
        for name, our, their in zip(names, ours, theirs, strict=True)
        if our != their
    ]
    return window, ref, " and ".join(shown)
