"""Every parser of what comes from outside, as a function of bytes that raises our errors only."""

from __future__ import annotations

import io
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from dissectors.channel import Client, NeedData, Server
from dissectors.constants import Arch
from dissectors.hvsock import line_end, ok_line_end, parse_connect, parse_ok
from dissectors.messages import decode_reply, decode_request, hello
from dissectors.observer import Observer
from dissectors.vsockmon import decode_packet
from tests.fuzz import heaps, samples
from upcall_trace.bundle.allowed_lines import allowed_lines
from upcall_trace.bundle.redaction import Redactor
from upcall_trace.capture.encoding import decode as decode_record
from upcall_trace.capture.encoding import encode as encode_record
from upcall_trace.capture.frames import unpack
from upcall_trace.capture.records import Header
from upcall_trace.cli.support.times import parse_moment
from upcall_trace.compare.matchers import parse_matcher, parse_rules, read_matchers
from upcall_trace.control.orders import name_and_value
from upcall_trace.control.target_note import read_target_note
from upcall_trace.diagnose.choosing import FindingChoice
from upcall_trace.diagnose.log_inputs import read_logs, read_stream
from upcall_trace.diagnose.whole_capture import WholeCapture
from upcall_trace.errors import UpcallError
from upcall_trace.kernel.faults import parse_fault
from upcall_trace.kernel.world import load_worlds
from upcall_trace.replay.rebase import read_map
from upcall_trace.sources import open_source
from upcall_trace.sources.vsock_records import PacketRecords
from upcall_trace.trace.decoding import Session
from upcall_trace.trace.filters import parse as parse_filter
from upcall_trace.trace.opening import load
from upcall_trace.trace.operations import Operations
from upcall_trace.trace.scripting import read_script
from upcall_trace.transform.fields import parse_setting
from upcall_trace.tui.data.settings import read_settings
from upcall_trace.vantage.guest_memory.assembling import assemble
from upcall_trace.vantage.guest_memory.images import Image
from upcall_trace.vantage.guest_memory.locating import locate
from upcall_trace.views.json_objects import operation_object

Take = Callable[[bytes], object]


@dataclass(frozen=True)
class Target:
    """`take` raises an UpcallError for what it refuses; anything else is a find."""

    take: Take
    known: Callable[[], Sequence[bytes]]
    limit_s: float
    """Of the processor, for one input, whatever is in it; a find beyond that."""
    join: Callable[[Sequence[bytes]], bytes] | None = None
    """Makes one input of `heap` mutated parts; `known` are parts then."""
    heap: int = 1


def _message(raw: bytes) -> None:
    raw = raw[:1024].ljust(1024, b"\0")
    arch = Arch.X86_64 if raw[1023] & 1 else Arch.AARCH64
    assert decode_request(raw, arch).encode() == raw
    assert decode_reply(raw, arch).encode() == raw


def _cut_message(raw: bytes) -> None:
    decode_request(raw, Arch.X86_64)
    decode_reply(raw, Arch.X86_64)


def _pieces(raw: bytes) -> list[bytes]:
    """Cut where the bytes themselves say."""
    chance = random.Random(len(raw))
    pieces = []
    while raw:
        size = chance.choice((1, 7, 1023, 1024, 4096))
        pieces.append(raw[:size])
        raw = raw[size:]
    return pieces


def _stream(raw: bytes) -> None:
    """Both ways at once: whatever comes, the observer has every byte of it."""
    observer = Observer(arch=Arch.X86_64)
    observer.to_guest(b"CONNECT 219\n")
    for number, piece in enumerate(_pieces(raw)):
        if number % 3:
            observer.to_guest(piece)
        else:
            observer.from_guest(piece)
    observer.end()


def _peer(raw: bytes) -> None:
    for channel in (Client(), Server()):
        channel.receive_data(raw)
        while not isinstance(channel.next_event(), NeedData):
            pass


def _handshake_line(raw: bytes) -> None:
    line_end(raw)
    ok_line_end(raw)
    parse_connect(raw)
    parse_ok(raw)


def _record(raw: bytes) -> None:
    record = decode_record(unpack(raw))
    if record is not None:
        encode_record(record)


def _packet(raw: bytes) -> None:
    decode_packet(raw)


def _packets(raw: bytes) -> None:
    records = PacketRecords(219)
    session = Session(Header("vsockmon"))
    for number, piece in enumerate(_pieces(raw)):
        for record in records.packet(number, piece):
            session.feed(record)
    session.finish()


