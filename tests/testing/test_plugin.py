"""Projects with recordings, run by pytest as their developers would. docs/pytest.md."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from collections.abc import Iterable
from pathlib import Path

import pytest

from tests.support import DISK, answer, ask, connect, operations, records_of, write_capture
from tests.test_imports import HEAVY, ROOT
from tests.vmm import Vmm
from upcall_trace.capture.records import Close, Header, Record
from upcall_trace.capture.records import Vmm as VmmRecord
from upcall_trace.diagnose.rules.registry import rules
from upcall_trace.errors import ExitCode
from upcall_trace.kernel.noted_world import world_notes
from upcall_trace.kernel.world import Window, World, kata_pod
from upcall_trace.testing.guests import simulated
from upcall_trace.trace.decoding import Session

pytest_plugins = ["pytester"]
# A project's run in this process forgets what it was the first to import, and neither numpy nor
# our rules can be imported twice.
rules()
LOADED = ("-p", "upcall_trace.testing.plugin")
# Each of the others costs more than what is tested.
PLUGIN = (*LOADED, "--assert=plain", "-pno:cacheprovider", "-pno:unraisableexception")
OOPS = ROOT / "captures" / "guest_oops.upcap"
WORLDS = ROOT / "tests" / "golden" / "worlds.toml"

CLIENT = """
import pytest
from dissectors.constants import MessageType as T
from dissectors.messages import cpu_request, mmio_request
from upcall_trace.sockets.client import UpcallClient
from upcall_trace.sockets.addresses import UnixAddress

DISK = mmio_request(T.ADD_MMIO, 0xE0006000, 0x2000, 5)
CPU = cpu_request(T.ADD_CPU, [1])

def plug(path, *requests):
    with UpcallClient(UnixAddress(path)) as client:
        return [client.ask(request.encode(), 5).reply.ret for request in requests]
