"""Who holds the hotplug lock: what is said of it while nothing refutes it, and what afterwards."""

from __future__ import annotations

import pytest

from dissectors.constants import EBUSY, EEXIST, EINVAL, EIO, ENODEV, Arch, MessageType
from dissectors.messages import Request, cpu_request, mmio_request, pci_request
from tests.diagnose.test_engine import MS, SECOND, found, told
from tests.support import DISK, answer, ask, connect
from upcall_trace.capture.records import Close, Header, Record
from upcall_trace.diagnose.engine import Diagnosis
from upcall_trace.diagnose.finding import Finding

ADD_CPU, DEL_CPU = MessageType.ADD_CPU, MessageType.DEL_CPU
OTHER = mmio_request(MessageType.ADD_MMIO, 0xE0008000, 0x2000, 9)
CPU = cpu_request(ADD_CPU, [1])
UPWARDS = cpu_request(DEL_CPU, [1, 2, 3])


def at(findings: list[Finding], place: str) -> str:
    """The codes at one place."""
    return ", ".join(
        f"{f.code}{'?' * f.inferred}" for f in findings if f"{f.conn}.{f.request}" == place
    )


def hung() -> list[Record]:
    """MMIO works in this guest; then the driver of a device never ends its probe."""
    return [*connect(1), ask(DISK, MS), answer(DISK, 2 * MS), ask(OTHER, 3 * MS)]


def test_a_driver_that_hangs_holds_the_lock_and_is_named() -> None:
    findings = found([*hung(), *connect(2, SECOND), ask(CPU, 2 * SECOND, 2)], waits_ns=5 * SECOND)
    assert at(findings, "1.1") == "UP310?, UP602"
    assert at(findings, "2.0") == "UP602, UP603?, UP702"
    (stuck,) = (f for f in findings if f.code == "UP603")
    assert "Request 1.1 took the guest's hotplug lock" in stuck.why
    assert [(e.conn, e.request) for e in stuck.evidence] == [(1, 1)]


def test_it_does_not_matter_in_which_order_connections_close() -> None:
    records = [*hung(), *connect(2, SECOND), ask(CPU, 2 * SECOND, 2)]
    for order in ((1, 2), (2, 1)):
        ends = [Close(5 * SECOND, conn, by_guest=False) for conn in order]
        findings = found([*records, *ends])
        assert at(findings, "1.1") == "UP310?, UP602"
        assert at(findings, "2.0") == "UP602, UP603?"


@pytest.mark.parametrize(
    ("request_", "ret", "frees"),
    [
        (CPU, 0, True),
        (CPU, EIO, True),
        (CPU, EEXIST, True),
        (CPU, EBUSY, True),
        (CPU, EINVAL, False),
        (cpu_request(DEL_CPU, [1]), 1, True),
        (cpu_request(DEL_CPU, [1]), EINVAL, False),
        (cpu_request(ADD_CPU, []), 0, False),
        (mmio_request(MessageType.ADD_MMIO, 0xE000A000, 0x2000, 5), 0, True),
        (mmio_request(MessageType.ADD_MMIO, 0xE000A000, 0, 5), EBUSY, True),
        (DISK, EEXIST, False),
        (mmio_request(MessageType.DEL_MMIO, 0xE000C000, 0x2000, 5), ENODEV, False),
        (pci_request(MessageType.ADD_PCI, 0, 3), 0, False),
    ],
    ids=str,
)
def test_one_later_answer_that_needs_the_lock_refutes_it(
    request_: Request, ret: int, frees: bool
) -> None:
    waits = [*connect(2, SECOND), ask(CPU, 2 * SECOND, 2)]
    later = [*connect(3, 3 * SECOND), ask(request_, 3 * SECOND, 3),
             answer(request_, 3 * SECOND + MS, 3, ret)]  # fmt: skip
    findings = found([*hung(), *waits, *later])
    assert ("UP310" in at(findings, "1.1")) is not frees
    assert ("UP603" in at(findings, "2.0")) is not frees
    assert "UP602" in at(findings, "1.1")


def test_what_was_asked_before_and_answered_after_refutes_nothing() -> None:
    """It may have had the lock first."""
    early = [*connect(3, 0), ask(CPU, 1, 3)]
    records = [*early, *hung(), answer(CPU, SECOND, 3)]
    assert at(found(records), "1.1") == "UP310?, UP602"


