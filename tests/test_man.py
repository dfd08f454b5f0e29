"""Manual pages: one for each command, and the formatter has nothing to say against them."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import click
import pytest

from tools.make_man import whole_group, write_pages


def test_every_command_has_a_page_with_its_options(tmp_path: Path) -> None:
    pages = {path.stem: path.read_text("utf-8") for path in write_pages(tmp_path, "2026-01-01")}
    group = whole_group()
    for name, command in group.commands.items():
        text = pages[f"upcall-trace-{name}"]
        if isinstance(command, click.Group):
            continue
        for option in command.params:
            if isinstance(option, click.Option) and not option.hidden:
                assert option.opts[-1].replace("-", "\\-") in text, (name, option.opts)
    assert f"upcall-trace-{next(iter(group.commands))}" in pages["upcall-trace"].replace("\\", "")


@pytest.mark.skipif(not shutil.which("groff"), reason="there is no groff here")
def test_groff_formats_every_page_without_a_warning(tmp_path: Path) -> None:
    for page in write_pages(tmp_path, "2026-01-01"):
        ended = subprocess.run(
            ["groff", "-Kutf8", "-man", "-Tutf8", "-ww", "-z", page],
            capture_output=True,
            check=True,
        )
        assert ended.stderr == b"", page
