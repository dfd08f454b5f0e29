"""Invented secrets in the filled-in parts of lines that stay, in every dress that logs have."""

from __future__ import annotations

import html
import json
import re
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support import run
from upcall_trace.bundle.allowed_lines import allowed_lines
from upcall_trace.bundle.allowed_text import allowed_text, allowed_words
from upcall_trace.bundle.redaction import Redactor
from upcall_trace.logs.meaning import Meaning
from upcall_trace.logs.table import ROWS

SECRETS: list[tuple[str, str]] = [
    (each["kind"], each["secret"])
    for each in json.loads(Path(__file__).with_name("invented_secrets.json").read_text("utf-8"))
]
SAID = (
    "vmm action error: Block(InvalidPath(%s))",
    'vmm action error: UpcallServerNotReady env="X=%s" y=%s',
    "failed to hot-add pci virtio block device %s, HotplugDevice(SendRequest(Kind(Reset)))",
    "block device path '/run/%s/x' already exists",
    'success to send InsertBlockDevice(BlockDeviceConfigInfo { drive_id: "%s" }) after retry 0',
    "Kernel panic - not syncing: %s",
    "launching /opt/kata/bin/qemu-system-x86_64 with: [-name sandbox-%s -smbios %s]",
    'Failed to remove block device "d"\n\nCaused by:\n    0: %s\n    1: vmm action error: %s',
)
"""Where a secret may stand in a line that is understood."""
Dress = Callable[[str, str], str]
_T = "2024-01-02T03:04:05"


def each_line(text: str, begin: str) -> str:
    return "\n".join(f"{begin}{line}" for line in text.split("\n"))


def partial(said: str) -> str:
    """A container's log cuts a long line into pieces."""
    said = said.replace("\n", " ")
    pieces = [said[at : at + 17] for at in range(0, len(said), 17)]
    ends = ["P"] * (len(pieces) - 1) + ["F"]
    return "\n".join(f"{_T}.1Z stdout {end} {part}" for part, end in zip(pieces, ends, strict=True))


def exported(said: str, secret: str) -> str:
    size = len(said.encode()).to_bytes(8, "little").decode("latin1")
    message = f"MESSAGE\n{size}{said}" if "\n" in said and len(said) < 128 else (
        f"MESSAGE={said.partition(chr(10))[0]}"
    )  # fmt: skip
    return f"__CURSOR=s=aa\n_HOSTNAME={secret}\n_CMDLINE={secret}\n{message}\nSOURCE={secret}\n"


def logfmt(said: str, secret: str) -> str:
    return f'time="{_T}Z" level=error msg={json.dumps(said)} sandbox={secret} extra="{secret}"'


