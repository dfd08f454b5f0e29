"""`python -m benchmarks [NAME…]`: run them and print one table each."""

from __future__ import annotations

import sys

from . import (
    crowds,
    decoding,
    diagnosis,
    fleet,
    guest,
    lab,
    logs,
    long_run,
    memory,
    relays,
    replay,
    start,
    tui,
)  # fmt: skip

ALL = {
    "relays": relays.run,
    "crowds": crowds.run,
    "long": long_run.run,
    "guest": guest.run,
    "decoding": decoding.run,
    "diagnosis": diagnosis.run,
    "logs": logs.run,
    "fleet": fleet.run,
    "replay": replay.run,
    "start": start.run,
    "tui": tui.run,
    "lab": lab.run,
    "memory": memory.run,
}


def main() -> None:
    """Run the named benchmarks, or all of them."""
    for name in sys.argv[1:] or ALL:
        print(f"\n{name}")
        for row in ALL[name]():
            print(f"  {row}", flush=True)


main()
