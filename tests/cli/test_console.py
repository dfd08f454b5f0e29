"""What reaches the terminal: nothing that steers it, no forged line, and nothing after the reader
has left."""

from __future__ import annotations

import ast
import itertools
import os
import subprocess
from pathlib import Path

import pytest

from tests.support import (
    Outcome,
    ask,
    command,
    connect,
    golden,
    run,
    small_capture,
    write_capture,
)
from tests.terminals import on_terminal
from upcall_trace import cli
from upcall_trace.capture.records import (
    COMMENT,
    Chunk,
    Close,
    Gap,
    Header,
    Mark,
    Open,
    Record,
    Vmm,
)
from upcall_trace.errors import ExitCode

ROOT = Path(__file__).parents[2]
NASTY = "\x1b[31mA\x1b]0;B\x07\nFORGED\r\x08\x9bC\u202eD\u2028E\ud800F\x00"
"""Colours, a window title, lines of one's own, bidi, a lone surrogate."""
RAW = NASTY.encode("utf-8", "surrogatepass")


@pytest.fixture
def capture(tmp_path: Path, nasty_service: Path) -> Path:
    """Everything in it that can hold a text or bytes from outside holds nasty ones."""
    eight = b"\x1b\n\x0712345"
    recorded: list[Record] = [
        *connect()[:3], ask(b"n", 1), ask(eight, 2), Chunk(3, 1, False, eight), ask(eight, 4),
        Open(10, 2), ask(b"CONNECT \x1b[31m\x9b\n", 11, 2), Close(12, 2, by_guest=True),
        Open(13, 3), ask(b"CONNECT 219\n", 14, 3), Chunk(15, 3, False, b"NO \x1b[1m\x07\n"),
        *connect(4, 20), ask(b"\x1b]0;x\x07", 21, 4), Chunk(22, 4, False, b"\x1b\x9b"),
        Vmm(30, NASTY), Gap(31, 4, True, 9, NASTY),
        Mark(1, 1, 0, NASTY, NASTY), Mark(2, 1, 0, COMMENT, NASTY), Mark(3, None, None, NASTY),
    ]  # fmt: skip
    header = Header(NASTY, NASTY, NASTY, NASTY, notes={NASTY: NASTY, "note": RAW.decode("latin-1")})
    return write_capture(tmp_path / "nasty.upcap", recorded, header)


def check(ended: Outcome) -> None:
    """Printable lines, none of them begun by what came from outside."""
    for text in (ended.out, ended.err):
        for line in text.split("\n"):
            assert line.isprintable(), repr(line)
            assert not line.lstrip().startswith("FORGED")
    assert "Traceback" not in ended.err


COMMANDS = [
    ("show",),
    ("show", "--json"),
    ("show", "--frames"),
    ("show", "--hex"),
    ("show", "--frames", "--json"),
    ("show", "--follow"),
    ("show", "--filter", "unanswered or ret < 0"),
    ("info",),
    ("info", "--json"),
]


@pytest.mark.parametrize("arguments", COMMANDS, ids=" ".join)
def test_nothing_from_a_capture_steers_the_terminal(
    capture: Path, arguments: tuple[str, ...]
) -> None:
    ended = run(*arguments, capture)
    assert ended.code == ExitCode.LOST  # there is a gap in it
    assert ended.out
    check(ended)


def test_what_was_nasty_can_still_be_read(capture: Path) -> None:
    frames = run("show", "--frames", capture).out
    assert (
        "VMM: \\x1b[31mA\\x1b]0;B\\x07\\nFORGED\\r\\x08\\x9bC\\u202eD\\u2028E\\ud800F\\x00"
        in frames
    )
    assert "CONNECT line: CONNECT \\x1b[31m\\x9b\\n (malformed)" in frames
    info = run("info", capture).out
    assert "note         \\x1b[31mA\\x1b]0;B\\x07\\nFORGED" in info


@pytest.mark.parametrize("arguments", [c for c in COMMANDS if "--json" in c], ids=" ".join)
def test_json_is_ascii_and_loses_nothing(capture: Path, arguments: tuple[str, ...]) -> None:
    ended = run(*arguments, capture)
    assert ended.out.isascii()
    assert ended.objects
    if arguments[0] == "info":
        assert ended.objects[0]["notes"][NASTY] == NASTY
    elif "--frames" in arguments:
        assert any("\\x1b" in o["text"] for o in ended.objects)
    else:
        assert ended.objects[0]["op"] == "nasty"
        assert ended.objects[0]["fields"] == {"mmio_base": 0x31070A1B, "count": [*b"2345"]}