"""


@pytest.fixture(autouse=True)
def plugin_from_the_checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    for name in ("COLUMNS", "LINES"):  # a report's lines are cut at the width that these say
        monkeypatch.delenv(name, raising=False)


def recorded(path: Path, rets: Iterable[int] = (0, -17), **notes: str) -> Path:
    """A recording of the same disk added again and again, answered with `rets`."""
    records: list[Record] = [*connect(1, 1000)]
    for n, ret in enumerate(rets):
        records += [ask(DISK, 2000 * (n + 1)), answer(DISK, 2000 * (n + 1) + 500, ret=ret)]
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_capture(path, [*records, Close(90_000, 1, False)], Header("test", notes=notes))


def asked(path: Path) -> list[tuple[str, int | None]]:
    """The operations of a capture with their results."""
    header, records = records_of(path)
    session = Session(header)
    for record in records:
        session.feed(record)
    session.finish()
    return [(operation.op, operation.ret) for operation in operations(session)]


def pytest_of(pytester: pytest.Pytester, *arguments: str | Path) -> pytest.RunResult:
    return pytester.runpytest_inprocess(*PLUGIN, *arguments)


def said(result: pytest.RunResult) -> str:
    return result.stdout.str()


# Loading.


def test_a_session_without_recordings_loads_nothing_heavy(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("def test_nothing(): pass")
    report = "import sys; print(*{name.partition('.')[0] for name in sys.modules})"
    code = f"import pytest; assert not pytest.main([*{PLUGIN!r}, '-q']); {report}"
    loaded = set(pytester.run(sys.executable, "-c", code).outlines[-1].split())
    assert {"pytest", "upcall_trace"} <= loaded
    assert not loaded & {*HEAVY, "click", "construct"}


# Captures as tests.


def test_a_capture_is_collected_as_a_test_and_only_when_asked_for(
    pytester: pytest.Pytester,
) -> None:
    recorded(pytester.path / "captures" / "disk.upcap")
    assert pytest_of(pytester).ret == pytest.ExitCode.NO_TESTS_COLLECTED
    result = pytest_of(pytester, "--upcall-captures", "-v")
    assert result.ret == ExitCode.EXPECTED
    result.stdout.fnmatch_lines(["captures/disk.upcap::replay PASSED*"])


def test_a_divergence_is_on_the_screen_and_no_traceback(pytester: pytest.Pytester) -> None:
    recorded(pytester.path / "captures" / "disk.upcap", rets=[0, -16])
    result = pytest_of(pytester, "--upcall-captures")
    assert result.ret == ExitCode.DIFFERENT
    result.stdout.fnmatch_lines(
        [
            "*replay of disk.upcap*",
            "first difference: request 1.1 add_mmio 0xe0006000+0x2000 irq=5",
            "*ret *-16 EBUSY*-17 EEXIST*-17 EEXIST",
            "*UP301*",
            "*to accept it: upcall-trace edit * --match '1.1 ret=-16|-17'",
            "2 of 2 requests replayed in * 1 answered otherwise (ret 1)",
            "*captures/disk.upcap was sent to a simulated guest",
            "FAILED captures/disk.upcap::replay - Failed: first difference: request 1.1*",
        ]
    )
    assert "Traceback" not in said(result)
    assert "pytest_plugin.py" not in said(result)


def test_matchers_beside_the_capture_hold(pytester: pytest.Pytester) -> None:
    recorded(pytester.path / "disk.upcap", rets=[0, -16])
    (pytester.path / "disk.match.toml").write_text('[match]\n"1.1" = "ret=class"\n')
    assert pytest_of(pytester, "--upcall-captures").ret == ExitCode.EXPECTED


def test_a_captures_machine_is_looked_up_beside_it(pytester: pytest.Pytester) -> None:
    recorded(pytester.path / "disk.upcap", rets=[-17, -17], machine="taken")
    window = "mmio = [{ base = 0xe0006000, size = 0x2000, irq = 5 }]\n"
    (pytester.path / "worlds.toml").write_text(f"[taken]\n{window}[free]\n")
    assert pytest_of(pytester, "--upcall-captures").ret == ExitCode.EXPECTED
    (pytester.path / "worlds.toml").write_text(f"[other]\n{window}[taken]\n")
    assert pytest_of(pytester, "--upcall-captures").ret == ExitCode.DIFFERENT


def test_an_architecture_that_nobody_knows_is_taken_for_x86_64(
    pytester: pytest.Pytester,
) -> None:
    path = pytester.path / "disk.upcap"
    records = [*connect(), ask(DISK, 10), answer(DISK, 20), Close(30, 1, by_guest=False)]
    write_capture(path, records, Header("test", arch="mips"))
    assert pytest_of(pytester, "--upcall-captures").ret == ExitCode.EXPECTED


# Exit codes.


def test_a_session_that_replayed_nothing_is_never_green(pytester: pytest.Pytester) -> None:
    result = pytest_of(pytester, "--upcall-captures")
    assert result.ret == ExitCode.NOTHING_RUN
    assert "no capture was replayed, so nothing was shown to work" in said(result)
    pytester.makepyfile("def test_passes(): pass")
    assert pytest_of(pytester, "--upcall-captures").ret == ExitCode.NOTHING_RUN
    recorded(pytester.path / "disk.upcap")
    assert pytest_of(pytester, "--upcall-captures", "-k", "passes").ret == ExitCode.NOTHING_RUN
    assert pytest_of(pytester, "--upcall-captures").ret == ExitCode.EXPECTED
    assert pytest_of(pytester, "--upcall-captures", "--collect-only").ret == 0


def test_a_capture_without_requests_is_no_success(pytester: pytest.Pytester) -> None:
    write_capture(pytester.path / "empty.upcap", connect())
    result = pytest_of(pytester, "--upcall-captures")
    assert result.ret == ExitCode.NOTHING_RUN
    assert "empty.upcap has no request to replay" in said(result)
    recorded(pytester.path / "disk.upcap")
    assert pytest_of(pytester, "--upcall-captures").ret == ExitCode.NOTHING_RUN


def test_failures_of_one_kind_end_with_its_code_and_others_with_1(
    pytester: pytest.Pytester,
) -> None:
    (pytester.path / "text.upcap").write_text("no capture\n")
    result = pytest_of(pytester, "--upcall-captures")
    assert result.ret == ExitCode.UNREADABLE
    assert "text.upcap" in said(result)
    write_capture(pytester.path / "empty.upcap", connect())
    assert pytest_of(pytester, "--upcall-captures").ret == ExitCode.DIFFERENT
    (pytester.path / "empty.upcap").unlink()
    pytester.makepyfile("def test_fails(): assert False")
    assert pytest_of(pytester, "--upcall-captures").ret == ExitCode.DIFFERENT


def test_nobody_at_the_target_is_unreachable(pytester: pytest.Pytester) -> None:
    recorded(pytester.path / "disk.upcap")
    result = pytest_of(pytester, "--upcall-captures", "--upcall-target", "gone.sock")
    assert result.ret == ExitCode.UNREACHABLE
    assert "nobody listens on gone.sock" in said(result)


def test_a_torn_capture_that_replays_as_recorded_says_that_something_is_lost(
    pytester: pytest.Pytester,
) -> None:
    path = recorded(pytester.path / "disk.upcap")
    path.write_bytes(path.read_bytes()[:-3])
    result = pytest_of(pytester, "--upcall-captures")
    result.assert_outcomes(passed=1)
    assert result.ret == ExitCode.LOST
    assert "bytes cannot be read" in said(result)


def test_a_dangerous_plan_is_refused_unless_it_is_allowed(pytester: pytest.Pytester) -> None:
    (pytester.path / "oops.upcap").write_bytes(OOPS.read_bytes())
    (pytester.path / "worlds.toml").write_bytes(WORLDS.read_bytes())
    result = pytest_of(pytester, "--upcall-captures")
    assert result.ret == ExitCode.USAGE
    result.stdout.fnmatch_lines(
        ["refused: request 1.1: *(UP206)", "nothing was sent; *: --upcall-allow UP206"]
    )
    arguments = ("--upcall-captures", "--upcall-allow", "UP206")
    assert pytest_of(pytester, *arguments).ret == ExitCode.EXPECTED
    result = pytest_of(pytester, "--upcall-captures", "--upcall-allow", "UP999")
    assert result.ret == ExitCode.USAGE
    assert "'UP999' is no danger to allow" in said(result)


# Guests.


def test_a_target_is_booted_anew_for_each_test(pytester: pytest.Pytester) -> None:
    for name in ("one", "two"):
        recorded(pytester.path / f"{name}.upcap")
    with simulated(kata_pod()) as guest:
        result = pytest_of(pytester, "--upcall-captures", "--upcall-target", guest.path)
        assert len(guest.state()["mmio"]) == 4  # the disk was really added, here
    result.assert_outcomes(passed=2)


def test_only_who_runs_the_tests_can_allow_a_guest_that_may_be_real(
    pytester: pytest.Pytester,
) -> None:
    recorded(pytester.path / "captures" / "disk.upcap", rets=[0])
    pytester.makepyfile("def test(upcall_replay): upcall_replay('disk', allow=['real-guest'])")
    with Vmm(Path("vmm")) as vmm:
        result = pytest_of(pytester, "--upcall-target", "vmm")
        assert result.ret == ExitCode.USAGE
        assert "vmm may be a real guest" in said(result)
        assert vmm.connections == 0
        arguments = ("--upcall-target", "vmm", "--upcall-allow", "real-guest")
        assert pytest_of(pytester, *arguments).ret == ExitCode.EXPECTED


def test_a_simulated_guest_is_in_the_world_and_has_the_faults_that_are_said(
    pytester: pytest.Pytester,
) -> None:
    (pytester.path / "machines.toml").write_text("[one]\n[two]\nnr_cpu_ids=2\ncpus_online=[0, 1]\n")
    pytester.makepyfile(
        CLIENT
        + """
