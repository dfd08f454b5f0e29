"""What the proxy recorded is replayed without a difference, where it was made and elsewhere."""

from __future__ import annotations

import threading
from contextlib import closing
from pathlib import Path

import pytest

from dissectors.messages import Request
from tests.replay.playing import QUICK, differing, guest_like, played
from tests.replay.test_rebase import ELSEWHERE, POD, SESSION
from upcall_trace.kernel.world import World
from upcall_trace.replay.rebase import work_out
from upcall_trace.replay.run import Recording, Terms, read_recording
from upcall_trace.replay.tempo import Tempo
from upcall_trace.simulated.on_socket import SimulatedGuest
from upcall_trace.sockets.addresses import UnixAddress
from upcall_trace.sockets.client import UpcallClient
from upcall_trace.sockets.listening import Listener
from upcall_trace.trace.opening import build_index
from upcall_trace.vantage.proxy import Proxy
from upcall_trace.vantage.recorder import Recorder, live_header
from upcall_trace.vantage.store import OnStoreError


@pytest.fixture
def recording(tmp_path: Path) -> Recording:
    """The session of two clients with a guest, as the proxy between them recorded it."""
    path = tmp_path / "recorded.upcap"
    requests = [item for item in SESSION if isinstance(item, Request)]
    recorder = Recorder(path, live_header("proxy", "x86_64"), OnStoreError.STOP, threading.Event())
    with (
        SimulatedGuest(POD, path=tmp_path / "recorded") as guest,
        closing(recorder),
        closing(Listener(tmp_path / "proxy")) as listener,
    ):
        proxy = Proxy(UnixAddress(guest.path), recorder, print)
        proxy.listen(listener.socket)
        with (
            UpcallClient(UnixAddress(listener.path)) as first,
            UpcallClient(UnixAddress(listener.path)) as second,
        ):
            for place, request in enumerate(requests):
                client = second if place % 3 == 2 else first
                raw = request.encode()
                if place % 5 == 4:  # in two pieces, each of which is answered
                    assert client.ask(raw[:512], 5) is not None
                    raw = raw[512:]
                assert client.ask(raw, 5) is not None
        proxy.stop()
    assert build_index(path)
    return read_recording(path)


@pytest.mark.parametrize("pace", [Tempo(), Tempo(1.0), Tempo(keep_splits=True)])
def test_where_it_was_made(recording: Recording, pace: Tempo, tmp_path: Path) -> None:
    terms = Terms(pace, QUICK, whole_bytes=True)
    with guest_like(POD, tmp_path) as guest:
        replay = played(recording, guest, terms)
    verdict = replay.verdict
    assert (verdict.same, verdict.parted, verdict.remarks) == (len(replay.script.asked), [], [])
    assert verdict.exit_code == 0


@pytest.mark.parametrize("world", [ELSEWHERE, POD])
def test_moved_to_where_windows_and_slots_are_all_different(
    recording: Recording, world: World, tmp_path: Path
) -> None:
    with guest_like(world, tmp_path) as guest:
        rebase = work_out(recording.script, world)
        replay = played(recording, guest, Terms(patience=QUICK), rebase=rebase)
    assert differing(replay) == []
    assert replay.verdict.exit_code == 0