DRESSES: dict[str, Dress] = {
    "plain": lambda said, secret: said,
    "crlf": lambda said, secret: said.replace("\n", "\r\n") + "\r",
    "journal-short": lambda said, secret: each_line(said, "Jan  2 03:04:05 n1 kata[123]: "),
    "journal-json": lambda said, secret: json.dumps(
        {"MESSAGE": said, "_HOSTNAME": secret, "SOURCE": secret, "SUBSYSTEM": secret,
         "SYSLOG_IDENTIFIER": secret, "pod": secret, "_PID": "1", "_CMDLINE": secret}),
    "journal-json-bytes": lambda said, secret: json.dumps(
        {"MESSAGE": [*said.encode()], "_HOSTNAME": "n1", "_CMDLINE": [*secret.encode()]}),
    "journal-export": exported,
    "journal-verbose": lambda said, secret: (
        f"Tue 2024-01-02 03:04:05.1 UTC [s=0123456789abcdef;i=1;b=22;m=3;t=4;x=5]\n"
        f"    _HOSTNAME={secret}\n    SOURCE={secret}\n    MESSAGE={said}\n    _PID=123"),
    "cri": lambda said, secret: each_line(said, f"{_T}.123456789Z stdout F "),
    "cri-partial": lambda said, secret: partial(said),
    "docker": lambda said, secret: json.dumps(
        {"log": f"{said}\n", "stream": "stdout", "time": f"{_T}.1Z", "attrs": {"x": secret}}),
    "klog": lambda said, secret: (
        f'E0102 03:04:05.678901    1234 remote.go:1] "{said}" err="{secret}" pod="{secret}"'),
    "dmesg": lambda said, secret: each_line(said, "[    2.123456] "),
    "kata-json": lambda said, secret: "containerd[77]: " + json.dumps(
        {"msg": said, "ts": f"{_T}Z", "source": secret, "subsystem": secret, "pid": "123"}),
    "kata-console": lambda said, secret: json.dumps(
        {"msg": said, "ts": f"{_T}Z", "source": secret, "subsystem": "dmesg", "pid": "123"}),
    "logfmt": logfmt,
    "logfmt-in-journal": lambda said, secret: f"Jan  2 03:04:05 n1 c[9]: {logfmt(said, secret)}",
    "json-in-json": lambda said, secret: json.dumps(
        {"log": json.dumps({"message": json.dumps({"msg": said, "sandbox": secret})})}),
    "otel": lambda said, secret: json.dumps({"resourceLogs": [{"resource": {"attributes": [
        {"key": "k8s.pod.name", "value": {"stringValue": secret}}]}, "scopeLogs": [
        {"logRecords": [{"body": {"stringValue": said}}]}]}]}),
    "loki": lambda said, secret: json.dumps({"streams": [
        {"stream": {"pod": secret, "host": secret}, "values": [["1704164645000000000", said]]}]}),
    "syslog-5424": lambda said, secret: (
        f'<34>1 {_T}Z {secret.replace(" ", "_")} kata 123 ID47 [ex@1 a="{secret}"] {said}'),
    "ansi": lambda said, secret: (
        "\x1b[31m" + said.replace(secret, f"{secret[:3]}\x1b[0m{secret[3:]}")),
    "numbered": lambda said, secret: f"     7\t{said}",
    "markdown": lambda said, secret: each_line(said, "> "),
    "html": lambda said, secret: f"<pre>{html.escape(said)}</pre>",
    "error-for-the-user": lambda said, secret: f"Others({json.dumps(said)}): unknown",
    "array": lambda said, secret: json.dumps([{"msg": said, "host": secret}]),
    "fluentd": lambda said, secret: json.dumps(
        [1704164645.5, {"log": said, "kubernetes": {"pod_name": secret, "host": secret}}]),
    "event": lambda said, secret: json.dumps(
        {"kind": "Event", "metadata": {"name": secret}, "message": said, "source": secret}),
    "json-in-json-in-json": lambda said, secret: json.dumps({"log": json.dumps(
        {"msg": json.dumps({"message": said, "sandbox": secret}), "host": secret}) + "\n"}),
    "compose": lambda said, secret: f"{secret}-1  | {said}",
    "kubectl-prefix": lambda said, secret: f"[pod/{secret}/c] {said}",
    "actions": lambda said, secret: f"{_T}.1234567Z ##[error]{said}",
    "thread": lambda said, secret: f"[    2.123456] [T123] {said}",
    "host": lambda said, secret: f"Jan  2 03:04:05 {secret} {secret}[12]: {said}",
    "csv": lambda said, secret: f'{_T}Z,{secret},"{said}"',
    "twice": lambda said, secret: f"{said}\n{said}",
    "bytes-behind": lambda said, secret: f"{said} {secret.encode().hex(' ')}",
    "list-behind": lambda said, secret: f"{said} {[*secret.encode()]}",
}  # fmt: skip


def log_of(name: str, kinds: list[tuple[str, str]]) -> str:
    between = "\n\n" if name == "journal-export" else "\n"
    made = (
        DRESSES[name](said.replace("%s", secret), secret) for _, secret in kinds for said in SAID
    )
    return between.join(made) + "\n"


def left(secret: str, text: str) -> bool:
    """Whether it or a long part of it stands in the text, as it is or escaped."""
    escaped = {secret, json.dumps(secret)[1:-1], json.dumps(secret, ensure_ascii=False)[1:-1]}
    if any(each in text for each in escaped):
        return True
    parts = re.findall(r"[A-Za-z0-9]{7,}", secret)
    return any(part in text for part in parts if part.lower() not in allowed_words())


@pytest.mark.parametrize("name", DRESSES)
def test_no_secret_comes_through_in_any_dress(name: str) -> None:
    redactor = Redactor()
    blocks = [log_of(name, SECRETS).encode()]
    lines = [line for line in allowed_lines(blocks, redactor.placeholder) if isinstance(line, str)]
    assert len(lines) >= len(SECRETS) - 1
    copy = "\n".join(lines)
    assert [kind for kind, secret in SECRETS if left(secret, copy)] == []