from upcall_trace.kernel.world import kata_pod

def test_default(upcall_guest):
    assert upcall_guest.state()["apic_ids"] == [0]
    assert plug(upcall_guest.path, CPU) == [0]

@pytest.mark.upcall(world="machines.toml", machine="two")
def test_marked(upcall_guest):
    assert upcall_guest.state()["apic_ids"] == [0, 1]

@pytest.mark.parametrize("upcall_guest", [kata_pod(cpus=3)], indirect=True)
def test_given(upcall_guest):
    assert upcall_guest.state()["apic_ids"] == [0, 1, 2]

@pytest.mark.upcall(faults=["add_cpu:ret=-16"])
class TestFaults:
    def test_class(self, upcall_guest):
        assert plug(upcall_guest.path, CPU) == [-16]
    @pytest.mark.upcall(faults=[])
    def test_nearer(self, upcall_guest):
        assert plug(upcall_guest.path, CPU) == [0]
"""
    )
    pytest_of(pytester).assert_outcomes(passed=5)


def test_a_world_that_cannot_be_is_one_sentence(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("def test(upcall_guest): pass")
    result = pytest_of(pytester, "--upcall-world", "gone.toml")
    assert result.ret == ExitCode.UNREADABLE
    assert "gone.toml: No such file or directory" in said(result)
    assert "Traceback" not in said(result)


# Recordings by name.


def test_recordings_are_found_beside_the_test_and_replayed(pytester: pytest.Pytester) -> None:
    recorded(pytester.path / "recordings" / "disk.upcap")
    pytester.makepyfile(
        """
