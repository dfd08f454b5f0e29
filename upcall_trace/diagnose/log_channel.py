"""The state machine of a VMM's log: what its lines together say of one guest's channel.

As the simulated Dragonball is for the wire, this is for the log: from `resize vcpu` to `get vcpu
event`, from a disk's removal to its answer, with the 250 ms of the runtime, its retries, and the
client's reconnects. What a line decides alone is certain; what takes several lines is certain only
where the lines say whose they are. docs/log-lines.md has the lines.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Final

from dissectors.constants import CALLER_TIMEOUT_NS

from .. import codes
from ..codes import Code
from ..logs import client_lines as client
from ..logs import device_lines as devices
from ..logs import other_lines as others
from ..logs import runtime_lines as runtime
from ..logs.evidence import Evidence
from ..logs.lines import LogLine
from ..logs.meaning import Match, Meaning, Speaker
from . import log_words as words
from .finding import Finding, Told
from .log_requests import ChannelPhase, OpenRequest, between, evidence_of

_LOOP: Final = 3
_SHOWN: Final = 6
DRAGONBALL: Final = frozenset({Speaker.CLIENT, Speaker.CPUS, Speaker.DEVICES})
OTHER_VMMS: Final = {
    others.QEMU: "QEMU", others.QMP: "QEMU", others.CLH: "Cloud Hypervisor",
    others.CLH_SOCKET: "Cloud Hypervisor", others.FIRECRACKER: "Firecracker",
}  # fmt: skip
_INSERTS: Final = {
    "InsertBlockDevice": "disk-add", "InsertNetworkDevice": "net-add",
    "InsertHostDevice": "vfio-add", "PrepareRemoveBlockDevice": "disk-del",
}  # fmt: skip
_ID: Final = re.compile(r'drive_id: \\?"([\w.-]{1,128})')


class ChannelStory:
    """What one guest's VMM says of its channel, line by line.

    `keyed` says that its lines tell whose they are.
    """

    def __init__(self, keyed: bool) -> None:
        self.keyed = keyed
        self.findings: dict[tuple[Code, object], Finding] = {}
        self.heard = 0
        """Lines about upcall."""
        self.vmms: dict[str, LogLine] = {}
        """Names of other VMMs, each with its first line."""
        self.is_dragonball = False
        self.no_vm: LogLine | None = None
        self._ran = 0
        """VMs before this one."""
        self._begin()

    def _begin(self) -> None:
        """Another VM: nothing of the last one holds."""
        self.phase, self.was_ready = ChannelPhase.UNKNOWN, False
        self.open: OpenRequest | None = None
        self._broken: OpenRequest | None = None
        self._refusals: list[LogLine] = []
        self._refused_count = 0
        self._refused_cpu: OpenRequest | None = None
        self._late: OpenRequest | None = None
        self._wedged: list[LogLine] = []
        self._wedged_for_good = False
        self._idle: LogLine | None = None
        self._vcpu_died: LogLine | None = None
        self._slots: dict[str, tuple[str, LogLine]] = {}
        self._told: set[str] = set()
        self._start_failed = False
        self._lost: LogLine | None = None
        """What says that lines are missing since the channel was ready for certain."""
        self._unsure_of_end = False
        """Lines are missing since the last refusal."""
        self.last_refusal: tuple[str, int | None] | None = None
        """The VMM's last refusal, and when it was."""
        self._resets = 0

    @property
    def _sure(self) -> bool:
        """Whether lines together prove something: they say whose they are, and none is missing."""
        return self.keyed and self._lost is None

    @property
    def _asked(self) -> OpenRequest | None:
        """The open request, if it is known to be the one that is answered next."""
        return self.open if self._lost is None else None

    def lines_lost(self, line: LogLine) -> None:
        """Lines are missing here, as this one says; until the channel is ready, all may be said."""
        self._lost, self._unsure_of_end = line, True

    def vm_is_gone(self) -> None:
        """What is told from here on is of another VM."""
        self._conclude()
        self._ran += 1
        self._begin()

    # Telling.

    def tell(
        self,
        code: Code,
        key: object,
        told: Told,
        lines: Iterable[LogLine],
        certain: bool,
        at: Mapping[LogLine, int] | None = None,
    ) -> None:
        """Say it once: later lines of the same are evidence of the first."""
        lines = list(lines)
        certain = certain and not any(line.loose for line in lines)
        seen = lines if certain or self._lost is None else [*lines, self._lost]
        evidence = tuple(evidence_of(line, (at or {}).get(line, 0)) for line in seen)
        before = self.findings.get((code, (self._ran, key)))
        if before is not None:
            more = tuple(e for e in evidence if e not in before.evidence)
            self.findings[code, (self._ran, key)] = _with(
                before, (before.evidence + more)[:_SHOWN], before.inferred and not certain
            )
            return
        decisive = lines[-1] if lines else None
        self.findings[code, (self._ran, key)] = Finding(
            code, code.name, code.severity, None, None, not certain,
            told.what, told.why, told.so, told.next, evidence[:_SHOWN],
            told.side or code.side, decisive.wall_ns if decisive else None,
        )  # fmt: skip

    def feed(self, line: LogLine, matches: Iterable[Match]) -> None:
        """One line of this guest, with what it says."""
        rows = {m.meaning: m for m in matches if not m.meaning.of_guest}
        if not rows:
            return
        for row in rows:
            self.heard += row.upcall
            if row.speaker in DRAGONBALL and row not in _SHARED:
                self.is_dragonball = True
            if row in OTHER_VMMS:
                self.vmms.setdefault(OTHER_VMMS[row], line)
        for row, match in rows.items():
            handler = _HANDLERS.get(row)
            if handler is not None:
                handler(self, line, match)
        self.error(line, rows)

    # The client.

    def _init(self, line: LogLine, match: Match) -> None:
        if self.phase is ChannelPhase.RESTORED and not self.was_ready:
            return  # a restored VM makes its client anew
        if self.phase is not ChannelPhase.UNKNOWN or self.open is not None:
            self.vm_is_gone()
        self.phase = ChannelPhase.STARTING

    def _init_failed(self, line: LogLine, match: Match) -> None:
        self._start_failed = True
        self.tell(codes.NO_UPCALL, "init", words.init_failed(line, match.at), [line], True,
                  {line: match.at})  # fmt: skip

    def _service(self, line: LogLine, match: Match) -> None:
        self._ready()
        self._refusals.clear()
        self._refused_count = 0

    def _ready(self) -> None:
        self.phase, self.was_ready = ChannelPhase.READY, True
        self.open = self._lost = None

    def _refused(self, line: LogLine, match: Match) -> None:
        if self.phase is ChannelPhase.RESTORED:
            told = words.unanswered_after_restore()
            self.tell(codes.CONNECT_UNANSWERED, "restored", told, [line], False)
            self.phase = ChannelPhase.STARTING
            return
        self._refused_count += 1
        self._unsure_of_end = False
        if len(self._refusals) < _SHOWN:
            self._refusals.append(line)

    def _not_ok(self, line: LogLine, match: Match) -> None:
        told = words.not_ok(match[1])
        self.tell(codes.NOT_OK, "not-ok", told, [line], True, {line: match.at})

    def _bad_hello(self, line: LogLine, match: Match) -> None:
        self._lost_the_stream()
        told = words.bad_hello(match[1])
        self.tell(codes.BAD_HELLO, "hello", told, [line], True, {line: match.at})

    def _no_hello(self, line: LogLine, match: Match) -> None:
        self._lost_the_stream()
        self.tell(codes.NO_HELLO, "hello", words.no_hello(), [line], True, {line: match.at})
        self.tell(codes.UNKNOWN_SERVICE, "hello", words.no_service(), [line], False)

    def _start_of_service_failed(self, line: LogLine, match: Match) -> None:
        self._lost_the_stream()
        self.tell(codes.NO_HELLO, "hello", words.no_service_byte(), [line], False)

    def _lost_the_stream(self) -> None:
        if self.phase is not ChannelPhase.STARTING or self.was_ready:
            self.phase = ChannelPhase.RECONNECTING

    def _reset(self, line: LogLine, match: Match) -> None:
        self._resets += 1
        self._broken, self.open = self._asked or OpenRequest("unknown", None), None
        self.phase, self.was_ready = ChannelPhase.RECONNECTING, True
        told = words.reset(self._broken)
        lines = [*self._broken.lines, line]
        self.tell(codes.RESET_WHILE_BUSY, self._resets, told, lines, True, {line: match.at})

    def _idle_lost(self, line: LogLine, match: Match) -> None:
        if self._idle is None:
            self._idle = line
            self.was_ready = True
            self.tell(codes.IDLE_CHANNEL_LOST, "idle", words.idle_lost(), [line], False)

    def _gave_up(self, line: LogLine, match: Match) -> None:
        told = words.gave_up(self.was_ready)
        self.tell(codes.CONNECT_REFUSED_LOOP, "loop", told, [*self._refusals[:2], line], True)
        self.phase, self.open = ChannelPhase.GAVE_UP, None
        self._refusals.clear()
        self._refused_count = 0

    def _restored(self, line: LogLine, match: Match) -> None:
        self.phase = ChannelPhase.RESTORED

    def _ends(self, line: LogLine, match: Match) -> None:
        killed = bool(match[1])
        booting = (
            self.phase in (ChannelPhase.STARTING, ChannelPhase.RESTORED) and not self.was_ready
        )
        if booting and not self._start_failed:
            told = words.died_booting(killed)
            self.tell(codes.VM_DIED, "died", told, [line], self._sure and killed)
            self._refusals.clear()
            self._refused_count = 0
        self._conclude()
        self.phase, self.open = ChannelPhase.ENDED, None

    def was_killed(self, line: LogLine, match: Match) -> None:
        """The host killed the process that this guest's VMM runs in."""
        told = words.killed(match[2], self.was_ready)
        self.tell(codes.VM_DIED, "killed", told, [line], True, {line: match.at})

    def _limit(self, line: LogLine, match: Match) -> None:
        self.tell(codes.NO_LISTENER, "limit", words.vmm_refused(), [line], False)

    # vCPUs.

    def _resize(self, line: LogLine, match: Match) -> None:
        now, desired = int(match[1]), int(match[2])
        self._ready()
        if now != desired:
            self.open = OpenRequest("cpu-add" if desired > now else "cpu-del", line)
            self._refused_cpu = None

    def _resizing(self, line: LogLine, match: Match) -> None:
        if self.open is not None and self.open.is_cpu:
            self.open.kind = f"cpu-{'add' if match[1] == 'add' else 'del'}"

    def _no_resize(self, line: LogLine, match: Match) -> None:
        if self.open is not None and self.open.is_cpu:
            self.open = None

    def _cpu_done(self, line: LogLine, match: Match) -> None:
        if int(match[1]) == 0:
            self._counted_as_success(line, match)
            return
        asked = self.open if self.open is not None and self.open.is_cpu else None
        took = between(asked.line if asked else None, line)
        if asked is not None and (asked.timed_out or (took or 0) > CALLER_TIMEOUT_NS):
            seen = asked.timed_out is not None
            told = words.late(asked, took)
            self._late = asked
            self.tell(codes.LATE_REPLY, asked.number, told, [*asked.lines, line],
                      seen and self._sure, {line: match.at})  # fmt: skip
        self._wedged.clear()
        self._ready()

    def _counted_as_success(self, line: LogLine, match: Match) -> None:
        """Index 0 with success is what the client reports when the stream breaks."""
        if self._broken is None or not (self._broken.is_cpu or self._broken.kind == "unknown"):
            self._resets += 1
            self._broken, self.open = self._asked or OpenRequest("cpu", None), None
        told = words.counted_as_success(self._broken)
        key = (codes.RESET_WHILE_BUSY, (self._ran, self._resets))
        before = self.findings.pop(key, None)
        lines = [*self._broken.lines, line]
        self.tell(codes.RESET_WHILE_BUSY, self._resets, told, lines, True, {line: match.at})
        if before is not None:
            now = self.findings[key]
            evidence = tuple(dict.fromkeys((*before.evidence, *now.evidence)))
            self.findings[key] = _with(now, evidence[:_SHOWN], now.inferred)
        self._broken = None

    def _cpu_refused(self, line: LogLine, match: Match) -> None:
        asked = self._asked if self._asked is not None and self._asked.is_cpu else None
        took = between(asked.line if asked else None, line)
        lines = [*(asked.lines if asked else []), line]
        told = words.refused(took)
        self.tell(codes.RESIZE_WEDGED, "wedged", told, lines, True, {line: match.at})
        if asked is not None and asked.timed_out is not None:
            late = words.late(asked, took)
            self.tell(codes.LATE_REPLY, asked.number, late, lines, self._sure, {line: match.at})
        self._wedged_for_good = True
        self._refused_cpu = asked or OpenRequest("cpu", None)
        self.phase, self.was_ready, self.open = ChannelPhase.READY, True, None

    def _cpu_late(self, line: LogLine, match: Match) -> None:
        asked = self._asked if self._asked is not None and self._asked.is_cpu else self._late
        asked = asked or OpenRequest("cpu", None)
        told = words.late(asked, between(asked.line, line))
        self.tell(codes.LATE_REPLY, asked.number, told, [*asked.lines, line], True)

    def _vcpu_dies(self, line: LogLine, match: Match) -> None:
        self._vcpu_died = line

    # Devices.

    def _sent(self, line: LogLine, match: Match) -> None:
        self._ready()
        named = _ID.search(line.text)
        self.open = OpenRequest(_INSERTS.get(match[1], "device"), line, named[1] if named else "")

    def _disk_added(self, line: LogLine, match: Match) -> None:
        if match[2]:
            self._slots[f"{int(match[2]):02x}"] = (match[1], line)
        if self.open is not None and self.open.kind == "disk-add":
            self.open = None

    def _removing_disk(self, line: LogLine, match: Match) -> None:
        self._may_ask(OpenRequest("disk-del", line))

    def _removing_vfio(self, line: LogLine, match: Match) -> None:
        self._may_ask(OpenRequest("vfio-del", line))

    def _may_ask(self, asked: OpenRequest) -> None:
        """A request follows if the channel is ready: the line is printed before that is known."""
        if self.phase in (ChannelPhase.READY, ChannelPhase.UNKNOWN):
            self.open = asked

    def _hot_added(self, line: LogLine, match: Match) -> None:
        if match[1] != "update" and "resize" not in match.filled[0]:  # type: ignore[index]
            self._may_ask(OpenRequest("memory-add", line))

    def _removed(self, line: LogLine, match: Match) -> None:
        if self.open is not None and self.open.kind == "disk-del":
            self.open = None

    def _nobody_waits(self, line: LogLine, match: Match) -> None:
        """With a VFIO device it comes with every removal; a disk's answer was late."""
        asked, self.open = self.open, None
        if asked is None or not asked.kind.startswith("disk") or asked.timed_out is None:
            return
        lines = [*asked.lines, line]
        told = words.late(asked, between(asked.line, line))
        self.tell(codes.LATE_REPLY, asked.number, told, lines, self._sure, {line: match.at})
        left = words.left_in_list(asked)
        self.tell(codes.DEVICE_LEAKED, asked.number, left, lines, self._sure, {line: match.at})

    def _no_config(self, line: LogLine, match: Match) -> None:
        self.no_vm = line

    def error(self, line: LogLine, rows: Mapping[Meaning, Match]) -> None:
        """What a line with an error decides; a VMM's story tells."""

    # The end.

    def _unanswered(self) -> None:
        """The open request's caller has given up, and nothing answers it."""
        asked, self.open = self.open, None
        if asked is not None and asked.timed_out is not None:
            told = words.unanswered(asked)
            self.tell(codes.UNANSWERED, asked.number, told, asked.lines, False)

    def _conclude(self) -> None:
        """What is still open is over."""
        stuck = self.open is not None and self.open.is_cpu and self.open.timed_out is not None
        if self._vcpu_died is not None and (stuck or self._refused_cpu is not None):
            told = words.vcpu_died()
            self.tell(codes.VCPU_NOT_STARTED, "died", told, [self._vcpu_died], False)
        self._unanswered()
        if self._wedged:
            told = words.wedged()
            self.tell(codes.RESIZE_WEDGED, "wedged", told, self._wedged, False)
        if self._refused_count and self.phase not in (ChannelPhase.READY, ChannelPhase.GAVE_UP):
            loop = self._refused_count >= _LOOP
            code = codes.CONNECT_REFUSED_LOOP if loop else codes.NO_LISTENER
            told = words.refusals(self._refused_count, self.was_ready)
            sure = loop or "connection reset" in self._refusals[-1].text
            self.tell(code, "loop", told, self._refusals,
                      sure and self.keyed and not self._unsure_of_end)  # fmt: skip

    def finish(self) -> list[Finding]:
        """The log is over: every finding, in the order in which they were found."""
        self._conclude()
        return list(self.findings.values())


