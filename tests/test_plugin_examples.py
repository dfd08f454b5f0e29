"""The example packages of docs/plugins.md, built and installed by pip, and then made to raise."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from struct import pack
from typing import Any

import pytest

from tests import support
from tests.plugin_packages import installed_in, once, pip_install, plant
from tests.support import (
    DISK,
    GOLDEN,
    Outcome,
    answer,
    ask,
    connect,
    golden,
    run,
    small_capture,
    write_capture,
)
from tests.test_imports import ROOT
from upcall_trace.capture.records import Chunk, Record
from upcall_trace.errors import ExitCode
from upcall_trace.plugins import SEAMS
from upcall_trace.sources import open_source
from upcall_trace.trace import opening
from upcall_trace.tui.data.send_line import send_line
from upcall_trace.tui.panes.message_fields import told_fields
from upcall_trace.tui.panes.prompt import complete

EXAMPLES = ROOT / "docs" / "examples" / "plugins"
MODULES = {path.parent.name: path for path in sorted(EXAMPLES.glob("*/upcall_*.py"))}
"""The one module of each example, by the folder, which is named after what it adds."""


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with every example installed from a copy."""

    def made(place: Path) -> None:
        shutil.copytree(EXAMPLES, place / "copies")
        pip_install(place / "site", *(place / "copies" / name for name in MODULES))

    return once(tmp_path_factory, "examples", made) / "site"


def sabotage(site: Path, to: Path, example: str, line: str) -> Path:
    """The same folder, but in one example something raises before a line, after one with a `;`."""
    shutil.copytree(site, to)
    module = to / MODULES[example].name
    before, found, after = module.read_text().partition(line.removesuffix(";"))
    assert found
    if line.endswith(";"):
        module.write_text(f"{before}{found}; raise ZeroDivisionError('boom'){after}")
        return to
    indent = before[before.rindex("\n") + 1 :]
    module.write_text(f"{before}raise ZeroDivisionError('boom')\n{indent}{found}{after}")
    return to


def program(site: Path, *arguments: str | Path) -> Outcome:
    """The program where the packages in a folder are installed."""
    with installed_in(site):
        return run(*arguments)


def completed(site: Path, line: str) -> list[str]:
    """What Tab completes a line to there."""
    with installed_in(site):
        return support.completed(line)


def listed(site: Path) -> dict[str, dict[str, Any]]:
    """What `plugins --json` says, by what each adds."""
    told = program(site, "plugins", "--json")
    assert (told.code, told.err) == (0, "")
    return {each["seam"]: each for each in json.loads(told.out)["plugins"]}


def findings(told: Outcome) -> list[dict[str, Any]]:
    """What `diagnose --json` found."""
    found: list[dict[str, Any]] = json.loads(told.out)["findings"]
    return found


def one_sentence(ended: Outcome, package: str) -> bool:
    """Whether a trouble with a package was told, in one sentence and without a traceback."""
    told = [line for line in ended.err.splitlines() if f"mend or uninstall {package}" in line]
    return len(told) == 1 and "ZeroDivisionError: boom" in told[0] and (
        "Traceback" not in ended.err
    )  # fmt: skip


def test_there_is_an_example_of_everything_that_can_be_added(site: Path) -> None:
    assert {f"{name}s" for name in MODULES} == set(SEAMS)
    found = listed(site)
    assert set(found) == {f"{name}s" for name in MODULES}
    for each in found.values():
        assert (each["state"], each["version"], each["why"]) == ("ok", "1.0", None)
        assert each["about"]
    text = program(site, "plugins").out
    for each in found.values():
        assert f"ok      {each['seam']:<9} {each['name']}" in text
        assert each["about"] in text


