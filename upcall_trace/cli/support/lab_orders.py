"""Running labs by their names, and orders to them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import click

from ...control.order_socket import give_order
from ...control.orders import BadOrder
from ...errors import Unreachable, WrongUsage

_ORDER_S: Final = 90.0

lab_name_option = click.option("--name", metavar="NAME", help="Which lab; not needed for one.")
"""`--name NAME`, for `found_lab`."""


def found_lab(name: str | None) -> dict[str, Any]:
    """What is known of a running lab, the only one if no name is given; raises UserError."""
    from ...lab.place import find

    return find(name)


def ready_lab(lab: dict[str, Any]) -> dict[str, Any]:
    """The same lab; raises Unreachable while it is starting."""
    if lab["phase"] != "ready":
        raise Unreachable(f"the lab {lab['name']} is still starting")
    return lab


def order_lab(
    lab: dict[str, Any], order: dict[str, Any], timeout_s: float = _ORDER_S
) -> dict[str, Any]:
    """A lab's answer to an order; raises WrongUsage when it refuses, and Unreachable."""
    try:
        return give_order(Path(ready_lab(lab)["control"]), order, timeout_s)
    except BadOrder as error:
        raise WrongUsage(f"lab {lab['name']}: {error}") from None
