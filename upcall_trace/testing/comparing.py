"""What a test sent and got beside what its recording has, request by request.

Requests are aligned by what they ask, on connections in the order in which they were opened, so
that one request more does not make all later ones look different.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from difflib import SequenceMatcher
from itertools import zip_longest

from ..capture.records import Chunk, Close, GaveUp, Open, Record
from ..compare.replies import Got, differences
from ..replay.report import divergence_lines
from ..replay.run import Recording, Replay
from ..replay.target import Target
from ..replay.verdict import Divergence
from ..sources import open_source
from ..trace.script import Asked
from ..views.messages import request_text
from ..views.text import safe


@dataclass(slots=True)
class Comparison:
    """`extra` are requests that the recording does not have, `unused` those that never came.

    `divergences` are requests that both have and that were answered otherwise.
    """

    recorded: Recording
    sent: Recording
    extra: list[Asked] = field(default_factory=list)
    unused: list[Asked] = field(default_factory=list)
    divergences: list[Divergence] = field(default_factory=list)


def compare(recording: Recording, sent: Recording) -> Comparison:
    """Align what was sent with the recording, and hold the answers against its matchers."""
    ours, theirs = _by_connection(recording), _by_connection(sent)
    found = Comparison(recording, sent)
    for wanted, came in zip_longest(ours, theirs, fillvalue=()):
        aligned = SequenceMatcher(None, [*map(_key, wanted)], [*map(_key, came)], autojunk=False)
        for tag, i, j, k, m in aligned.get_opcodes():
            if tag == "equal":
                pairs = zip(wanted[i:j], came[k:m], strict=True)
                found.divergences += _diverging(recording, pairs)
            else:
                found.unused += wanted[i:j]
                found.extra += came[k:m]
    found.divergences.sort(key=lambda divergence: divergence.asked.place)
    return found


def _diverging(recording: Recording, pairs: Iterator[tuple[Asked, Asked]]) -> Iterator[Divergence]:
    for asked, now in pairs:
        if now.cut_off:  # the test ended before an answer could have come
            continue
        got = Got(now.reply, now.reply_raw, now.latency_ns)
        differing = differences(asked, got, recording.matchers)
        if differing:
            yield Divergence(asked, got, differing)


def _by_connection(recording: Recording) -> list[list[Asked]]:
    connections: dict[int, list[Asked]] = {}
    for asked in recording.script.asked.values():
        connections.setdefault(asked.conn, []).append(asked)
    return [connections[conn] for conn in sorted(connections)]


def _key(asked: Asked) -> tuple[object, ...]:
    """What a request asks, without padding."""
    message = asked.message
    header = [getattr(message, name, None) for name in ("magic_version", "msg_size")]
    return message.op, repr(message.fields()), *header, asked.size


def comparison_lines(found: Comparison, target: Target, extra: bool, unused: bool) -> Iterator[str]:
    """The report of what is wrong; `extra` and `unused` say whether those are."""
    recording = found.recorded
    if extra:
        for asked in found.extra:
            yield f"sent, but not in the recording: {asked.name} {request_text(asked.message)}"
    if unused:
        for asked in found.unused:
            yield f"in the recording, but not sent: {asked.name} {request_text(asked.message)}"
    if found.divergences:
        replay = Replay(recording, target)
        if not found.extra and not found.unused:
            replay.happened = list(_records_as_recorded(found))
        yield from divergence_lines(replay, found.divergences[0])
    counts = [
        f"{len(found.extra)} not in the recording" if found.extra else "",
        f"{len(found.unused)} not sent" if found.unused else "",
        f"{len(found.divergences)} answered otherwise" if found.divergences else "",
    ]
    recorded, sent = (len(side.script.asked) for side in (recording, found.sent))
    account = "; ".join(filter(None, counts))
    yield f"{safe(str(recording.path))}: {recorded} requests recorded, {sent} sent: {account}"


def _records_as_recorded(found: Comparison) -> Iterator[Record]:
    """What happened, with the numbers that its connections have in the recording."""
    ours, theirs = _by_connection(found.recorded), _by_connection(found.sent)
    numbers = {came[0].conn: wanted[0].conn for wanted, came in zip(ours, theirs, strict=True)}
    with open_source(found.sent.path) as source:
        for _, record in source.records():
            if isinstance(record, (Chunk, Open, Close, GaveUp)) and record.conn in numbers:
                yield replace(record, conn=numbers[record.conn])