def test_names_are_all_that_help_and_completion_load(site: Path, tmp_path: Path) -> None:
    broken = tmp_path / "site"
    shutil.copytree(site, broken)
    for path in MODULES.values():
        (broken / path.name).write_text("raise ZeroDivisionError('boom')\n")
    told = program(broken, "--help")
    assert (told.code, told.err) == (0, "")
    assert "tally" in told.out
    assert "From the package upcall-tally 1.0." in told.out
    assert completed(broken, "upcall-trace ta") == ["tally"]
    assert completed(broken, "upcall-trace tally --f") == []  # it has to be loaded for that
    assert completed(broken, "upcall-trace export --format lat") == ["latencies"]
    for each in listed(broken).values():
        assert each["state"] == "broken"
        assert "cannot be loaded: ZeroDivisionError: boom; mend or uninstall" in each["why"]
    capture = write_capture(tmp_path / "x.upcap", small_capture())
    shown = program(broken, "show", capture)
    assert (shown.code, shown.err) == (0, "")  # nothing of theirs is needed


def test_a_process_of_its_own_finds_them_on_its_path(site: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "upcall_trace", "tally", golden("framing")],
        env={**os.environ, "PYTHONPATH": f"{site}{os.pathsep}{ROOT}"},
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "add_mem" in ended.stdout


# A source.

HEX = """# upcall hexlines
0.0 1 > {line}
0.1 1 < {ok}
0.2 1 > 64
0.3 1 < {hello}
"""


@pytest.fixture
def hexlines(tmp_path: Path) -> Path:
    """A file of that format with a connection up to its CONNECT message."""
    chunks = [record for record in connect() if isinstance(record, Chunk)]
    line, ok, _, hello = (chunk.data.hex() for chunk in chunks)
    path = tmp_path / "x.hexlines"
    path.write_text(HEX.format(line=line, ok=ok, hello=hello))
    return path


def test_a_source_reads_its_files(site: Path, hexlines: Path, tmp_path: Path) -> None:
    told = program(site, "info", "--json", hexlines)
    assert (told.code, told.err) == (0, "")
    assert json.loads(told.out)["connections"] == 1
    assert program(site, "import", hexlines, "-o", tmp_path / "x.upcap").code == 0
    assert program(tmp_path, "info", tmp_path / "x.upcap").code == 0
    text = tmp_path / "text"
    text.write_text("hello\n")
    assert "one of the formats pcap, transcript, hexlines" in program(site, "show", text).err
    hexlines.write_text(hexlines.read_text() + "what\n")
    damaged = program(site, "info", hexlines)
    assert (damaged.code, "damaged at offset" in damaged.err) == (ExitCode.LOST, True)


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("return start.startswith", ExitCode.UNREADABLE),
        ("return HexLines(path)", ExitCode.UNREADABLE),
        ("self.complete = True", ExitCode.LOST),
        ("seconds, conn, arrow", ExitCode.LOST),
        ("self._file.close();", ExitCode.LOST),
    ],
)
def test_a_source_that_raises_costs_a_sentence(
    site: Path, hexlines: Path, tmp_path: Path, line: str, code: ExitCode
) -> None:
    ended = program(sabotage(site, tmp_path / "site", "source", line), "info", "--json", hexlines)
    assert ended.code == code
    assert one_sentence(ended, "upcall-hexlines")
    if line == "self.complete = True":  # what was read before is there
        assert json.loads(ended.out)["connections"] == 1


@pytest.mark.parametrize(
    ("yielded", "why"),
    [
        ("'no pair'", "ValueError"),
        ("(None, Chunk(0, 1, True, b''))", "an offset is no number"),
        ("(0, 'no record')", "no record"),
        ("(0, Chunk('0', 1, True, b''))", "a time is missing"),
        ("(0, Chunk(0, 1, True, 'text'))", "no record"),
        ("(0, Open(0, -1))", "a connection's number is out of range"),
    ],
)
def test_what_is_no_record_ends_a_source(
    site: Path, hexlines: Path, tmp_path: Path, yielded: str, why: str
) -> None:
    to = tmp_path / "site"
    shutil.copytree(site, to)
    module = to / MODULES["source"].name
    module.write_text(module.read_text().replace("yield offset, record", f"yield {yielded}"))
    ended = program(to, "info", "--json", hexlines)
    assert ended.code == ExitCode.LOST
    assert why in ended.err
    assert json.loads(ended.out)["requests"] == 0


# An export.


