"""One field of a message written anew."""

from __future__ import annotations

import pytest

from dissectors.constants import Arch
from dissectors.messages import (
    CpuRequestX86,
    Request,
    cpu_request,
    decode_reply,
    decode_request,
    mmio_request,
    pci_request,
)
from tests.replay.modelled import ADD_MEM, T, last, recorded, script_of
from upcall_trace.errors import WrongUsage
from upcall_trace.kernel.world import kata_pod
from upcall_trace.trace.script import Asked
from upcall_trace.transform.fields import Setting, parse_setting, set_in_reply, set_in_request

MMIO = mmio_request(T.ADD_MMIO, 0xD0000000, 0x2000, 5)
CPUS = cpu_request(T.ADD_CPU, [2, 3, 4])
PCI = pci_request(T.ADD_PCI, 0, 6, 1)


def asked(request: Request | bytes, arch: Arch = Arch.X86_64) -> Asked:
    script = script_of(recorded([request], kata_pod(arch, cpus=2)))
    return script.asked[last(script)]


def rewritten(request: Request, told: str) -> Request:
    _, setting = parse_setting(f"1.0 {told}")
    assert setting.of_request
    return decode_request(set_in_request("1.0", asked(request), setting, None))


@pytest.mark.parametrize(
    ("request_", "told", "expected"),
    [
        (MMIO, "mmio_base=0xe0008000", {"mmio_base": 0xE0008000}),
        (MMIO, "mmio_size=0", {"mmio_size": 0}),
        (MMIO, "mmio_irq=7", {"mmio_irq": 7}),
        (CPUS, "apic_ids=9", {"apic_ids": [9], "count": 1}),
        (CPUS, "apic_ids=9,8,7,6", {"apic_ids": [9, 8, 7, 6], "count": 4}),
        (CPUS, "apic_ids=", {"apic_ids": [], "count": 0}),
        (CPUS, "count=2", {"apic_ids": [2, 3], "count": 2}),
        (CPUS, "apic_ver=1", {"apic_ver": 1}),
        (PCI, "slot=9", {"slot": 9, "function": 1, "devfn": 0x49}),
        (PCI, "function=0", {"slot": 6, "function": 0, "devfn": 0x30}),
        (PCI, "devfn=0x11", {"slot": 2, "function": 1, "devfn": 0x11}),
        (PCI, "busno=3", {"busno": 3}),
    ],
)
def test_a_field_of_a_request(request_: Request, told: str, expected: dict[str, object]) -> None:
    done = rewritten(request_, told)
    assert done.fields() == {**request_.fields(), **expected}
    assert (done.msg_size, done.padding) == (request_.msg_size, request_.padding)


def test_ids_that_are_not_meant_any_more_are_zeros() -> None:
    done = rewritten(CPUS, "apic_ids=9")
    assert isinstance(done, CpuRequestX86)
    assert done.apic_ids == b"\x09" + bytes(255)


@pytest.mark.parametrize("name", ["magic_version", "msg_size", "msg_type", "msg_flags"])
def test_the_headers_fields_are_of_the_request_only_when_it_says_so(name: str) -> None:
    assert getattr(rewritten(MMIO, f"request.{name}=77"), name) == 77
    assert parse_setting(f"1.0 {name}=77")[1] == Setting(name, (77,), of_request=False)
    assert not parse_setting(f"1.0 reply.{name}=77")[1].of_request


@pytest.mark.parametrize(
    ("request_", "arch", "told", "expected"),
    [
        (MMIO, Arch.X86_64, "ret=-17", {"ret": -17}),
        (MMIO, Arch.X86_64, "msg_type=6", {"msg_type": 6}),
        (CPUS, Arch.X86_64, "apic_index=1", {"apic_index": 1, "ret": 0}),
        (cpu_request(T.ADD_CPU, 1), Arch.AARCH64, "cpu_id=9", {"cpu_id": 9}),
    ],
)
def test_a_field_of_a_reply(
    request_: Request, arch: Arch, told: str, expected: dict[str, int]
) -> None:
    before = asked(request_, arch)
    raw = set_in_reply("1.0", before, parse_setting(f"1.0 {told}")[1])
    done = decode_reply(raw, arch)
    assert {name: getattr(done, name) for name in expected} == expected
    assert sum(a != b for a, b in zip(raw, before.reply_raw, strict=True)) <= 4


@pytest.mark.parametrize(
    ("request_", "told", "complaint"),
    [
        (MMIO, "slot=3", "1.0 is add_mmio, which has no slot"),
        (CPUS, "mmio_irq=3", "1.0 is add_cpu, which has no mmio_irq"),
        (MMIO.encode()[:20], "mmio_irq=3", "1.0 came with 20 bytes, and mmio_irq is beyond them"),
        (MMIO, "apic_index=3", r"the reply to 1.0 \(add_mmio\) has no apic_index"),
        (CPUS, "cpu_id=3", r"the reply to 1.0 \(add_cpu\) has no cpu_id"),
        (cpu_request(T.DEL_CPU, [9]), "ret=0", "1.0 has no reply whose ret could be set"),
    ],
)
def test_a_field_that_is_not_there(request_: Request | bytes, told: str, complaint: str) -> None:
    _, setting = parse_setting(f"1.0 {told}")
    before = asked(request_)
    with pytest.raises(WrongUsage, match=complaint):
        (set_in_request("1.0", before, setting, None) if setting.of_request
         else set_in_reply("1.0", before, setting))  # fmt: skip


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("1.0", "sets nothing"),
        ("1.0 ret", "sets nothing"),
        ("x ret=1", "'x' is no operation"),
        ("1.0 irq=1", "irq is no field of a request; there are magic_version"),
        ("1.0 reply.mmio_irq=1", "mmio_irq is no field of a reply; there are"),
        ("1.0 mmio_irq=five", "'five' cannot be a value of mmio_irq"),
        ("1.0 mmio_irq=-1", "'-1' cannot be a value of mmio_irq"),
        ("1.0 mmio_irq=0x100000000", "cannot be a value of mmio_irq"),
        ("1.0 apic_ids=1,300", "'1,300' cannot be a value of apic_ids"),
        ("1.0 slot=32", "'32' cannot be a value of slot"),
        ("1.0 ret=4000000000", "cannot be a value of ret"),
    ],
)
def test_what_sets_nothing_is_told(text: str, complaint: str) -> None:
    with pytest.raises(WrongUsage, match=complaint):
        parse_setting(text)


def test_what_has_no_load_has_a_header() -> None:
    assert rewritten(ADD_MEM, "request.msg_type=77").op == "type_77"
