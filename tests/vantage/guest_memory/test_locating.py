"""What counts as an object, a packet or a message, and what only looks like one."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dissectors.constants import MessageType
from dissectors.messages import bare_request, cpu_request, hello, mmio_request, pci_request
from tests.vantage.guest_memory.cutouts import (
    ASKED,
    CODE,
    SOCKET,
    TASK,
    TOLD,
    found_in,
    held,
    image,
    packet,
    page,
)
from upcall_trace.vantage.guest_memory.conversations import ObjectState, waits
from upcall_trace.vantage.guest_memory.locating import (
    LIMIT,
    is_kernel_pointer,
    kept_of_reply,
    kept_of_request,
    locate,
)
from upcall_trace.vantage.guest_memory.windows import Stretch, windows_of

NOTHING = bytes(1024)
DEL_77 = cpu_request(MessageType.DEL_CPU, [77]).encode()


@pytest.mark.parametrize(
    "pointer",
    [0xFFFF888001234000, 0xFF11000002752A00, 0xFF273444C1458D00, 0xFFFF000012345678, TASK, SOCKET],
)
def test_kernel_pointers_of_every_kind_are_known(pointer: int) -> None:
    """x86-64 with four and five levels, with and without KASLR, and aarch64."""
    assert is_kernel_pointer(pointer)


@pytest.mark.parametrize("value", [0, 0x7F12_3456_7000, 0xFFFF888001234004, 2**64 - 1, 2**64 - 8])
def test_other_numbers_are_no_kernel_pointers(value: int) -> None:
    assert not is_kernel_pointer(value)


@pytest.mark.parametrize("at", [0x0, 0x8, 0x10, 0x18, 0x40, 0x7E8])
def test_an_object_is_found_wherever_an_allocator_puts_it(at: int) -> None:
    (found,) = found_in(page(held(), at)).conversations
    assert (found.held.address, found.held.task, found.held.socket) == (at, TASK, SOCKET)
    assert (found.held.request, found.held.reply) == (ASKED, TOLD)


def test_an_object_may_lie_across_pages() -> None:
    raw = bytes(8192 - 1000) + held() + bytes(8192)
    (found,) = found_in(raw).conversations
    assert found.held.address == 8192 - 1000


def test_a_connection_that_asked_nothing_yet_is_one() -> None:
    (found,) = found_in(page(held(NOTHING, hello().encode()))).conversations
    assert not found.asked
    assert (found.state, found.unanswered) == (ObjectState.ANSWERED, False)


def test_a_request_with_a_wrong_magic_does_not_hide_the_object() -> None:
    refused = b"\0\0\0\0" + cpu_request(MessageType.ADD_CPU, [1]).encode()[4:]
    reply = cpu_request(MessageType.ADD_CPU, [1]).reply(-1).encode()
    (found,) = found_in(page(held(refused, reply))).conversations
    assert found.held.request == refused


def test_an_unknown_type_with_flags_and_an_odd_size_is_a_request_like_another() -> None:
    odd = bytearray(bare_request(77).encode())
    odd[4], odd[12] = 99, 1
    (found,) = found_in(page(held(bytes(odd), bare_request(77).reply(-1).encode()))).conversations
    assert found.held.request == bytes(odd)


@pytest.mark.parametrize(
    ("what", "raw"),
    [
        ("code", CODE * 20),
        ("code in an object's place", held(CODE.ljust(1024), CODE.ljust(1024))),
        ("no pointer in front", held(task=0, socket=0)),
        ("a user's pointers", held(task=0x7F12_3456_7000, socket=0x7F12_3456_8000)),
        ("text behind the reply", held(reply=TOLD[:24] + b"secret " * 142 + bytes(6))),
        ("a reply with the size of a request", held(reply=ASKED)),
    ],
)  # fmt: skip
def test_what_only_looks_like_an_object_is_none(what: str, raw: bytes) -> None:
    assert found_in(page(raw)).conversations == [], what


def test_two_payloads_side_by_side_are_not_an_object() -> None:
    """Buffers of 1024 bytes lie beside each other on 5.10: a request, then a reply."""
    assembled = found_in(page(ASKED + TOLD, 0))
    assert assembled.conversations == []
    assert [message.address for message in assembled.messages] == [0, 1024]


def test_a_packet_is_known_by_its_header_also_with_a_wrong_magic() -> None:
    wrong = b"\x01" + ASKED[1:]
    raw = page(packet(ASKED, 1024), 0) + page(packet(wrong, 2048), 0)
    (talk,) = found_in(raw).strangers
    assert [each.request for each in talk.in_order()] == [ASKED, wrong]


def test_a_header_whose_payload_was_written_over_counts_for_nothing() -> None:
    raw = page(packet(random.Random(1).randbytes(1024), 1024), 0)
    assembled = found_in(raw)
    assert (assembled.packets, assembled.empty) == (0, True)


def test_of_other_ports_nothing_is_taken() -> None:
    other = bytearray(packet(ASKED, 1024))
    other[20:24] = (1024).to_bytes(4, "little")
    assembled = found_in(page(bytes(other), 0))
    assert assembled.packets == 0


MESSAGES = [
    ASKED,
    cpu_request(MessageType.ADD_CPU, list(range(1, 200))).encode(),
    cpu_request(MessageType.DEL_CPU, 3).encode(),
    mmio_request(MessageType.ADD_MMIO, 0xE0006000, 0x2000, 5).encode(),
    bare_request(77).encode(),
]


@pytest.mark.parametrize("request_bytes", MESSAGES)
def test_of_a_request_its_header_and_load_are_kept_and_no_byte_beyond(request_bytes: bytes) -> None:
    dirty = bytes(byte or 0x53 for byte in request_bytes[300:])
    kept = kept_of_request(request_bytes[:300] + dirty)
    assert kept == request_bytes
    assert kept_of_reply(TOLD[:24] + b"S" * 1000) == TOLD


@given(st.integers(0, 6000), st.integers(1, 5000))
def test_where_windows_end_makes_no_difference(at: int, cut: int) -> None:
    raw = bytes(at) + held() + bytes(9000 - at) + packet(ASKED, 1024) + bytes(5000)
    raw += bytes(-len(raw) % 4)
    pieces = [(begin, raw[begin : begin + 8192 + cut]) for begin in range(0, len(raw), 8192 + cut)]
    located = locate(windows_of(iter(pieces)), aligned=False)
    whole = locate([Stretch(raw, [0], [0], len(raw))], aligned=False)
    assert located.objects == whole.objects
    assert located.packets == whole.packets
    assert set(located.messages) == set(whole.messages)


def test_what_ends_at_a_hole_is_not_read_across_it() -> None:
    whole = held()
    first, second = page(b"", 0)[: 4096 - 1000] + whole[:1000], whole[1000:].ljust(4096, b"\0")
    apart = Stretch(first + second, [0, 4096], [0, 1 << 20], 8192)
    assert locate([apart], aligned=True).objects == {}
    together = Stretch(first + second, [0, 4096], [0, 4096], 8192)
    together.offsets, together.addresses = [0], [0]
    assert len(locate([together], aligned=True).objects) == 1


def test_whether_a_request_waits_is_said_only_where_it_shows() -> None:
    del_pci = pci_request(MessageType.DEL_PCI, 0, 4).encode()
    two = cpu_request(MessageType.ADD_CPU, [1, 2])
    one = cpu_request(MessageType.ADD_CPU, [1])
    assert waits(NOTHING, hello().encode()) is False
    assert waits(ASKED, hello().encode()) is True
    assert waits(del_pci, TOLD) is True
    assert waits(ASKED, TOLD) is None  # may be of an earlier one with the same type
    assert waits(two.encode(), one.reply().encode()) is True  # one CPU came up, two are asked for
    assert waits(two.encode(), two.reply().encode()) is None


def test_thousands_of_fakes_are_called_possible_and_cost_little() -> None:
    fakes = b"".join(page(held(socket=SOCKET + 64 * k)) for k in range(3000))
    assembled = found_in(fakes, aligned=True)
    assert len(assembled.conversations) == 3000
    assert {each.state for each in assembled.conversations} == {ObjectState.POSSIBLE}
    assert not any(each.certain for each in assembled.conversations)


def test_a_fake_in_a_real_guests_memory_is_possible_at_most() -> None:
    """Its pointers are not where this kernel's are: a guest's programs do not know them."""
    raw = image("kata_6_12").read_bytes()
    fakes = [page(held(DEL_77, hello().encode(), TASK + 64 * k, SOCKET + 64 * k)) for k in range(3)]
    states = {
        each.held.address: each.state for each in found_in(raw + b"".join(fakes)).conversations
    }
    begin = len(raw) + 0x10
    assert [states.pop(begin + 4096 * k) for k in range(3)] == [ObjectState.POSSIBLE] * 3
    assert states == {each.held.address: each.state for each in found_in(raw).conversations}


def test_of_two_objects_with_one_socket_the_one_that_waits_is_not_the_freed_one() -> None:
    """A socket's memory is used again; a thread that works on a request has freed nothing."""
    old = held(ASKED, TOLD)
    states = [each.state for each in found_in(page(old) + page(held(DEL_77, TOLD))).conversations]
    assert states == [ObjectState.FREED, ObjectState.WAITING]
    states = [each.state for each in found_in(page(old) + page(held(ASKED, TOLD))).conversations]
    assert states == [ObjectState.POSSIBLE, ObjectState.POSSIBLE]