@pytest.mark.parametrize(
    ("name", "encoding"),
    [("plain", "utf-16"), ("kata-json", "utf-16-le"), ("dmesg", "utf-8-sig")],
)
def test_nothing_of_them_is_in_any_file_of_an_archive_or_told(
    name: str, encoding: str, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    log.write_bytes(log_of(name, SECRETS).encode(encoding))
    archive = tmp_path / "a.tar.gz"
    told = run("bundle", "--vmm-log", log, "--redact", "-o", archive)
    assert told.code == 0, told.err
    texts = [told.out.replace(str(tmp_path), ""), told.err.replace(str(tmp_path), "")]
    with tarfile.open(archive) as tar:
        for member in tar.getmembers():
            content = tar.extractfile(member)
            assert content is not None
            texts += [member.name, content.read().decode()]
    for kind, secret in SECRETS:
        for text in texts:
            assert not left(secret, re.sub(r'"?sha256"?', "", text)), kind


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # A number stays behind a word of the table, and behind nothing else.
        ("vmm action error: password=4711", "vmm action error: name-1=name-2"),
        ("vmm action error: PIN 4711", "vmm action error: name-1 name-2"),
        ("remove drive 4111 1111 1111 1111", "remove drive name-1 name-1 name-1 name-1"),
        ("remove drive +49 170 1234567", "remove drive name-1 name-1 name-1"),
        ("remove drive 0x5000c500a1b2c3d4", "remove drive name-1"),
        ("exiting vcpus [115, 101, 99]", "exiting vcpus [name-1, name-1, name-1]"),
        ("CPU: 1 UID: 61234 PID: 7 Comm: db_dev_mgr", "CPU: 1 UID: 0 PID: 7 Comm: db_dev_mgr"),
        # A number joined to a word stays in the names of devices only.
        ("virtio4 db_dev_mgr:54 3s 100MB vcpu1", "virtio4 db_dev_mgr:54 3s 100MB vcpu1"),
        ("guest-17 kata-4711 6F 2d", "name-1 name-2 name-3 name-4"),
        # What looks like a stand-in gets one of its own.
        ("remove drive host-4711 user-61234 host-4711", "remove drive host-1 user-1 host-1"),
        # A kernel's version stays as such only, and an address is no longer than a device's.
        ("Linux version 6.1.192, at 10.11.12 23.07.84", "Linux version 6.1.192, at name-1 name-1"),
        ("value at 0xfeb00400 at 0xdeadbeefcafebabe", "value at 0xfeb00400 at name-1"),
        ("remove drive \U0001f511", "remove drive name-1"),
        # A path loses all but the program that tells another VMM.
        ("launching /home/eve/qemu-kvm with", "launching path-1/qemu-kvm with"),
        ("hvsock:///run/vc/eve/clh.sock:1024", "path-1/clh.sock:1024"),
        # What is written out ends a line, too.
        ('Others("eve\\n\\nCaused by: eve")', 'Others("name-1\\n\\nCaused by: name-1")'),
    ],
)  # fmt: skip
def test_numbers_and_paths_in_a_line_that_stays(text: str, expected: str) -> None:
    assert allowed_text(text, Redactor().placeholder) == expected


@pytest.mark.parametrize(
    "text",
    [
        "exiting vcpus [5, 4, 3, 2]",
        "create virtio mmio device 0x2000@0xe0006000, irq: 0x5",
        "platform virtio-mmio.3: failed to claim resource 0: [mem 0xfeaffe01-0xfeb00000]",
        "/ # [    2.692138] virtio-mmio: Registering device virtio-mmio.2 at 0xfeb003ff-0xfeb005fe",
        "db-dev-mgr: remove pci device of busno: 00, devfn: 30",
        "RIP: 0010:del_cpu_dev+0x52/0x18e",
        "CPU: 1 PID: 54 Comm: db_dev_mgr Not tainted 5.10.223 #1",
        "create device op context error: UpcallServerNotReady",
        "upcall connect server check failed, upcall server connect error: operation would block",
        "vmm action error: StartMicroVm(UpcallMissVsock)",
        '\\"db-dev-mgr: add vcpu number: 1\\"',
        "Time out after 3s waiting for uevent",
        "[2026-11-22T15:14:47Z INFO  dbs_upcall] upcall connect server success",
    ],
)  # fmt: skip
def test_what_a_finding_needs_stays_as_it_is(text: str) -> None:
    assert allowed_text(text, Redactor().placeholder) == text


FILLED_IN = re.compile(r"[/0-9.]|gamma|Kind|Regex")


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.anchor[:40])
def test_every_line_keeps_its_fixed_words(row: Meaning) -> None:
    taken: list[str] = []

    def stand_in(kind: str, text: str) -> str:
        taken.append(text)
        return f"{kind}-1"

    allowed_text(row.example, stand_in)
    assert [text for text in taken if not FILLED_IN.search(text)] in ([], ["ffffffffa1ad3480"])


def test_many_numbers_in_a_row_take_linear_time() -> None:
    """Ten times the line may take some thirty times as long, and not a hundred times."""

    def seconds(size: int) -> float:
        text = "x] 123456 " * size
        begin = time.process_time()
        allowed_text(text, Redactor().placeholder)
        allowed_text("123456 " * size, Redactor().placeholder)
        return time.process_time() - begin

    assert seconds(10_000) < 0.01 + 30 * max(seconds(1_000), 0.001)
