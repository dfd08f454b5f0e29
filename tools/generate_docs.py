"""Makes the tables of the documentation from the definitions they describe.

A page marks where a table goes, and `python -m tools.generate_docs` rewrites what is between the
markers; with `--check` it writes nothing and exits 1 when a page is stale. Another table is one
function and one row of `BLOCKS`. Pages are README.md and every Markdown file under docs/.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from dissectors.channel import CLIENT_SENDS, SERVER_SENDS, TRANSITIONS, Signal
from dissectors.constants import (
    EEXIST,
    EPERM,
    MESSAGE_SIZE,
    RESERVED_TYPES,
    RESULT_MEANINGS,
    Arch,
    MessageType,
    errno_name,
    op_name,
    result_meaning,
)
from dissectors.layouts import (
    DEVICE_MANAGER_TABLE,
    HEADER,
    REPLY_HEADER,
    VIRTIO_VSOCK_HEADER,
    VSOCKMON_HEADER,
    formats,
)
from dissectors.messages import mmio_request
from dissectors.tables import ARCH_NAMES, FieldRow, padding
from dissectors.vsockmon import MonitorOp, Transport, VirtioOp

from . import (
    api_blocks,
    capture_blocks,
    diagnosis_blocks,
    format_blocks,
    guest_blocks,
    lab_blocks,
    plan_fleet,
    plugin_blocks,
    program_blocks,
    replay_blocks,
    start_blocks,
    testing_blocks,
    tui_blocks,
)
from .markdown import code, table
from .wings import WINGS

ROOT: Final = Path(__file__).resolve().parent.parent
_MARKER: Final = re.compile(r"^(<!-- (?:generated: (.+)|end generated) -->)$\n?", re.MULTILINE)

Blocks = Mapping[str, Callable[[], str]]
"""What a marker's name makes: Markdown, without the markers."""


class MarkerError(ValueError):
    """A page whose markers cannot be followed: unpaired, or of a name that nothing makes."""


def _layout_table(rows: Sequence[FieldRow]) -> str:
    return table(
        ("offset", "field", "type", "meaning"),
        [(row.offset, code(row.name), row.type_name, row.meaning) for row in rows],
    )


def _load_cells(load: Sequence[FieldRow]) -> tuple[str, int]:
    return ", ".join(code(row.name) for row in load) or "none", sum(row.size for row in load)


def _message_rows(msg_type: MessageType) -> Iterator[tuple[object, ...]]:
    start = (msg_type.value, msg_type.name)
    if msg_type in RESERVED_TYPES:
        yield *start, "any", "reserved: no kernel has a handler", "-", "-", "-"
        return
    if msg_type is MessageType.CONNECT:
        yield *start, "any", "none: only the guest sends it, once, first", "-", *_load_cells(())
        return
    layouts = {arch: DEVICE_MANAGER_TABLE.layout(msg_type, arch) for arch in Arch}
    cells = {
        arch: (*_load_cells(layout.request), *_load_cells(layout.reply))
        for arch, layout in layouts.items()
    }
    if len(set(cells.values())) == 1:
        yield *start, "any", *cells[Arch.X86_64]
        return
    for arch, row in cells.items():
        yield *start, ARCH_NAMES[arch], *row


def header() -> str:
    """The header that every message begins with."""
    return _layout_table(HEADER)


def messages() -> str:
    """Every message type with the loads and sizes of its request and its reply."""
    headings = ("msg_type", "name", "guest", "request load", "msg_size", "reply load", "msg_size")
    return table(headings, [row for msg_type in MessageType for row in _message_rows(msg_type)])


def loads() -> str:
    """What stands between the header and the padding, field by field."""
    rows = [
        (title, row.offset, code(row.name), row.type_name, row.meaning)
        for title, fields in formats(DEVICE_MANAGER_TABLE).items()
        for row in fields[len(HEADER) : -1]
    ]
    return table(("message", "offset", "field", "type", "meaning"), rows)


def connect_message() -> str:
    """The guest's first message, whole."""
    return _layout_table((*REPLY_HEADER, padding(REPLY_HEADER, MESSAGE_SIZE)))


def example() -> str:
    """A request and its refusal, byte by byte up to the padding."""
    request = mmio_request(MessageType.ADD_MMIO, 0xE0006000, 0x2000, 5)
    refusal = request.reply(ret=EEXIST)
    rows = [
        (title, row.offset, code(raw[row.offset : row.end].hex(" ")), row.name)
        for title, fields, raw in (
            ("request", (*HEADER, *request.codec.load), request.encode()),
            ("reply", REPLY_HEADER, refusal.encode()),
        )
        for row in fields
    ]
    return table(("message", "offset", "bytes", "field"), rows)


