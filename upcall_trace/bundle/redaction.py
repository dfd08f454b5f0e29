"""Takes out of texts what identifies people and hosts, and leaves what explains a failure.

Every value gets a placeholder, the same one wherever it stands: `host-1`, `id-2`, `ip-1`. Lines
that belong together still do. The kernel's addresses and registers stay, and so do times and sizes.
docs/redaction.md tells where these patterns are used, and what they cannot know.
"""

from __future__ import annotations

import ipaddress
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Final

_MOST_VALUES: Final = 100_000
"""Distinct values of a kind that are told apart; a hostile log could name any number."""
_REMEMBERED: Final = 256
"""The longest value whose stand-in is found again without counting up kinds."""
_MOST_NAMES: Final = 500
"""Hosts and users that are found wherever they stand."""

KINDS: Final = {
    "host": "host names",
    "id": "pod, sandbox and container ids",
    "ip": "IP addresses",
    "mac": "MAC addresses",
    "user": "user names and their directories",
    "name": "names of pods, disks and everything that is no word of the log reader's",
    "path": "paths",
    "token": "passwords, keys and tokens",
    "pid": "process numbers",
    "line": "lines that say nothing about upcall, left out",
    "long": "lines of more than a megabyte",
    "mark-name": "names of marks in captures",
    "capture-host": "host names in captures",
    "capture-note": "notes in captures",
    "capture-client": "client process, user and group numbers in captures",
    "capture-mark": "texts of marks in captures",
}
"""What is taken out, and how it is called in front of people."""

# Words that hosts and users have been called, and that logs are full of.
_ORDINARY: Final = frozenset(
    b"admin agent app boot build builder client connect console core cpu data debug debian device "
    b"dragonball error fatal fedora guest host info init kata kernel linux localhost main memory "
    b"network node none null notice qemu root runner runtime server service socket stderr stdout "
    b"systemd test trace ubuntu upcall user vagrant vcpu virtio vmm vsock warn warning".split()
)
_PLACEHOLDER: Final = re.compile(rb"(?:host|id|ip|mac|user|name|path|pid|long|token)-(?:\d+|more)")

_HOST: Final = rb"[A-Za-z0-9][\w.:-]*"
_TAG: Final = rb"(?=[^\s:\[]+\[\d+\]:|kernel:)"
_DAY: Final = rb"\d{4}-\d\d-\d\d"
_CLOCK: Final = rb"\d\d:\d\d:\d\d[.,\d]*"
_PREFIXES: Final = tuple(
    re.compile(rb"^((?:<\d{1,3}>)?" + before + rb")(" + _HOST + rb") " + after, re.MULTILINE)
    for before, after in (
        (rb"[A-Z][a-z]{2} [ \d]\d " + _CLOCK + rb" ", rb"(?=[^\s:]+:)"),
        (_DAY + rb"T" + _CLOCK + rb"(?:Z|[+-]\d\d:?\d\d) ", rb"(?=[^\s:]+:)"),
        (rb"1 " + _DAY + rb"T\S+ ", rb""),
        (rb"[A-Z][a-z]{2} " + _DAY + rb" " + _CLOCK + rb" [A-Z]{2,5} ", _TAG),
        (rb"\[ *\d+\.\d+\] ", _TAG),
        (rb"\d{9,11}\.\d+ ", _TAG),
    )
)
"""The beginnings of syslog and journal lines, up to the host and what has to follow it."""

