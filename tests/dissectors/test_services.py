"""Services besides the device manager: real ones, registered by the entry points of a package."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dissectors.services import DEVICE_MANAGER, service_for
from upcall_trace.errors import ExitCode

ROOT = Path(__file__).parents[2]
EXAMPLE = """
from dissectors.services import Service
from dissectors.tables import FieldRow, MessageRow, MessageTable, Show

RET = FieldRow(0, "ret", "i32", "0, or a negative errno", show=Show.ERRNO)
ADD = MessageRow(
    number=0,
    name="add_counter",
    request=(
        FieldRow(0, "counter", "u16", "which counter", word="COUNTER"),
        FieldRow(2, "amount", "u16", "how much more", word="AMOUNT"),
    ),
    reply=(FieldRow(4, "value", "u32", "the counter afterwards"),),
)

COUNTERS = Service("counters", MessageTable(0x63, 4, 8, (), (RET,), (ADD,)), hello_size=2)
SILENT = Service("silent", MessageTable(0x73, 4, 8, (), (RET,), (ADD,)))
SECOND = Service("also 0x63", MessageTable(0x63, 4, 8, (), (RET,), (ADD,)))
LIKE_OURS = Service("not the device manager", MessageTable(0x64, 4, 8, (), (RET,), (ADD,)))
"""


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A directory of packages that holds the module with the example services."""
    site = tmp_path / "site"
    site.mkdir()
    (site / "example_service.py").write_text(EXAMPLE)
    return site


def install(site: Path, package: str, **services: str) -> None:
    """A package that registers services, as an installer would leave it."""
    info = site / f"{package}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    lines = [f"{name} = example_service:{value}\n" for name, value in services.items()]
    (info / "entry_points.txt").write_text("[upcall_trace.services]\n" + "".join(lines))