class Files:
    """Targets that need a file: `folder` is where it is written each time."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "x"

    def _written(self, raw: bytes, suffix: str = "") -> Path:
        path = self._path.with_name(f"x{suffix}")
        path.write_bytes(raw)
        return path

    def capture(self, raw: bytes) -> None:
        whole = WholeCapture(self._written(raw))
        for operation in whole.operations:
            operation_object(operation)
        for finding in whole.findings:
            str(finding)
        read_script(whole.opened.header, whole.records())

    def source(self, raw: bytes) -> None:
        with open_source(self._written(raw)) as source:
            session = Session(source.header)
            for _, record in source.records():
                encode_record(record)
                session.feed(record)
            session.finish()

    def log(self, raw: bytes) -> None:
        logs = read_logs(found=[self._written(raw)])
        for finding in logs.findings():
            str(finding)

    def world(self, raw: bytes) -> None:
        load_worlds(self._written(raw))

    def settings(self, raw: bytes) -> None:
        read_settings(self._written(raw))

    def matchers(self, raw: bytes) -> None:
        read_matchers(self._path, (), self._written(raw, ".toml"))

    def map(self, raw: bytes) -> None:
        read_map(self._written(raw))

    def baseline(self, raw: bytes) -> None:
        FindingChoice.of((), (), self._written(raw))

    def note(self, raw: bytes) -> None:
        path = self._written(raw, ".target")
        path.chmod(0o600)
        read_target_note(self._path)

    def image(self, raw: bytes) -> None:
        with Image(self._written(raw)) as image:
            found = locate(image.windows(), image.aligned, 219)
            assemble(found, image.read, image.ranges, 219)


def _log_stream(raw: bytes) -> None:
    for finding in read_stream("x", io.BytesIO(raw)).findings():
        str(finding)


def _redaction(raw: bytes) -> None:
    redactor = Redactor()
    for _ in allowed_lines([raw], redactor.placeholder):
        pass
    redactor.learn(raw)
    redactor.redact(raw)


def _text(parse: Callable[[str], object]) -> Take:
    return lambda raw: parse(raw.decode("utf-8", "surrogateescape"))


@cache
def _operations() -> Operations:
    return load(samples.CAPTURES / "framing.upcap").operations


def _filter(raw: bytes) -> None:
    parse_filter(raw.decode("utf-8", "surrogateescape")).mask(_operations())


def _order(raw: bytes) -> None:
    try:
        order = json.loads(raw)
    except (ValueError, RecursionError):
        return
    name_and_value(order)


def targets(folder: Path) -> dict[str, Target]:
    """All of them by name; those that need files write them into `folder`."""
    files = Files(folder)
    many = heaps.HeapFiles(folder)
    moment = 1_800_000_000.0
    return {
        "message": Target(_message, samples.messages, 0.010),
        "cut-message": Target(_cut_message, samples.messages, 0.010),
        "stream": Target(_stream, lambda: [*samples.messages(), hello().encode() * 4], 0.050),
        "peer": Target(_peer, lambda: [*samples.LINES, b"OK 1\n" + hello().encode()], 0.050),
        "handshake-line": Target(_handshake_line, lambda: samples.LINES, 0.010),
        "record": Target(_record, samples.payloads, 0.010),
        "packet": Target(_packet, samples.packets, 0.010),
        "packets": Target(_packets, samples.packets, 0.100),
        "capture": Target(files.capture, samples.captures, 2.0),
        "transcript": Target(files.source, samples.transcripts, 2.0),
        "pcap": Target(files.source, samples.pcaps, 2.0),
        "pcapng": Target(files.source, samples.pcapngs, 2.0),
        "packed": Target(files.source, samples.packed, 2.0),
        "log": Target(files.log, samples.logs, 2.0),
        "log-line": Target(_log_stream, samples.log_lines, 0.100),
        "redaction": Target(_redaction, samples.log_lines, 0.100),
        "image": Target(files.image, samples.images, 5.0),
        "world": Target(files.world, samples.worlds, 0.500),
        "settings": Target(files.settings, lambda: samples.SETTINGS, 0.100),
        "matchers": Target(files.matchers, lambda: samples.MATCHERS, 0.100),
        "records": Target(many.capture, samples.payloads, 5.0, heaps.capture_of, 1000),
        "messages": Target(many.messages, samples.messages, 10.0, heaps.capture_of_messages, 1000),
        "pcap-packets": Target(many.packets, samples.packets, 5.0, heaps.pcap_of, 500),
        "pcapng-packets": Target(many.packets, samples.packets, 5.0, heaps.pcapng_of, 500),
        "transcript-lines": Target(
            files.source, samples.transcript_lines, 5.0, heaps.transcript_of, 500
        ),
        "log-lines": Target(many.log, samples.log_lines, 5.0, heaps.log_of, 500),
        "map": Target(files.map, lambda: samples.MAPS, 0.100),
        "baseline": Target(files.baseline, lambda: samples.BASELINES, 0.100),
        "note": Target(files.note, lambda: samples.NOTES, 0.100),
        "filter": Target(_filter, lambda: samples.FILTERS, 0.500),
        "fault": Target(_text(parse_fault), lambda: samples.FAULTS, 0.010),
        "change": Target(_text(parse_setting), lambda: samples.CHANGES, 0.010),
        "rule": Target(_text(parse_rules), lambda: samples.RULES, 0.010),
        "matcher": Target(_text(parse_matcher), lambda: samples.RULES, 0.010),
        "moment": Target(_text(lambda t: parse_moment(t, moment)), lambda: samples.MOMENTS, 0.010),
        "order": Target(_order, lambda: [b'{"plug_disk": 9}', b'{"reset": true}'], 0.010),
    }


def take(target: Target, raw: bytes) -> None:
    """Give a parser these bytes; returns also when it refuses them."""
    try:
        target.take(raw)
    except UpcallError:
        pass
