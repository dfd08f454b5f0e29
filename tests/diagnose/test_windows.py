"""Windows are found as a search through all of them finds them."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from upcall_trace.diagnose.finding import Ref
from upcall_trace.diagnose.windows import PlacedWindows, WindowKey
from upcall_trace.kernel.world import Window

KEYS = st.tuples(
    st.integers(0, 40) | st.integers(0, (1 << 64) - 1),
    st.integers(0, 12) | st.integers(0, (1 << 64) - 1),
    st.integers(0, 3),
)


@given(st.lists(st.tuples(KEYS, st.booleans())), KEYS)
def test_as_a_search_through_all_of_them(
    happened: list[tuple[WindowKey, bool]], asked: WindowKey
) -> None:
    placed, plain = PlacedWindows(), dict[WindowKey, Ref | None]()
    for number, (key, added) in enumerate(happened):
        if added:
            placed[key] = plain[key] = Ref(1, number)
        else:
            placed.pop(key, None)
            plain.pop(key, None)
    assert list(placed.items()) == list(plain.items())

    base, size, irq = asked
    end = base + size - 1
    overlap = (k for k in plain if base < k[0] + k[1] - 1 and end > k[0])
    edge = (k for k in plain if base == Window(*k).end or end == k[0])
    assert placed.overlapping(base, size) == next(overlap, None)
    assert placed.at_edge(base, end) == next(edge, None)
    assert placed.at_base(base) == next((k for k in plain if k[0] == base), None)
    assert placed.on_irq(irq) == next((k for k in plain if k[2] == irq), None)