def test_an_export_writes_its_format(site: Path, tmp_path: Path) -> None:
    capture = write_capture(tmp_path / "x.upcap", small_capture())
    output = tmp_path / "x.latencies"
    told = program(site, "export", capture, "-o", output)
    said = f"{output}: 1 operations have no reply, so no latency\n"
    assert told == Outcome(0, "", said)
    assert output.read_text().split() == [
        "0.000001000", "add_mmio", "0.000003000", "0.000005000", "add_mmio", "0.000002000",
    ]  # fmt: skip
    again = program(site, "export", capture, "--format", "latencies", "-o", "-")
    assert again.out == output.read_text()
    assert "latencies" in program(site, "export", "--list").out


@pytest.mark.parametrize("line", ["unanswered = 0", "out.write", "return [Loss"])
def test_an_export_that_raises_costs_a_sentence_and_no_output(
    site: Path, tmp_path: Path, line: str
) -> None:
    output = tmp_path / "x.latencies"
    output.write_text("precious")
    to = sabotage(site, tmp_path / "site", "export", line)
    ended = program(to, "export", golden("framing"), "-o", output, "--overwrite")
    assert (ended.code, ended.out) == (ExitCode.USAGE, "")
    assert one_sentence(ended, "upcall-latencies")
    assert output.read_text() == "precious"


# A rule.

SLOW = [*connect(), ask(DISK, 1000), answer(DISK, 150_001_000)]


def test_a_rule_adds_a_finding_and_its_page(site: Path, tmp_path: Path) -> None:
    capture = write_capture(tmp_path / "x.upcap", SLOW)
    told = program(site, "diagnose", "--json", capture)
    assert (told.code, told.err) == (0, "")
    (found,) = (each for each in findings(told) if each["code"] == "BUDGET1")
    assert found["what"].endswith("took 150 ms.")
    assert (found["name"], found["severity"], found["request"]) == ("over-budget", "warning", 0)
    assert "BUDGET1" in program(site, "diagnose", "--all", capture).out
    assert program(site, "diagnose", capture, "--fail-on", "warning").code == ExitCode.DIFFERENT
    page = program(site, "diagnose", "--explain", "BUDGET1").out
    assert "An operation took longer than 100 ms." in page
    assert "BUDGET1" not in run("diagnose", "--json", capture).out


@pytest.mark.parametrize("line", ["OVER_BUDGET = ", "return (at.latency_ns", "took_ms = "])
def test_a_rule_that_raises_costs_a_sentence_and_no_other_finding(
    site: Path, tmp_path: Path, line: str
) -> None:
    capture = golden("cpu_lifecycle")
    expected = findings(run("diagnose", "--json", capture))
    ended = program(sabotage(site, tmp_path / "site", "rule", line), "diagnose", "--json", capture)
    assert ended.code == ExitCode.LOST
    assert one_sentence(ended, "upcall-budget")
    assert findings(ended) == expected


# A command.


def test_a_command_is_one_of_the_program(site: Path) -> None:
    told = program(site, "tally", golden("mmio_lifecycle"))
    assert (told.code, told.err) == (0, "")
    assert told.out.split()[1] == "add_mmio"
    helped = program(site, "tally", "--help")
    assert "Count the operations of CAPTURE by name." in helped.out
    assert completed(site, "upcall-trace tally --f") == ["--failed"]
    none = program(site, "tally", "--failed", GOLDEN / "cpu_lifecycle.jsonl")
    assert none.code in (0, ExitCode.NOTHING_RUN)
    wrong = program(site, "tally", "--nonsense")
    assert (wrong.code, "Usage: " in wrong.err) == (ExitCode.USAGE, True)
    unreadable = program(site, "tally", "no-such-file")
    assert unreadable.code == ExitCode.UNREADABLE
    assert unreadable.err == "upcall-trace: no-such-file: No such file or directory\n"
    assert "did you mean 'tally'" in program(site, "taly").err