_BEGINS: Final = rb"(?:(?<![A-Za-z0-9_-])|(?<=\\[nrt])|(?<=[0-9;\[]m))"
"""Where a word may begin: also behind an escaped newline, and behind a colour."""
_QUOTED: Final = rb"\\?\"\s*:\s*\\?\""
_KEY_HOST: Final = re.compile(
    rb"(?i)((?<![a-z])(?:_?host_?name(?:" + _QUOTED + rb"|\s*[:=]\s*\"?| (?:set )?to <)"
    rb"|(?:host|node(?:_?name)?)(?:" + _QUOTED + rb"|=\\?\"?)))(" + _HOST + rb")"
)
_KEY_NAME: Final = re.compile(
    rb"(?i)((?<![a-z])(?:pod(?:[_.-]?name(?:space)?)?|namespace)(?:" + _QUOTED + rb"|=\\?\"?))"
    rb"([A-Za-z][^\s\"\\,;&}\])]*)"
)
_KEY_USER: Final = re.compile(
    rb"(?i)((?<![a-z])user(?:_?name)?(?:" + _QUOTED + rb"|=\\?\"?))([A-Za-z][\w.-]*)"
)
_CLOUD_HOST: Final = re.compile(rb"\bip-\d{1,3}-\d{1,3}-\d{1,3}-\d{1,3}\b(?:\.[\w-]+)*")
_AT: Final = re.compile(rb"(?<![\w.+-])[A-Za-z_][\w.+-]*@[A-Za-z][\w-]*(?:\.[\w-]+)*")
_HOME: Final = re.compile(
    rb"\\?/(?:home|Users)\\?/[^/\\\s\"':,;<>|()\[\]{}]+|/run/user/\d+"
    rb"|(?<![\w./-])\\?/root(?![\w-])"
)
_UUID: Final = re.compile(
    rb"(?:(?<![0-9a-fA-F])|(?<=pod))[0-9a-fA-F]{8}([-_])[0-9a-fA-F]{4}\1[0-9a-fA-F]{4}\1"
    rb"[0-9a-fA-F]{4}\1[0-9a-fA-F]{12}(?![0-9a-fA-F])"
)
_MAC: Final = re.compile(
    rb"(?<![0-9a-fA-F:])[0-9a-fA-F]{2}([:-])(?:[0-9a-fA-F]{2}\1){4,18}[0-9a-fA-F]{2}(?![0-9a-fA-F:])"
)
_IPV6: Final = re.compile(rb"(?<![\w:.])(?=[0-9a-fA-F]{0,4}:)[0-9a-fA-F:.]{2,48}(?![\w:.])")
"""Bounded: a line of nothing but colons is looked at once, not once from each of them."""
_IPV4: Final = re.compile(rb"(?<![\d.])(?:\d{1,3}\.){3}\d{1,3}(?!\.?\d)")
_HEX: Final = re.compile(rb"(?<![0-9a-fA-F])(?<!0[xX])[0-9a-fA-F]{12,}")
_KEY_SECRET: Final = re.compile(
    rb"(?i)((?:pass(?:word|wd)?|pwd|secret|token|api_?-?key|access_?-?key|account_?key|credentials?"
    rb"|auth|authorization|cookie|session(?:_?id)?|sig)\\{0,7}[\"']?\s{0,4}[:=]\s{0,4}\\{0,7}[\"']?"
    rb"(?:(?:Bearer|Basic|Digest) )?)([^\s\"'\\,;&<>]{1,4096})"
)
_USERINFO: Final = re.compile(rb"(://)([^\s/@\"'<>]{1,512})(?=@)")
_LONG_WORD: Final = re.compile(rb"(?<![A-Za-z0-9+_~-])[A-Za-z0-9+_~-]{16,}={0,2}")
_NAMED_ID: Final = re.compile(rb"(?:/|(?:id|sandbox|container|pod)\W{0,4}|[a-z]-)\Z", re.IGNORECASE)
_KERNEL_LINE: Final = re.compile(rb"\[ *\d+\.\d+\]")
_REGISTER: Final = re.compile(rb"(?:[A-Z][A-Z0-9]{1,5}|[0-9]{4}|address|x\d\d?|pc|lr|sp) ?: ?\Z")
_NUMBERS: Final = re.compile(rb"\[\s*\d{1,3}(?:\s*,\s*\d{1,3}){7,}\s*\]")
"""How `journalctl -o json` writes a text with control bytes: as numbers."""