import pytest

def test_by_name(upcall_replay):
    assert upcall_replay("disk").asked == 2

@pytest.mark.upcall(recording="disk")
def test_marked(upcall_replay):
    assert upcall_replay().same == 2

def test_read(upcall_recording, upcall_replay):
    recording = upcall_recording("disk")
    assert [op.op for op in recording.capture.operations] == ["add_mmio"] * 2
    upcall_replay(recording)

def test_nameless(upcall_replay):
    upcall_replay()
"""
    )
    result = pytest_of(pytester)
    result.assert_outcomes(passed=3, failed=1)
    assert "which recording? give its name, or mark the test with it" in said(result)


def test_a_changed_guest_fails_a_test_with_the_divergence(pytester: pytest.Pytester) -> None:
    recorded(pytester.path / "captures" / "disk.upcap")
    pytester.makepyfile(
        """
import pytest

@pytest.mark.upcall(faults=["add_mmio:ret=-16:when=1"])
def test_it(upcall_replay):
    upcall_replay("disk")
"""
    )
    result = pytest_of(pytester)
    assert result.ret == ExitCode.DIFFERENT
    result.stdout.fnmatch_lines(["first difference: request 1.0 *", "*ret *0*0*-16 EBUSY"])
    assert "def test_it" not in said(result)


def test_the_directory_of_recordings_can_be_said(pytester: pytest.Pytester) -> None:
    recorded(pytester.path / "kept" / "disk.upcap")
    pytester.makeini("[pytest]\nupcall_recordings = deep/../kept\n")
    pytester.mkpydir("deep").joinpath("test_it.py").write_text(
        "def test(upcall_replay): upcall_replay('../kept/disk')"
    )
    assert pytest_of(pytester).ret == ExitCode.EXPECTED


@pytest.mark.parametrize(
    ("mark", "why"),
    [
        ("colour=1", "the marker upcall has no 'colour'"),
        ("extra='maybe'", "extra of the marker upcall is fail or ignore, not 'maybe'"),
        ("machine='pc'", "the machine 'pc' needs a file of worlds"),
        ("faults=['nonsense']", "nonsense"),
    ],
)
def test_a_marker_that_cannot_be_meant_is_one_sentence(
    pytester: pytest.Pytester, mark: str, why: str
) -> None:
    pytester.makepyfile(
        f"import pytest\n@pytest.mark.upcall({mark})\ndef test(upcall_channel): pass"
    )
    result = pytest_of(pytester, "--upcall-record", "once", "--strict-markers")
    assert result.ret == ExitCode.USAGE
    assert why in said(result)


# A test's own traffic.

PLUGS = CLIENT + "\ndef test_plugs(upcall_channel):\n    plug(upcall_channel.path, {requests})\n"


def plugging(pytester: pytest.Pytester, *requests: str, mark: str = "", then: str = "") -> Path:
    """A test that sends these requests; where its recording is."""
    text = PLUGS.format(requests=", ".join(requests)).replace("\ndef test", f"\n{mark}\ndef test")
    pytester.makepyfile(test_it=f"{text}    {then}\n")
    return pytester.path / "captures" / "test_it" / "test_plugs.upcap"


def test_without_a_recording_a_test_fails_and_nothing_is_written(
    pytester: pytest.Pytester,
) -> None:
    path = plugging(pytester, "DISK")
    result = pytest_of(pytester)
    assert result.ret == ExitCode.UNREADABLE
    assert f"{path} is missing; --upcall-record once records it" in said(result)
    assert not path.parent.exists()


def test_once_records_what_is_missing_and_compares_afterwards(
    pytester: pytest.Pytester,
) -> None:
    path = plugging(pytester, "DISK", "DISK", "CPU")
    assert pytest_of(pytester, "--upcall-record", "once").ret == ExitCode.EXPECTED
    assert asked(path) == [("add_mmio", 0), ("add_mmio", -17), ("add_cpu", 0)]
    written = path.read_bytes()
    assert pytest_of(pytester).ret == ExitCode.EXPECTED
    plugging(pytester, "DISK")
    assert pytest_of(pytester, "--upcall-record", "once").ret == ExitCode.DIFFERENT
    assert path.read_bytes() == written
    assert [each.name for each in path.parent.iterdir()] == [path.name]
    assert pytest_of(pytester, "--upcall-captures", "captures").ret == ExitCode.EXPECTED


def test_once_does_not_keep_what_a_failing_test_sent(pytester: pytest.Pytester) -> None:
    path = plugging(pytester, "DISK", then="assert False")
    assert pytest_of(pytester, "--upcall-record", "once").ret == ExitCode.DIFFERENT
    assert not list(path.parent.iterdir())


def test_all_records_anew_even_when_the_test_fails(pytester: pytest.Pytester) -> None:
    path = recorded(plugging(pytester, "DISK", then="assert False"))
    assert pytest_of(pytester, "--upcall-record", "all").ret == ExitCode.DIFFERENT
    assert asked(path) == [("add_mmio", 0)]


def test_a_recording_that_the_disk_had_no_room_for_does_not_replace_one(
    pytester: pytest.Pytester,
) -> None:
    full = "upcall_channel._recorder.account.failure = 'No space left on device'"
    path = recorded(plugging(pytester, "DISK", then=full))
    result = pytest_of(pytester, "--upcall-record", "all")
    assert result.ret == ExitCode.LOST
    assert "could not be written: No space left on device" in said(result)
    assert asked(path) == [("add_mmio", 0), ("add_mmio", -17)]


def test_rewrite_keeps_the_old_recording_until_the_new_one_is_good(
    pytester: pytest.Pytester,
) -> None:
    path = recorded(plugging(pytester, "CPU", then="assert False"))
    assert pytest_of(pytester, "--upcall-record", "rewrite").ret == ExitCode.DIFFERENT
    assert asked(path) == [("add_mmio", 0), ("add_mmio", -17)]
    plugging(pytester, "CPU")
    assert pytest_of(pytester, "--upcall-record", "rewrite").ret == ExitCode.EXPECTED
    assert asked(path) == [("add_cpu", 0)]
    assert [each.name for each in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("mode", ["once", "all", "rewrite"])
def test_a_test_that_asks_nothing_records_nothing(pytester: pytest.Pytester, mode: str) -> None:
    path = plugging(pytester)
    if mode != "once":
        recorded(path)
    result = pytest_of(pytester, "--upcall-record", mode)
    assert result.ret == ExitCode.NOTHING_RUN
    assert "nothing was asked" in said(result)
    if mode == "once":
        assert not path.exists()
    else:
        assert asked(path) == [("add_mmio", 0), ("add_mmio", -17)]


def test_what_is_sent_beyond_the_recording_fails(pytester: pytest.Pytester) -> None:
    recorded(plugging(pytester, "DISK", "CPU", "DISK"))
    result = pytest_of(pytester)
    assert result.ret == ExitCode.DIFFERENT
    result.stdout.fnmatch_lines(
        [
            "sent, but not in the recording: 1.1 add_cpu *",
            "*2 requests recorded, 3 sent: 1 not in the recording",
            "the test spoke to a simulated guest; all that passed is in *test_plugs.upcap",
        ]
    )
    plugging(pytester, "DISK", "CPU", "DISK", mark="@pytest.mark.upcall(extra='ignore')")
    assert pytest_of(pytester).ret == ExitCode.EXPECTED
    plugging(pytester, "DISK", "CPU", "DISK")
    pytester.makeini("[pytest]\nupcall_extra = ignore\n")
    assert pytest_of(pytester).ret == ExitCode.EXPECTED


def test_what_is_recorded_and_not_sent_fails(pytester: pytest.Pytester) -> None:
    recorded(plugging(pytester, "DISK"))
    result = pytest_of(pytester)
    assert result.ret == ExitCode.DIFFERENT
    result.stdout.fnmatch_lines(["in the recording, but not sent: 1.1 add_mmio *"])
    plugging(pytester, "DISK", mark="@pytest.mark.upcall(unused='ignore')")
    assert pytest_of(pytester).ret == ExitCode.EXPECTED


def test_another_answer_fails_a_test_that_sent_the_right_thing(
    pytester: pytest.Pytester,
) -> None:
    path = recorded(plugging(pytester, "DISK", "DISK"), rets=[0, -16])
    result = pytest_of(pytester)
    assert result.ret == ExitCode.DIFFERENT
    result.stdout.fnmatch_lines(
        ["first difference: request 1.1 *", "*ret *-16 EBUSY*-17 EEXIST", "*now: UP301*",
         "*2 requests recorded, 2 sent: 1 answered otherwise"]
    )  # fmt: skip
    path.with_name("test_plugs.match.toml").write_text('[match]\n"*" = "ret=class"\n')
    assert pytest_of(pytester).ret == ExitCode.EXPECTED


def test_what_the_vmms_side_did_is_recorded_and_done_again(pytester: pytest.Pytester) -> None:
    (pytester.path / "pc.toml").write_text("[pc]\nnr_cpu_ids = 4\ncpus_online = [0]\n")
    pytester.makepyfile(
        test_it=CLIENT
        + """
