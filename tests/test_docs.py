"""The documentation against the definitions it describes, and the tool that keeps it so."""

from __future__ import annotations

import ast
import json
import re
import shlex
import struct
import subprocess
import sys
import zlib
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import click
import msgpack
import numpy as np
import pytest
import xxhash
from click.testing import CliRunner

from dissectors.channel import State
from dissectors.constants import Arch, MessageType
from dissectors.layouts import DEVICE_MANAGER_TABLE, VIRTIO_VSOCK_HEADER, VSOCKMON_HEADER, formats
from dissectors.messages import Request, cpu_request, mmio_request, pci_request
from tools import generate_docs
from tools.generate_docs import BLOCKS, ROOT, block_names, messages, pages, render, update
from tools.markdown import table
from tools.program_blocks import ANOMALY_MEANINGS
from tools.readability import EASIEST, ease, held, sentences, wrong
from upcall_trace import codes
from upcall_trace.capture.frames import Kind
from upcall_trace.capture.reader import CaptureReader
from upcall_trace.capture.records import Chunk
from upcall_trace.cli import cli
from upcall_trace.errors import EXIT_MEANINGS, ExitCode
from upcall_trace.kernel.faults import ACTIONS, parse_fault
from upcall_trace.kernel.world import World, load_worlds
from upcall_trace.simulated.on_socket import SimulatedGuest
from upcall_trace.sockets.addresses import socket_folder
from upcall_trace.trace.filters import FIELDS, FLAGS, parse
from upcall_trace.trace.indexing import INDEX_VERSION
from upcall_trace.trace.opening import load
from upcall_trace.trace.operations import ANOMALIES

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

PROTOCOL = (ROOT / "docs" / "protocol.md").read_text(encoding="utf-8")
PAGES = [*pages(ROOT), ROOT / "CHANGELOG.md"]
CAPTURES = sorted((ROOT / "captures").glob("*.upcap"))
FIELD_NAMES = sorted(
    {
        row.name
        for rows in (
            *formats(DEVICE_MANAGER_TABLE).values(), VSOCKMON_HEADER, VIRTIO_VSOCK_HEADER
        )
        for row in rows
    }
)  # fmt: skip


@pytest.mark.parametrize("page", pages(ROOT), ids=lambda page: page.name)
def test_every_generated_block_equals_what_the_generator_makes(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert text == render(text, BLOCKS), "run python -m tools.generate_docs"


def test_every_generator_is_used_by_a_page() -> None:
    used = {name for page in pages(ROOT) for name in block_names(page.read_text(encoding="utf-8"))}
    assert used == set(BLOCKS)


def test_the_protocol_page_has_sections_1_to_7_in_order() -> None:
    assert re.findall(r"^## (.*?)\. \S", PROTOCOL, re.MULTILINE) == list("1234567")
    assert len(re.findall(r"^## ", PROTOCOL, re.MULTILINE)) == 7


@pytest.mark.parametrize("folder", ["dissectors", "upcall_trace", "tools", "tests", "benchmarks"])
def test_every_page_and_section_that_the_code_names_exists(folder: str) -> None:
    sections = set(re.findall(r"^## (\d)\. ", PROTOCOL, re.MULTILINE))
    for path in sorted((ROOT / folder).rglob("*.py")):
        text = " ".join(path.read_text(encoding="utf-8").split())
        for page, told in re.findall(r"\bdocs/([a-z-]+)\.md((?: sections? [\d to,and]+)?)", text):
            if path.parent != ROOT / "tests":  # pages of made-up projects
                assert (ROOT / "docs" / f"{page}.md").exists(), (path, page)
            if page == "protocol":
                assert set(re.findall(r"\d", told)) <= sections, (path, told)


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


def text_of(name: str) -> str:
    """A page of docs/."""
    return (ROOT / "docs" / name).read_text(encoding="utf-8")


def fenced(language: str) -> list[tuple[str, str]]:
    """(page, line) of every line in a fenced block of `language`, in any page."""
    found = []
    for page in PAGES:
        for block in re.findall(
            rf"^```{language}$\n(.*?)^```$",
            page.read_text(encoding="utf-8"),
            re.DOTALL | re.MULTILINE,
        ):
            found += [(page.name, line) for line in block.splitlines() if line]
    return found


def blocks(page: str, language: str) -> list[str]:
    """The fenced blocks of `language` in a page of docs/."""
    return re.findall(rf"^```{language}$\n(.*?)^```$", text_of(page), re.DOTALL | re.MULTILINE)


def section(text: str, heading: str) -> str:
    """What stands under a heading, up to the next one."""
    return re.split(
        r"^#+ .*$", text.partition(f"# {heading}\n")[2], maxsplit=1, flags=re.MULTILINE
    )[0]


def first_cells(markdown: str, heading: str) -> set[str]:
    """The code in the first cells of the table that has `heading` over them."""
    (table_,) = re.findall(rf"^\| {heading} *\|.*\n((?:\|.*\n)*)", markdown, re.MULTILINE)
    rows = table_.splitlines()[1:]
    return {cell for row in rows for cell in re.findall(r"`([^`]+)`", row.split("|")[1])}


def program(*arguments: str) -> subprocess.CompletedProcess[bytes]:
    """Python, run from the top of the checkout."""
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, capture_output=True, check=False, timeout=60
    )


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_to_a_file_leads_to_a_file_and_to_a_heading_in_it(page: Path) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", page.read_text(encoding="utf-8")):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        assert linked.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", linked.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in [heading.lower().replace(" ", "-") for heading in headings], target