def test_without_a_request_that_could_hold_it_no_lock_is_blamed() -> None:
    records = [*connect(1), ask(cpu_request(DEL_CPU, [9]), MS), *connect(2, SECOND),
               ask(CPU, SECOND, 2)]  # fmt: skip
    findings = found(records)
    assert at(findings, "1.0") == "UP206?, UP602, UP702"
    assert at(findings, "2.0") == "UP602, UP702"


def test_a_removal_that_may_have_died_leaves_both_explanations() -> None:
    records = [*connect(1), ask(UPWARDS, MS), *connect(2, SECOND),
               ask(cpu_request(DEL_CPU, [5]), SECOND, 2)]  # fmt: skip
    findings = found(records)
    assert at(findings, "1.0") == "UP206?, UP207?, UP602, UP702"
    assert at(findings, "2.0") == "UP206?, UP602, UP603?, UP702"
    alternatives = {f.group for f in findings if f.inferred and f.conn == 2}
    assert len(alternatives) == 1
    assert None not in alternatives


def test_a_vcpu_that_is_being_started_holds_it_for_a_while_only() -> None:
    """The client left before the guest gave up, and the next one's device had to wait for it."""
    records = [
        *connect(1), ask(DISK, MS), answer(DISK, 2 * MS), ask(CPU, 3 * MS),
        Close(2 * SECOND, 1, by_guest=False),
        *connect(2, 2 * SECOND), ask(OTHER, 2 * SECOND, 2), answer(OTHER, 12 * SECOND, 2),
    ]  # fmt: skip
    findings = found(records)
    assert at(findings, "1.1") == "UP201?, UP602"
    assert at(findings, "2.0") == "UP601, UP704"
    (late,) = (f for f in findings if f.code == "UP601")
    assert "Request 1.1 held the guest's hotplug lock" in late.why
    assert "UP603" not in told(findings)


def test_a_slow_device_is_named_by_those_that_waited_for_it() -> None:
    records = [
        *connect(1), ask(DISK, MS), *connect(2, 2 * MS), ask(CPU, 3 * MS, 2),
        answer(DISK, 3 * SECOND), answer(CPU, 3 * SECOND + MS, 2),
    ]  # fmt: skip
    late = {f.conn: f.why for f in found(records) if f.code == "UP601"}
    assert "Request 1.0 held" in late[2]
    assert "Plugging took the guest this long" in late[1]


def test_a_guest_that_closes_holds_no_lock() -> None:
    records = [*hung(), Close(SECOND, 1, by_guest=True), *connect(2, 2 * SECOND),
               ask(CPU, 2 * SECOND, 2)]  # fmt: skip
    findings = found(records)
    assert at(findings, "1.1") == "UP602, UP605"
    assert "UP603" not in told(findings)


def test_a_short_wait_means_nothing() -> None:
    assert at(found(hung(), waits_ns=20 * MS), "1.1") == "UP602"


def test_on_arm_too_many_cpus_explain_a_silence_also_where_the_lock_may_be_held() -> None:
    many = cpu_request(ADD_CPU, 2)
    records = [*connect(1), ask(many, MS), *connect(2, SECOND), ask(many, SECOND, 2)]
    findings = found(records, arch=Arch.AARCH64)
    assert at(findings, "1.0") == "UP210?, UP602, UP702"
    assert at(findings, "2.0") == "UP210?, UP602, UP603?, UP702"


def test_what_rests_on_the_lock_is_told_at_the_end() -> None:
    diagnosis = Diagnosis(Header("test"))
    records = [*hung(), Close(5 * SECOND, 1, by_guest=False)]
    early = [f.code for record in records for f in diagnosis.feed(record)]
    assert "UP310" not in early
    assert "UP602" in early
    assert [f.code for f in diagnosis.finish() if f.code == "UP310"] == ["UP310"]


def test_a_cpu_that_is_refused_while_a_pci_device_is_probed_names_it() -> None:
    scan = pci_request(MessageType.ADD_PCI, 0, 3)
    records = [*connect(1), ask(scan, MS), *connect(2, 2 * MS), ask(CPU, 3 * MS, 2),
               answer(CPU, 4 * MS, 2, EBUSY), answer(scan, SECOND)]  # fmt: skip
    (busy,) = (f for f in found(records) if f.code == "UP208")
    assert "as request 1.0 asked for meanwhile" in busy.why
