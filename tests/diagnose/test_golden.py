"""Recordings of real guests: every cause that they are labelled with is found, and no other.

`*.findings.json` has the causes of single replies. What they leave out is written out here: how
bytes arrived, and how connections began.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import pytest

from tests.kernel.recordings import REAL_CLIENT, RECORDINGS, labels, name_of, worlds
from tests.support import GOLDEN, PCAPS, TRANSCRIPTS, golden, records_of
from upcall_trace.codes import Severity
from upcall_trace.diagnose.engine import Diagnosis
from upcall_trace.diagnose.finding import Finding
from upcall_trace.diagnose.run import diagnose
from upcall_trace.kernel.world import World

Place = tuple[int, int]

FRAMING: dict[str, dict[Place, set[str]]] = {
    "framing": {
        (1, 1): {"UP507"},
        (1, 2): {"UP506"},
        (2, 1): {"UP505"},
        (3, 1): {"UP505"},
        (4, 1): {"UP508"},
    },
}
FRAMING["framing_5_10"] = FRAMING["framing"]
HANDSHAKES: dict[str, dict[int, set[str]]] = {
    "handshake": {2: {"UP103"}, 3: {"UP103"}, 5: {"UP104"}, 6: {"UP105"}},
    "channel_removed_5_10": {3: {"UP109"}},
}
HANDSHAKES["handshake_5_10"] = HANDSHAKES["handshake"]
ABOUT_BYTES = frozenset({"UP505", "UP506", "UP507", "UP508"})
ENDS_EARLY = {"aarch64_lifecycle": [24]}
"""Requests of each connection in packet captures that ended before the transcript."""
CUT_OFF = "channel_removed_5_10"
"""No packet gets into this guest after its first connection has removed the channel's device."""


each = pytest.mark.parametrize("recording", RECORDINGS, ids=name_of)
each_transcript = pytest.mark.parametrize("recording", TRANSCRIPTS, ids=name_of)
each_pcap = pytest.mark.parametrize("recording", PCAPS, ids=name_of)


def world_of(recording: Path) -> World:
    """The guest of a recording at boot; packet captures do not name it, their transcripts do."""
    transcript = golden(name_of(recording))
    if not transcript.exists():
        return worlds()["microvm"]
    header, _ = records_of(transcript)
    return worlds()[header.notes["machine"]]


def is_late_or_consequence(code: str) -> bool:
    """True for what may stand at any request: UP6xx and UP7xx, but not a labelled cause."""
    return code.startswith(("UP6", "UP7")) and code != "UP603"


def by_request(findings: list[Finding]) -> dict[Place, list[Finding]]:
    found: dict[Place, list[Finding]] = defaultdict(list)
    for finding in findings:
        if finding.conn is not None and finding.request is not None:
            found[finding.conn, finding.request].append(finding)
    return found


def causes(findings: list[Finding], certain: bool = False) -> set[str]:
    """What explains a reply or a silence, by code."""
    return {
        f.code
        for f in findings
        if not (certain and f.inferred)
        and not is_late_or_consequence(f.code)
        and f.code not in ABOUT_BYTES
    }


def of_connections(findings: list[Finding]) -> dict[int | None, set[str]]:
    found: dict[int | None, set[str]] = defaultdict(set)
    for finding in findings:
        if finding.request is None:
            found[finding.conn].add(finding.code)
    return found


@each
def test_with_the_world_every_label_is_found_for_certain_and_nothing_else(recording: Path) -> None:
    diagnosed = diagnose(recording, world_of(recording))
    wanted = labels(name_of(recording))
    framing = FRAMING.get(name_of(recording), {})
    found = by_request(diagnosed.findings)
    assert wanted.keys() <= found.keys()
    for place, findings in found.items():
        groups = wanted.get(place, [])
        codes = causes(findings, certain=True)
        assert codes == causes(findings), place
        assert len(codes) == len(groups), (place, codes, groups)
        assert all(codes & group for group in groups), (place, codes, groups)
        about_bytes = {f.code for f in findings} & ABOUT_BYTES
        assert about_bytes == framing.get(place, set()), place
    assert framing.keys() <= found.keys()
    assert of_connections(diagnosed.findings) == HANDSHAKES.get(name_of(recording), {})


