"""The README as a package index shows it: rendered, from a wheel of an index that runs here."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import zipfile
from email import message_from_bytes
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from hatch_build import for_index
from tools.generate_docs import ROOT

RENDERER = ROOT / ".venv" / "release" / "bin" / "python"
TREE = "https://example.org/owner/upcall-trace/blob/v1.2.3"
LINKS = re.compile(r'\b(?:href|src)="([^"]+)"')


def description(wheel: Path) -> str:
    """What the metadata of a wheel has for a description."""
    with zipfile.ZipFile(wheel) as opened:
        (name,) = (each for each in opened.namelist() if each.endswith(".dist-info/METADATA"))
        metadata = message_from_bytes(opened.read(name))
    assert metadata["Description-Content-Type"] == "text/markdown"
    return str(metadata.get_payload(decode=True), "utf-8")  # type: ignore[arg-type]


def fetched(folder: Path, **environment: str) -> Path:
    """The wheel as pip gets it from an index on this machine."""
    shelf = folder / "index" / "upcall-trace"
    shelf.mkdir(parents=True)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    subprocess.run(
        [*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", shelf, ROOT],
        check=True, env={**os.environ, **environment},
    )  # fmt: skip
    handler = partial(Quiet, directory=str(shelf.parent))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        index = f"http://127.0.0.1:{server.server_port}/"
        subprocess.run(
            [*pip, "download", "--no-deps", "--pre", "-i", index, "-d", folder, "upcall-trace"],
            check=True, env={**os.environ, "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"},
        )  # fmt: skip
        server.shutdown()
    (wheel,) = folder.glob("*.whl")
    return wheel


class Quiet(SimpleHTTPRequestHandler):
    """A server of files that does not log."""

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name
        """Say nothing."""


def rendered(markdown: str) -> str:
    """HTML, by the library that PyPI uses."""
    code = "import sys\nfrom readme_renderer.markdown import render\n"
    code += "sys.stdout.write(render(sys.stdin.read()))"
    made = subprocess.run(
        [RENDERER, "-c", code], input=markdown, capture_output=True, text=True, check=True
    )
    return made.stdout


needs_renderer = pytest.mark.skipif(
    not RENDERER.exists(), reason="make supply has not set up readme_renderer"
)


@needs_renderer
def test_without_an_address_no_link_is_left_and_each_page_is_in_the_wheel(tmp_path: Path) -> None:
    wheel = fetched(tmp_path)
    shown = rendered(description(wheel))
    assert [link for link in LINKS.findall(shown) if not link.startswith("#")] == []
    assert "](" not in shown
    with zipfile.ZipFile(wheel) as opened:
        files = set(opened.namelist())
    named = set(re.findall(r"<code>upcall-trace docs ([a-z-]+)</code>", shown))
    assert {"start-operator", "start-vmm", "start-ci", "install"} <= named
    assert {f"upcall_trace/pages/{name}.md" for name in named} <= files


@needs_renderer
def test_with_an_address_every_link_leads_to_a_file_of_the_tree(tmp_path: Path) -> None:
    shown = rendered(description(fetched(tmp_path, UPCALL_TRACE_TREE=TREE)))
    links = [link for link in LINKS.findall(shown) if not link.startswith("#")]
    assert len(links) >= 8
    for link in links:
        tree = TREE.replace("/blob/", "/raw/") if link.endswith(".svg") else TREE
        assert link.startswith(f"{tree}/")
        assert (ROOT / link.removeprefix(f"{tree}/")).is_file(), link


def test_links_that_are_whole_stay_as_they_are() -> None:
    text = "[a](https://a.example/x) [b](#b) [c](docs/c.md) [D](D)\n"
    assert for_index(text, None) == (
        "[a](https://a.example/x) [b](#b) `upcall-trace docs c` D\n"
    )  # fmt: skip
    assert for_index(text, TREE) == (
        f"[a](https://a.example/x) [b](#b) [c]({TREE}/docs/c.md) [D]({TREE}/D)\n"
    )