def test_an_object_whose_pointers_are_far_apart_is_possible_at_most() -> None:
    (found,) = found_in(page(held(task=0xFF11000000682000, socket=SOCKET))).conversations
    assert found.state is ObjectState.POSSIBLE


def test_of_more_than_can_be_kept_the_rest_is_said_to_be_there() -> None:
    assembled = found_in(packet(ASKED, 1024) * (LIMIT + 10), aligned=False)
    assert assembled.overflowed


@pytest.mark.parametrize("kernel", ["kata_5_10", "kata_6_1"])
def test_a_mutated_image_is_looked_through_like_another(kernel: str) -> None:
    mutate(image(kernel).read_bytes(), 400, seed=7)


@pytest.mark.torture
@pytest.mark.timeout(7200)
def test_a_million_mutated_images() -> None:
    for seed, kernel in enumerate(("kata_5_10", "kata_6_1", "lab", "kata_6_12")):
        mutate(image(kernel).read_bytes(), 250_000, seed)


def mutate(raw: bytes, count: int, seed: int) -> None:
    """Flip, cut, double and move parts of an image; whatever comes out is looked through."""
    chance = random.Random(seed)
    offsets = [at for at in range(0, len(raw), 4) if any(raw[at : at + 4])]
    for _ in range(count):
        image_bytes = bytearray(raw)
        for _ in range(chance.randint(1, 12)):
            at = (chance.choice(offsets) + chance.randrange(4)) % len(image_bytes)
            match chance.randrange(4):
                case 0:
                    image_bytes[at] ^= 1 << chance.randrange(8)
                case 1:
                    image_bytes[at : at + 4] = chance.randbytes(4)
                case 2:
                    length = chance.randint(1, 3000)
                    to = chance.choice(offsets)
                    image_bytes[to : to + length] = image_bytes[at : at + length]
                case _:
                    del image_bytes[at : at + chance.randint(1, 64)]
        assembled = found_in(bytes(image_bytes))
        assert len(assembled.conversations) <= len(image_bytes) // 2064 + 1
        for each in assembled.conversations:
            assert len(each.held.request) == len(each.held.reply) == 1024