@pytest.mark.upcall(world="pc.toml", machine="pc")
def test_plugs(upcall_channel):
    upcall_channel.order({"start_vcpu": 1})
    assert plug(upcall_channel.path, CPU) == [0]
"""
    )
    assert pytest_of(pytester, "--upcall-record", "once").ret == ExitCode.EXPECTED
    header, records = records_of(pytester.path / "captures" / "test_it" / "test_plugs.upcap")
    assert header.notes["machine"] == "pc"
    assert [each.action for each in records if isinstance(each, VmmRecord)] == ["vCPU 1 created"]
    arguments = ("--upcall-captures", "--upcall-world", "pc.toml", "captures")
    assert pytest_of(pytester, *arguments).ret == ExitCode.EXPECTED


def test_a_channel_to_a_guest_that_may_be_real_is_refused(pytester: pytest.Pytester) -> None:
    plugging(pytester, "DISK")
    arguments = ("--upcall-record", "once", "--upcall-target", "vmm")
    with Vmm(Path("vmm")) as vmm:
        assert pytest_of(pytester, *arguments).ret == ExitCode.USAGE
        assert vmm.connections == 0
        allowed = (*arguments, "--upcall-allow", "real-guest")
        assert pytest_of(pytester, *allowed).ret == ExitCode.EXPECTED


# Recordings that nobody uses.


def test_a_recording_that_no_test_used_fails_a_whole_run(pytester: pytest.Pytester) -> None:
    for name in ("used", "left"):
        recorded(pytester.path / "captures" / f"{name}.upcap")
    pytester.makepyfile("def test_it(upcall_replay): upcall_replay('used')\ndef test_other(): pass")
    result = pytest_of(pytester)
    result.assert_outcomes(passed=2)
    assert result.ret == ExitCode.DIFFERENT
    result.stdout.fnmatch_lines(["*captures/left.upcap was used by no test: *"])
    assert pytest_of(pytester, "-k", "test_it").ret == ExitCode.EXPECTED
    assert pytest_of(pytester, f"{pytester.path.name}.py").ret != ExitCode.EXPECTED  # no such file
    assert pytest_of(pytester, "--upcall-captures").ret == ExitCode.EXPECTED
    pytester.makeini("[pytest]\nupcall_unused = ignore\n")
    assert pytest_of(pytester).ret == ExitCode.EXPECTED


def test_who_skips_a_test_is_not_told_of_unused_recordings(pytester: pytest.Pytester) -> None:
    for name in ("used", "left"):
        recorded(pytester.path / "captures" / f"{name}.upcap")
    pytester.makepyfile(
        "import pytest\ndef test_it(upcall_replay): upcall_replay('used')\n"
        "@pytest.mark.skip\ndef test_left(upcall_replay): upcall_replay('left')"
    )
    assert pytest_of(pytester).ret == ExitCode.EXPECTED


def test_the_directory_of_all_recordings_is_looked_through_in_a_whole_run(
    pytester: pytest.Pytester,
) -> None:
    for name in ("used", "left"):
        recorded(pytester.path / "kept" / f"{name}.upcap")
    pytester.makeini("[pytest]\nupcall_recordings = kept\ntestpaths = tests\n")
    (pytester.path / "tests").mkdir()
    test = pytester.path / "tests" / "test_it.py"
    test.write_text("def test_it(upcall_replay): upcall_replay('used')")
    assert pytest_of(pytester).ret == ExitCode.DIFFERENT
    assert pytest_of(pytester, test).ret == ExitCode.EXPECTED


def test_a_setting_that_is_neither_fail_nor_ignore_is_refused(pytester: pytest.Pytester) -> None:
    pytester.makeini("[pytest]\nupcall_unused = maybe\n")
    result = pytest_of(pytester)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert "upcall_unused is fail or ignore, not 'maybe'" in result.stderr.str()


# Several workers, and the installed package.


def test_workers_of_xdist_report_to_one_account(pytester: pytest.Pytester) -> None:
    for name in ("used", "left"):
        recorded(pytester.path / "captures" / f"{name}.upcap")
    pytester.makepyfile(
        test_it=CLIENT
        + """
