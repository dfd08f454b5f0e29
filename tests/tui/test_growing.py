"""A capture that grows under the browser, and what it does with one that has no operations."""

from __future__ import annotations

import random
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dissectors.constants import MessageType
from dissectors.messages import mmio_request
from upcall_trace.capture.records import Close, Header, Open
from upcall_trace.capture.writer import CaptureWriter
from upcall_trace.diagnose.headline import headline
from upcall_trace.diagnose.run import diagnose
from upcall_trace.errors import WrongUsage
from upcall_trace.trace.opening import load
from upcall_trace.tui.app import Browser
from upcall_trace.tui.data.first_failure import FirstFailure
from upcall_trace.tui.data.settings import Settings, read_settings, recent, remember
from upcall_trace.tui.data.summary import by_connection, by_operation, worst_in
from upcall_trace.tui.screens.chooser import Choices
from upcall_trace.vantage.recorder import Recorder, live_header
from upcall_trace.vantage.store import OnStoreError

from ..support import DISK, answer, ask, connect, each_transcript, write_capture
from .support import CAPTURES, Driven, drive

FOUND = diagnose(CAPTURES / "cpu_lifecycle_6_12.upcap").findings
"""With alternatives, and codes that come again."""


def test_a_recording_is_followed_paused_and_gone_on_with(tmp_path: Path) -> None:
    path = tmp_path / "live.upcap"
    recorder = Recorder(path, live_header("test", None), OnStoreError.STOP, threading.Event())
    for record in connect():
        recorder.record(record)

    def add(number: int, ret: int) -> None:
        recorder.record(ask(DISK, 1000 * number))
        recorder.record(answer(DISK, 1000 * number + 10, ret=ret))
        recorder.settle()

    async def script(browser: Driven) -> None:
        await browser.until("● recording")
        assert "↓ following" in browser.lines()[0]
        add(1, 0)
        await browser.until("1 operations")
        add(2, -17)
        await browser.until("2 operations")  # the headline may tell of it before the ladder does
        await browser.until("◄ EEXIST")
        await browser.until("UP301")
        assert browser.panes.ladder.cursor == browser.panes.ladder.count() - 1
        await browser.pilot.press("p")
        add(3, -17)
        await browser.until("paused")
        assert "2 operations" in browser.lines()[0]
        await browser.pilot.press("p")
        await browser.until("3 operations")
        await browser.pilot.press("F", "g")
        add(4, 0)
        await browser.until("4 operations")
        assert browser.panes.ladder.cursor == 0
        await browser.pilot.press("m", "a")
        await browser.pilot.press("j", "m", "a")
        await browser.until("kept beside it")
        recorder.close()
        for _ in range(2000):
            if browser.panes.recording.ended and browser.panes.walked[2]:
                break
            await browser.pilot.pause(0.01)
        assert "recording" not in browser.lines()[0]

    drive(script, path)


def test_requests_that_wait_are_shown_until_their_answers_come(tmp_path: Path) -> None:
    path = tmp_path / "live.upcap"
    header = live_header("test", None)
    recorder = Recorder(path, header, OnStoreError.STOP, threading.Event())
    for record in connect():
        recorder.record(record)
    recorder.record(ask(DISK, 1000))
    recorder.settle()

    async def script(browser: Driven) -> None:
        await browser.until("waits for its answer")
        await browser.until("… 1 wait")
        assert "no answer" not in "\n".join(browser.panes.ladder.as_text())
        recorder.record(answer(DISK, 2000))
        recorder.record(ask(DISK, 3000))
        recorder.settle()
        await browser.until("◄ ok")
        await browser.until("waits for its answer")
        recorder.record(Close(4000, 1, by_guest=True))
        recorder.settle()
        await browser.until("✗ no answer")
        await browser.until("2 operations ●")
        for _ in range(500):
            if "wait" not in browser.lines()[0]:
                break
            await browser.pilot.pause(0.02)
        assert "wait" not in browser.lines()[0]
        recorder.close()
        for _ in range(2000):
            if browser.panes.recording.ended and browser.panes.walked[2]:
                break
            await browser.pilot.pause(0.01)

    drive(script, path)


@each_transcript
def test_what_is_found_is_what_diagnose_finds(golden: Path) -> None:
    expected = diagnose(golden).findings

    async def script(browser: Driven) -> None:
        recording = browser.panes.recording
        found = [f for row in range(len(recording)) for f in recording.findings.of_row(row)]
        for conn in [None, *recording.places]:
            found += recording.findings.of_connection(conn)
        key = repr
        assert sorted(map(key, found)) == sorted(map(key, expected))
        assert len(recording.findings) == len(expected)

    drive(script, golden, size=(80, 24))


def test_connections_without_operations_are_lines_of_their_own() -> None:
    async def script(browser: Driven) -> None:
        assert browser.panes.ladder.count()
        assert browser.panes.ladder.row is None
        await browser.press("right_square_bracket")
        assert "UP103 malformed-connect-line at connection 2" in browser.text()
        await browser.press("4")
        assert "line: HELLO" in browser.text()

    drive(script, CAPTURES / "handshake.upcap")