@pytest.mark.parametrize("page", held(), ids=lambda page: page.stem)
def test_a_page_is_in_the_style(page: Path) -> None:
    said = sentences(page.read_text(encoding="utf-8"))
    assert wrong(said) == [], "python -m tools.readability lists them"
    assert ease(said) >= EASIEST


def test_the_map_names_every_page() -> None:
    index = text_of("index.md")
    assert {page.name for page in pages(ROOT)} - {"README.md", "index.md"} == set(
        re.findall(r"^\| \[([a-z-]+\.md)\]", index, re.MULTILINE)
    )


@pytest.mark.parametrize(
    "line", sorted({line for _, line in fenced("sh") if line.startswith("upcall-trace ")})
)
def test_every_command_line_in_the_documentation_is_understood(line: str) -> None:
    _, name, *arguments = shlex.split(line)
    command = cli.get_command(click.Context(cli), name)
    while isinstance(command, click.Group):
        name, *arguments = arguments
        command = command.get_command(click.Context(command), name)
    assert command is not None
    # With the group's settings: click keeps the help option that it makes first.
    try:
        context = command.make_context(name, arguments, **cli.context_settings)
    except click.exceptions.Exit:  # an option that prints something and is done, as --help
        return
    for expression in (context.params.get("expression"), context.params.get("filter")):
        if expression is not None:
            parse(expression)


def test_every_make_target_is_told_and_every_told_one_exists() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.search(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)[1].split())  # type: ignore[index]
    assert set(re.findall(r"^\| `make (\w+)`", text_of("developing.md"), re.MULTILINE)) == targets
    assert {line.split()[1] for _, line in fenced("sh") if line.startswith("make ")} <= targets


def test_every_file_that_the_developers_page_names_exists() -> None:
    paths = re.findall(
        r"`((?:dissectors|upcall_trace|tools|tests|captures)/[\w/.]*)`", text_of("developing.md")
    )
    assert [path for path in paths if not (ROOT / path).exists()] == []
    loose = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "upcall_trace").glob("*.py")
        if path.name != "__init__.py"
    }
    assert loose <= set(paths)


# Commands.


def commands(group: click.Group, path: str = "") -> Iterator[tuple[str, click.Command]]:
    """Every command by its words, those of groups after the group itself."""
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        yield f"{path}{name}", command
        if isinstance(command, click.Group):
            yield from commands(command, f"{path}{name} ")


