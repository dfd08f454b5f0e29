"""Redaction by an allow-list: secrets of every kind are left out, what explains a failure stays."""

from __future__ import annotations

import json
import re
import tarfile
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support import run
from upcall_trace.bundle.allowed_lines import allowed_lines, some_lines
from upcall_trace.bundle.allowed_text import allowed_text
from upcall_trace.bundle.line_shapes import allowed_line
from upcall_trace.bundle.redaction import Redactor
from upcall_trace.logs.entries import Scanner
from upcall_trace.logs.lines import lines_of
from upcall_trace.logs.meaning import Speaker
from upcall_trace.logs.table import ROWS, understand

HERE = Path(__file__).parent
SECRETS: list[dict[str, str]] = json.loads((HERE / "secrets.json").read_text("utf-8"))
CASES = sorted(path.parent for path in (HERE.parent / "cases").glob("*/expected.json"))
BEFORE = "VM upcall init\nupcall connect service success\n"
AFTER = "vmm action error: UpcallServerNotReady\n"


def redacted(text: str) -> str:
    redactor = Redactor()
    found = allowed_lines([text.encode()], redactor.placeholder)
    return "\n".join(f"[{line}]" if isinstance(line, int) else line for line in found)


@pytest.mark.parametrize("secret", SECRETS, ids=lambda each: each["kind"])
def test_a_line_with_a_secret_is_left_out(secret: dict[str, str]) -> None:
    found = redacted(f"{BEFORE}{secret['line']}\n{AFTER}")
    assert secret["secret"] not in found
    assert "UpcallServerNotReady" in found


PLAIN_NUMBERS = {"host digits", "host bare 2 letters", "ordinary host name: node"}
"""Of these the secret is a word of the table, or a number as any other."""


@pytest.mark.parametrize(
    "secret", [each for each in SECRETS if each["kind"] not in PLAIN_NUMBERS],
    ids=lambda each: each["kind"],
)  # fmt: skip
def test_a_secret_in_a_line_that_stays_is_replaced(secret: dict[str, str]) -> None:
    """In the error of an action, quoted, in a path, and as the program's host."""
    value = secret["secret"].partition("\n")[0]
    for line in (
        f"vmm action error: Block(InvalidPath({value}))\n",
        f'Failed to remove block device "{value}"\n',
        f"Failed to insert block device /run/{value}/x: vmm action error: {value}\n",
        f"Jan  2 03:04:05 {value} kata[77]: vmm action error: UpcallServerNotReady\n",
        json.dumps({"MESSAGE": f"vmm action error: {value}", "SOURCE": value, "_HOSTNAME": value}),
    ):
        found = redacted(BEFORE + line)
        assert value not in found, line
        for part in re.findall(r"[A-Za-z0-9]{9,}", value):
            assert part not in found, line


@pytest.mark.parametrize("secret", SECRETS, ids=lambda each: each["kind"])
def test_nothing_of_it_is_in_an_archive(secret: dict[str, str], tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text(f"{BEFORE}{secret['line']}\n{AFTER}")
    archive = tmp_path / "a.tar.gz"
    told = run("bundle", "--vmm-log", log, "--redact", "-o", archive)
    assert told.code == 0, told.err
    with tarfile.open(archive) as tar:
        for member in tar.getmembers():
            content = tar.extractfile(member)
            assert content is not None
            if member.name.endswith(".log"):
                assert secret["secret"].encode() not in content.read()


def codes(outcome: Any) -> list[tuple[str, bool]]:
    return [(each["code"], each["inferred"]) for each in json.loads(outcome.out)["findings"]]


@pytest.mark.parametrize("case", CASES, ids=lambda path: path.name)
def test_redaction_changes_no_finding_of_a_log(case: Path, tmp_path: Path) -> None:
    for path in case.iterdir():
        if path.suffix not in (".log", ".txt"):
            continue
        plain = run("diagnose", "--json", path)
        if plain.code not in (0, 1):
            continue
        blocks = [path.read_bytes()]
        found = [
            line
            for line in allowed_lines(blocks, Redactor().placeholder)
            if not isinstance(line, int)
        ]
        copy = tmp_path / "copy.log"
        copy.write_text("".join(f"{line}\n" for line in found), "utf-8")
        assert codes(run("diagnose", "--json", copy)) == codes(plain), path


@pytest.mark.parametrize(
    "row", [row for row in ROWS if row.speaker is Speaker.MANAGER], ids=lambda row: row.anchor
)
def test_every_line_of_the_device_manager_stays_as_it_is(row: Any) -> None:
    assert allowed_text(row.example, Redactor().placeholder) == row.example


@given(st.text(max_size=200))
def test_whatever_a_line_holds_only_allowed_words_and_stand_ins_come_out(text: str) -> None:
    """Every chunk that was changed is a stand-in, and redacting twice changes nothing more."""
    once = allowed_text(text, Redactor().placeholder)
    assert allowed_text(once, Redactor().placeholder) == once


def test_one_value_has_one_stand_in_throughout() -> None:
    found = redacted(
        'Failed to remove block device "acme-disk"\nFailed to remove block device "acme-disk"\n'
    ).splitlines()
    assert found[0] == found[1] == 'Failed to remove block device "name-1"'


def test_guests_stay_apart_and_times_stay() -> None:
    text = "".join(
        json.dumps({"MESSAGE": "VM upcall init", "SOURCE": sandbox, "__REALTIME_TIMESTAMP": "17",
                    "_PID": pid}) + "\n"
        for sandbox, pid in (("secretone", "11"), ("secrettwo", "12"), ("secretone", "11"))
    )  # fmt: skip
    lines = [
        line
        for entry in Scanner(None).entries([redacted(text).encode()])
        for line in lines_of(entry, None)
    ]
    assert [line.sandbox for line in lines] == ["id-1", "id-2", "id-1"]
    assert all(understand(line) for line in lines)


def test_other_lines_are_cleaned_by_patterns_when_they_are_kept() -> None:
    redactor = Redactor()
    text = b"node 10.1.2.3 says hello\nVM upcall init\n"
    found = b"".join(some_lines([text], redactor.placeholder, redactor.redact))
    assert found == b"node ip-1 says hello\nVM upcall init\n"


@pytest.mark.parametrize("end", [b"", b"\n", b"x g\n"])
@pytest.mark.parametrize("unit", [b":", b"1:", b"a:", b"1.", b"/", b"ab@", b"="])
def test_no_line_takes_more_than_linear_time(unit: bytes, end: bytes) -> None:
    """Ten times the line may take some thirty times as long, and not a hundred times.

    What ends it decides whether something that has begun was found.
    """
    redactor = Redactor()

    def seconds(size: int) -> float:
        begin = time.process_time()
        redactor.redact(unit * (size // len(unit)) + end)
        return time.process_time() - begin

    assert seconds(40_000) < 0.01 + 30 * max(seconds(4_000), 0.001)


def test_a_line_is_written_so_that_it_is_understood_again() -> None:
    for row in ROWS:
        if not row.upcall:
            continue
        for entry in Scanner(None).entries([f"{row.example}\n".encode()]):
            for line in lines_of(entry, None):
                again = allowed_line(line, Redactor().placeholder)
                (back,) = (
                    each
                    for other in Scanner(None).entries([again.encode() + b"\n"])
                    for each in lines_of(other, None)
                )
                assert [m.meaning for m in understand(back)] == [
                    m.meaning for m in understand(line)
                ]
