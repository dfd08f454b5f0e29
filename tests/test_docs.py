"""The documentation against the definitions it describes, and the tool that keeps it so."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from dissectors import wire
from dissectors.channel import State
from dissectors.constants import Arch, MessageType
from dissectors.messages import Request, cpu_request, mmio_request, pci_request
from tools import generate_docs
from tools.generate_docs import BLOCKS, ROOT, block_names, messages, pages, render, table, update

PROTOCOL = (ROOT / "docs" / "protocol.md").read_text(encoding="utf-8")
FIELD_NAMES = sorted({row.name for fmt in wire.FORMATS.values() for row in wire.layout(fmt)})


@pytest.mark.parametrize("page", pages(ROOT), ids=lambda page: page.name)
def test_every_generated_block_equals_what_the_generator_makes(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert text == render(text, BLOCKS), "run python -m tools.generate_docs"


def test_every_generator_is_used_by_a_page() -> None:
    used = {name for page in pages(ROOT) for name in block_names(page.read_text(encoding="utf-8"))}
    assert used == set(BLOCKS)


def test_the_protocol_page_has_sections_1_to_6_in_order() -> None:
    assert re.findall(r"^## (.*?)\. \S", PROTOCOL, re.MULTILINE) == list("123456")
    assert len(re.findall(r"^## ", PROTOCOL, re.MULTILINE)) == 6


@pytest.mark.parametrize("name", [t.name for t in MessageType] + [s.name for s in State])
def test_the_protocol_page_names_every_message_type_and_state(name: str) -> None:
    assert re.search(rf"\b{name}\b", PROTOCOL)


@pytest.mark.parametrize("name", FIELD_NAMES)
def test_the_protocol_page_names_every_field(name: str) -> None:
    assert f"`{name}`" in PROTOCOL


@pytest.mark.parametrize(
    ("request_", "arch", "reply_size"),
    [
        (cpu_request(MessageType.ADD_CPU, [1]), Arch.X86_64, 4),
        (cpu_request(MessageType.DEL_CPU, 1), Arch.AARCH64, 4),
        (mmio_request(MessageType.ADD_MMIO, 0xE0006000, 0x2000, 5), Arch.X86_64, 0),
        (mmio_request(MessageType.DEL_MMIO, 0xE0006000, 0x2000, 5), Arch.AARCH64, 0),
        (pci_request(MessageType.ADD_PCI, 0, 6), Arch.X86_64, 0),
        (pci_request(MessageType.DEL_PCI, 0, 6), Arch.AARCH64, 0),
    ],
    ids=lambda value: value.op if isinstance(value, Request) else None,
)
def test_the_message_table_gives_the_sizes_that_messages_really_have(
    request_: Request, arch: Arch, reply_size: int
) -> None:
    guests = ("any", "x86-64" if arch is Arch.X86_64 else "aarch64")
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in messages().splitlines()]
    (row,) = (r for r in rows if r[0] == str(request_.msg_type) and r[2] in guests)
    assert request_.reply().msg_size == reply_size
    assert (row[4], row[6]) == (str(request_.msg_size), str(reply_size))


def test_a_bar_in_a_cell_does_not_end_it() -> None:
    assert table(["field", "n"], [["a | b", 1]]).splitlines() == [
        "| field  | n |",
        "| ------ | - |",
        "| a \\| b | 1 |",
    ]


STALE = "# Title\n\n<!-- generated: one -->\nold\n<!-- end generated -->\nafter\n"
FRESH = "# Title\n\n<!-- generated: one -->\n\nnew\n\n<!-- end generated -->\nafter\n"


def project(root: Path, **contents: str) -> Path:
    """A folder with a README and pages under docs/, named by `contents`."""
    (root / "docs" / "deep").mkdir(parents=True)
    (root / "README.md").write_text("no blocks\n", encoding="utf-8")
    for name, text in contents.items():
        (root / "docs" / f"{name}.md").write_text(text, encoding="utf-8")
    return root


def one() -> str:
    return "new"


def test_a_stale_block_is_rewritten_and_nothing_else(tmp_path: Path) -> None:
    root = project(tmp_path, page=STALE)
    (root / "docs" / "deep" / "page.md").write_text(STALE, encoding="utf-8")
    assert update(root, {"one": one}, check=False) == []
    assert (root / "docs" / "page.md").read_text(encoding="utf-8") == FRESH
    assert (root / "docs" / "deep" / "page.md").read_text(encoding="utf-8") == FRESH
    assert (root / "README.md").read_text(encoding="utf-8") == "no blocks\n"
    assert update(root, {"one": one}, check=True) == []


def test_check_names_a_stale_page_and_leaves_it(tmp_path: Path) -> None:
    root = project(tmp_path, page=STALE)
    assert update(root, {"one": one}, check=True) == ["docs/page.md: stale"]
    assert (root / "docs" / "page.md").read_text(encoding="utf-8") == STALE


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("<!-- generated: two -->\n<!-- end generated -->\n", "nothing generates two"),
        ("<!-- generated: one -->\n", "one has no end"),
        ("<!-- end generated -->\n", "<!-- end generated --> is not expected here"),
        (
            "<!-- generated: one -->\n<!-- generated: one -->\n<!-- end generated -->\n",
            "<!-- generated: one --> is not expected in one",
        ),
    ],
)
@pytest.mark.parametrize("check", [True, False], ids=["check", "write"])
def test_a_broken_marker_is_named_and_nothing_is_written(
    tmp_path: Path, text: str, complaint: str, check: bool
) -> None:
    root = project(tmp_path, broken=text, page=FRESH)
    (root / "README.md").write_text(STALE, encoding="utf-8")
    assert f"docs/broken.md: {complaint}" in update(root, {"one": one}, check)
    assert (root / "README.md").read_text(encoding="utf-8") == STALE


def test_a_generator_that_no_page_uses_is_named(tmp_path: Path) -> None:
    root = project(tmp_path, page=FRESH)
    blocks = {"one": one, "two": one}
    assert update(root, blocks, check=False) == ["no page uses the block two"]


def test_the_command_fails_when_something_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(generate_docs, "ROOT", project(tmp_path, page=STALE))
    monkeypatch.setattr(generate_docs, "BLOCKS", {"one": one})
    assert generate_docs.main(["--check"]) == 1
    assert capsys.readouterr().err == "docs/page.md: stale\n"
    assert generate_docs.main([]) == 0
    assert generate_docs.main(["--check"]) == 0
