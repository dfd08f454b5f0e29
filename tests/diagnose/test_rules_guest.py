"""What the rules of the guest's own reasons say, and their pages."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from dissectors.constants import EBUSY, EEXIST, EINVAL, EIO, ENODEV, Arch, MessageType
from dissectors.events import RequestReceived
from dissectors.messages import (
    MmioRequest,
    Request,
    cpu_request,
    mmio_request,
    pci_request,
)
from tests.support import golden
from upcall_trace.codes import Severity
from upcall_trace.diagnose.finding import Ref, Told
from upcall_trace.diagnose.history import History
from upcall_trace.diagnose.rules import cpu_adds, cpu_removals, device_silences, drivers, mmio, pci
from upcall_trace.diagnose.rules.registry import Rule, rules
from upcall_trace.diagnose.situation import Situation
from upcall_trace.diagnose.windows import PlacedWindows
from upcall_trace.logs.evidence import Evidence
from upcall_trace.trace.opening import load
from upcall_trace.trace.operations import Operation

ADD_CPU, DEL_CPU = MessageType.ADD_CPU, MessageType.DEL_CPU
ADD_MMIO, DEL_MMIO = MessageType.ADD_MMIO, MessageType.DEL_MMIO
ADD_PCI, DEL_PCI = MessageType.ADD_PCI, MessageType.DEL_PCI
X86, ARM = Arch.X86_64, Arch.AARCH64
BASE, SIZE = 0xFEB00600, 0x200
KEY = (BASE, SIZE, 8)
U32, U64 = (1 << 32) - 1, (1 << 64) - 1
EARLIER, HUGE = Ref(1, 2), Ref(U32, U32)


def seen(
    request: Request,
    ret: int | None = None,
    history: History | None = None,
    arch: Arch = X86,
    load_word: int | None = None,
    latency_ns: int | None = None,
    console: str | None = None,
) -> Situation:
    """A request, its reply if `ret` is given, and what was known before."""
    raw = request.encode()
    return Situation(
        ref=Ref(1, 9),
        event=RequestReceived(9, len(raw), request, raw, 0),
        request=request,
        sent_ns=0,
        history=history or History(),
        arch=arch,
        reply=None if ret is None else request.reply(ret, load_word),
        latency_ns=latency_ns,
        evidence=[Evidence("console", console, line=7)] if console else [],
    )


def x86(kind: MessageType, *ids: int) -> Request:
    return cpu_request(kind, list(ids))


def window(kind: MessageType, base: int = BASE, size: int = SIZE, irq: int = 8) -> Request:
    return mmio_request(kind, base, size, irq)


def with_size_field(request: Request, msg_size: int) -> Request:
    assert isinstance(request, MmioRequest)
    return replace(request, msg_size=msg_size)


def up(*ids: int, ref: Ref | None = EARLIER) -> History:
    return History(cpus=dict.fromkeys(ids, ref))


def down(*ids: int) -> History:
    return History(removed_cpus=dict.fromkeys(ids, EARLIER), unplugged_numbers=True)


def windows(*keys: tuple[int, int, int], ref: Ref | None = EARLIER) -> History:
    return History(windows=PlacedWindows(dict.fromkeys(keys, ref)))


def functions(*places: tuple[int, int], ref: Ref | None = EARLIER) -> History:
    return History(pci=dict.fromkeys(places, ref))


Case = tuple[Rule, Situation, tuple[str, ...]]

CPU_CASES: list[Case] = [
    (cpu_adds.vcpu_not_started, seen(x86(ADD_CPU, 1), EIO, latency_ns=10_080_000_000),
     ("add_cpu apic_ids=1", "after 10.08s", "-5 (EIO)", "APIC id 1 did not start", "VcpuIs")),
    (cpu_adds.vcpu_not_started, seen(x86(ADD_CPU, 1), EIO, down(1), latency_ns=1000),
     ("apic_ids=1: -5", "vCPU; request 1.2 had removed it")),
    (cpu_adds.vcpu_not_started, seen(x86(ADD_CPU, 1, 2), EIO), ("One of the CPUs", "vCPU.")),
    (cpu_adds.vcpu_not_started, seen(x86(ADD_CPU, 1, 2), EIO, down(2)),
     ("request 1.2 had removed APIC id 2",)),
    (cpu_adds.vcpu_not_started, seen(cpu_request(ADD_CPU, 2), EIO, arch=ARM),
     ("One of the CPUs", "vCPU.")),
    (cpu_adds.cpu_already_known, seen(x86(ADD_CPU, 1), EINVAL, up(1)),
     ("APIC id 1 is in the guest already", "since request 1.2", "No CPU was added")),
    (cpu_adds.cpu_already_known, seen(x86(ADD_CPU, 4, 1, 2), EINVAL, up(1, 2, ref=None)),
     ("APIC id 1 is", "since boot", "like 1 more of the list")),
    (cpu_adds.cpu_already_known, seen(x86(ADD_CPU, 1), EINVAL, down(1)),
     ("by something this recording does not show", "request 1.2 had removed APIC id 1")),
    (cpu_adds.cpu_already_known, seen(x86(ADD_CPU, 1), EINVAL), ("does not show it come",)),
    (cpu_adds.no_cpu_number, seen(x86(ADD_CPU, 77), EINVAL),
     ("no CPU number for APIC id 77", "nr_cpu_ids", "boot table")),
    (cpu_adds.no_cpu_number, seen(x86(ADD_CPU, 3), EINVAL, down(3)),
     ("no CPU number left for APIC id 3", "until request 1.2 removed it")),
    (cpu_adds.no_cpu_number, seen(x86(ADD_CPU, 3, 4), EINVAL, down(3)), ("an id of the list",)),
    (cpu_adds.vcpu_not_started, replace(seen(x86(ADD_CPU, 1)), waited_ns=2_000_000_000),
     ("No answer to add_cpu apic_ids=1 came in 2", "waited 10 s")),
    (cpu_adds.cpu_never_again,
     seen(x86(ADD_CPU, 1), EIO, History(failed_cpus={1: (EARLIER, 10**10)}, running={1})),
     ("at once: -5", "APIC id 1 failed to start by request 1.2", "runs that vCPU now")),
    (cpu_adds.cpu_never_again, seen(x86(ADD_CPU, 1), EIO), ("failed to start before;",)),
    (cpu_adds.cpu_lost_its_id, seen(x86(ADD_CPU, 3), EEXIST, up(3)),
     ("APIC id 3 is up since request 1.2, but out of reach", "lost its APIC id")),
    (cpu_adds.cpu_lost_its_id, seen(x86(ADD_CPU, 3, 3), EEXIST), ("APIC id 3 stands twice",)),
    (cpu_adds.cpu_lost_its_id, seen(x86(ADD_CPU, 3), EEXIST), ("A CPU of the list is online",)),
    (cpu_removals.cpu_already_offline, seen(x86(DEL_CPU, 3), 1),
     ("with 1: it was offline already", "APIC id 3 was set offline in the guest itself")),
    (cpu_removals.cpu_already_offline, seen(x86(DEL_CPU, 3, 2), 1),
     ("A CPU of the list", "those listed before it are gone")),
    (cpu_removals.remove_all_cpus, seen(x86(DEL_CPU, 0, 1), EINVAL),
     ("list has 2 CPUs", "No CPU was removed", "VcpuIsHotplugging")),
    (cpu_removals.remove_all_cpus, seen(x86(DEL_CPU, 1), EINVAL, down(1)),
     ("list has 1 CPU and", "APIC id 1 was already removed by request 1.2")),
    (cpu_removals.remove_all_cpus, seen(cpu_request(DEL_CPU, 4), EINVAL, arch=ARM),
     ("list has 4 CPUs",)),
    (cpu_removals.remove_boot_cpu, seen(x86(DEL_CPU, 0), EINVAL, load_word=2),
     ("boot CPU (APIC id 0)", "No CPU was removed")),
    (cpu_removals.remove_boot_cpu, seen(x86(DEL_CPU, 3, 2, 0, 1), EINVAL),
     ("after APIC ids 3 and 2 in the list", "APIC ids 3 and 2 are gone")),
    (cpu_removals.remove_boot_cpu, seen(x86(DEL_CPU, 3, 0), EINVAL), ("APIC id 3 is gone",)),
    (cpu_removals.remove_boot_cpu, seen(x86(DEL_CPU, 3), EINVAL),
     ("boot CPU", "No CPU was removed")),
    (cpu_removals.remove_unfindable_cpu, seen(x86(DEL_CPU, 9)),
     ("no answer to del_cpu apic_ids=9", "APIC id 9", "does not show to be up", "silent for good")),
    (cpu_removals.remove_unfindable_cpu, seen(x86(DEL_CPU, 9), history=down(9)),
     ("APIC id 9, which was already removed by request 1.2",)),
    (cpu_removals.remove_unfindable_cpu,
     seen(x86(DEL_CPU, 3), history=History(cpus={3: None}, unplugged_numbers=True)),
     ("APIC id 3, though it is up since boot", "out of reach")),
    (cpu_removals.remove_unfindable_cpu, seen(x86(DEL_CPU, 2, 3), history=up(2, 3)),
     ("APIC id 3, though it is up since request 1.2;",)),
    (cpu_removals.remove_unfindable_cpu, seen(x86(DEL_CPU)), ("does not show which",)),
    (cpu_removals.removal_order, seen(x86(DEL_CPU, 1, 2, 3)),
     ("no answer to del_cpu apic_ids=1-3", "do not go downwards", "hotplug lock")),
    (cpu_removals.removal_order, seen(x86(DEL_CPU, 3, 2)), ("do not follow the ids",)),
    (cpu_removals.cpu_busy, seen(x86(DEL_CPU, 3), EBUSY),
     ("-16 (EBUSY)", "take APIC id 3 offline", "The CPU stays")),
    (cpu_removals.cpu_busy, seen(x86(DEL_CPU, 3, 2), EBUSY), ("a CPU of the list", "may be gone")),
    (cpu_removals.cpu_busy, seen(x86(ADD_CPU, 3, 2), EBUSY), ("while it probes", "may be up")),
    (cpu_removals.cpu_busy, replace(seen(x86(ADD_CPU, 3), EBUSY), meanwhile=(Ref(1, 2),)),
     ("while a PCI device is probed, as request 1.2 asked", "That CPU is missing")),
    (cpu_adds.partial_cpu_add, seen(x86(ADD_CPU, 2, 3), EIO),
     ("only a part of add_cpu apic_ids=2,3", "at least APIC id 2 came up", "disagree")),
    (cpu_adds.partial_cpu_add, seen(cpu_request(ADD_CPU, 2), EIO, arch=ARM, load_word=3),
     ("at least one came up", "counts 3 online")),
    (cpu_adds.add_beyond_possible, seen(cpu_request(ADD_CPU, 1), arch=ARM),
     ("no answer to add_cpu count=1", "one more CPU to", "hotplug lock")),
    (cpu_adds.add_beyond_possible, seen(cpu_request(ADD_CPU, 3), arch=ARM),
     ("3 more CPUs", "after the ones that fit came up")),
]  # fmt: skip

MMIO_CASES: list[Case] = [
    (mmio.mmio_overlap, seen(window(ADD_MMIO), EEXIST, windows(KEY)),
     ("-17 (EEXIST)", "this very device", "was added by request 1.2", "The guest keeps")),
    (mmio.mmio_overlap, seen(window(ADD_MMIO, BASE + 0x100), EEXIST, windows(KEY, ref=None)),
     ("0xfeb00600+0x200 is registered", "since boot")),
    (mmio.mmio_overlap, seen(window(ADD_MMIO), EEXIST), ("this recording does not show",)),
    (mmio.irq_conflict, seen(window(ADD_MMIO, 0xD0000000), EEXIST, windows(KEY)),
     ("Interrupt 8", "0xfeb00600+0x200", "which was added by request 1.2", "number 5 only")),
    (mmio.irq_conflict, seen(window(ADD_MMIO), EEXIST), ("this recording does not show",)),
    (mmio.irq_conflict, seen(window(ADD_MMIO, irq=32), EEXIST, arch=ARM), ("shares SPI 32",)),
    (mmio.mmio_bad_size_field, seen(with_size_field(window(ADD_MMIO), 20), EINVAL),
     ("-22 (EINVAL)", "msg_size in its header is 20", "24 only", "the guest has none")),
    (mmio.mmio_bad_size_field, seen(with_size_field(window(DEL_MMIO), U32), EINVAL),
     ("is 4294967295", "that the guest has there stays")),
    (mmio.mmio_bad_irq, seen(window(ADD_MMIO, irq=0), EINVAL),
     ("Interrupt 0 cannot be used on x86-64", "the guest has none")),
    (mmio.mmio_bad_irq, seen(window(DEL_MMIO, irq=2000), EINVAL, arch=ARM),
     ("cannot map SPI number 2000", "that the guest has there stays")),
    (mmio.mmio_resource_busy, seen(window(ADD_MMIO, size=0), EBUSY), ("its size is 0",)),
    (mmio.mmio_resource_busy, seen(window(ADD_MMIO), EBUSY),
     ("Something in the guest has claimed", "/proc/iomem")),
    (mmio.mmio_resource_busy, seen(window(ADD_MMIO, BASE + 0x1FF), EBUSY, windows(KEY)),
     ("shares one byte with 0xfeb00600+0x200, which was added by request 1.2",)),
    (mmio.mmio_resource_busy, seen(window(ADD_MMIO, U64 - 1), EBUSY), ("last address",)),
    (mmio.mmio_no_such_device,
     seen(window(DEL_MMIO), ENODEV, History(removed_windows={KEY: EARLIER})),
     ("-19 (ENODEV)", "already removed by request 1.2", "Nothing changed")),
    (mmio.mmio_no_such_device, seen(window(DEL_MMIO, irq=9), ENODEV, windows(KEY)),
     ("differs in its interrupt (9, not 8) from the device added by request 1.2", "keeps")),
    (mmio.mmio_no_such_device,
     seen(window(DEL_MMIO, size=0x1000, irq=5), ENODEV, windows(KEY, ref=None)),
     ("size (0x1000, not 0x200) and interrupt (5, not 8)", "since boot")),
    (mmio.mmio_no_such_device, seen(window(DEL_MMIO, BASE + 4), ENODEV, windows(KEY)),
     ("differs in its base (0xfeb00604, not 0xfeb00600)",)),
    (mmio.mmio_no_such_device, seen(window(DEL_MMIO), ENODEV, windows(KEY)),
     ("was added by request 1.2, but something",)),
    (mmio.mmio_no_such_device, seen(window(DEL_MMIO), ENODEV), ("never added in this recording",)),
    (drivers.mmio_driver_failed,
     seen(window(ADD_MMIO), 0, console="virtio2: Wrong magic\x1b[m value!"),
     ("its driver failed", r'"virtio2: Wrong magic\x1b[m value!"', "believes")),
    (drivers.mmio_driver_failed, seen(window(ADD_MMIO), 0, console="x" * 500), ("xxx…",)),
    (drivers.mmio_driver_failed, seen(window(ADD_MMIO), 0), ("as the guest's console shows",)),
    (device_silences.channel_removed, seen(window(DEL_MMIO)),
     ("no answer to del_mmio", "at 0xfeb00600 is the vsock", "agent")),
    (device_silences.channel_removed, seen(pci_request(DEL_PCI, 0, 4)),
     ("no answer to del_pci", "at bus 0 slot 4.0 is the vsock device")),
    (device_silences.mmio_without_boot_device, seen(window(ADD_MMIO)),
     ("no answer to add_mmio", "without any virtio_mmio.device=", "CPU requests on other")),
    (device_silences.driver_hangs, seen(window(ADD_MMIO)),
     ("no answer to add_mmio", "interrupt that never comes.", "hotplug lock")),
    (device_silences.driver_hangs,
     seen(window(ADD_MMIO), console="virtio-mmio: Registering device virtio-mmio.2"),
     ('"virtio-mmio: Registering device virtio-mmio.2", and no oops',)),
    (device_silences.driver_hangs, seen(pci_request(ADD_PCI, 0, 4)),
     ("no answer to add_pci", "interrupt that never comes.")),
]  # fmt: skip

PCI_CASES: list[Case] = [
    (pci.pci_no_such_bus, seen(pci_request(ADD_PCI, 9, 1), ENODEV, functions((0, 48))),
     ("-19 (ENODEV)", "no PCI bus 9", "are on bus 0.", "the guest has none")),
    (pci.pci_no_such_bus, seen(pci_request(ADD_PCI, 9, 1), ENODEV), ("no PCI bus 9.",)),
    (pci.pci_no_such_bus,
     seen(pci_request(ADD_PCI, 9, 1), ENODEV, functions(*((bus, 0) for bus in range(200, 256)))),
     ("bus 200, 201, 202, 203 and others",)),
    (pci.pci_nothing_there, seen(pci_request(ADD_PCI, 0, 9), ENODEV),
     ("scanned bus 0 slot 9.0", "no device there before")),
    (pci.pci_nothing_there,
     seen(pci_request(ADD_PCI, 0, 9), ENODEV, History(removed_pci={(0, 72): EARLIER})),
     ("was removed by request 1.2",)),
    (pci.pci_nothing_there, seen(pci_request(ADD_PCI, 0, 9), ENODEV, functions((0, 72), ref=None)),
     ("has been there since boot",)),
    (pci.pci_no_such_device,
     seen(pci_request(DEL_PCI, 0, 6), ENODEV, History(removed_pci={(0, 48): EARLIER})),
     ("bus 0 slot 6.0 was already removed by request 1.2", "Nothing changed")),
    (pci.pci_no_such_device, seen(pci_request(DEL_PCI, 0, 6), ENODEV, functions((0, 48))),
     ("was added by request 1.2, but something removed it",)),
    (pci.pci_no_such_device, seen(pci_request(DEL_PCI, 0, 6), ENODEV),
     ("no add of it is known to have worked",)),
    (drivers.pci_driver_failed,
     seen(pci_request(ADD_PCI, 0, 6), 0, console="BAR 0: not assigned, can't enable device"),
     ("its driver failed", "BAR 0: not assigned", "scanned")),
    (drivers.pci_driver_failed, seen(pci_request(ADD_PCI, 0, 6), 0),
     ("as the guest's console shows",)),
]  # fmt: skip

CASES = CPU_CASES + MMIO_CASES + PCI_CASES

# Each code's name, severity, and the requests and result that its page's examples have; `None` as
# the result means silence.
TABLE: dict[str, tuple[str, Severity, set[MessageType], int | None]] = {
    "UP201": ("vcpu-not-started", Severity.ERROR, {ADD_CPU}, EIO),
    "UP202": ("cpu-already-known", Severity.ERROR, {ADD_CPU}, EINVAL),
    "UP203": ("no-cpu-number", Severity.ERROR, {ADD_CPU}, EINVAL),
    "UP204": ("remove-all-cpus", Severity.ERROR, {DEL_CPU}, EINVAL),
    "UP205": ("remove-boot-cpu", Severity.ERROR, {DEL_CPU}, EINVAL),
    "UP206": ("remove-unfindable-cpu", Severity.FATAL, {DEL_CPU}, None),
    "UP207": ("removal-order", Severity.FATAL, {DEL_CPU}, None),
    "UP208": ("cpu-busy", Severity.ERROR, {ADD_CPU, DEL_CPU}, EBUSY),
    "UP209": ("partial-cpu-add", Severity.WARNING, {ADD_CPU}, EIO),
    "UP210": ("add-beyond-possible", Severity.FATAL, {ADD_CPU}, None),
    "UP212": ("cpu-never-again", Severity.ERROR, {ADD_CPU}, EIO),
    "UP213": ("cpu-lost-its-id", Severity.ERROR, {ADD_CPU}, EEXIST),
    "UP214": ("cpu-already-offline", Severity.WARNING, {DEL_CPU}, 1),
    "UP301": ("mmio-overlap", Severity.ERROR, {ADD_MMIO}, EEXIST),
    "UP302": ("irq-conflict", Severity.ERROR, {ADD_MMIO}, EEXIST),
    "UP303": ("mmio-bad-size-field", Severity.ERROR, {ADD_MMIO, DEL_MMIO}, EINVAL),
    "UP304": ("mmio-bad-irq", Severity.ERROR, {ADD_MMIO, DEL_MMIO}, EINVAL),
    "UP305": ("mmio-resource-busy", Severity.ERROR, {ADD_MMIO}, EBUSY),
    "UP306": ("mmio-no-such-device", Severity.ERROR, {DEL_MMIO}, ENODEV),
    "UP307": ("mmio-driver-failed", Severity.ERROR, {ADD_MMIO}, 0),
    "UP308": ("channel-removed", Severity.FATAL, {DEL_MMIO, DEL_PCI}, None),
    "UP309": ("mmio-without-boot-device", Severity.FATAL, {ADD_MMIO, DEL_MMIO}, None),
    "UP310": ("driver-hangs", Severity.FATAL, {ADD_MMIO, ADD_PCI}, None),
    "UP401": ("pci-no-such-bus", Severity.ERROR, {ADD_PCI}, ENODEV),
    "UP402": ("pci-nothing-there", Severity.ERROR, {ADD_PCI}, ENODEV),
    "UP403": ("pci-no-such-device", Severity.ERROR, {DEL_PCI}, ENODEV),
    "UP404": ("pci-driver-failed", Severity.ERROR, {ADD_PCI}, 0),
}
WITHOUT_RECORDING = {"UP208", "UP404"}
HEADS = [
    "What it says", "Why it matters", "On the wire", "Example", "Limits", "What to do",
]  # fmt: skip
EXAMPLE = re.compile(r"`(\w+)`,\s+request\s+(\d+)\.(\d+)")
RULES = {code: found for code, found in rules().items() if code in TABLE}

each_code = pytest.mark.parametrize("code", TABLE)


def sentences(told: Told) -> tuple[str, str, str, str]:
    return told.what, told.why, told.so, told.next


def assert_plain(told: Told) -> None:
    """A sentence is short, complete, and holds nothing that steers a terminal."""
    for sentence in sentences(told):
        assert sentence.endswith(".")
        assert not sentence.endswith("..")
        assert sentence.isprintable()
        assert sentence[0].isupper()
        assert len(sentence) <= 200, sentence
        assert "None" not in sentence


@pytest.mark.parametrize("case", CASES, ids=lambda case: case[0].name)
def test_the_sentences_say_what_matters_here(case: Case) -> None:
    tell, at, words = case
    told = tell(at)
    assert_plain(told)
    text = " ".join(sentences(told))
    for word in words:
        assert word in text


@pytest.mark.parametrize("case", CASES, ids=lambda case: case[0].name)
def test_a_request_that_is_named_is_evidence_too(case: Case) -> None:
    tell, at, _ = case
    told = tell(at)
    named = "request 1.2" in " ".join(sentences(told))
    pointed = [(item.conn, item.request) for item in told.evidence if item.source == "request"]
    assert pointed == ([(1, 2)] if named else [])
    assert [item for item in told.evidence if item.source == "console"] == at.evidence


def test_every_rule_has_cases_with_and_without_history() -> None:
    told = {case[0] for case in CASES}
    assert told == set(RULES.values())
    bare = {case[0] for case in CASES if case[1].history == History()}
    assert bare == told


def extremes() -> list[tuple[Request, History]]:
    """The longest values that fit in a request, and histories that have much to say about them."""
    ids = list(range(255, -1, -1))
    found: list[tuple[Request, History]] = []
    for listed in (ids[:255], ids[::-1][1:], [255]):
        for kind in (ADD_CPU, DEL_CPU):
            request = x86(kind, *listed)
            found += [(request, up(*listed, ref=HUGE)), (request, History())]
            gone = History(removed_cpus=dict.fromkeys(listed, HUGE), unplugged_numbers=True)
            stuck = History(cpus=dict.fromkeys(listed, HUGE), unplugged_numbers=True)
            found += [(request, gone), (request, stuck)]
    found.append((cpu_request(ADD_CPU, 255), History()))
    for base, size in ((U64, U64), (U64 - 1, 1), (1 << 63, 1 << 63)):
        for kind in (ADD_MMIO, DEL_MMIO):
            request = with_size_field(window(kind, base, size, U32), U32)
            found += [(request, History(removed_windows={(base, size, U32): HUGE}))]
            for other in ((base, size, U32), (base, size - 1, 1 << 31), (base - 9, U64 - 1, U32)):
                found.append((request, windows(other, ref=HUGE)))
    for kind in (ADD_PCI, DEL_PCI):
        request = pci_request(kind, 255, 31, 7)
        places = [(bus, 255) for bus in range(255)]
        found += [
            (request, functions(*places, ref=HUGE)),
            (request, functions((255, 255), ref=HUGE)),
        ]
        found.append((request, History(removed_pci={(255, 255): HUGE})))
    return found


@each_code
def test_sentences_stay_short_with_the_longest_values(code: str) -> None:
    kinds = TABLE[code][2]
    met = 0
    for request, history in extremes():
        if request.msg_type in kinds:
            for arch in (X86, ARM):
                at = seen(request, -(1 << 31), history, arch, U32, 1 << 50, "\x1b\u202e" * 200)
                assert_plain(RULES[code].tell(at))
                met += 1
    assert met


def test_rules_are_entered_as_the_table_has_them() -> None:
    assert {code: (found.name, found.severity) for code, found in RULES.items()} == {
        code: (name, severity) for code, (name, severity, _, _) in TABLE.items()
    }


@each_code
def test_a_page_has_every_paragraph_in_its_order(code: str) -> None:
    page = RULES[code].page
    assert re.findall(r"^\*\*(.+?)\.\*\*", page, re.MULTILINE) == HEADS
    assert page.splitlines()[0].endswith(".")
    for paragraph in page.split("\n\n"):
        assert paragraph.endswith(".")
    assert all(len(line) <= 100 for line in page.splitlines())


def paragraph(code: str, head: str) -> str:
    (found,) = (text for text in RULES[code].page.split("\n\n") if text.startswith(f"**{head}.**"))
    return found


@each_code
def test_a_page_names_a_request_of_its_kind_or_says_that_none_is_recorded(code: str) -> None:
    _, _, kinds, ret = TABLE[code]
    examples = EXAMPLE.findall(paragraph(code, "Example"))
    assert bool(examples) == (code not in WITHOUT_RECORDING)
    if not examples:
        assert "No recording has it." in paragraph(code, "Example")
    for name, conn, number in examples:
        operation = recorded(name, int(conn), int(number))
        assert operation.msg_type in kinds
        assert operation.ret == ret


def recorded(name: str, conn: int, number: int) -> Operation:
    """A request of a recording that comes with the project."""
    (operation,) = (
        operation
        for operation in load(golden(name)).operations
        if (operation.conn, operation.request) == (conn, number)
    )
    return operation
