"""The strict ends: driven against each other, through every transition, and fed nonsense."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dissectors.channel import (
    CLIENT_SENDS,
    NEED_DATA,
    SERVER_SENDS,
    TRANSITIONS,
    Channel,
    Client,
    LocalProtocolError,
    Received,
    RemoteProtocolError,
    Sendable,
    Server,
    Signal,
    State,
)
from dissectors.constants import MESSAGE_SIZE, Arch, MessageType
from dissectors.events import (
    ConnectLine,
    Hello,
    OkLine,
    ReplyReceived,
    RequestReceived,
    ServiceByte,
)
from dissectors.hvsock import connect_line, ok_line
from dissectors.messages import (
    Request,
    bare_request,
    cpu_request,
    hello,
    mmio_request,
    pci_request,
)
from dissectors.services import DEVICE_MANAGER
from tests.dissectors.playbook import Cut, byte_by_byte, cut_at, whole

T = MessageType
SERVICE = ServiceByte(DEVICE_MANAGER.byte, DEVICE_MANAGER, early=False)
ADD = mmio_request(T.ADD_MMIO, 0xE0006000, 0x2000, 5)
ITEMS: dict[Signal, Sendable] = {
    Signal.CONNECT_LINE: connect_line(),
    Signal.OK_LINE: ok_line(1024),
    Signal.SERVICE_BYTE: SERVICE,
    Signal.HELLO: hello(),
    Signal.REQUEST: ADD,
    Signal.REPLY: ADD.reply(),
}
RAW: dict[Signal, bytes] = {
    Signal.CONNECT_LINE: b"CONNECT 219\n",
    Signal.OK_LINE: b"OK 1024\n",
    Signal.SERVICE_BYTE: b"d",
    Signal.HELLO: hello().encode(),
    Signal.REQUEST: ADD.encode(),
    Signal.REPLY: ADD.reply().encode(),
}
PATH = [State.UNCONNECTED, State.WAITING_SERVER, State.ACCEPTED, State.WAITING_SERVICE,
        State.CONNECTED, State.BUSY]  # fmt: skip
IN_ORDER = list(ITEMS)
SIDES = [Client, Server]
PEER_SENDS = {Client: SERVER_SENDS, Server: CLIENT_SENDS}
X86_REQUESTS = [
    cpu_request(T.ADD_CPU, [1, 2]), cpu_request(T.DEL_CPU, [2]), ADD, replace(ADD, msg_type=6),
    pci_request(T.ADD_PCI, 0, 4), pci_request(T.DEL_PCI, 0, 4), bare_request(T.ADD_MEM),
    bare_request(T.DEL_MEM), bare_request(T.CONNECT), bare_request(77),
]  # fmt: skip
ARM_REQUESTS = [cpu_request(T.ADD_CPU, 3), cpu_request(T.DEL_CPU, 1), *X86_REQUESTS[2:]]


def events(receiver: Channel, raw: bytes, cut: Cut = whole) -> Iterator[Received]:
    """What the receiver makes of bytes that arrive in pieces."""
    for piece in cut(raw):
        receiver.receive_data(piece)
        while (event := receiver.next_event()) is not NEED_DATA:
            yield event


def at(side: type[Channel], state: State) -> Channel:
    """One end, brought to a state by a conversation."""
    channel = side()
    if state is State.CLOSED:
        channel.close()
    elif state is State.ERROR:
        if side is Client:
            channel.send(connect_line())
        channel.receive_data(b"no\n")
        with pytest.raises(RemoteProtocolError):
            channel.next_event()
    else:
        for signal in IN_ORDER[: PATH.index(state)]:
            if signal in PEER_SENDS[side]:
                list(events(channel, RAW[signal]))
            else:
                channel.send(ITEMS[signal])
    assert channel.state is state
    return channel


@pytest.mark.parametrize("cut", [whole, byte_by_byte])
@pytest.mark.parametrize(
    ("arch", "requests"), [(Arch.X86_64, X86_REQUESTS), (Arch.AARCH64, ARM_REQUESTS)]
)
def test_a_whole_conversation(arch: Arch, requests: list[Request], cut: Cut) -> None:
    client, server = Client(arch), Server(arch)

    def carried(sender: Channel, receiver: Channel, item: Sendable) -> Received:
        (event,) = events(receiver, sender.send(item), cut)
        assert client.state is server.state
        return event

    assert carried(client, server, connect_line()) == ConnectLine(b"CONNECT 219\n", 219)
    assert carried(server, client, ok_line(1024)) == OkLine(b"OK 1024\n", 1024)
    assert carried(client, server, SERVICE) == SERVICE
    assert carried(server, client, hello()) == Hello(hello(), hello().encode(), valid=True)
    for number, request in enumerate(requests):
        raw = request.encode()
        received = carried(client, server, request)
        assert received == RequestReceived(number, MESSAGE_SIZE, request, raw, 0)
        assert (client.state, server.state) == (State.BUSY, State.BUSY)
        reply = request.reply(-1 if number % 2 else 0)
        answered = carried(server, client, reply)
        assert answered == ReplyReceived(number, reply, reply.encode())
        assert (client.state, server.state) == (State.CONNECTED, State.CONNECTED)
    client.close()
    server.receive_data(b"")
    assert server.next_event() is NEED_DATA
    assert server.state is client.state is State.CLOSED


def test_a_connection_inside_the_guest_has_no_lines() -> None:
    client, server = Client(state=State.ACCEPTED), Server(state=State.ACCEPTED)
    assert list(events(server, client.send(SERVICE))) == [SERVICE]
    (greeting,) = events(client, server.send(hello()))
    assert isinstance(greeting, Hello)


def test_bytes_that_came_too_soon_wait_for_their_turn() -> None:
    server = Server()
    server.receive_data(b"CONNECT 219\nd" + ADD.encode() + ADD.encode()[:100])
    assert isinstance(server.next_event(), ConnectLine)
    server.send(ok_line(7))
    assert isinstance(server.next_event(), ServiceByte)
    server.send(hello())
    assert isinstance(server.next_event(), RequestReceived)
    server.send(ADD.reply())
    assert server.next_event() is NEED_DATA
    (second,) = events(server, ADD.encode()[100:])
    assert isinstance(second, RequestReceived)
    assert second.number == 1


def test_the_request_tells_the_layout_of_its_reply() -> None:
    client = at(Client, State.CONNECTED)
    request = cpu_request(T.ADD_CPU, 1)
    client.send(request)
    (event,) = events(client, request.reply(load=2).encode())
    assert isinstance(event, ReplyReceived)
    assert event.message.fields() == {"cpu_id": 2}


def test_every_signal_is_of_one_side_and_every_state_has_its_row() -> None:
    assert not CLIENT_SENDS & SERVER_SENDS
    assert CLIENT_SENDS | SERVER_SENDS | {Signal.CLOSE} == set(Signal)
    assert set(TRANSITIONS) == set(State)
    reached = {new for row in TRANSITIONS.values() for new in row.values()}
    assert set(State) - reached == {State.UNCONNECTED, State.ERROR}


@pytest.mark.parametrize("signal", ITEMS)
@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("side", SIDES)
def test_what_may_be_sent_moves_and_what_may_not_changes_nothing(
    side: type[Channel], state: State, signal: Signal
) -> None:
    channel = at(side, state)
    before = dict(vars(channel))
    if signal in TRANSITIONS[state] and signal not in PEER_SENDS[side]:
        assert channel.send(ITEMS[signal]) == RAW[signal]
        assert channel.state is TRANSITIONS[state][signal]
    else:
        with pytest.raises(LocalProtocolError):
            channel.send(ITEMS[signal])
        assert vars(channel) == before


@pytest.mark.parametrize(
    ("side", "signal"), [(s, signal) for s in SIDES for signal in ITEMS if signal in PEER_SENDS[s]]
)
@pytest.mark.parametrize("state", State)
def test_what_the_peer_may_send_moves_and_what_it_may_not_is_an_error(
    side: type[Channel], state: State, signal: Signal
) -> None:
    channel = at(side, state)
    if signal in TRANSITIONS[state]:
        assert len(list(events(channel, RAW[signal]))) == 1
        assert channel.state is TRANSITIONS[state][signal]
    elif state is State.CLOSED:
        assert list(events(channel, RAW[signal])) == []
        assert channel.state is State.CLOSED
    else:
        channel.receive_data(RAW[signal])
        channel.receive_data(b"")  # what looks like the beginning of something ends here
        for _ in range(2):
            with pytest.raises(RemoteProtocolError):
                channel.next_event()
            assert channel.state is State.ERROR


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("side", SIDES)
def test_closing_is_allowed_in_every_state(side: type[Channel], state: State) -> None:
    channel = at(side, state)
    channel.close()
    assert channel.state is State.CLOSED


@pytest.mark.parametrize("state", [state for state in State if state is not State.ERROR])
@pytest.mark.parametrize("side", SIDES)
def test_an_end_between_two_signals_closes(side: type[Channel], state: State) -> None:
    channel = at(side, state)
    channel.receive_data(b"")
    assert channel.next_event() is NEED_DATA
    assert channel.state is State.CLOSED
    assert channel.next_event() is NEED_DATA


@pytest.mark.parametrize(
    ("side", "state", "begun", "words"),
    [
        (Server, State.UNCONNECTED, b"CONN", "in the middle of a CONNECT line"),
        (Server, State.CONNECTED, ADD.encode()[:1023], "in the middle of a request"),
        (Client, State.WAITING_SERVER, b"OK 1", "in the middle of an? OK line"),
        (Client, State.WAITING_SERVICE, b"\0", "in the middle of a CONNECT message"),
        (Client, State.BUSY, bytes(500), "in the middle of a reply"),
    ],
)
def test_an_end_in_the_middle_of_a_signal_is_an_error(
    side: type[Channel], state: State, begun: bytes, words: str
) -> None:
    channel = at(side, state)
    assert list(events(channel, begun, byte_by_byte)) == []
    channel.receive_data(b"")
    with pytest.raises(RemoteProtocolError, match=words):
        channel.next_event()


@pytest.mark.parametrize(
    ("side", "state", "raw", "words"),
    [
        (Server, State.UNCONNECTED, b"CONNECT abc\n", "not a CONNECT line"),
        (Server, State.UNCONNECTED, b"x" * 32, "no end of line in the CONNECT line"),
        (Server, State.WAITING_SERVER, b"d", "while the channel is waiting for OK"),
        (Server, State.ACCEPTED, b"x", "no service 0x78"),
        (Server, State.CONNECTED, bytes(1024), "a request with a wrong magic_version"),
        (Server, State.BUSY, b"\0", "while the channel is service busy"),
        (Client, State.WAITING_SERVER, b"no\n", "is not OK"),
        (Client, State.WAITING_SERVER, b"x" * 50, "no end of line in the OK line"),
        (Client, State.ACCEPTED, hello().encode(), "while the channel is accepted"),
        (Client, State.WAITING_SERVICE, ADD.reply().encode(), "not a CONNECT message"),
        (Client, State.CONNECTED, hello().encode(), "while the channel is service connected"),
        (Client, State.BUSY, hello().encode(), "not of the request's type"),
        (
            Client, State.BUSY, replace(ADD.reply(), magic_version=0).encode(),
            "not of the request's type",
        ),
    ],
)  # fmt: skip
@pytest.mark.parametrize("cut", [whole, byte_by_byte])
def test_what_a_peer_does_wrong_is_told(
    side: type[Channel], state: State, raw: bytes, words: str, cut: Cut
) -> None:
    channel = at(side, state)
    with pytest.raises(RemoteProtocolError, match=words):
        list(events(channel, raw, cut))
    with pytest.raises(RemoteProtocolError, match="earlier"):
        channel.next_event()


def test_the_wrong_side_is_told_so() -> None:
    with pytest.raises(LocalProtocolError, match=r"a client never sends an? OK line"):
        Client().send(ok_line(1))
    with pytest.raises(LocalProtocolError, match="no request while the channel is service busy"):
        at(Client, State.BUSY).send(ADD)


tokens = st.sampled_from([*RAW.values(), b"\n", b"OK ", b"no\n", b"x", bytes(1024)])
raws = st.lists(tokens | st.binary(max_size=60), max_size=5).map(b"".join)
cuts = st.lists(st.integers(1, 3000), max_size=5).map(cut_at)


@given(st.sampled_from(SIDES), st.sampled_from(State), raws, cuts)
@settings(max_examples=200)
def test_any_bytes_in_any_state_raise_nothing_but_remote_protocol_errors(
    side: type[Channel], state: State, raw: bytes, cut: Cut
) -> None:
    channel = at(side, state)
    try:
        for event in events(channel, raw, cut):
            assert isinstance(event, Received)
        channel.receive_data(b"")
        assert channel.next_event() is NEED_DATA
        assert channel.state is State.CLOSED
    except RemoteProtocolError:
        assert channel.state is State.ERROR
