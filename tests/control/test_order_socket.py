"""The control socket, both ends of it: what is answered, and what is made of an answer."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.guests import receive_line
from upcall_trace.control.order_socket import give_order, serve_orders
from upcall_trace.control.orders import BadOrder
from upcall_trace.errors import Unreachable
from upcall_trace.sockets.serving import StreamServer


@contextmanager
def serving(follow: Callable[[dict[str, Any]], dict[str, Any]]) -> Iterator[socket.socket]:
    """A stream whose other end takes orders."""
    ours, theirs = socket.socketpair()
    ours.settimeout(10)
    thread = threading.Thread(target=serve_orders, args=(theirs, follow))
    with ours, theirs:
        thread.start()
        yield ours
        ours.shutdown(socket.SHUT_WR)
        thread.join(10)
        assert not thread.is_alive()


@contextmanager
def answering(path: Path, *pieces: bytes) -> Iterator[Path]:
    """A control socket that reads a line, sends these pieces, and closes."""

    def answer(stream: socket.socket) -> None:
        receive_line(stream)
        for piece in pieces:
            stream.sendall(piece)

    with StreamServer(path, answer):
        yield path


def obey(order: dict[str, Any]) -> dict[str, Any]:
    return {"ok": True, "order": order}


def test_each_line_is_an_order_and_has_its_answer() -> None:
    with serving(obey) as stream:
        stream.sendall(b'{"a": 1}\n{"b"')
        assert json.loads(receive_line(stream)) == {"ok": True, "order": {"a": 1}}
        stream.sendall(b": 2}\n")
        assert json.loads(receive_line(stream)) == {"ok": True, "order": {"b": 2}}


def test_a_refusal_says_why_and_the_next_order_is_heard() -> None:
    def follow(order: dict[str, Any]) -> dict[str, Any]:
        if "bad" in order:
            raise BadOrder("bad is no order")
        return {"ok": True}

    with serving(follow) as stream:
        stream.sendall(b'{"bad": 1}\n')
        assert json.loads(receive_line(stream)) == {"ok": False, "error": "bad is no order"}
        stream.sendall(b'{"good": 1}\n')
        assert json.loads(receive_line(stream)) == {"ok": True}


@pytest.mark.parametrize(
    ("size", "error"), [(1023, None), (1024, None), (1025, "an order is a short line")]
)
def test_a_line_has_1024_bytes_with_its_newline(size: int, error: str | None) -> None:
    line = b'{"a": 1}'.ljust(size - 1) + b"\n"
    with serving(obey) as stream:
        stream.sendall(line)
        assert json.loads(receive_line(stream)).get("error") == error


def test_after_a_line_without_an_end_nothing_more_is_heard() -> None:
    with serving(obey) as stream:
        stream.sendall(b'{"a": 1'.ljust(1024) + b'}\n{"b": 2}\n')
        assert json.loads(receive_line(stream))["error"] == "an order is a short line"
        stream.settimeout(0.05)
        with pytest.raises(TimeoutError):
            stream.recv(1)


@pytest.mark.parametrize("line", [b"", b"reset", b'{"a": ', b"\xff\xfe", b"[" * 1000])
def test_what_is_no_json_is_told_and_the_next_order_is_heard(line: bytes) -> None:
    with serving(obey) as stream:
        stream.sendall(line + b"\n")
        answer = json.loads(receive_line(stream))
        assert answer == {"ok": False, "error": "not a line of JSON"}
        stream.sendall(b'{"a": 1}\n')
        assert json.loads(receive_line(stream)) == {"ok": True, "order": {"a": 1}}


def test_an_order_is_given_and_its_answer_returned(tmp_path: Path) -> None:
    heard: list[dict[str, Any]] = []

    def follow(order: dict[str, Any]) -> dict[str, Any]:
        heard.append(order)
        return {"ok": True, "state": {"cpus_online": [0, 1]}}

    with StreamServer(tmp_path / "control", lambda stream: serve_orders(stream, follow)):
        answer = give_order(tmp_path / "control", {"state": True}, 10)
    assert answer == {"ok": True, "state": {"cpus_online": [0, 1]}}
    assert heard == [{"state": True}]


def test_an_answer_may_be_large_and_come_in_pieces(tmp_path: Path) -> None:
    disks = [f"vd{number}" for number in range(20_000)]
    answer = json.dumps({"ok": True, "disks": disks}).encode()
    with answering(tmp_path / "control", answer[:10], answer[10:], b"\n") as control:
        assert give_order(control, {"state": True}, 10)["disks"] == disks


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        ({"ok": False, "error": "slot 9 is taken"}, "slot 9 is taken"),
        ({"ok": False}, "no reason given"),
        ({"error": "it fell silent"}, "it fell silent"),
        ({"ok": 1, "error": "1 is not true"}, "1 is not true"),
        ("busy", "busy"),
        ([], "[]"),
    ],
)
def test_an_answer_that_is_not_ok_is_a_bad_order(tmp_path: Path, answer: object, why: str) -> None:
    line = json.dumps(answer).encode() + b"\n"
    with answering(tmp_path / "control", line) as control, pytest.raises(BadOrder) as refused:
        give_order(control, {"start_vcpu": 1}, 10)
    assert str(refused.value) == why


@pytest.mark.parametrize(
    "line", [b"", b'{"ok": tr', b"OK\n", b"\xff\xfe\n", b"[" * 200_000 + b"\n"]
)
def test_half_an_answer_is_none(tmp_path: Path, line: bytes) -> None:
    with (
        answering(tmp_path / "control", line) as control,
        pytest.raises(Unreachable, match=f"{control} closed without an answer"),
    ):
        give_order(control, {"state": True}, 10)


def test_a_control_socket_that_does_not_answer_is_not_waited_for(tmp_path: Path) -> None:
    over = threading.Event()

    def serve(_: socket.socket) -> None:
        over.wait(10)

    with StreamServer(tmp_path / "control", serve):
        with pytest.raises(Unreachable, match="cannot be used: no answer in time"):
            give_order(tmp_path / "control", {"state": True}, 0.05)
        over.set()


@pytest.mark.parametrize(
    ("name", "why"), [("missing", "No such file or directory"), ("stale", "Connection refused")]
)
def test_nobody_takes_orders_there(tmp_path: Path, name: str, why: str) -> None:
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(tmp_path / "stale"))
    with pytest.raises(Unreachable) as unreachable:
        give_order(tmp_path / name, {"state": True}, 10)
    assert str(unreachable.value) == f"the control socket {tmp_path / name} cannot be used: {why}"


def test_a_path_that_no_socket_can_have_is_named_as_the_reason(tmp_path: Path) -> None:
    with pytest.raises(Unreachable, match="path too long"):
        give_order(tmp_path / ("x" * 200), {"state": True}, 10)


def test_a_control_socket_that_nobody_accepts_at_is_not_waited_for(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as waiting:
        listener.bind(str(tmp_path / "control"))
        listener.listen(0)
        waiting.connect(str(tmp_path / "control"))
        with pytest.raises(Unreachable, match="no answer in time"):
            give_order(tmp_path / "control", {"state": True}, 0.05)
