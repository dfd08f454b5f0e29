"""Logs as people hand them over: broken at a width, quoted, escaped, turned round, told twice."""

from __future__ import annotations

import html
import json
import textwrap
from collections.abc import Callable
from itertools import product
from pathlib import Path
from quopri import encodestring as quoted_printable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support import run
from upcall_trace.logs.entries import Scanner
from upcall_trace.logs.quoted_printable import is_quoted_printable, unquoted
from upcall_trace.logs.table import wanted
from upcall_trace.logs.wrapped import unwrapped, wrapping_of

CASES = Path(__file__).parents[1] / "cases"
Change = Callable[[str], str]


def at_width(width: int) -> Change:
    return lambda text: "".join(
        f"{line[at : at + width]}\n"
        for line in text.splitlines()
        for at in range(0, max(len(line), 1), width)
    )


def at_words(text: str) -> str:
    return "".join(
        f"{part}\n"
        for line in text.splitlines()
        for part in textwrap.wrap(line, 100, break_long_words=False, break_on_hyphens=False) or [""]
    )


def each(change: Change) -> Change:
    return lambda text: "".join(f"{change(line)}\n" for line in text.splitlines())


CHANGES: dict[str, Change] = {
    "80-columns": at_width(80),
    "132-columns": at_width(132),
    "quoted": each(lambda line: f"> {line}"),
    "quoted-twice": each(lambda line: f"> > {line}"),
    "fenced": lambda text: f"Hello,\n\n```\n{text}\n```\n\nthanks\n",
    "indented": each(lambda line: f"   {line}"),
    "indented-by-a-tab": each(lambda line: f"\t{line}"),
    "html": lambda text: f"<pre>{html.escape(text)}</pre>\n",
    "windows": lambda text: text.replace("\n", "\r\n"),
    "returns": lambda text: text.replace("\n", "\r"),
    "typographic": lambda text: text.replace("'", "\u2019").replace('"', "\u201d"),
    "escaped-twice": each(lambda line: json.dumps({"log": json.dumps({"message": line})})),
    "fluentd": each(lambda line: f"[1700000000.25, {json.dumps({'log': line})}]"),
    "fluent-bit": each(
        lambda line: f"[0] kube: [[1700000000.25, {{}}], {json.dumps({'log': line})}]"
    ),
    "quoted-printable": lambda text: quoted_printable(text.encode()).decode("ascii"),
    "a-mail": lambda text: (
        "Subject: =?utf-8?q?hotplug?=\nContent-Transfer-Encoding: quoted-printable\n\n"
        + quoted_printable("".join(f"> {line}\n" for line in text.splitlines()).encode()).decode()
    ),
    "twice": lambda text: text + text,
    "turned": lambda text: "".join(reversed(text.splitlines(keepends=True))),
}
JOURNALS = (
    "clh-7754-github-actions", "node-two-sandboxes", "src-block-add-no-prefix", "src-cpu-late",
    "src-cpu-refused", "src-service-check-failed", "src-block-remove-reset", "con-ends-no-number",
    "con-virtio-net-probe-6-12", "node-two-consoles",
)  # fmt: skip


def told_each(*paths: Path) -> list[tuple[str, bool]]:
    answer = json.loads(run("diagnose", "--json", *paths).out)
    return [(finding["code"], finding["inferred"]) for finding in answer["findings"]]


def told(*paths: Path) -> list[tuple[str, bool]]:
    """The same, what is told several times once."""
    return sorted(set(told_each(*paths)))


@pytest.mark.parametrize(
    ("name", "change"),
    # Of two lines nobody can say in which order they were.
    [
        each
        for each in product(JOURNALS, CHANGES)
        if each != ("con-virtio-net-probe-6-12", "turned")
    ],
)
def test_a_log_tells_the_same_however_it_was_handed_over(
    name: str, change: str, tmp_path: Path
) -> None:
    (log,) = (CASES / name).glob("*.log")
    copy = tmp_path / "copy.log"
    copy.write_text(CHANGES[change](log.read_text("utf-8")), "utf-8", newline="")
    assert told(copy) == told(log)


@pytest.mark.parametrize("path", sorted(CASES.glob("*/*.log")), ids=lambda path: path.parent.name)
def test_no_log_as_it_was_written_is_taken_for_broken(path: Path) -> None:
    assert wrapping_of(path.read_bytes()) is None
    assert not is_quoted_printable(path.read_bytes())


def test_lines_broken_between_words_are_joined_and_keep_their_numbers(tmp_path: Path) -> None:
    text = "".join(
        f"Sep 01 10:00:0{second} node1 containerd[41]: {said}\n"
        for second, said in enumerate((
            "upcall connect service success",
            "a line of the runtime that is long enough to be broken by a mail program somewhere",
            "a second line of the runtime that is long enough to be broken by a mail program",
            "failed to do_resize_vcpus to 2: vmm action error: ResizeVcpu(VcpuIsHotplugging)",
        ))
    )  # fmt: skip
    broken = at_words(text)
    wrapping = wrapping_of(broken.encode())
    assert wrapping is not None
    assert wrapping.words
    whole = [line.decode() for line, _ in unwrapped([broken.encode()], wrapping)]
    assert "".join(whole) == text
    log = tmp_path / "log"
    log.write_text(broken)
    (finding,) = json.loads(run("diagnose", "--json", log).out)["findings"]
    number = finding["evidence"][0]["line"]
    assert broken.splitlines()[number - 1].startswith("Sep 01 10:00:03")