@pytest.mark.parametrize(("name", "command"), list(commands(cli)), ids=str)
def test_every_command_and_option_has_help_and_is_in_the_page(
    name: str, command: click.Command
) -> None:
    assert command.help
    told = section(text_of("commands.md"), name)
    assert f"upcall-trace {name}" in told
    for option in command.params:
        if isinstance(option, click.Option):
            assert option.help, option.name
            assert all(f"`{spelling}`" in told for spelling in option.opts), option.name
            assert option.help in told


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["show", "{sample}"], ExitCode.EXPECTED),
        (["show", "--nonsense", "{sample}"], ExitCode.USAGE),
        (["show", "--filter", "nonsense", "{sample}"], ExitCode.USAGE),
        (["show", "{torn}"], ExitCode.LOST),
        (["recover", "{torn}", "-o", "{out}"], ExitCode.LOST),
        (
            ["record", "--listen", "{out}", "--upstream", "{gone}", "-o", "{out}"],
            ExitCode.UNREACHABLE,
        ),
        (["record", "--interface", "no-such-if", "-o", "{out}"], ExitCode.UNREACHABLE),
        (["show", "{gone}"], ExitCode.UNREADABLE),
        (["show", "{text}"], ExitCode.UNREADABLE),
        (["filter", "{sample}", "conn == 99", "-o", "{out}"], ExitCode.NOTHING_RUN),
    ],
    ids=lambda value: " ".join(value[:2]) if isinstance(value, list) else "",
)
def test_commands_end_with_the_codes_that_the_page_tells(
    tmp_path: Path, arguments: list[str], expected: ExitCode
) -> None:
    sample = ROOT / "captures" / "mmio_lifecycle.upcap"
    (tmp_path / "torn").write_bytes(sample.read_bytes()[:1001])
    (tmp_path / "text").write_text("no capture\n", encoding="utf-8")
    names = {name: str(tmp_path / name) for name in ("torn", "text", "gone", "out")}
    run = program("-m", "upcall_trace", *(a.format(sample=sample, **names) for a in arguments))
    assert run.returncode == expected
    assert bool(run.stderr) == (expected is not ExitCode.EXPECTED)
    if expected is ExitCode.NOTHING_RUN:
        assert not (tmp_path / "out").exists()


def test_the_exit_codes_page_says_of_every_code_who_ends_with_it() -> None:
    rows = re.findall(r"^\| (\d+) +\| (.*) \|$", text_of("exit-codes.md"), re.MULTILINE)
    assert [int(number) for number, _ in rows] == [*map(int, EXIT_MEANINGS)] * 2


# Filters and JSON.


@pytest.mark.parametrize("expression", [line for _, line in fenced("filter")])
def test_every_filter_in_the_documentation_is_one(expression: str) -> None:
    parse(expression)


def test_the_filters_page_has_every_field_and_flag() -> None:
    told = text_of("filters.md")
    assert first_cells(told, "field") == set(FIELDS)
    assert first_cells(told, "flag") == set(FLAGS)
    assert list(ANOMALY_MEANINGS) == list(ANOMALIES)


def json_lines(*arguments: str) -> Iterator[dict[str, Any]]:
    """Every object that a command prints about any of the recordings."""
    for capture in CAPTURES:
        result = CliRunner().invoke(cli, [*arguments, str(capture)], catch_exceptions=False)
        yield from map(json.loads, result.stdout.splitlines())


def test_the_json_page_has_every_key_of_an_operation() -> None:
    told = section(text_of("json.md"), "Operations")
    fields, reply = set(), set()
    for operation in json_lines("show", "--json"):
        assert set(operation) == first_cells(told, "key")
        assert all(code in [*codes.table()] for code in operation["codes"])
        fields |= set(operation["fields"])
        reply |= set(operation["reply"] or ())
    assert reply == first_cells(told, "key of `reply`")
    rows = told.partition("| operations | keys of `fields` |")[2].partition("\n\n")[0]
    assert fields == {
        name for row in rows.splitlines()[2:] for name in re.findall(r"`(\w+)`", row.split("|")[2])
    }


def test_the_json_page_has_every_key_of_a_frame() -> None:
    told = section(text_of("json.md"), "Frames")
    for frame in json_lines("show", "--frames", "--json"):
        assert set(frame) == first_cells(told, "key")


def test_the_json_page_has_every_key_of_info() -> None:
    told = section(text_of("json.md"), "Info")
    for info in json_lines("info", "--json"):
        assert set(info) == first_cells(told, "key")
        for nested in (info["latency_ns"], *info["operations"].values()):
            assert all(f"`{key}`" in told for key in nested)