@pytest.mark.parametrize("n", range(4))
def test_replays(upcall_replay, n): upcall_replay("used")

def test_plugs(upcall_channel): plug(upcall_channel.path, DISK)
"""
    )
    workers = (*PLUGIN, "-pxdist", "-n2", "--upcall-record", "once")
    with simulated(kata_pod()) as guest:
        # One guest for both: they take turns, and each test finds it freshly booted.
        result = pytester.runpytest_subprocess(*workers, "--upcall-target", guest.path)
    result.assert_outcomes(passed=5)
    assert result.ret == ExitCode.DIFFERENT
    result.stdout.fnmatch_lines(["*captures/left.upcap was used by no test: *"])
    (pytester.path / "captures" / "left.upcap").write_text("no capture\n")
    result = pytester.runpytest_subprocess(*workers, "--upcall-captures")
    result.assert_outcomes(passed=7, failed=1)
    assert result.ret == ExitCode.UNREADABLE


def own_project(path: Path) -> None:
    """One recording, and nothing that speaks of this package."""
    recorded(path / "captures" / "disk.upcap")
    (path / "pytest.ini").write_text("[pytest]\naddopts = --upcall-captures\n")


def check_own_project(path: Path, python: Path | str, **environment: str) -> None:
    """Green, red with a changed guest, and 6 without its recording."""

    def run() -> tuple[int, str]:
        everything = {**os.environ, **environment}
        everything.pop("PYTEST_DISABLE_PLUGIN_AUTOLOAD", None)
        ended = subprocess.run(
            [python, "-m", "pytest"], cwd=path, capture_output=True, text=True, check=False,
            timeout=60, env=everything,
        )  # fmt: skip
        return ended.returncode, ended.stdout

    own_project(path)
    assert run()[0] == ExitCode.EXPECTED
    (path / "conftest.py").write_text(
        "import pytest\n"
        "def pytest_collection_modifyitems(items):\n"
        "    for item in items:\n"
        "        item.add_marker(pytest.mark.upcall(faults=['add_mmio:ret=-5']))\n"
    )
    code, out = run()
    assert code == ExitCode.DIFFERENT
    assert "first difference: request 1.0 add_mmio" in out
    (path / "captures" / "disk.upcap").unlink()
    assert run()[0] == ExitCode.NOTHING_RUN


def entry_points() -> dict[str, str]:
    """What the package registers with pytest."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    found: dict[str, str] = project["entry-points"]["pytest11"]
    return found