@pytest.mark.parametrize("line", ["opened = ", "click.echo"])
def test_a_command_that_raises_costs_a_sentence(site: Path, tmp_path: Path, line: str) -> None:
    to = sabotage(site, tmp_path / "site", "command", line)
    ended = program(to, "tally", golden("framing"))
    assert ended.code == ExitCode.USAGE
    assert one_sentence(ended, "upcall-tally")
    assert ended.err.count("\n") == 1


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ("sys.exit(3)", 3), ("sys.exit()", 0), ("return 1", 1), ("return {}", 0),
        ("raise click.ClickException('x')", 2), ("sys.exit('text')", 2),
        ("raise KeyboardInterrupt", 130), ("open('/no/such/file')", 2),
    ],
)  # fmt: skip
def test_a_command_may_end_as_any_program_ends(tmp_path: Path, body: str, code: int) -> None:
    source = f"import sys, click\n@click.command()\ndef it():\n    {body}\n"
    plant(tmp_path, "ends", {"commands.it": "ends_command:it"}, ends_command=source)
    ended = program(tmp_path, "it")
    assert ended.code == code
    assert "Traceback" not in ended.err
    assert bool(ended.err) == (code in (2, 130))


# A service.


@pytest.fixture
def counted(tmp_path: Path) -> Path:
    """A capture of that service: one counter is added to, another one refused."""
    records = [*connect()[:3], Chunk(30, 1, True, b"c")]
    for number, (kind, counter, ret, value) in enumerate([(1, 5, 0, 41), (2, 6, -22, 0)]):
        asked, told = pack("<IHH", kind, counter, 3), pack("<iI", ret, value)
        records += [
            Chunk(100 * number + 100, 1, True, asked),
            Chunk(100 * number + 150, 1, False, told),
        ]
    return write_capture(tmp_path / "x.upcap", records)


def test_a_service_has_its_fields_everywhere(site: Path, counted: Path) -> None:
    told = program(site, "show", "--json", counted)
    assert (told.code, told.err) == (0, "")
    added, read = told.objects
    assert (added["op"], added["fields"]) == ("add_counter", {"counter": 5, "amount": 3})
    assert (added["ret"], added["reply"]["value"]) == (0, 41)
    assert (read["op"], read["errno"]) == ("read_counter", "EINVAL")
    only = program(site, "show", "--json", "--filter", "counter == 6", counted)
    assert only.objects == [read]
    (refused,) = findings(program(site, "diagnose", "--json", counted))
    assert (refused["severity"], refused["request"]) == ("error", 1)
    assert refused["what"].startswith("The guest answered read_counter")
    assert refused["what"].endswith("with -22 (EINVAL).")
    assert program(site, "diagnose", counted, "--fail-on", "error").code == ExitCode.DIFFERENT
    named = program(site, "show", "--json", "--filter", "op == add_counter and value > 40", counted)
    assert named.objects == [added]
    assert run("show", "--json", counted).objects == []  # without the package nobody knows them
    assert "counter=6" in program(site, "show", counted).out


def test_a_field_of_its_reply_is_a_difference(site: Path, counted: Path, tmp_path: Path) -> None:
    with installed_in(site):
        records = list(open_source(counted).records())
    other: list[Record] = []
    for _, each in records:
        if isinstance(each, Chunk) and each.t_ns == 150:
            other.append(replace(each, data=pack("<iI", 0, 42)))
        else:
            other.append(each)
    changed = write_capture(tmp_path / "y.upcap", other)
    told = program(site, "diff", "--json", counted, changed)
    assert told.code == ExitCode.DIFFERENT
    (difference,) = told.objects[0]["differences"]
    assert difference["differing"] == ["value"]
    assert difference["a"]["fields"] == {"counter": 5, "amount": 3}


def test_an_index_made_without_it_is_not_believed_where_it_is(
    site: Path, counted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opening, "DECODED_SIZE", 0)  # so that an index is read at all
    assert opening.build_index(counted)
    assert (opening.load(counted).indexed, len(opening.load(counted).operations)) == (True, 0)
    with installed_in(site):
        found = opening.load(counted)
        assert (found.indexed, len(found.operations)) == (False, 2)
        assert opening.build_index(counted)
        assert opening.load(counted).indexed
        assert opening.load(counted).operations.where("counter", lambda v: v == 6).tolist() == [
            False, True,
        ]  # fmt: skip
    assert not opening.load(counted).indexed