def test_nothing_from_a_capture_steers_the_terminal_on_its_way_to_another(
    capture: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    for arguments in (
        ("filter", capture, "unanswered", "-o", out, "--overwrite"),
        ("merge", capture, capture, "-o", out, "--overwrite"),
        ("split", capture, "-o", tmp_path / "split"),
        ("recover", capture, "-o", out, "--overwrite"),
        ("export", capture, "--format", "transcript", "-o", out, "--overwrite"),
        ("import", out, "-o", tmp_path / "again"),
    ):
        ended = run(*arguments)
        assert ended.code in (ExitCode.EXPECTED, ExitCode.LOST)
        check(ended)
    check(run("show", "--frames", tmp_path / "again"))


FILE_NAME = "\x1b[31mA\x1b]0;B\x07\nFORGED\r\x9bC\u202e\udcff"


def test_no_file_name_steers_the_terminal(tmp_path: Path) -> None:
    missing, path, out = (
        tmp_path / FILE_NAME,
        tmp_path / f"1{FILE_NAME}",
        tmp_path / f"2{FILE_NAME}",
    )
    write_capture(path, small_capture())
    path.write_bytes(path.read_bytes()[:-30])
    directory = tmp_path / f"3{FILE_NAME}"
    said = []
    for arguments in (
        ("show", missing),
        ("info", missing),
        ("show", path),
        ("info", path),
        ("filter", path, "failed", "-o", out, "--overwrite"),
        ("filter", path, "op == del_mem", "-o", out, "--overwrite"),
        ("merge", path, path, "-o", out, "--overwrite"),
        ("split", path, "-o", directory),
        ("recover", path, "-o", out, "--overwrite"),
        ("export", path, "--format", "transcript", "-o", out, "--overwrite"),
        ("import", golden("framing"), "-o", out, "--overwrite"),
        ("import", out, "-o", out, "--overwrite"),
        ("recover", path, "-o", path),
        ("recover", path, "-o", tmp_path / "no" / FILE_NAME),
        ("recover", path, "-o", directory),
        ("show", "--follow", golden("framing")),
    ):
        ended = run(*arguments)
        check(ended)
        said.append(ended.err)
    assert all("\\x1b[31mA" in text for text in said[:-1])


@pytest.mark.parametrize(
    "arguments",
    [
        (f"--{NASTY}",),
        (NASTY,),
        ("show", f"--{NASTY}"),
        ("state", "x", NASTY),
        ("show", "x", "--filter", NASTY),
        ("import", "x", "-o", "y", "--arch", NASTY),
        ("import", "x", "-o", "y", "--note", NASTY),
        ("import", "x", "-o", "y", "--port", NASTY),
        ("export", "x", "--format", NASTY, "-o", "y"),
    ],
    ids=range(9),
)
def test_nothing_on_the_command_line_steers_the_terminal(arguments: tuple[str, ...]) -> None:
    ended = run(*(argument.replace("\x00", "") for argument in arguments))
    assert ended.code == ExitCode.USAGE
    assert ended.out == ""
    for line in ended.err.split("\n"):
        assert line.isprintable()


def test_usage_is_explained_in_a_few_lines() -> None:
    ended = run("show")
    assert (ended.code, ended.out) == (ExitCode.USAGE, "")
    assert ended.err.splitlines() == [
        "Usage: upcall-trace show [OPTIONS] CAPTURES...",
        "Try 'upcall-trace show --help' for help.",
        "",
        "Error: Missing argument 'CAPTURES...'.",
    ]
    ended = run("shwo")
    assert ended.code == ExitCode.USAGE
    assert "did you mean 'show'?" in ended.err


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252", "utf-8"])
def test_a_terminal_of_any_encoding_can_be_written_to(tmp_path: Path, encoding: str) -> None:
    header = Header("test", notes={"note": "Grüße ☃"})
    path = write_capture(tmp_path / "x ☃.upcap", small_capture(), header)
    path.write_bytes(path.read_bytes()[:-30])
    for arguments in (("show",), ("info",), ("show", "--json"), ("info", "--json")):
        ended = run(*arguments, path, encoding=encoding)
        assert ended.code == ExitCode.LOST
        if arguments == ("info",):
            assert ("Grüße ☃" if encoding == "utf-8" else "Grüße \\u2603") in ended.out


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_the_same_in_a_process_of_its_own(tmp_path: Path, encoding: str) -> None:
    path = write_capture(tmp_path / "x.upcap", [], Header("test", notes={"note": "☃"}))
    ended = subprocess.run(
        command("info", path), capture_output=True, timeout=60, check=False,
        env=os.environ | {"PYTHONIOENCODING": encoding},
    )  # fmt: skip
    assert (ended.returncode, ended.stderr) == (0, b"")
    assert b"note         note: " in ended.stdout


@pytest.fixture
def long_capture(tmp_path: Path) -> Path:
    """More output than a pipe holds."""
    recorded = [*connect(), *(ask(bytes(65536), n) for n in range(60))]
    return write_capture(tmp_path / "long.upcap", recorded)


@pytest.mark.parametrize(
    "arguments", [("show",), ("show", "--json"), ("show", "--hex")], ids=" ".join
)
@pytest.mark.parametrize("lines", [0, 1, 100])
def test_a_reader_may_leave_whenever_it_likes(
    long_capture: Path, arguments: tuple[str, ...], lines: int
) -> None:
    with subprocess.Popen(
        command(*arguments, long_capture), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert len(list(itertools.islice(process.stdout, lines))) == lines
        process.stdout.close()
        said = process.stderr.read()
        assert process.wait(timeout=60) == ExitCode.EXPECTED
    assert said == b""


def test_a_reader_that_left_before_a_short_output(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    path = write_capture(tmp_path / "x.upcap", small_capture())
    try:
        ended = subprocess.run(
            command("info", path), stdout=writing, stderr=subprocess.PIPE, timeout=60, check=False
        )
    finally:
        os.close(writing)
    assert (ended.returncode, ended.stderr) == (ExitCode.EXPECTED, b"")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
@pytest.mark.parametrize("arguments", [("show",), ("info", "--json"), ("--help",)], ids=" ".join)
def test_an_output_that_is_full_is_told_once(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    path = write_capture(tmp_path / "x.upcap", small_capture())
    if arguments != ("--help",):
        arguments = (*arguments, str(path))
    with Path("/dev/full").open("wb") as full:
        ended = subprocess.run(
            command(*arguments), stdout=full, stderr=subprocess.PIPE, timeout=60, check=False
        )
    assert ended.returncode == ExitCode.LOST
    assert ended.stderr == (
        b"upcall-trace: the output cannot be written: No space left on device\n"
    )


def test_colour_is_for_terminals_only(tmp_path: Path) -> None:
    """A pseudo terminal gets it, unless it asks not to."""
    path = write_capture(tmp_path / "x.upcap", small_capture())
    assert "\x1b" not in run("show", path).out
    assert "\x1b[31m" in on_terminal(["show", path])[1]
    assert "\x1b" not in on_terminal(["show", path], environment={"NO_COLOR": "1"})[1]
    assert "\x1b[31m" in on_terminal(["show", path], environment={"NO_COLOR": ""})[1]


@pytest.mark.parametrize("when", ["auto", "always", "never"])
def test_colours_are_always_never_or_as_the_terminal_is(
    when: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_capture(tmp_path / "x.upcap", small_capture())
    arguments: list[str | Path] = ["show", "--color", when, path]
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert ("\x1b[31m" in run(*arguments).out) is (when == "always")
    assert ("\x1b[31m" in on_terminal(arguments)[1]) is (when != "never")
    # What is said in so many words counts more than what the environment says.
    monkeypatch.setenv("NO_COLOR", "1")
    assert ("\x1b[31m" in run(*arguments).out) is (when == "always")


@pytest.mark.parametrize("arguments", [["docs", "exit-codes"], ["diagnose", "UP201"]])
def test_pages_are_formatted_in_colours_when_that_is_asked_for(arguments: list[str]) -> None:
    assert "\x1b[" not in run(*arguments).out
    assert "\x1b[1" in run(*arguments, "--color", "always").out
    assert run(*arguments, "--color", "never").out == run(*arguments).out


COLOURING = {"out_all", "show_operation", "memory_lines", "show_markdown", "explain"}


def prints_colours(source: str) -> bool:
    """Whether a module gives `out` a colour, or calls what does."""
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    return any(
        (call.func.id == "out" and len(call.args) > 1) or call.func.id in COLOURING
        for call in calls if isinstance(call.func, ast.Name)
    )  # fmt: skip


def test_every_command_that_uses_colours_takes_color() -> None:
    folder = ROOT / "upcall_trace" / "cli"
    coloured = {
        name for name, (module, _) in cli.COMMANDS.items()
        if prints_colours((folder / f"{module}.py").read_text())
    }  # fmt: skip
    assert {"show", "send", "replay", "diff", "doctor", "docs", "diagnose"} <= coloured
    for name in coloured:
        words = {"lab": ("lab", "setup"), "fleet": ("fleet", "show")}.get(name, (name,))
        assert "--color [auto|always|never]" in run(*words, "--help").out, name


def test_a_tab_of_the_library_is_no_escape() -> None:
    """click puts choices on lines that begin with a tab."""
    told = run("completion", "show")
    assert told.code == ExitCode.USAGE
    assert "\\t" not in told.err
    assert "    bash," in told.err.splitlines()


def test_export_shows_no_tab_as_an_escape(tmp_path: Path) -> None:
    path = write_capture(tmp_path / "x.upcap", small_capture())
    for arguments in (["--list"], [path], [path, "-o", "-"], [path, "-o", "x.foo"],
                      [path, "--format", "nothing", "-o", "-"], []):  # fmt: skip
        told = run("export", *arguments)
        assert "\\t" not in told.out + told.err