def test_an_own_project_needs_nothing_but_the_installed_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What an installer would write; beside the real one, where there is one, it does no harm.
    written = tmp_path / "site" / "upcall_trace-0.dist-info"
    written.mkdir(parents=True)
    (written / "METADATA").write_text("Metadata-Version: 2.1\nName: upcall-trace\nVersion: 0\n")
    lines = [f"{name} = {module}" for name, module in entry_points().items()]
    (written / "entry_points.txt").write_text("\n".join(["[pytest11]", *lines, ""]))
    project = tmp_path / "project"
    project.mkdir()
    path = os.pathsep.join([str(ROOT), str(written.parent)])
    check_own_project(project, sys.executable, PYTHONPATH=path)


@pytest.mark.torture
def test_an_own_project_with_an_environment_of_its_own(tmp_path: Path) -> None:
    # It needs a package index to install from, as make itself does.
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    python = tmp_path / "venv" / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", ROOT, "pytest"], check=True)
    project = tmp_path / "project"
    project.mkdir()
    check_own_project(project, python, PYTHONPATH="")


def test_a_recording_brings_its_guest_along_and_a_missing_one_is_a_warning(
    pytester: pytest.Pytester,
) -> None:
    taken = World(mmio=(Window(0xE0006000, 0x2000, 7),))
    captures = pytester.path / "captures"
    recorded(captures / "noted.upcap", rets=(-17,), **world_notes(taken, "odd"))
    recorded(captures / "named.upcap", rets=(0, -17), machine="odd")
    result = pytest_of(pytester, "--upcall-captures", "-W", "default")
    result.assert_outcomes(passed=2, warnings=1)
    result.stdout.fnmatch_lines(["*it notes the machine 'odd', but not what that looks like, so*"])