def af_vsockmon_hdr() -> str:
    """The header of every vsockmon packet."""
    return _layout_table(VSOCKMON_HEADER)


def virtio_vsock_hdr() -> str:
    """The transport header that follows it for `t` 2."""
    return _layout_table(VIRTIO_VSOCK_HEADER)


def vsockmon_values() -> str:
    """The values of the enumerated fields of both headers."""
    fields = (
        ("af_vsockmon_hdr", "op", MonitorOp),
        ("af_vsockmon_hdr", "t", Transport),
        ("virtio_vsock_hdr", "op", VirtioOp),
    )
    rows = [
        (owner, code(name), ", ".join(f"{value.value} {value.name}" for value in values))
        for owner, name, values in fields
    ]
    return table(("header", "field", "values"), rows)


def results() -> str:
    """What the values of `ret` say, in a few words."""
    rows = [
        (op_name(request).upper(), ret, errno_name(ret) or "", meaning)
        for (request, ret), meaning in RESULT_MEANINGS.items()
    ]
    no_handler = result_meaning(MessageType.ADD_MEM, EPERM)
    rows.append(("any without a handler", EPERM, errno_name(EPERM) or "", no_handler))
    return table(("request", "ret", "errno", "meaning"), rows)


def _sender(signal: Signal) -> str:
    if signal in CLIENT_SENDS:
        return "client"
    return "server" if signal in SERVER_SENDS else "either"


def transitions() -> str:
    """The state machine of a connection as a table."""
    rows = [
        (code(state.name), signal.value, _sender(signal), code(following.name))
        for state, signals in TRANSITIONS.items()
        for signal, following in signals.items()
    ]
    return table(("state", "signal", "sent by", "next state"), rows)


def wings() -> str:
    """Which folder knows what, and which others it may import."""
    rows = []
    for name, wing in WINGS.items():
        folder = f"`{name}/`" if name == "dissectors" else f"`upcall_trace/{name}/`"
        rows.append((folder, wing.knows, ", ".join(wing.imports) or "no other folder"))
    return table(("folder", "what it knows", "may import"), rows)


BLOCKS: Final[Blocks] = {
    "wings": wings,
    "operation-columns": capture_blocks.operation_columns,
    "finding-columns": capture_blocks.finding_columns,
    "fleet-columns": capture_blocks.fleet_columns,
    "fleet-plan": lambda: plan_fleet.plan_table(plan_fleet.Assumptions()),
    "fleet-days": lambda: plan_fleet.simulation_table(plan_fleet.Assumptions()),
    "fleet-assumptions": lambda: plan_fleet.assumptions_table(plan_fleet.Assumptions()),
    "header": header,
    "messages": messages,
    "loads": loads,
    "connect-message": connect_message,
    "example": example,
    "af-vsockmon-hdr": af_vsockmon_hdr,
    "virtio-vsock-hdr": virtio_vsock_hdr,
    "vsockmon-values": vsockmon_values,
    "results": results,
    "transitions": transitions,
    "operator-log": start_blocks.operator_log,
    "operator-console": start_blocks.operator_console,
    "show-example": program_blocks.show_example,
    "stale-example": program_blocks.stale_example,
    "filter-example": program_blocks.filter_example,
    "info-example": program_blocks.info_example,
    "frames-on-the-socket": program_blocks.frames_on_the_socket,
    "frames-in-the-guest": program_blocks.frames_in_the_guest,
    "exit-codes": program_blocks.exit_codes,
    "commands": program_blocks.commands,
    "filter-fields": program_blocks.filter_fields,
    "filter-flags": program_blocks.filter_flags,
    "filter-errors": program_blocks.filter_errors,
    "anomalies": program_blocks.anomalies,
    "json-operation": program_blocks.json_operation,
    "json-frame": program_blocks.json_frame,
    "diff-example": program_blocks.diff_example,
    "minimise-example": program_blocks.minimise_example,
    "json-diff": program_blocks.json_diff,
    "json-info": program_blocks.json_info,
    "json-provenance": program_blocks.json_provenance,
    "json-state": program_blocks.json_state,
    "replay-plan": replay_blocks.plan_example,
    "replay-dangers": replay_blocks.dangers,
    "conform-dangers": replay_blocks.conform_dangers,
    "conform-example": replay_blocks.conform_example,
    "replay-divergence": replay_blocks.divergence_example,
    "matcher-fields": replay_blocks.matcher_fields,
    "errno-classes": replay_blocks.errno_classes,
    "state-example": program_blocks.state_example,
    "provenance-example": program_blocks.provenance_example,
    "capture-kinds": capture_blocks.capture_kinds,
    "capture-fields": capture_blocks.capture_fields,
    "capture-limits": capture_blocks.capture_limits,
    "capture-columns": capture_blocks.capture_columns,
    "capture-example": capture_blocks.capture_example,
    "api": api_blocks.api,
    "seams": plugin_blocks.seams,
    "plugins-example": plugin_blocks.listing,
    "plugin-package": plugin_blocks.package,
    "plugin-source": plugin_blocks.source,
    "plugin-export": plugin_blocks.export,
    "plugin-rule": plugin_blocks.rule,
    "plugin-service": plugin_blocks.service,
    "plugin-command": plugin_blocks.command,
    "source-formats": format_blocks.source_formats,
    "export-formats": format_blocks.export_formats,
    "transcript-lines": capture_blocks.transcript_lines,
    "codes": diagnosis_blocks.codes,
    "code-pages": diagnosis_blocks.code_pages,
    "diagnose-example": diagnosis_blocks.diagnose_example,
    "log-lines": diagnosis_blocks.log_lines,
    "journal-example": diagnosis_blocks.journal_example,
    "console-example": diagnosis_blocks.console_example,
    "joined-example": diagnosis_blocks.joined_example,
    "json-finding": diagnosis_blocks.json_finding,
    "github-example": diagnosis_blocks.github_example,
    "kernel-cpus": guest_blocks.kernel_cpus,
    "kernel-mmio": guest_blocks.kernel_mmio,
    "kernel-pci": guest_blocks.kernel_pci,
    "kernel-buffers": guest_blocks.kernel_buffers,
    "kernel-lock": guest_blocks.kernel_lock,
    "fault-actions": guest_blocks.fault_actions,
    "fault-conditions": guest_blocks.fault_conditions,
    "control-orders": guest_blocks.control_orders,
    "control-example": guest_blocks.control_example,
    "control-state": guest_blocks.control_state,
    "tui-keys": tui_blocks.keys,
    "tui-signs": tui_blocks.signs,
    "tui-columns": tui_blocks.columns,
    "lab-machines": lab_blocks.machines,
    "lab-orders": lab_blocks.orders,
    "lab-state": lab_blocks.state,
    "world-keys": guest_blocks.world_keys,
    "world-tables": guest_blocks.world_tables,
    "kata-pods": guest_blocks.kata_pods,
    "pytest-options": testing_blocks.pytest_options,
    "pytest-settings": testing_blocks.pytest_settings,
    "pytest-marker": testing_blocks.pytest_marker,
    "record-modes": testing_blocks.record_modes,
}