def test_an_empty_capture_is_no_trouble(tmp_path: Path) -> None:
    path = write_capture(tmp_path / "empty.upcap", [])

    async def script(browser: Driven) -> None:
        for key in ("right_square_bracket", "j", "G", "enter", "2", "1", "enter", "t", "space",
                    "y", "m", "n", "4", "5", "6", "7", "enter", "x", "enter"):  # fmt: skip
            await browser.press(key)
        assert "nothing to export" in browser.said

    drive(script, path)


def test_a_torn_capture_says_so(tmp_path: Path) -> None:
    path = tmp_path / "torn.upcap"
    path.write_bytes((CAPTURES / "mmio_lifecycle.upcap").read_bytes()[:1500])

    async def script(browser: Driven) -> None:
        assert "! the end is torn" in browser.lines()[0]

    drive(script, path)


def test_recent_captures_and_samples_are_offered(tmp_path: Path) -> None:
    path = Path(shutil.copy(CAPTURES / "guest_oops.upcap", tmp_path / "mine.upcap"))
    remember(path)

    async def script(browser: Driven) -> None:
        text = browser.text()
        assert text.index("opened lately") < text.index("mine") < text.index("recordings of real")
        assert browser.app.screen.query_one(Choices).path == path
        await browser.press("enter")
        assert "4 operations" in browser.lines()[0]

    drive(script, None)
    path.unlink()
    assert recent() == []


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("theme = 1", "name of a theme"),
        ("keys = 1", "names of actions"),
        ("nonsense = 1", "nonsense is not a setting"),
        ("[", "tui.toml"),
        ("\xff", "tui.toml"),
    ],
)
def test_settings_that_are_wrong_are_a_sentence(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "tui.toml"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(WrongUsage, match=said):
        read_settings(path)


def test_settings_are_read(tmp_path: Path) -> None:
    path = tmp_path / "tui.toml"
    assert read_settings(path) == Settings()
    path.write_text('theme = "nord"\n[keys]\nnext_failure = "f3"\n')
    assert read_settings(path) == Settings("nord", {"next_failure": "f3"})
    with pytest.raises(WrongUsage, match="no theme x"):
        Browser(None, Settings("x"))


def test_summaries_are_those_of_the_operations() -> None:
    operations = load(CAPTURES / "guest_oops.upcap").operations
    found = by_connection(operations)
    assert {conn: (s.count, s.failed, s.unanswered) for conn, s in found.items()} == {
        1: (2, 1, 1), 2: (2, 1, 0),
    }  # fmt: skip
    kinds = {summary.name: summary for summary in by_operation(operations)}
    assert kinds["del_cpu"].unanswered == 1
    assert kinds["del_cpu"].max_ns == operations.operation(0).latency_ns
    begins, worst = worst_in(np.array([0, 1, 9]), np.array([5, 7, 3]), 10, 5)
    assert (begins.tolist(), worst.tolist()) == ([0, 2, 2, 2, 2], [7, -1, -1, -1, 3])


@pytest.mark.torture
def test_a_moment_far_into_a_long_connection_is_told_from_a_kept_place(tmp_path: Path) -> None:
    path = tmp_path / "long.upcap"
    request = mmio_request(MessageType.ADD_MMIO, 0xE0006000, 0x2000, 5)
    with CaptureWriter(path, Header("test")) as writer:
        for record in connect():
            writer.write(record)
        for number in range(6000):
            writer.write(ask(request, 1000 * number))
            writer.write(answer(request, 1000 * number + 10, ret=-17 if number else 0))
        writer.write(Close(10**9, 1, by_guest=False))
        writer.write(Open(10**9 + 1, 2))

    async def script(browser: Driven) -> None:
        await browser.press("G", "k", "k")
        moment = browser.panes.moment
        assert moment is not None
        assert moment.row == 5999
        assert moment.reply is not None
        assert [run.kind for run in moment.reply.runs][:1] == ["fresh"]
        assert moment.after is not None
        assert len(moment.before.entries) == 1

    drive(script, path)


@each_transcript
def test_the_headline_on_top_is_that_of_diagnose(golden: Path) -> None:
    expected = headline(diagnose(golden).findings) or ""

    async def script(browser: Driven) -> None:
        assert browser.panes.headlined == expected
        words = " ".join(browser.text().split())
        assert expected[:60] in words

    drive(script, golden, size=(160, 50))


@given(st.randoms(use_true_random=False), st.integers(1, 7))
def test_the_headline_is_the_same_however_findings_come(shuffled: random.Random, size: int) -> None:
    found = list(FOUND)
    shuffled.shuffle(found)
    first = FirstFailure()
    for begin in range(0, len(found), size):
        first.take(found[begin : begin + size])
    assert first.headline == headline(FOUND)