def test_its_requests_are_sent(site: Path, tmp_path: Path) -> None:
    path = tmp_path / "guest.sock"
    asked: list[bytes] = []
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def serve() -> None:
            stream, _ = listener.accept()
            with stream:
                stream.recv(32)
                stream.sendall(b"OK 1\n")
                asked.append(stream.recv(1))
                asked.append(stream.recv(8))
                stream.sendall(pack("<iI", 0, 12))

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        sent = program(site, "send", "--json", "--to", path, "add-counter", "7", "5")
        thread.join(10)
    assert (sent.code, sent.err) == (0, "")
    assert asked == [b"c", pack("<IHH", 1, 7, 5)]
    assert sent.objects[0]["op"] == "add_counter"
    assert sent.objects[0]["reply"] == {"value": 12}
    wrong = program(site, "send", "--to", path, "add-counter", "7")
    assert wrong.code == ExitCode.USAGE
    assert "add-counter COUNTER AMOUNT: 1 values were given" in wrong.err


def test_the_browser_shows_the_fields_of_both_directions(site: Path, counted: Path) -> None:
    with installed_in(site):
        operations = opening.load(counted).operations
        operation, layout = operations.operation(0), operations.layout(0)
        asked = {each.name: each.value for each in told_fields(operation, layout, False)}
        answered = {each.name: each.value for each in told_fields(operation, layout, True)}
        assert (asked, answered) == ({"counter": "5", "amount": "3"}, {"value": "41"})
        assert send_line(operation, layout, 0).endswith("add-counter 5 3")
        assert complete("coun") == "count"
        assert complete("counte") == "counter"
        assert complete("op == add_co") == "op == add_counter"


def test_a_request_to_a_service_that_has_no_answer_is_an_error(site: Path, tmp_path: Path) -> None:
    asked = Chunk(100, 1, True, pack("<IHH", 2, 7, 0))
    path = write_capture(tmp_path / "x.upcap", [*connect()[:3], Chunk(30, 1, True, b"c"), asked])
    (silent,) = findings(program(site, "diagnose", "--json", path))
    assert (silent["code"], silent["severity"], silent["request"]) == ("UP602", "error", 0)
    assert silent["what"].startswith("No reply to read_counter")


@pytest.mark.parametrize("line", ["KIND = ", "COUNTERS = "])
def test_a_service_that_raises_costs_a_sentence_and_not_the_capture(
    site: Path, counted: Path, tmp_path: Path, line: str
) -> None:
    ended = program(sabotage(site, tmp_path / "site", "service", line), "info", "--json", counted)
    assert ended.code == ExitCode.LOST
    assert one_sentence(ended, "upcall-counters")
    assert ended.objects[0]["connections"] == 1


# Names that are taken.


def test_a_plugin_takes_no_name_of_ours_and_none_of_another_plugin(tmp_path: Path) -> None:
    source = "import click\nshow = tally = click.Command('x', callback=lambda: print('theirs'))\n"
    entries = {"commands.show": "one_command:show", "commands.tally": "one_command:tally"}
    plant(tmp_path, "one", entries, one_command=source)
    plant(tmp_path, "two", {"commands.tally": "one_command:tally"})
    shown = program(tmp_path, "show", golden("framing"))
    assert "theirs" not in shown.out
    ended = program(tmp_path, "tally")
    assert ended.code == ExitCode.USAGE
    assert "has the name of another one, of " in ended.err
    told = json.loads(program(tmp_path, "plugins", "--json").out)["plugins"]
    assert [each["state"] for each in told] == ["broken"] * 3
    assert "has the name of a command that is built in" in told[0]["why"]


def test_a_format_of_a_built_in_name_or_another_name_is_broken(tmp_path: Path) -> None:
    source = (
        "from upcall_trace.exports import ExportFormat\n"
        "F = ExportFormat('transcript', 'x', ('.x',), __name__)\n"
        "G = ExportFormat('other', 'x', ('.x',), __name__)\n"
    )
    entries = {"exports.transcript": "f:F", "exports.g": "f:G"}
    plant(tmp_path, "taken", entries, f=source)
    told = json.loads(program(tmp_path, "plugins", "--json").out)["plugins"]
    assert ["calls its format 'other'" in told[0]["why"], told[1]["state"]] == [True, "broken"]
    listing = program(tmp_path, "export", "--list")
    assert listing.code == ExitCode.LOST  # a part of the list is missing
    assert listing.err.count("mend or uninstall taken") == 2
