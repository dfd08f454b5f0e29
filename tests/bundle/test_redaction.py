"""What identifies people and hosts goes, what explains a failure stays, and lines still join."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Final

import pytest

from tests.support import GOLDEN
from upcall_trace.bundle.redaction import KINDS, Redactor

LONG_ID: Final = "8f3a1c2e4b5d6f708192a3b4c5d6e7f808192a3b4c5d6e7f8091a2b3c4d5e6f7"
UUID: Final = "1b4e28ba-2fa1-11d2-883f-0016d3cca427"
CONSOLES: Final = sorted({*GOLDEN.glob("*.console.log")} - {*GOLDEN.glob("*_5_10.*.log")})


def redact(text: str, *hosts: str) -> str:
    redactor = Redactor(hosts)
    raw = text.encode()
    redactor.learn(raw)
    return redactor.redact(raw).decode()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # Beginnings of lines.
        ("Nov  5 12:34:56 node7 kata[12]: up", "Nov  5 12:34:56 host-1 kata[12]: up"),
        ("Nov 15 12:34:56.123 node7 kernel: up", "Nov 15 12:34:56.123 host-1 kernel: up"),
        ("<34>Nov  5 12:34:56 node7 kata: up", "<34>Nov  5 12:34:56 host-1 kata: up"),
        ("<34>1 2023-11-05T12:34:56Z node7 a b - x", "<34>1 2023-11-05T12:34:56Z host-1 a b - x"),
        ("2023-11-05T12:34:56+0100 node7 kata[1]: x", "2023-11-05T12:34:56+0100 host-1 kata[1]: x"),
        ("2023-11-05T12:34:56.1Z node7.lan kata: x", "2023-11-05T12:34:56.1Z host-1 kata: x"),
        ("Sun 2023-11-05 12:34:56 UTC node7 a[1]: x", "Sun 2023-11-05 12:34:56 UTC host-1 a[1]: x"),
        ("[   12.345678] node7 kernel: x", "[   12.345678] host-1 kernel: x"),
        ("1699187696.123456 node7 kata[1]: x", "1699187696.123456 host-1 kata[1]: x"),
        # Fields.
        ('{"_HOSTNAME":"node7"}', '{"_HOSTNAME":"host-1"}'),
        ("    _HOSTNAME=node7", "    _HOSTNAME=host-1"),
        ('{"msg":"{\\"host\\":\\"node7\\"}"}', '{"msg":"{\\"host\\":\\"host-1\\"}"}'),
        ("Hostname set to <node7>.", "Hostname set to <host-1>."),
        ("nodeName=node7 on ip-10-0-0-7.ec2.internal", "nodeName=host-2 on host-1"),
        ('pod=nginx-7c5d namespace="shop"', 'pod=name-1 namespace="name-2"'),
        ('"podName": "web"', '"podName": "name-1"'),
        ('user=bob {"username": "eve"}', 'user=user-1 {"username": "user-2"}'),
        # Ids.
        (f"sandbox {LONG_ID}", "sandbox id-1"),
        (f"/run/kata/{LONG_ID}/root/kata.hvsock", "/run/kata/id-1/root/kata.hvsock"),
        (f"cri-containerd-{LONG_ID}.scope", "cri-containerd-id-1.scope"),
        ("short 8F3A1C2E4B5D", "short id-1"),
        (f"pod {UUID} pod{UUID.replace('-', '_')}.slice", "pod id-1 podid-1.slice"),
        ("/sandboxes/123456789012/x", "/sandboxes/id-1/x"),
        ("a trace b7ad6b7169203331", "a trace id-1"),
        # Addresses.
        ("10.1.2.3:80 10.1.2.4. 10.1.2.3/24", "ip-1:80 ip-2. ip-1/24"),
        ("fe80::5054:ff:fe12:3456%eth0 [2001:db8::1]:80.", "ip-1%eth0 [ip-2]:80."),
        ("ip=10.1.2.3::10.1.2.1:255.255.255.0", "ip=ip-1::ip-2:ip-3"),
        ("52:54:00:12:34:56 52-54-00-12-34-57", "mac-1 mac-2"),
        # People.
        ("open /home/alice/x /home/bob /root/y", "open /user-1/x /user-2 /user-3/y"),
        ("/var/home/alice/x \\/home\\/alice\\/x", "/var/user-1/x /user-1\\/x"),
        ("(builder@buildhost) /run/user/1000/x", "(user-1) /user-2/x"),
        # Passwords, keys and tokens.
        ("DB_PASSWORD=hunter2 x", "DB_PASSWORD=token-1 x"),
        ('{"api_key": "abc"} token: "d e"', '{"api_key": "token-1"} token: "token-2 e"'),
        ("Authorization: Bearer a.b-c", "Authorization: Bearer token-1"),
        ("http://al:pw@proxy.lan:3128", "http://user-1:3128"),
        ("key MIIEpAIBAAKCAQEA1c7 ghp_16C7e42F292c6912E", "key token-1 token-2"),
        # In JSON, behind an escaped newline and behind a colour.
        ("x\\n10.1.2.3 \\u001b[0m10.1.2.4", "x\\nip-1 \\u001b[0mip-2"),
    ],
)  # fmt: skip
def test_what_identifies_is_replaced(text: str, expected: str) -> None:
    assert redact(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        # The lines that findings are made of.
        "create virtio mmio device 0x2000@0xe0006000, irq: 0x5",
        "virtio-mmio: Registering device virtio-mmio.2 at 0xfeb00400-0xfeb005ff, IRQ 7.",
        "[    2.426428] virtio_blk virtio2: [vdb] 16384 512-byte logical blocks (8.39 MB/8.00 MiB)",
        "[    2.460319] pci 0000:00:06.0: BAR 0: failed to assign [mem size 0x00080000]",
        "vmm action error: UpcallServerNotReady",
        "dbs_upcall::dev_mgr_service::x at src/a.rs:12:34",
        # The kernel's numbers.
        "[    2.464639] RSP: 0018:ffa000000028bec0 EFLAGS: 00000286",
        "RBP: 0000000000000001 R08: ff1100000069f418",
        "BUG: unable to handle page fault for address: ffffffffa1ad3480",
        "BIOS-e820: [mem 0x0000000000100000-0x000000001ffdffff] usable",
        # Times, sizes, versions, and addresses that everybody has.
        "2023-11-05T12:34:56.123456789Z INFO dbs: fine",
        '{"__REALTIME_TIMESTAMP":"1699187696123456","size":274877906944,"f":1.2345678901234e-05}',
        "Linux version 6.1.192 5.10.25-1.2.3.4.5 at 12:34:56",
        "127.0.0.1 0.0.0.0 ::1 :: 999.1.1.1",
        "chroot /rootfs, /var/lib/x/root, the root device",
    ],
)
def test_what_explains_stays(text: str) -> None:
    assert redact(text) == text


@pytest.mark.parametrize("path", CONSOLES, ids=lambda path: path.stem)
def test_a_console_of_a_real_guest_comes_through_unchanged(path: Path) -> None:
    raw = path.read_bytes()
    redactor = Redactor()
    redactor.learn(raw)
    assert redactor.redact(raw) == raw
    assert redactor.account() == []


LOG: Final = f"""\
early words of node7 before its name is known, from 10.1.2.3
Nov  5 12:34:56 node7 kata[12]: sandbox {LONG_ID} at 10.1.2.3
Nov  5 12:34:57 node8.example.org kata[12]: NODE7 asked, sandbox {LONG_ID[:12]} at 10.1.2.4
{{"_HOSTNAME":"node7","MESSAGE":"x\\nnode8 \\u001b[0mnode7"}}
"""


def test_one_value_has_one_placeholder_wherever_it_stands() -> None:
    lines = redact(LOG).splitlines()
    assert lines[0] == "early words of host-1 before its name is known, from ip-1"
    assert lines[1] == "Nov  5 12:34:56 host-1 kata[12]: sandbox id-1 at ip-1"
    assert lines[2] == "Nov  5 12:34:57 host-2 kata[12]: host-1 asked, sandbox id-1 at ip-2"
    assert lines[3] == '{"_HOSTNAME":"host-1","MESSAGE":"x\\nhost-2 \\u001b[0mhost-1"}'


def test_a_redacted_text_is_not_redacted_again() -> None:
    once = redact(LOG)
    redactor = Redactor()
    redactor.learn(once.encode())
    assert redactor.redact(once.encode()).decode() == once
    assert redactor.account() == []


def test_a_message_that_the_journal_wrote_as_numbers_is_read() -> None:
    message = "\x1b[0mnode7 says 10.1.2.3"
    line = json.dumps({"_HOSTNAME": "node7", "MESSAGE": [*message.encode()]})
    told = json.loads(redact(line))
    assert told == {"_HOSTNAME": "host-1", "MESSAGE": "\x1b[0mhost-1 says ip-1"}
    assert redact("[1, 2, 3, 4, 5, 6, 7, 8, 999]") == "[1, 2, 3, 4, 5, 6, 7, 8, 999]"


def test_json_stays_json() -> None:
    line = json.dumps({"msg": "a", "host": "node7", "ip": "10.1.2.3", "n": 123456789012, "f": 1e-9})
    told = json.loads(redact(line))
    assert told == {"msg": "a", "host": "host-1", "ip": "ip-1", "n": 123456789012, "f": 1e-9}


def test_a_user_is_found_everywhere_once_a_directory_tells_the_name() -> None:
    text = "alice asks\nopen /home/alice/x\nmalice and root and /root and Alice\n"
    assert redact(text) == "user-1 asks\nopen /user-1/x\nmalice and root and /user-2 and user-1\n"


def test_known_hosts_are_found_as_whole_words_only() -> None:
    assert redact("on Node7, node77 and my-node7", "node7.lan") == "on host-1, node77 and my-node7"


@pytest.mark.parametrize("host", ["kernel", "upcall", "ab", "42", "host-3", ""])
def test_a_host_with_an_ordinary_name_does_not_spoil_the_log(host: str) -> None:
    text = f"the {host} upcall connect server success {host}"
    assert redact(text, host) == text


def test_the_account_has_kinds_and_numbers_and_no_values() -> None:
    redactor = Redactor()
    redactor.learn(LOG.encode())
    redactor.redact(LOG.encode())
    account = redactor.account()
    counts = {row["kind"]: (row["values"], row["places"]) for row in account}
    assert counts == {"host": (2, 7), "id": (1, 2), "ip": (2, 3)}
    assert all(row["what"] == KINDS[str(row["kind"])] for row in account)
    assert not re.search(r"node|10\.1|8f3a", json.dumps(account))


def test_the_number_of_values_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("upcall_trace.bundle.redaction._MOST_VALUES", 2)
    assert redact("10.0.0.1 10.0.0.2 10.0.0.3 10.0.0.1") == "ip-1 ip-2 ip-more ip-1"


def test_text_that_is_no_unicode_comes_back_as_it_was() -> None:
    assert Redactor().redact(b"\xff\x00 10.1.2.3") == b"\xff\x00 ip-1"