def python(site: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python with the packages of `site` installed."""
    return subprocess.run(
        [sys.executable, *arguments],
        env=os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{site}"},
        cwd=site,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


CONVERSATION = """
from tests.dissectors.playbook import Gap, Playbook

assert (
    Playbook()
    >> b"CONNECT 219\\n"
    >> "CONNECT line, port 219"
    << b"OK 7\\n"
    << "OK line, port 7"
    >> b"c"
    >> "service 0x63, counters"
    << b"hi"
    << "hello"
    >> b"\\5\\0\\1\\0"
    >> "request 0 add_counter"
    << b"\\0\\0\\0\\0\\x2a\\0\\0\\0"
    << "reply to 0, ret 0"
    >> b"\\6\\0\\2\\0" + b"\\7\\0"
    >> "request 1 add_counter"
    >> "request 2 add_counter, 2 bytes, at 4, rest_of 1, overlaps 1"
    << Gap(8)
    << "lost 8 bytes and replies (1,)"
    << b"\\xfe\\xff\\xff\\xff" + b"\\0\\0\\0\\0"
    << "reply to 2, ret -2"
)
assert (
    Playbook()
    >> b"CONNECT 219\\ns"
    >> "CONNECT line, port 219"
    >> "service 0x73, silent, early"
    << b"OK 7\\n"
    << "OK line, port 7"
    >> b"\\5\\0\\1\\0"
    >> "request 0 add_counter"
    << b"\\0\\0\\0\\0\\x2a\\0\\0\\0"
    << "reply to 0, ret 0"
)
"""

MEANING = """
from dissectors.observer import Observer
from dissectors.services import service_for

observer = Observer()
observer.to_guest(b"CONNECT 219\\nc")
observer.from_guest(b"OK 7\\nhi")
request, = observer.to_guest(b"\\5\\0\\1\\0")
reply, = observer.from_guest(b"\\0\\0\\0\\0\\x2a\\0\\0\\0")
assert request.message.fields() == {"counter": 5, "amount": 1}
assert reply.message.fields() == {"value": 42}
assert service_for(0x63).name == "counters"
assert service_for(0x64).name == "device manager"
assert service_for(0x65) is None
"""


def test_the_observer_speaks_a_registered_service(site: Path) -> None:
    install(site, "example", counters="COUNTERS", silent="SILENT")
    for script in (CONVERSATION, MEANING):
        ended = python(site, "-c", script)
        assert (ended.returncode, ended.stderr) == (0, "")


PICKLED = """
import pickle
from dissectors.services import DEVICE_MANAGER, service_for

counters = service_for(0x63)
assert pickle.loads(pickle.dumps(counters)) is counters
assert pickle.loads(pickle.dumps(DEVICE_MANAGER)) is DEVICE_MANAGER
request = counters.decode_request(b"\\5\\0\\1\\0")
reply = counters.decode_reply(bytes(8), request=request)
assert pickle.loads(pickle.dumps([request, reply])) == [request, reply]
"""


def test_its_messages_can_be_kept_and_taken_up_again(site: Path) -> None:
    install(site, "example", counters="COUNTERS")
    ended = python(site, "-c", PICKLED)
    assert (ended.returncode, ended.stderr) == (0, "")


def test_without_its_package_a_service_is_unknown(site: Path) -> None:
    script = "from dissectors.services import service_for; assert service_for(0x63) is None"
    assert python(site, "-c", script).returncode == 0
    assert service_for(0x63) is None
    assert service_for(0x64) is DEVICE_MANAGER


def transcript(path: Path, *services: bytes) -> Path:
    """One connection a service, with two requests and one reply each."""
    lines: list[dict[str, object]] = [
        {"kind": "header", "format": "upcall-transcript", "version": 1, "arch": "x86_64"}
    ]
    t_ns = 0
    for conn, service in enumerate(services, 1):
        lines.append({"kind": "open", "t_ns": t_ns, "conn": conn})
        for way, sent in (
            (">", b"CONNECT 219\n"),
            ("<", b"OK 7\n"),
            (">", service),
            ("<", b"hi"),
            (">", b"\5\0\1\0"),
            ("<", b"\xef\xff\xff\xff\x2a\0\0\0"),
            (">", b"\6\0\2\0"),
        ):
            t_ns += 1000
            lines.append(
                {"kind": "bytes", "t_ns": t_ns, "conn": conn, "dir": way, "hex": sent.hex(),
                 "zeros": 0}
            )  # fmt: skip
        lines.append({"kind": "close", "t_ns": t_ns, "conn": conn})
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_the_command_line_shows_a_registered_service(site: Path, tmp_path: Path) -> None:
    install(site, "example", counters="COUNTERS")
    file = transcript(tmp_path / "counters.jsonl", b"c")
    shown = python(site, "-m", "upcall_trace", "show", "--json", str(file))
    assert (shown.returncode, shown.stderr) == (0, "")
    answered, unanswered = map(json.loads, shown.stdout.splitlines())
    assert (answered["conn"], answered["request"]) == (1, 0)
    assert answered["op"] == "add_counter"
    assert answered["fields"] == {"counter": 5, "amount": 1}
    assert (answered["ret"], answered["errno"]) == (-17, "EEXIST")
    assert answered["latency_ns"] == 1000
    assert answered["anomalies"] == []
    assert unanswered["fields"] == {"counter": 6, "amount": 2}
    assert (unanswered["ret"], unanswered["reply"]) == (None, None)


@pytest.mark.parametrize("command", [["show"], ["show", "--frames"], ["info"]])
def test_every_view_of_it_works(site: Path, tmp_path: Path, command: list[str]) -> None:
    install(site, "example", counters="COUNTERS")
    file = transcript(tmp_path / "counters.jsonl", b"c")
    shown = python(site, "-m", "upcall_trace", *command, str(file))
    assert (shown.returncode, shown.stderr) == (0, "")
    assert "add_counter" in shown.stdout or command == ["info"]


CONFLICTS = {
    "two packages claim a byte": (
        {"example": {"counters": "COUNTERS"}, "other": {"second": "SECOND"}},
        {"counters": "claims byte 0x63, as another one does",
         "second": "claims byte 0x63, as another one does"},
    ),
    "the device manager's byte": (
        {"example": {"ours": "LIKE_OURS"}},
        {"ours": "claims byte 0x64, as the device manager does"},
    ),
    "not a service": (
        {"example": {"adder": "ADD"}},
        {"adder": "is no Service but of type MessageRow"},
    ),
    "nothing": (
        {"example": {"gone": "NOTHING"}},
        {"gone": "cannot be loaded: AttributeError: module 'example_service' has no attribute "
                 "'NOTHING'"},
    ),
}  # fmt: skip
"""Packages with their services, and what is wrong with which of them."""


@pytest.mark.parametrize("name", CONFLICTS)
def test_what_is_wrong_with_a_service_is_kept_when_services_are_looked_up(
    site: Path, name: str
) -> None:
    packages, whys = CONFLICTS[name]
    for package, services in packages.items():
        install(site, package, **services)
    script = (
        "from dissectors.services import service_for, take_troubles\n"
        "assert service_for(0x64).name == 'device manager'\n"
        "assert take_troubles() == []\n"
        "assert service_for(0x63) is None\n"
        "import json; print(json.dumps({each.name: each.why for each in take_troubles()}))\n"
        "assert take_troubles() == []"
    )
    ended = python(site, "-c", script)
    assert (json.loads(ended.stdout), ended.stderr) == (whys, "")


@pytest.mark.parametrize("name", CONFLICTS)
def test_a_broken_service_costs_a_sentence_and_not_the_capture(
    site: Path, tmp_path: Path, name: str
) -> None:
    packages, whys = CONFLICTS[name]
    for package, services in packages.items():
        install(site, package, **services)
    file = transcript(tmp_path / "counters.jsonl", b"c")
    shown = python(site, "-m", "upcall_trace", "info", "--json", str(file))
    assert (shown.returncode, "Traceback" in shown.stderr) == (ExitCode.LOST, False)
    assert json.loads(shown.stdout)["connections"] == 1
    assert len(shown.stderr.splitlines()) == len(whys)
    for line, (service, why) in zip(shown.stderr.splitlines(), whys.items(), strict=True):
        assert line.startswith(f"upcall-trace: the service plugin {service!r} (")
        assert f" {why}; mend or uninstall " in line
    listed = python(site, "-m", "upcall_trace", "plugins", "--json")
    assert (listed.returncode, listed.stderr) == (0, "")
    found = {each["name"]: each["why"] for each in json.loads(listed.stdout)["plugins"]}
    assert set(found) == set(whys)
    assert all(why in found[service] for service, why in whys.items())
