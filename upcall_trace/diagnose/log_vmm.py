"""What a VMM's log tells of one guest: its channel's story, and its errors with their causes."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Final

from .. import codes
from ..logs import client_lines as client
from ..logs import device_lines as devices
from ..logs import runtime_lines as runtime
from ..logs.lines import LogLine
from ..logs.meaning import Match, Meaning
from . import log_words as words
from .log_channel import ChannelStory
from .log_requests import ChannelPhase, OpenRequest

_SHOWN: Final = 6
_AT_ONCE_NS: Final = 100_000_000
_PLACE: Final = re.compile(r"0000:([0-9a-f]{2}:[0-9a-f]{2}\.[0-7])")
_NOT_DRAGONBALLS: Final = re.compile(r"Scsi|NvDimm|Nvdimm|Ccw|Ap[A-Z]?\w{0,8}Matcher")
_PROVEN: Final = (
    devices.IN_LIST, devices.INVALID_DISK, devices.VFIO_REFUSED, devices.FS_REFUSED,
    client.CPU_FORBIDDEN,
    client.CLIENT_MISSING, client.ROLLBACK, client.NO_UPCALL_BUILT, runtime.TOO_MUCH_MEMORY,
)  # fmt: skip
"""Rows that prove that no request was sent."""


class VmmStory(ChannelStory):
    """One guest's. `keyed` says that its lines tell whose they are."""

    # Errors, which may carry a whole chain of causes.

    def error(self, line: LogLine, rows: Mapping[Meaning, Match]) -> None:
        """What a line with an error decides: the innermost cause is the one that counts."""
        for row, decide in _ERRORS:
            if row in rows and decide(self, line, rows):
                return

    def _seen_before(self, line: LogLine) -> bool:
        """The runtime, containerd and kubelet print one error each."""
        said_so = " ".join(line.text.split())[-160:]
        if said_so in self._told:
            return True
        self._told.add(said_so)
        return False

    def _send_failed(self, line: LogLine, rows: Mapping[Meaning, Match]) -> bool:
        lines = [self._idle, line] if self._idle is not None else [line]
        told = words.send_failed(self._idle is not None)
        at = {line: rows[client.SEND_FAILED].at}
        self.tell(codes.IDLE_CHANNEL_LOST, "idle", told, lines, True, at)
        return True

    def _second_step(self, line: LogLine, rows: Mapping[Meaning, Match]) -> bool:
        """The VMM's own error for a disk that it could not drop after the guest was asked."""
        at = {line: rows[devices.LATE_REFUSAL].at}
        removal = runtime.REMOVE_FAILED in rows or "remove" in line.text.lower()
        if not removal:
            told = words.host_side(line, at[line])
            self.tell(codes.HOST_SIDE_FAILURE, line.text[-80:], told, [line], False, at)
            return True
        name = rows[runtime.REMOVE_FAILED][2] if runtime.REMOVE_FAILED in rows else ""
        broken = self._broken.lines if self._broken else []
        lines = [*broken[-1:], line]
        reason = words.why_not_ready(self.phase, self.open, None)
        told = words.not_ready(reason, f"to drop disk {name}".rstrip())
        self.tell(codes.NOT_READY, ("drop", name), told, [line], False, at)
        left = words.disk_left(name, self.phase is ChannelPhase.RECONNECTING)
        self.tell(codes.DEVICE_LEAKED, ("drop", name), left, lines, False, at)
        return True

    def _not_ready(self, line: LogLine, rows: Mapping[Meaning, Match]) -> bool:
        row = next(
            r for r in (client.NOT_READY, runtime.RETRIES_SPENT, client.OTHER_CLIENT) if r in rows
        )
        at = {line: rows[row].at}
        own = self.open is not None and self.open.kind == "vfio-del"
        own |= runtime.HOST_REMOVE in rows and self.phase in (
            ChannelPhase.READY,
            ChannelPhase.UNKNOWN,
        )
        waiting = self.open
        reason = words.why_not_ready(self.phase, waiting, own)
        certain = self._sure and self.phase not in (ChannelPhase.UNKNOWN, ChannelPhase.ENDED)
        if self.phase is ChannelPhase.READY:
            certain &= waiting is not None and (waiting.is_waited_for or own)
        lines = [*(waiting.lines if waiting is not None else []), line]
        told = words.not_ready(reason, words.what_was_refused(rows, runtime.RETRIES_SPENT in rows))
        key = (self.phase, own, waiting.number if waiting is not None else None)
        self.tell(codes.NOT_READY, key, told, lines, certain, at)
        return True

    def _is_wedged(self, line: LogLine, rows: Mapping[Meaning, Match]) -> bool:
        if self._wedged_for_good:
            told = words.refused(None)
            self.tell(codes.RESIZE_WEDGED, "wedged", told, [line], True)
        elif len(self._wedged) < _SHOWN:
            self._wedged.append(line)
        return True

    def _times_out(self, line: LogLine, rows: Mapping[Meaning, Match]) -> bool:
        if self._seen_before(line):
            return True
        text = line.text
        of_cpus = "resize" in text or "vcpu" in text
        kind = "cpu" if of_cpus else _kind_of_disk(text)
        if of_cpus and self._refused_cpu is not None and self.open is None:
            self._refused_cpu.timed_out = line  # it was refused before the caller gave up
            return True
        asked = self.open
        same = asked is not None and (kind == "unknown" or asked.is_cpu == of_cpus)
        if asked is None or not same or not asked.is_waited_for:
            self._unanswered()
            named = rows.get(runtime.DISK_FAILED)
            self.open = asked = OpenRequest(kind, None, named[1] if named else "")
        if asked.timed_out is None:
            asked.timed_out = line
        return True

    def _host_side(self, line: LogLine, rows: Mapping[Meaning, Match]) -> bool:
        row = next(row for row in _PROVEN if row in rows)
        at = rows[row].at
        kept = self.open is not None and self.open.timed_out is not None and row is devices.IN_LIST
        told = words.host_side(line, at, row, self.open if kept else None)
        earlier = self.open.lines if kept and self.open is not None else []
        key = self._same_refusal(line, rows[row][0])
        self.tell(codes.HOST_SIDE_FAILURE, key, told, [*earlier, line], True, {line: at})
        return True

    def _same_refusal(self, line: LogLine, words_: str) -> str:
        """The VMM and the runtime both tell of one refusal, one right after the other."""
        before, self.last_refusal = self.last_refusal, (words_, line.wall_ns)
        if before is None or before[1] is None or line.wall_ns is None:
            return words_
        if 0 <= line.wall_ns - before[1] < _AT_ONCE_NS:
            self.last_refusal = (before[0], line.wall_ns)
        return self.last_refusal[0]

    def _start_refused(self, line: LogLine, rows: Mapping[Meaning, Match]) -> bool:
        match = rows[devices.START_REFUSED]
        if match[1] == "Start" and (self._start_failed or match[2].startswith("Upcall")):
            self._start_failed = True
            told = words.init_failed(line, match.at)
            self.tell(codes.NO_UPCALL, "init", told, [line], True, {line: match.at})
            return True
        self._start_failed |= match[1] == "Start"
        told = words.host_side(line, match.at, devices.START_REFUSED)
        key = self._same_refusal(line, match[0])
        self.tell(codes.HOST_SIDE_FAILURE, key, told, [line], True, {line: match.at})
        return True

    def _action_failed(self, line: LogLine, rows: Mapping[Meaning, Match]) -> bool:
        match = rows[runtime.ACTION_FAILED]
        if runtime.REMOVE_FAILED in rows or runtime.HOST_REMOVE in rows:
            return True  # the guest may have been asked before
        told = words.host_side(line, match.at, runtime.ACTION_FAILED)
        self.tell(codes.HOST_SIDE_FAILURE, match[1], told, [line], False, {line: match.at})
        return True

    def _missing_device(self, line: LogLine, rows: Mapping[Meaning, Match]) -> bool:
        match = rows[runtime.UEVENT]
        places = _PLACE.findall(match[1])
        if len(places) > 1 or _NOT_DRAGONBALLS.search(match[1]):
            return True  # a bridge, or a bus that Dragonball has not: another VMM's guest
        slot = places[0][3:5] if places else ""
        disk = self._slots.get(slot)
        told = words.missing_device(places[0] if places else "", disk[0] if disk else "")
        lines = [*([disk[1]] if disk else []), line]
        key = places[0] if places else match[1][:80]
        certain = self.keyed and self.is_dragonball
        self.tell(codes.MISSING_IN_GUEST, key, told, lines, certain, {line: match.at})
        return True

    def _missing_cpus(self, line: LogLine, rows: Mapping[Meaning, Match]) -> bool:
        lost = (codes.RESET_WHILE_BUSY, codes.IDLE_CHANNEL_LOST)
        explained = any(f.code in lost for f in self.findings.values())
        told = words.missing_cpus(rows[runtime.NOT_ONLINE][1], explained)
        certain = self._sure and explained
        at = {line: rows[runtime.NOT_ONLINE].at}
        self.tell(codes.MISSING_IN_GUEST, "cpus", told, [line], certain, at)
        return True


def _kind_of_disk(text: str) -> str:
    if "remove" in text.lower():
        return "disk-del"
    return "disk-add" if "block" in text or "drive" in text else "unknown"


_Decider = Callable[[VmmStory, LogLine, Mapping[Meaning, Match]], bool]
_ERRORS: Final[tuple[tuple[Meaning, _Decider], ...]] = (
    (devices.START_REFUSED, VmmStory._start_refused),
    (client.SEND_FAILED, VmmStory._send_failed),
    (client.NOT_READY, VmmStory._not_ready),
    (runtime.RETRIES_SPENT, VmmStory._not_ready),
    (client.OTHER_CLIENT, VmmStory._not_ready),
    (client.WEDGED, VmmStory._is_wedged),
    (devices.LATE_REFUSAL, VmmStory._second_step),
    (runtime.TIMED_OUT, VmmStory._times_out),
    *((row, VmmStory._host_side) for row in _PROVEN),
    (runtime.ACTION_FAILED, VmmStory._action_failed),
    (runtime.UEVENT, VmmStory._missing_device),
    (runtime.NOT_ONLINE, VmmStory._missing_cpus),
)
"""The first that is in a line decides it."""