def test_the_json_page_has_every_key_of_a_diff() -> None:
    told = section(text_of("json.md"), "Diff")
    pair = (ROOT / "captures" / f"cpu_lifecycle{name}.upcap" for name in ("", "_6_12"))
    arguments = ["diff", "--json", *map(str, pair)]
    diff = json.loads(CliRunner().invoke(cli, arguments, catch_exceptions=False).stdout)
    assert set(diff) == first_cells(told, "key")
    assert {each["kind"] for each in diff["differences"]} == {"changed", "only_a", "only_b"}
    for each in diff["differences"]:
        assert set(each) == first_cells(told, "key of a difference")
        for side in filter(None, (each["a"], each["b"])):
            assert all(f"`{key}`" in told for key in side)


def test_the_json_page_has_every_key_of_provenance() -> None:
    told = first_cells(section(text_of("json.md"), "Provenance"), "key of a run")
    for frame in json_lines("show", "--hex", "--json"):
        assert all(set(run) == told for run in frame["provenance"] or ())


def test_the_json_page_has_every_key_of_a_state() -> None:
    told = section(text_of("json.md"), "State")
    for state in (*json_lines("state", "--json"), *json_lines("state", "--json", "--at", "0")):
        assert set(state) == first_cells(told, "key")
        for entry in state["known"] + state["inferred"]:
            assert set(entry) == first_cells(told, "key of an entry")
            assert entry["kind"] in first_cells(told, "kind")
            assert all(f"`{key}`" in told for key in entry["fields"])
        for listed in (*state["dead"], *state["waiting"], *(state["devices"] or ())):
            assert all(f"`{key}`" in told for key in listed)


def test_json_is_ascii_and_says_its_version() -> None:
    for arguments in (["show"], ["show", "--frames"], ["show", "--hex"], ["info"], ["state"]):
        for printed in json_lines(*arguments, "--json"):
            assert printed["v"] == 1


# The simulated guest.


PYTHON_ELSEWHERE = {
    "pytest.md": "tests/testing/test_docs.py",
    "lab.md": "tests/live/test_life.py",
}
"""Pages whose blocks in Python are run by a test of their own, and where."""
PYTHON_BLOCKS = [
    pytest.param(page.name, block, id=f"{page.name}-{number}")
    for page in (ROOT / "docs").glob("*.md")
    if page.name not in PYTHON_ELSEWHERE
    for number, block in enumerate(blocks(page.name, "python"))
]