LINES = st.lists(st.binary(max_size=120).map(lambda line: line.replace(b"\n", b" ")), max_size=30)


@given(LINES, st.integers(1, 50))
def test_joining_loses_no_byte_and_no_line(lines: list[bytes], size: int) -> None:
    text = (
        b"[    1.000000] "
        + b"x" * 65
        + b"\n"
        + b"yz\n"
        + b"".join(b"%s\n" % each for each in lines)
    )
    wrapping = wrapping_of(b"[    1.000000] " + b"x" * 65 + b"\nyz\n")
    assert wrapping is not None
    blocks = [text[at : at + size] for at in range(0, len(text), size)]
    whole = [*unwrapped(blocks, wrapping)]
    bare = b"".join(line.rstrip(b"\r") for line in text.split(b"\n"))
    assert b"".join(line.rstrip(b"\n") for line, _ in whole) == bare
    assert sum(count for _, count in whole) == text.count(b"\n")
    scanner = Scanner(wanted())
    assert all(entry.number <= scanner.lines for entry in scanner.entries(blocks))
    assert scanner.lines == text.count(b"\n")


@pytest.mark.parametrize("between", ["", "\n", "And once more:\n\n"])
@pytest.mark.parametrize("log", sorted(CASES.glob("*/*.log")), ids=lambda path: path.parent.name)
def test_a_log_that_was_pasted_twice_tells_nothing_twice(
    log: Path, between: str, tmp_path: Path
) -> None:
    copy = tmp_path / "copy.log"
    copy.write_bytes(log.read_bytes() + between.encode() + log.read_bytes())
    assert told_each(copy) == told_each(log)


def test_lines_without_times_that_were_pasted_twice_tell_nothing_twice(tmp_path: Path) -> None:
    said = "VM upcall init\nupcall connect service success\nupcall response failed x\n"
    log = tmp_path / "log"
    log.write_text(said * 2)
    assert told_each(log) == [("UP605", False)]


def test_a_second_boot_that_fails_as_the_first_did_is_told(tmp_path: Path) -> None:
    def boot(add_s: str) -> str:
        return (
            "[    0.000000] Linux version 6.1.90 (builder@example) #1 SMP\n"
            f"[   {add_s}] db-dev-mgr: add vcpu number: 1\n"
            f"[   {add_s}] db-dev-mgr: adding vcpu apic_id 1\n"
            f"[   {add_s}] db-dev-mgr: cpu 1 cannot be added, cpu up failed: -5\n"
        )

    log = tmp_path / "log"
    log.write_text(boot("12.100231") + boot("12.100232"))
    assert [code for code, _ in told_each(log)] == ["UP201", "UP201"]
    log.write_text(boot("12.100231") * 2)
    assert [code for code, _ in told_each(log)] == ["UP201"]


def test_lines_of_a_mail_keep_their_numbers(tmp_path: Path) -> None:
    text = "".join(
        f"2026-11-22T15:14:0{second}Z n1 kata[41]: {said}\n"
        for second, said in enumerate((
            "upcall connect service success, and a long line that a mail has to break = at a width",
            "failed to do_resize_vcpus to 2: vmm action error: ResizeVcpu(VcpuIsHotplugging)",
        ))
    )  # fmt: skip
    mail = quoted_printable(text.encode())
    log = tmp_path / "log"
    log.write_bytes(mail)
    (finding,) = json.loads(run("diagnose", "--json", log).out)["findings"]
    number = finding["evidence"][0]["line"]
    assert mail.splitlines()[number - 1].startswith(b"2026-11-22T15:14:01Z")


@given(st.lists(st.text(st.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp"])), max_size=20))
def test_decoding_a_mail_gives_the_text_that_was_sent(lines: list[str]) -> None:
    text = "".join(f"{line}=\n" for line in lines).encode()
    sent = quoted_printable(text)
    whole = [*unquoted(sent.split(b"\n")[:-1])]
    assert b"".join(line for line, _ in whole) == text
    assert sum(count for _, count in whole) == sent.count(b"\n")


def test_one_line_in_two_files_is_told_once(tmp_path: Path) -> None:
    (log,) = (CASES / "src-cpu-late").glob("*.log")
    copies = [tmp_path / name for name in ("a.log", "b.log")]
    for copy in copies:
        copy.write_bytes(log.read_bytes())
    assert told(copies[0], copies[1]) == told(log)


def test_lines_of_a_log_that_is_indented_as_a_whole_stay_apart(tmp_path: Path) -> None:
    said = [
        "upcall connect service success", "resize vcpu: now: 1, desire: 2",
        "timed out waiting on channel", "get vcpu event, cpu_index 2 success Success",
    ]  # fmt: skip
    log = tmp_path / "log"
    log.write_text("".join(f"  Warning  kubelet  {each}\n" for each in said))
    assert told(log) == [("UP601", True)]


def test_a_console_line_under_any_subsystem_is_the_guests(tmp_path: Path) -> None:
    log = tmp_path / "log"
    lines = [
        "add vcpu number: 1",
        "adding vcpu apic_id 1",
        "cpu 1 cannot be added, cpu up failed: -5",
    ]
    log.write_text("".join(
        json.dumps({"msg": f"[   12.100000] db-dev-mgr: {each}", "subsystem": "console",
                    "sandbox": "5a" * 32}) + "\n"
        for each in lines
    ))  # fmt: skip
    assert [code for code, _ in told(log)] == ["UP201"]