def pages(root: Path) -> list[Path]:
    """The Markdown pages that may hold generated blocks."""
    readme = root / "README.md"
    return [*([readme] if readme.exists() else []), *sorted((root / "docs").rglob("*.md"))]


def block_names(text: str) -> list[str]:
    """The names of a page's markers, in order."""
    return [name for _, name in _MARKER.findall(text) if name]


def render(text: str, blocks: Blocks) -> str:
    """The page with every block made anew; raises MarkerError and makes nothing up."""
    before, *pieces = _MARKER.split(text)
    made = [before]
    inside: str | None = None
    for marker, name, following in zip(pieces[::3], pieces[1::3], pieces[2::3], strict=True):
        if (name is None) == (inside is None):
            raise MarkerError(f"{marker} is not expected {f'in {inside}' if inside else 'here'}")
        if name is not None and name not in blocks:
            raise MarkerError(f"nothing generates {name}")
        made.append(f"{marker}\n")
        made.append(following if name is None else f"\n{blocks[name]()}\n\n")
        inside = name
    if inside is not None:
        raise MarkerError(f"{inside} has no end")
    return "".join(made)


def update(root: Path, blocks: Blocks, check: bool) -> list[str]:
    """Rewrite the stale pages under `root`, or with `check` only name them.

    Returns what is wrong, one line each. A broken marker, or a block that no page uses, is wrong
    either way, and then nothing is written.
    """
    complaints: list[str] = []
    used: set[str] = set()
    stale: dict[Path, str] = {}
    for page in pages(root):
        text = page.read_text(encoding="utf-8")
        used.update(block_names(text))
        try:
            made = render(text, blocks)
        except MarkerError as error:
            complaints.append(f"{page.relative_to(root)}: {error}")
            continue
        if made != text:
            stale[page] = made
    complaints += [f"no page uses the block {name}" for name in blocks if name not in used]
    if check:
        complaints += [f"{page.relative_to(root)}: stale" for page in stale]
    elif not complaints:
        for page, made in stale.items():
            page.write_text(made, encoding="utf-8", newline="\n")
    return complaints


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m tools.generate_docs", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing, exit 1 when stale")
    complaints = update(ROOT, BLOCKS, parser.parse_args(arguments).check)
    sys.stderr.writelines(f"{complaint}\n" for complaint in complaints)
    return 1 if complaints else 0


if __name__ == "__main__":
    sys.exit(main())
