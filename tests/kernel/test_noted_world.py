"""A world in a header's notes comes back as it was, and what cannot be read is told."""

from __future__ import annotations

from random import Random

import pytest

from tests.kernel import random_guests
from upcall_trace.kernel.noted_world import (
    MACHINE,
    WORLD,
    lacking_world,
    noted_world,
    redacted_world,
    world_notes,
)
from upcall_trace.kernel.world import PciDevice, Window, World, kata_pod


@pytest.mark.parametrize("seed", range(50))
def test_a_world_comes_back_as_it_was(seed: int) -> None:
    world = random_guests.world(Random(seed))
    notes = {"pod": "x"} | world_notes(world, "mine")
    assert noted_world(notes) == world
    assert notes[MACHINE] == "mine"
    assert lacking_world(notes) is None


def test_a_recording_without_notes_lacks_nothing() -> None:
    assert noted_world({}) is None
    assert lacking_world({"pod": "x"}) is None


def test_a_machine_that_nobody_describes_is_told() -> None:
    assert lacking_world({MACHINE: "p\x1bc"}) == (
        "it notes the machine 'p\\x1bc', but not what that looks like"
    )


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", "7", '{"kernel":"9.9"}', '{"cpus":[0]}', '{"cpus_online":[]}',
     "[" * 100_000, '{"nr_cpu_ids":' + "9" * 5000 + "}", " " * (1 << 20) + "{}", "\ud800"],
    ids=lambda text: text[:12],
)  # fmt: skip
def test_a_note_that_is_no_world_is_told_and_nothing_worse(text: str) -> None:
    notes = {MACHINE: "pc", WORLD: text}
    assert noted_world(notes) is None
    assert lacking_world(notes) == "the world that it notes cannot be read"


def test_redaction_keeps_numbers_and_known_roles() -> None:
    windows = (Window(0xE0000000, 0x2000, 5, "vsock"), Window(0xE0002000, 0x2000, 6, "acme-nvme"))
    world = World(mmio=windows, pci=(PciDevice(0, 3, 0, "customer"),))
    kept = noted_world(redacted_world(world_notes(world, "acme")))
    assert kept is not None
    assert [window.role for window in kept.mmio] == ["vsock", ""]
    assert [(w.base, w.irq) for w in kept.mmio] == [(w.base, w.irq) for w in windows]
    assert [device.role for device in kept.pci] == [""]
    assert redacted_world({MACHINE: "acme"}) == {}
    assert "acme" not in str(redacted_world(world_notes(kata_pod(), "acme")))