def _with(finding: Finding, evidence: tuple[Evidence, ...], inferred: bool) -> Finding:
    return replace(finding, evidence=evidence, inferred=inferred)


_SHARED: Final = frozenset(
    {devices.VFIO_REFUSED, devices.IN_LIST, devices.INVALID_DISK, devices.REMOVED}
)
"""Rows whose words other VMMs may use."""
_Handler = Callable[[ChannelStory, LogLine, Match], None]
_HANDLERS: Final[Mapping[Meaning, _Handler]] = {
    client.INIT: ChannelStory._init,
    client.INIT_FAILED: ChannelStory._init_failed,
    client.SERVICE: ChannelStory._service,
    client.REFUSED: ChannelStory._refused,
    client.NOT_OK: ChannelStory._not_ok,
    client.BAD_HELLO: ChannelStory._bad_hello,
    client.NO_HELLO: ChannelStory._no_hello,
    client.START_FAILED: ChannelStory._start_of_service_failed,
    client.RESET: ChannelStory._reset,
    client.IDLE_LOST: ChannelStory._idle_lost,
    client.GAVE_UP: ChannelStory._gave_up,
    devices.RESTORED: ChannelStory._restored,
    devices.SHUTDOWN: ChannelStory._ends,
    devices.VSOCK_LIMIT: ChannelStory._limit,
    client.RESIZE: ChannelStory._resize,
    client.RESIZING: ChannelStory._resizing,
    client.NO_RESIZE: ChannelStory._no_resize,
    client.CPU_DONE: ChannelStory._cpu_done,
    client.CPU_REFUSED: ChannelStory._cpu_refused,
    client.CPU_LATE: ChannelStory._cpu_late,
    client.VCPU_DIED: ChannelStory._vcpu_dies,
    runtime.SENT: ChannelStory._sent,
    runtime.DISK_ADDED: ChannelStory._disk_added,
    devices.REMOVING_DISK: ChannelStory._removing_disk,
    devices.REMOVING_VFIO: ChannelStory._removing_vfio,
    devices.MEMORY: ChannelStory._hot_added,
    devices.BALLOON: ChannelStory._hot_added,
    devices.REMOVED: ChannelStory._removed,
    devices.NOBODY_WAITS: ChannelStory._nobody_waits,
    runtime.NO_CONFIG: ChannelStory._no_config,
}