class Redactor:
    """Placeholders for one bundle. First let it `learn` every text, then `redact` them."""

    def __init__(self, hosts: Iterable[str] = (), also: Iterable[str] = ()) -> None:
        """`hosts` are names that are known beforehand, `also` words to take out anywhere."""
        words = sorted({word.encode() for word in also if word}, key=len, reverse=True)
        self._also = re.compile(b"(?i)" + b"|".join(map(re.escape, words))) if words else None
        self._values: dict[str, dict[bytes, int]] = {}
        self._told: dict[tuple[str, str], str] = {}
        self._places: Counter[str] = Counter()
        self._names: dict[str, set[bytes]] = {"host": set(), "user": set()}
        self._known: dict[str, re.Pattern[bytes]] = {}
        for host in hosts:
            self.learn_name("host", host.encode("utf-8", "surrogatepass"))

    def learn_name(self, kind: str, name: bytes) -> None:
        """The name of a `host` or `user` that is to be found wherever it stands."""
        label = name.partition(b".")[0].lower() if kind == "host" else name.lower()
        if len(label) < 3 or label in _ORDINARY or label.isdigit() or _PLACEHOLDER.match(label):
            return
        names = self._names[kind]
        if label not in names and len(names) < _MOST_NAMES:
            names.add(label)
            one = b"|".join(map(re.escape, sorted(names, key=len, reverse=True)))
            domain = rb"(?:\.[A-Za-z0-9][\w-]*)*" if kind == "host" else rb""
            self._known[kind] = re.compile(
                rb"(?i)" + _BEGINS + rb"(?:" + one + rb")(?![\w-])" + domain
            )

    def learn(self, text: bytes) -> None:
        """Find the names of hosts and users in whole lines, by where they stand."""
        for pattern in (*_PREFIXES, _KEY_HOST):
            for found in pattern.finditer(text):
                self.learn_name("host", found[2])
        for found in _KEY_USER.finditer(text):
            self.learn_name("user", found[2])
        for found in _HOME.finditer(text):
            self.learn_name("user", _home_owner(found[0]))

    def redact(self, text: bytes) -> bytes:
        """`text` with placeholders; lines should be whole."""
        text = _NUMBERS.sub(self._spelled_out, text)
        if self._also is not None:
            text = self._also.sub(lambda found: self._placeholder("name", found[0]), text)
        for pattern in (_KEY_SECRET, _USERINFO):
            text = pattern.sub(lambda m: m[1] + self._placeholder("token", m[2]), text)
        text = _LONG_WORD.sub(self._long_word, text)
        text = _UUID.sub(self._uuid, text)
        text = self._whole(_AT, "user", text)
        text = self._whole(_CLOUD_HOST, "host", text)
        for pattern in (*_PREFIXES, _KEY_HOST):
            text = pattern.sub(self._host_behind, text)
        if "host" in self._known:
            text = self._whole(self._known["host"], "host", text)
        text = _KEY_NAME.sub(lambda m: m[1] + self._placeholder("name", m[2]), text)
        text = _KEY_USER.sub(lambda m: m[1] + self._placeholder("user", m[2]), text)
        text = _HOME.sub(lambda m: b"/" + self._placeholder("user", _home_owner(m[0])), text)
        if "user" in self._known:
            text = self._whole(self._known["user"], "user", text)
        text = self._whole(_MAC, "mac", text)
        text = _IPV6.sub(self._ipv6, text)
        text = _IPV4.sub(self._ipv4, text)
        return _HEX.sub(self._hex, text)

    def clean(self, text: str) -> str:
        """`text` without the words that the user asked for, and otherwise as it is."""
        if self._also is None:
            return text
        raw = text.encode("utf-8", "surrogatepass")
        cleaned = self._also.sub(lambda found: self._placeholder("name", found[0]), raw)
        return cleaned.decode("utf-8", "surrogatepass")

    def unreadable(self) -> bytes:
        """What stands for a line that is too long to be looked at."""
        return self._placeholder("long", b"")

    def placeholder(self, kind: str, text: str) -> str:
        """What stands for a text that is taken out as a whole."""
        known = self._told.get((kind, text))
        if known is not None:
            self._places[kind] += 1
            return known
        told = self._numbered(kind, text.encode("utf-8", "surrogatepass")).decode("ascii")
        if len(text) <= _REMEMBERED and len(self._told) < _MOST_VALUES:
            self._told[kind, text] = told
        return told

    def left_out(self, lines: int) -> None:
        """Count lines of a log that are not in the redacted copy."""
        self._values.setdefault("line", {})
        self._places["line"] += lines

    def account(self) -> list[dict[str, str | int]]:
        """What was taken out, by kind: how many values, at how many places. Never the values."""
        return [
            {
                "kind": kind,
                "what": what,
                "values": len(self._values[kind]),
                "places": self._places[kind],
            }
            for kind, what in KINDS.items()
            if kind in self._values
        ]

    def _placeholder(self, kind: str, value: bytes, key: bytes | None = None) -> bytes:
        """The same for what a pattern found, which may be a placeholder already."""
        return value if _PLACEHOLDER.fullmatch(value) else self._numbered(kind, value, key)

    def _numbered(self, kind: str, value: bytes, key: bytes | None = None) -> bytes:
        self._places[kind] += 1
        numbers = self._values.setdefault(kind, {})
        key = (value if key is None else key).lower()
        number = numbers.get(key)
        if number is None:
            if len(numbers) >= _MOST_VALUES:
                return f"{kind}-more".encode()
            number = numbers[key] = len(numbers) + 1
        return f"{kind}-{number}".encode()

    def _whole(self, pattern: re.Pattern[bytes], kind: str, text: bytes) -> bytes:
        key: Callable[[bytes], bytes] = _label if kind == "host" else bytes
        return pattern.sub(lambda m: self._placeholder(kind, m[0], key(m[0])), text)

    def _host_behind(self, found: re.Match[bytes]) -> bytes:
        host = found[2]
        if host.lower() in _ORDINARY:
            return found[0]
        after = found[0][len(found[1]) + len(host) :]
        return found[1] + self._placeholder("host", host, _label(host)) + after

    def _uuid(self, found: re.Match[bytes]) -> bytes:
        return self._placeholder("id", found[0], found[0].replace(found[1], b""))

    def _ipv6(self, found: re.Match[bytes]) -> bytes:
        text = found[0]
        address = text.rstrip(b".")
        if not text.endswith(b"::"):
            address = address.rstrip(b":")
        if b"::" not in address and address.count(b":") != 7:
            return text
        try:
            parsed = ipaddress.IPv6Address(address.decode())
        except ValueError:
            return text
        if parsed.is_loopback or parsed.is_unspecified:
            return text
        return self._placeholder("ip", address, parsed.packed.hex().encode()) + text[len(address) :]

    def _ipv4(self, found: re.Match[bytes]) -> bytes:
        address = found[0]
        octets = [int(octet) for octet in address.split(b".")]
        if max(octets) > 255 or octets[0] == 127 or not any(octets):
            return address
        return self._placeholder("ip", address)

    def _hex(self, found: re.Match[bytes]) -> bytes:
        digits, text, begin = found[0], found.string, found.start()
        before = text[max(0, begin - 16) : begin]
        if digits.isdigit() and len(digits) < 20 and not _NAMED_ID.search(before):
            return digits  # a time or a size
        if digits[:-1].isdigit() and digits[-1:] in b"eE" and before.endswith(b"."):
            return digits  # a fraction with an exponent
        if len(digits) == 16:
            line = text[max(text.rfind(b"\n", 0, begin), begin - 200, 0) : begin]
            if _REGISTER.search(before) or _KERNEL_LINE.search(line):
                return digits  # an address or a register of the kernel's
        # A container's id is often cut to its first twelve digits.
        return self._placeholder("id", digits, digits[:12] if len(digits) == 64 else digits)

    def _long_word(self, found: re.Match[bytes]) -> bytes:
        """What is mixed from small and capital letters and digits is no word of a log."""
        word = found[0]
        mixed = word.upper() != word != word.lower() and any(48 <= c < 58 for c in word)
        return self._placeholder("token", word) if mixed else word

    def _spelled_out(self, found: re.Match[bytes]) -> bytes:
        numbers = [int(number) for number in found[0].strip(b"[]").split(b",")]
        if max(numbers) > 255:
            return found[0]
        text = self.redact(bytes(numbers)).decode("utf-8", "backslashreplace")
        return json.dumps(text).encode()


def _label(host: bytes) -> bytes:
    """A host's name without its domain: both are the same host."""
    return host if host.replace(b".", b"").isdigit() else host.partition(b".")[0]


def _home_owner(path: bytes) -> bytes:
    return path.replace(b"\\", b"").rstrip(b"/").rpartition(b"/")[2]
