"""Records of every kind that shrink, for the tests of a capture's layers."""

from __future__ import annotations

from hypothesis import strategies as st

from upcall_trace.capture.records import (
    DAMAGED,
    LEFT_OUT,
    MAX_CHUNK,
    TIME_LIMIT,
    Begins,
    Chunk,
    Close,
    End,
    Gap,
    GaveUp,
    Header,
    How,
    Mark,
    Open,
    Origin,
    Record,
    Vmm,
)

INT = st.integers(-(1 << 63), (1 << 63) - 1)
TIME = st.integers(-TIME_LIMIT, TIME_LIMIT - 1)
CONN = st.integers(0, (1 << 32) - 1)
TEXT = st.text(max_size=40) | st.text(st.characters(), max_size=5)
"""Any text; `characters` has lone surrogates too."""


@st.composite
def received(draw: st.DrawFn, limit: int = MAX_CHUNK) -> bytes:
    """Bytes of a receive: literals and runs of zeros around the length that is worth counting."""
    pieces = draw(
        st.lists(
            st.binary(max_size=40)
            | st.integers(0, 30).map(bytes)
            | st.integers(0, limit).map(bytes)
            | st.integers(0, 200).map(lambda n: b"\xff" + bytes(n)),
            max_size=90,
        )
    )
    return b"".join(pieces)[:limit]


def headers() -> st.SearchStrategy[Header]:
    return st.builds(
        Header,
        source=TEXT,
        tool=TEXT,
        host=TEXT,
        arch=st.none() | TEXT,
        wall_ns=st.none() | INT,
        resolution_ns=INT,
        port=INT,
        notes=st.dictionaries(TEXT, TEXT, max_size=5),
        recording=TEXT,
        part=st.integers(0, 1 << 40),
        sandbox=st.none() | TEXT,
    )


def records(
    time: st.SearchStrategy[int] = TIME,
    conn: st.SearchStrategy[int] = CONN,
    raw: st.SearchStrategy[bytes] | None = None,
) -> st.SearchStrategy[Record]:
    """Any record but the header."""
    reason = st.sampled_from([LEFT_OUT, DAMAGED]) | TEXT
    notes = st.dictionaries(TEXT, TEXT, max_size=3)
    peers = st.none() | st.tuples(INT, INT, INT)
    return st.one_of(
        st.builds(
            Open,
            time,
            conn,
            st.sampled_from(Begins),
            st.none() | INT,
            st.none() | st.booleans(),
            peers,
            st.integers(0, 9),
        ),
        st.builds(
            Chunk,
            time,
            conn,
            st.booleans(),
            received() if raw is None else raw,
            st.just(0) | st.integers(0, 1 << 40),
        ),
        st.builds(Origin, time, st.integers(1, 9), TEXT, TEXT, st.none() | TEXT, notes),
        st.builds(Close, time, conn, st.booleans(), st.sampled_from(How), TEXT),
        st.builds(GaveUp, time, conn, INT),
        st.builds(Vmm, time, TEXT, conn),
        st.builds(Gap, time, conn, st.booleans(), st.integers(0, (1 << 63) - 1), reason),
        st.builds(Mark, INT, st.none() | conn, st.none() | INT, TEXT, TEXT),
        st.builds(End, time),
    )
