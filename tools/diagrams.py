"""The documentation's drawings, made from the tables of the program where there are any.

`python -m tools.make_pictures` writes them; each has a light and a dark file.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from dissectors.channel import CLIENT_SENDS, TRANSITIONS, Client, Signal, State
from dissectors.constants import (
    CALLER_TIMEOUT_NS,
    MESSAGE_SIZE,
    SERVICE_BYTE_LIMIT_NS,
    UPCALL_PORT,
)
from dissectors.layouts import DEVICE_MANAGER_TABLE, formats
from dissectors.tables import FieldRow
from upcall_trace.capture.frames import MAGIC, Kind
from upcall_trace.kernel.cpus import CPU_START_LIMIT_NS

from .drawing import THEMES, Drawing, Theme
from .wings import WINGS

_SECOND: Final = 1_000_000_000


def vantage(theme: Theme) -> Drawing:
    """Host, VMM and guest, and where upcall can be watched."""
    d = Drawing("Host, VMM and guest, with the four vantage points", 900, 400, theme)
    d.box(10, 10, 880, 380, fill="host")
    d.text(24, 32, "host", anchor="start", bold=True)
    d.box(30, 60, 190, 60, ("your own client", "test, tool, other VMM"))
    d.box(30, 200, 190, 60, ("proxy", "upcall-trace record"), fill="marked")
    d.box(30, 320, 190, 48, ("logs: journal, files", "upcall-trace diagnose"), fill="marked")
    d.line([(125, 120), (125, 200)])
    d.text(132, 164, "Unix socket", anchor="start", quiet=True, size=12)
    d.box(290, 50, 580, 320, fill="plain")
    d.text(304, 72, "VMM process (Dragonball)", anchor="start", bold=True)
    d.box(310, 90, 170, 56, ("upcall client", "of the VMM itself"))
    d.box(310, 200, 170, 60, ("vsock multiplexer", "kata.hvsock"))
    d.line([(395, 146), (395, 200)])
    d.text(402, 178, "no socket", anchor="start", quiet=True, size=12)
    d.line([(220, 230), (310, 230)])
    d.box(540, 80, 310, 270, fill="guest")
    d.text(554, 102, "guest", anchor="start", bold=True)
    d.box(560, 120, 270, 40, ("vsockmon: record --interface",), fill="marked")
    d.box(560, 200, 270, 60, (f"guest kernel, vsock port {UPCALL_PORT}", "thread db_dev_mgr"))
    d.box(560, 292, 270, 40, ("guest memory: peek, record --memory",), fill="marked")
    d.line([(480, 230), (560, 230)])
    d.text(520, 222, "vsock", quiet=True, size=12)
    d.line([(695, 200), (695, 160)], dashed=True)
    d.line([(695, 260), (695, 292)], dashed=True)
    d.line([(540, 344), (220, 344)], dashed=True)
    d.text(380, 338, "console, VMM log", quiet=True, size=12)
    return d


_STEPS: Final = (
    (0, 1, f"CONNECT {UPCALL_PORT}, newline"),
    (1, 2, f"vsock connect to port {UPCALL_PORT}"),
    (2, 1, "accepted"),
    (1, 0, "OK <host_port>, newline"),
    (0, 2, "service byte d"),
    (2, 0, f"CONNECT message, {MESSAGE_SIZE} bytes"),
    (0, 2, f"request, {MESSAGE_SIZE} bytes"),
    (2, 0, f"reply, {MESSAGE_SIZE} bytes"),
    (0, 2, "close"),
)


def connection(theme: Theme) -> Drawing:
    """Who sends what on a connection."""
    d = Drawing("The steps of a connection", 720, 440, theme)
    columns = (110, 360, 610)
    for x, name, fill in zip(
        columns, ("VMM (client)", "vsock multiplexer", "guest kernel (server)"),
        ("host", "plain", "guest"), strict=True,
    ):  # fmt: skip
        d.box(x - 95, 10, 190, 34, (name,), fill=fill)
        d.line([(x, 44), (x, 430)], arrow=False, faint=True)
    d.box(90, 286, 540, 90, fill="plain", dashed=True)
    d.text(620, 302, "one at a time, again and again", anchor="end", quiet=True, size=12)
    for number, (start, end, said) in enumerate(_STEPS):
        y = 80 + number * 36 + (24 if number > 5 else 0) + (8 if number > 7 else 0)
        d.line([(columns[start], y), (columns[end], y)], dashed=(start > end))
        middle = (columns[start] + columns[end]) / 2
        d.text(middle - (125 if abs(start - end) == 2 else 0), y - 6, said, size=12)
    return d


def states(theme: Theme) -> Drawing:
    """The state machine of a connection, from the table that both ends follow."""
    d = Drawing("The states of a connection", 760, 470, theme)
    order = [Client().state]
    signals: list[Signal] = []
    while True:
        ahead = ((signal, to) for signal, to in TRANSITIONS[order[-1]].items() if to not in order)
        signal, following = next(
            ((s, to) for s, to in ahead if s is not Signal.CLOSE), (Signal.CLOSE, State.CLOSED)
        )
        if signal is Signal.CLOSE:
            break
        order.append(following)
        signals.append(signal)
    d.box(560, 10, 180, 40 + 70 * (len(order) - 1), (State.CLOSED.name,), code=True)
    for number, state in enumerate(order):
        y = 10 + number * 70
        d.box(160, y, 200, 40, (state.name,), code=True, fill="guest" if number > 3 else "host")
        if Signal.CLOSE in TRANSITIONS[state]:
            d.line([(360, y + 20), (560, y + 20)])
            d.text(460, y + 14, Signal.CLOSE.value, size=12)
        if number:
            signal = signals[number - 1]
            d.line([(260, y - 30), (260, y)])
            sender = "client" if signal in CLIENT_SENDS else "server"
            d.text(268, y - 10, f"{signal.value} ({sender})", anchor="start", size=12)
        for signal, to in TRANSITIONS[state].items():
            if to in order[:number]:
                back = 10 + order.index(to) * 70 + 20
                d.line([(160, y + 20), (130, y + 20), (130, back), (160, back)])
                d.text(122, (y + back) / 2 + 24, f"{signal.value} (server)", anchor="end", size=12)
    y = 10 + len(order) * 70
    d.box(160, y, 200, 34, (State.ERROR.name,), code=True, fill="bad", dashed=True)
    d.text(376, y + 21, "from any state, when the peer breaks the rules", anchor="start", size=12)
    return d


_SHOWN: Final = (
    "ADD_MMIO, DEL_MMIO request", "ADD_CPU, DEL_CPU request, x86-64", "ADD_PCI, DEL_PCI request",
    "ADD_CPU, DEL_CPU reply, x86-64", "any other reply",
)  # fmt: skip


def _width(row: FieldRow) -> int:
    """Wide enough for its name, and wider for more bytes."""
    return max(len(row.name) * 8 + 12, 40 + min(row.size, 24) * 3)


def message(theme: Theme) -> Drawing:
    """The bytes of messages, from the table of the protocol. Widths are not to scale."""
    table = formats(DEVICE_MANAGER_TABLE)
    widest = max(sum(map(_width, table[title])) for title in _SHOWN)
    d = Drawing("The bytes of requests and replies", widest + 40, 74 * len(_SHOWN) + 30, theme)
    for number, title in enumerate(_SHOWN):
        x, y = 20, 24 + number * 74
        d.text(x, y, title, anchor="start", bold=True)
        for row in table[title]:
            fill = "host" if row.offset < 16 else "guest"
            fill = "plain" if row.name == "padding" else "marked" if row.name == "ret" else fill
            d.box(x, y + 8, _width(row), 28, (row.name,), code=True, size=12, fill=fill)
            d.text(x + 2, y + 49, str(row.offset), anchor="start", quiet=True, size=11)
            x += _width(row)
        d.text(x, y + 49, str(MESSAGE_SIZE), anchor="end", quiet=True, size=11)
    return d


def hotplug(theme: Theme) -> Drawing:
    """A vCPU that does not start, and the limits that run meanwhile."""
    d = Drawing("The life of a vCPU resize, with its deadlines", 860, 330, theme)
    left, right = 190, 830
    start = CPU_START_LIMIT_NS / _SECOND
    caller = CALLER_TIMEOUT_NS / _SECOND
    short = left + 110

    def lane(y: int, name: str, to: float, said: str, fill: str) -> None:
        d.text(left - 12, y + 21, name, anchor="end")
        d.box(left, y, to - left, 32, (), fill=fill)
        d.text(left + 8 if to > 400 else to + 8, y + 21, said, anchor="start", size=12)

    d.text(left, 24, "0 s", size=12)
    d.text(short, 24, f"{caller * 1000:g} ms", size=12)
    d.text(right, 24, f"{start:g} s", size=12)
    for x in (left, short, right):
        d.line([(x, 32), (x, 300)], arrow=False, faint=True)
    lane(44, "runtime", short, "timed out waiting on channel", "marked")
    lane(92, "upcall channel", right, "busy: every other request is refused", "host")
    lane(140, "guest kernel", right, "waits for a vCPU that the VMM never ran", "guest")
    lane(188, "hotplug lock", right, "held: CPU and MMIO requests of all connections wait", "guest")
    d.text(left - 12, 257, "the reply", anchor="end")
    d.box(right - 4, 236, 8, 32, (), fill="bad")
    d.text(right - 14, 257, f"-EIO after {start:g} s: nobody waits for it any more", anchor="end")
    d.text(left, 318, "Time is not to scale. The client itself has no limit for a reply. "
           f"A new connection has {SERVICE_BYTE_LIMIT_NS // _SECOND} s for its service byte.",
           anchor="start", quiet=True, size=12)  # fmt: skip
    return d


_WAY: Final = (
    ("a hotplug fails", "in production", "bad"),
    ("collect", "journalctl, record, peek", "plain"),
    ("find the cause", "upcall-trace diagnose", "host"),
    ("make it small", "upcall-trace minimise", "host"),
    ("keep it", "captures/NAME.upcap", "plain"),
    ("a CI test", "pytest --upcall-captures", "guest"),
)


def failure_to_test(theme: Theme) -> Drawing:
    """From a failure to a test of CI."""
    d = Drawing("From a failure to a CI test", 800, 210, theme)
    for number, (what, how, fill) in enumerate(_WAY):
        x, y = 20 + number % 3 * 265, 20 + number // 3 * 100
        d.box(x, y, 230, 66, (what, how), fill=fill)
        if number % 3:
            d.line([(x - 35, y + 33), (x, y + 33)])
    d.line([(665, 86), (665, 103), (135, 103), (135, 120)])
    return d


def packages(theme: Theme) -> Drawing:
    """The folders of the source tree by height; a line leads to a folder that may be imported."""
    heights: dict[str, int] = {}
    for name, wing in WINGS.items():
        heights[name] = 1 + max((heights[each] for each in wing.imports), default=-1)
    rows = [[n for n in WINGS if heights[n] == h] for h in range(max(heights.values()) + 1)]
    d = Drawing("The folders of the source tree and their imports", 900, 74 * len(rows) + 10, theme)
    place: dict[str, tuple[float, float]] = {}
    for height, names in enumerate(reversed(rows)):
        for number, name in enumerate(names):
            place[name] = ((number + 0.5) * 900 / len(names), 20 + height * 74)
    for name, wing in WINGS.items():
        for used in wing.imports:
            (x, y), (to_x, to_y) = place[name], place[used]
            d.line([(x, y + 32), (to_x, to_y)], faint=True)
    for name, (x, y) in place.items():
        d.box(x - 58, y, 116, 32, (name,), code=True, fill="guest" if name in "dissectors" else
              "host", size=12)  # fmt: skip
    return d


_PIECES: Final = (
    ((Kind.HEADER,), "where, when, with what", "host"),
    ((Kind.OPEN, Kind.CHUNK, Kind.CLOSE, Kind.GAP), "what happened, in order of time", "guest"),
    ((Kind.INDEX_ROWS, Kind.SEGMENT), "the index of the records above", "plain"),
    ((Kind.OPEN, Kind.CHUNK, Kind.CLOSE, Kind.MARK), "more records, another piece of index",
     "guest"),
    ((Kind.END,), "the recording was closed cleanly", "host"),
    ((Kind.TAIL,), "where the last SEGMENT is", "plain"),
)  # fmt: skip


def layout(theme: Theme) -> Drawing:
    """The pieces of a capture file, and of a frame."""
    d = Drawing("The layout of a capture file", 860, 380, theme)
    d.text(20, 26, "NAME.upcap", anchor="start", code=True, bold=True)
    d.box(20, 40, 420, 34, (MAGIC.hex(" "),), code=True, fill="marked")
    d.text(456, 61, f"magic, {len(MAGIC)} bytes", anchor="start", size=12)
    for number, (kinds, said, fill) in enumerate(_PIECES):
        y = 82 + number * 42
        d.box(20, y, 420, 34, (", ".join(f"{k.value} {k.name}" for k in kinds),), code=True,
              fill=fill, size=12)  # fmt: skip
        d.text(456, y + 21, said, anchor="start", size=12)
    d.text(20, 354, "a frame:", anchor="start", bold=True)
    x = 100
    payload = "payload: msgpack array that begins with the kind"
    for name, width in (("length u32", 110), ("CRC-32 u32", 110), (payload, 420)):
        d.box(x, 336, width, 30, (name,), size=12)
        x += width
    return d


DIAGRAMS: Final[dict[str, Callable[[Theme], Drawing]]] = {
    "vantage": vantage,
    "connection": connection,
    "states": states,
    "message": message,
    "hotplug": hotplug,
    "failure-to-test": failure_to_test,
    "packages": packages,
    "layout": layout,
}
"""A drawing by the name of its file."""


def drawn() -> dict[str, str]:
    """Every drawing in every theme, by the name of its file."""
    return {
        f"{name}{ending}.svg": draw(theme).svg()
        for name, draw in DIAGRAMS.items()
        for ending, theme in THEMES.items()
    }
