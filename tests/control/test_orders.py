"""Orders for the VMM's side: what is one, and what is said about what is none."""

from __future__ import annotations

import pytest

from upcall_trace.control.orders import (
    BadOrder,
    name_and_value,
    pci_device,
    vcpu,
)
from upcall_trace.kernel.world import PciDevice


@pytest.mark.parametrize("value", [1, True, None, {"bus": 0}, [1, 2]])
def test_an_order_has_a_name_and_a_value_of_any_kind(value: object) -> None:
    assert name_and_value({"name": value}) == ("name", value)


@pytest.mark.parametrize("order", [{}, {"start_vcpu": 1, "reset": True}, [], "reset", 3, None])
def test_anything_but_an_object_with_one_key_is_no_order(order: object) -> None:
    with pytest.raises(BadOrder, match="an order is an object with one key"):
        name_and_value(order)


@pytest.mark.parametrize("cpu", [0, 1, 255])
def test_a_vcpu_is_a_byte(cpu: int) -> None:
    assert vcpu("start_vcpu", cpu) == cpu


@pytest.mark.parametrize("value", [-1, 256, True, False, 1.0, "1", None, [1]])
def test_anything_else_is_no_vcpu_and_is_named(value: object) -> None:
    with pytest.raises(BadOrder) as refused:
        vcpu("start_vcpu", value)
    assert str(refused.value) == f"start_vcpu needs a vCPU from 0 to 255, not {value!r}"


def test_a_pci_device_is_function_0_unless_it_says_another() -> None:
    assert pci_device("plug_pci", {"bus": 0, "slot": 31}) == PciDevice(0, 31, 0)
    assert pci_device("plug_pci", {"bus": 255, "slot": 0, "function": 7}) == PciDevice(255, 0, 7)


@pytest.mark.parametrize(
    ("value", "why"),
    [
        (6, "[plug_pci] is not a table"),
        ({"slot": 6}, "[plug_pci] has no 'bus'"),
        ({"bus": 0, "slot": 32}, "[plug_pci] slot must be a number from 0 to 0x1f, not 32"),
        ({"bus": True, "slot": 6}, "[plug_pci] bus must be a number from 0 to 0xff, not True"),
        ({"bus": 0, "slot": 6, "function": 8}, "[plug_pci] function must be"),
        ({"bus": 0, "slot": 6, "colour": 1}, "[plug_pci] has an unknown key 'colour'"),
    ],
)
def test_what_is_no_pci_device_is_a_bad_order_that_names_the_key(value: object, why: str) -> None:
    with pytest.raises(BadOrder) as refused:
        pci_device("plug_pci", value)
    assert str(refused.value).startswith(why)