@each
def test_requests_without_a_label_get_no_false_alarm(recording: Path) -> None:
    for world in (None, world_of(recording)):
        for place, findings in by_request(diagnose(recording, world).findings).items():
            if place not in labels(name_of(recording)):
                allowed = {"UP507"} | FRAMING.get(name_of(recording), {}).get(place, set())
                alarms = {f.code for f in findings if f.severity >= Severity.WARNING}
                assert {code for code in alarms if not is_late_or_consequence(code)} <= allowed


@each
def test_without_the_world_the_true_cause_is_named_and_nothing_certain_is_wrong(
    recording: Path,
) -> None:
    found = by_request(diagnose(recording).findings)
    wanted = labels(name_of(recording))
    for place, groups in wanted.items():
        assert all(causes(found[place]) & group for group in groups), place
    for place, findings in found.items():
        allowed = set().union(*wanted.get(place, []))
        assert causes(findings, certain=True) <= allowed, place


def test_what_the_wire_cannot_tell_alone_says_so() -> None:
    """Were all findings inferred, the test above would hold; were all certain, too much."""
    found = by_request(diagnose(golden("pci_memory")).findings)
    inferred = {place: {f.inferred for f in findings} for place, findings in found.items()}
    assert True in inferred[1, 6]  # a stale errno, or a device that was not there
    found = by_request(diagnose(golden("stale_results")).findings)
    assert causes(found[1, 3], certain=True) == {"UP512", "UP502"}
    found = by_request(diagnose(golden("cpu_lifecycle")).findings)
    assert causes(found[1, 0], certain=True) == {"UP201"}


# The same traffic, seen from inside the guest.


def causes_by_connection(path: Path, world: World | None) -> list[list[set[str]]]:
    """The causes of each request of each connection that asked something, in their order."""
    header, records = records_of(path)
    diagnosis = Diagnosis(header, world)
    findings = [found for record in records for found in diagnosis.feed(record)]
    found = by_request(findings + diagnosis.finish())
    return [
        [causes(found[connection.number, request]) for request in range(connection.requests)]
        for connection in diagnosis.session.connections.values()
        if connection.requests
    ]


@pytest.mark.parametrize("known", [False, True], ids=["blind", "world"])
@each_transcript
def test_the_same_causes_come_out_of_the_packets_in_the_guest(recording: Path, known: bool) -> None:
    name = name_of(recording)
    world = world_of(recording) if known else None
    outside = causes_by_connection(recording, world)
    inside = causes_by_connection(GOLDEN / f"{name}.vsockmon.pcap", world)
    if name in ENDS_EARLY:
        sizes = ENDS_EARLY[name]
        # The last request is there, its reply is not: then nothing is known of it.
        outside = [[*found[: size - 1], set()] for found, size in zip(outside, sizes, strict=False)]
    if name == CUT_OFF:
        outside = [found[: len(there)] for found, there in zip(outside, inside, strict=True)]
    assert [len(found) for found in inside] == [len(found) for found in outside]
    for theirs, ours in zip(inside, outside, strict=True):
        for request, (there, here) in enumerate(zip(theirs, ours, strict=True)):
            if known and name.startswith("cpu_lifecycle"):
                # The packets do not tell which vCPUs the VMM created, so the model leaves early.
                assert here <= there, request
            else:
                assert there == here, request


@each_pcap
def test_connections_in_the_guest_have_the_codes_that_can_be_seen_there(recording: Path) -> None:
    """A malformed line ends at the multiplexer, so the guest's packets do not have it."""
    found = of_connections(diagnose(recording).findings)
    expected = {"UP104", "UP105"} if name_of(recording).startswith("handshake") else set()
    assert set().union(*found.values()) == expected


def test_the_real_client_needs_no_transcript() -> None:
    diagnosed = diagnose(REAL_CLIENT, worlds()["microvm"])
    assert diagnosed.operations == 6
    assert diagnosed.complete


def test_the_labels_name_enough_to_mean_something() -> None:
    named = [code for path in RECORDINGS for groups in labels(name_of(path)).values()
             for group in groups for code in group]  # fmt: skip
    assert len(named) > 100
    assert len(set(named)) >= 20