@pytest.mark.parametrize(("page", "example"), PYTHON_BLOCKS)
def test_every_example_in_python_does_what_it_says(
    page: str, example: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket_folder() as place:
        monkeypatch.chdir(place)
        Path("captures").symlink_to(ROOT / "captures")
        Path("failure.upcap").symlink_to(ROOT / "captures" / "mmio_lifecycle.upcap")
        with SimulatedGuest(path=Path("guest.sock")):
            exec(compile(example, page, "exec"), {})
        monkeypatch.undo()


def test_pages_whose_python_is_run_elsewhere_are_named_there() -> None:
    assert "```python" not in text_of("../README.md")
    for page, test in PYTHON_ELSEWHERE.items():
        assert f'blocks("{page}", "python")' in (ROOT / test).read_text(encoding="utf-8")


def test_the_example_of_a_file_of_worlds_is_one(tmp_path: Path) -> None:
    (example,) = blocks("worlds.md", "toml")
    (tmp_path / "worlds.toml").write_text(example, encoding="utf-8")
    worlds = load_worlds(tmp_path / "worlds.toml")
    assert {world.arch for world in worlds.values()} == set(Arch)
    used = {name for line in example.splitlines() for name in re.findall(r"(\w+) =", line)}
    told = first_cells(text_of("worlds.md"), "key") | {"base", "size", "irq", "role", "probe_ms"}
    assert used <= told | {"bus", "slot", "function"}


def test_the_pages_of_the_guest_have_every_key_order_and_fault() -> None:
    assert first_cells(text_of("worlds.md"), "key") == {one.name for one in fields(World)}
    actions = {cell.partition("=")[0] for cell in first_cells(text_of("guest.md"), "action")}
    assert actions == set(ACTIONS)
    for line in text_of("guest.md").splitlines():
        for spec in re.findall(r"--fault ([a-z]\S+)", line):
            parse_fault(spec)


# The capture file, read with nothing but what its page says.


def frames_of(raw: bytes) -> Iterator[tuple[int, list[Any]]]:
    """(offset, payload) of every frame, by docs/capture-format.md."""
    assert raw[:8] == bytes.fromhex("89 55 50 43 41 50 0d 0a")
    offset = 8
    while offset < len(raw):
        length, checksum = struct.unpack_from("<II", raw, offset)
        payload = raw[offset + 8 : offset + 8 + length]
        assert zlib.crc32(payload, length) == checksum
        yield offset, msgpack.unpackb(payload)
        offset += 8 + length


@pytest.mark.parametrize("path", CAPTURES, ids=lambda path: path.stem)
def test_the_capture_page_is_enough_to_read_every_byte_of_a_recording(path: Path) -> None:
    records = [values for _, values in frames_of(path.read_bytes())]
    assert records[0][:2] == [0, 2]
    chunks = [
        (t_ns, conn, to_guest, b"".join(bytes(p) if isinstance(p, int) else p for p in parts))
        for kind, t_ns, conn, to_guest, *parts in (v for v in records if v[0] == 2)
        if kind == Kind.CHUNK
    ]
    with CaptureReader(path) as reader:
        ours = [record for record in reader if isinstance(record, Chunk)]
    assert chunks == [(c.t_ns, c.conn, c.to_guest, c.data) for c in ours]


@pytest.mark.parametrize("path", CAPTURES, ids=lambda path: path.stem)
def test_the_capture_page_is_enough_to_read_an_index(path: Path) -> None:
    raw = path.read_bytes()
    frames = dict(frames_of(raw))
    kind, at = frames[max(frames)]
    assert (kind, len(at)) == (11, 8)
    kind, version, begin, end, digest, previous, rows_at, *_, ended = frames[
        int.from_bytes(at, "little")
    ]
    assert (kind, version, begin, previous, ended) == (15, INDEX_VERSION, 0, None, True)
    assert digest == xxhash.xxh3_128(raw[:end]).digest()
    assert frames[max(offset for offset in frames if offset < end)][0] == 8
    kind, version, columns = frames[rows_at]
    assert (kind, version) == (9, INDEX_VERSION)
    told = first_cells(text_of("capture-format.md"), "column")
    operations = load(path).operations
    others = {"changed", "changed_rows", "connections", "marks", "vmm", "origins"}
    assert set(columns) - others == told == set(operations.names())
    for name, (dtype, count, packed) in columns.items():
        column = np.frombuffer(zstd.decompress(packed), dtype)
        assert len(column) == count
        if name in told:
            assert column.tolist() == operations.column(name).tolist()


def test_the_capture_page_has_every_kind() -> None:
    rows = re.findall(r"^\| (\d+) +\| (\w+) +\| ", text_of("capture-format.md"), re.MULTILINE)
    assert {(int(number), name) for number, name in rows} >= {(k.value, k.name) for k in Kind}


# What the README says of the licence of scapy.


def importers(package: str, library: str) -> set[str]:
    """The modules of `package` that import `library` anywhere."""
    found = set()
    for path in (ROOT / package).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            if any(name.split(".")[0] == library for name in names):
                found.add(str(path.relative_to(ROOT)))
    return found


def test_exactly_one_module_of_each_package_imports_scapy_and_the_readme_names_it() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for package in ("dissectors", "upcall_trace"):
        (module,) = importers(package, "scapy")
        assert f"- `{module}`" in readme


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["show", "captures/framing.upcap"], ["info", "tests/golden/framing.jsonl"]],
    ids=" ".join,
)
def test_without_scapy_the_rest_works(arguments: list[str]) -> None:
    run = program(
        "-c",
        "import sys; sys.modules['scapy'] = None\n"
        "from upcall_trace.cli import main\n"
        "main(sys.argv[1:])",
        *arguments,
    )
    assert (run.returncode, run.stderr) == (0, b"")
    assert run.stdout
