"""Where sockets of our own are, whatever TMPDIR is."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from upcall_trace.sockets.addresses import short_temporary, socket_folder


def test_a_short_tmpdir_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", "/var/tmp")
    assert short_temporary() == Path("/var/tmp")


def test_a_long_one_leaves_no_room_for_a_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", f"/tmp/{80 * 't'}")
    assert short_temporary() == Path("/tmp")
    with socket_folder() as folder:
        assert Path(folder).parent == Path("/tmp")
