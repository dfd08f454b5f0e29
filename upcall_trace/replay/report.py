"""Plans, verdicts and divergences as text and as JSON values. docs/replay.md, docs/json.md."""

from __future__ import annotations

import shlex
import textwrap
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, Final

from dissectors.constants import errno_name, op_name

from ..compare.replies import Difference, values
from ..diagnose.finding import Finding
from ..kernel.noted_world import noted_world
from ..kernel.outcome import Fate
from ..simulated.rehearsal import Rehearsed
from ..trace.script import Asked, Key, key_name
from ..views.messages import reply_text, request_object, request_text
from ..views.text import WIDTH, duration, safe
from .happening import Parted
from .plan import Danger
from .run import Replay
from .target import Target
from .verdict import Divergence

VERSION: Final = 1
_COLUMN: Final = 26
_SILENCE: Final = {
    Fate.THREAD_DIED: "silence: its thread dies",
    Fate.HANGS: "silence: it waits for ever",
    Fate.CUT_OFF: "silence: nobody is there",
}


def plan_lines(replay: Replay, allowed: Collection[str]) -> Iterator[str]:
    """The plan as a person reads it; what is refused comes last."""
    plan, target = replay.plan, replay.target
    yield f"{len(plan.rehearsed)} requests to {safe(str(target.address))}, {_kind(target)}"
    if target.as_recorded:
        yield (
            "predictions are for the world that the recording notes: --world FILE says what the "
            "target is like"
        )
    elif plan.guessed:
        yield "predictions are for a default Kata pod: --world FILE says what the target is like"
    elif target.note and target.note.world != target.world:
        yield "the world that was given is not the one that the target says it booted with"
    noted = noted_world(replay.recording.capture.header.notes)
    if noted is not None and target.world_known and noted != target.world:
        yield "the recording notes another world than the target's: its guest booted otherwise"
    for change in replay.rebase.told() if replay.rebase else ():
        yield f"rebased: {change}"
    for text in replay.script.left_out:
        yield f"left out: {safe(text)}"
    for action in replay.script.actions:
        how = "" if target.control else "; without --control it is not"
        yield f"on the VMM's side: {safe(action)}{how}"
    otherwise = sum(
        each.reply != each.asked.reply
        and not each.asked.cut_off
        and values(each.reply) != values(each.asked.reply)
        for each in plan.rehearsed.values()
    )
    if otherwise:
        yield f"the model predicts other answers than the recorded ones to {otherwise} of them"
    width = max((len(key_name(key)) for key in plan.rehearsed), default=0)
    by_key: dict[Key | None, list[Danger]] = {}
    for danger in plan.dangers:
        by_key.setdefault(danger.key, []).append(danger)
    for rehearsed in plan.rehearsed.values():
        yield from _step_lines(rehearsed, width, by_key.get(rehearsed.asked.key, []))
    yield from refusal_lines(plan.refused(allowed))


def refusal_lines(refused: Collection[Danger], option: str = "--allow") -> Iterator[str]:
    """Every danger that nobody allowed, and what allows them all; nothing when there is none."""
    for danger in refused:
        yield f"refused: {safe(str(danger))}"
    if refused:
        codes = dict.fromkeys(danger.code for danger in refused)
        yield f"to do it all the same: {' '.join(f'{option} {code}' for code in codes)}"


def _step_lines(rehearsed: Rehearsed, width: int, dangers: list[Danger]) -> Iterator[str]:
    asked = rehearsed.asked
    yield f"{asked.name:>{width}}  {request_text(asked.message)}"[:WIDTH]
    recorded = reply_text(asked.message, asked.reply)
    if asked.cut_off:
        recorded = "not recorded"
    alike = rehearsed.reply is not None and rehearsed.reply == asked.reply
    alike = alike and not (asked.cut_off or rehearsed.delay_ns)
    predicted = recorded if alike else _predicted(rehearsed)
    indent = " " * (width + 4)
    if recorded == predicted:
        yield f"{indent}recorded and predicted: {safe(recorded)}"
    else:
        yield f"{indent}recorded: {safe(recorded)}"
        yield f"{indent}predicted: {safe(predicted)}"
    if rehearsed.changes:
        yield f"{indent}changes: {', '.join(rehearsed.changes)}"
        undo = rehearsed.undo
        yield (
            f"{indent}undone by: {'; '.join(f'send {words}' for words in undo)}"
            if undo
            else (f"{indent}cannot be undone")
        )
    for danger in dangers:
        yield f"{indent}DANGER {danger.code}: {safe(danger.why)}"


def _predicted(rehearsed: Rehearsed) -> str:
    if rehearsed.reply is None:
        return _SILENCE.get(rehearsed.fate, "no answer")
    slow = f", after {duration(rehearsed.delay_ns)}" if rehearsed.delay_ns else ""
    return reply_text(rehearsed.asked.message, rehearsed.reply) + slow


def plan_object(replay: Replay, allowed: Collection[str]) -> dict[str, Any]:
    """`replay --json` without `--live`; `plan` is an iterator, for `out_json`."""
    plan = replay.plan
    return {
        "v": VERSION,
        "plan": map(_step_object, plan.rehearsed.values()),
        "target": _target_object(replay.target),
        "rebased": list(replay.rebase.told()) if replay.rebase else [],
        "left_out": replay.script.left_out,
        "vmm": replay.script.actions,
        "dangers": [_danger_object(danger, allowed) for danger in plan.dangers],
        "refused": bool(plan.refused(allowed)),
    }


def _step_object(rehearsed: Rehearsed) -> dict[str, Any]:
    asked = rehearsed.asked
    return request_object(asked) | {
        "recorded": None if asked.cut_off else values(asked.reply),
        "predicted": values(rehearsed.reply),
        "codes": list(rehearsed.codes),
        "changes": list(rehearsed.changes),
        "undo": None if rehearsed.undo is None else list(rehearsed.undo),
    }


def _danger_object(danger: Danger, allowed: Collection[str]) -> dict[str, Any]:
    conn, request = danger.key or (None, None)
    return {
        "code": danger.code,
        "why": danger.why,
        "conn": conn,
        "request": request,
        "allowed": danger.code in allowed,
    }


def _target_object(target: Target) -> dict[str, Any]:
    return {
        "address": str(target.address),
        "kind": target.kind,
        "fingerprint": dict(target.fingerprint),
        "world_known": not target.guessed,
    }


def verdict_lines(replay: Replay, seconds: float) -> Iterator[str]:
    """The first divergence, field by field, and the account of all."""
    verdict = replay.verdict
    first = verdict.first
    if isinstance(first, Divergence):
        yield from divergence_lines(replay, first)
    for parted in verdict.parted:
        yield (f"connection {parted.conn}: recorded {parted.recorded}, now {parted.got}")
    for remark in dict.fromkeys(verdict.remarks):
        yield safe(remark)
    yield account(replay, seconds)


def account(replay: Replay, seconds: float) -> str:
    """One line: how many requests went how."""
    verdict = replay.verdict
    total = len(replay.script.asked)
    told = f"{verdict.asked} of {total} requests replayed in {seconds:.2f} s"
    if verdict.divergences:
        fields = ", ".join(f"{name} {count}" for name, count in verdict.fields().most_common())
        told += f"; {len(verdict.divergences)} answered otherwise ({fields})"
    if verdict.not_sent:
        told += f"; {len(verdict.not_sent)} not sent"
    if verdict.parted:
        told += f"; {len(verdict.parted)} connections went otherwise"
    if verdict.ended:
        told += f"; ended early: {safe(verdict.ended)}"
    if verdict.interrupted:
        told += "; interrupted"
    if not verdict.exit_code:
        told += ": all as recorded"
    return told


def divergence_lines(replay: Replay, divergence: Divergence) -> Iterator[str]:
    """Recorded, predicted and got side by side; the reason; and what would accept it."""
    asked, got = divergence.asked, divergence.got
    yield f"first difference: request {asked.name} {request_text(asked.message)}"
    rehearsed = replay.plan.rehearsed.get(asked.key)
    predicted = values(rehearsed.reply) if rehearsed else {}
    recorded, came = values(asked.reply), values(got.reply if got else None)
    yield f"  {'':<14}{'recorded':<{_COLUMN}}{'predicted':<{_COLUMN}}got"
    differing = {difference.field: difference for difference in divergence.differences}
    for name in {**recorded, **came}:
        if name not in differing:
            continue
        row = [_value(name, side.get(name), asked) for side in (recorded, predicted, came)]
        yield f"  {name:<14}{row[0]:<{_COLUMN}}{row[1]:<{_COLUMN}}{row[2]}"
    for name, difference in differing.items():
        if name in ("latency", "bytes"):
            row = [_value(name, value, asked) for value in (difference.recorded, difference.got)]
            yield f"  {name:<14}{row[0]:<{_COLUMN}}{'':<{_COLUMN}}{row[1]}"
        if difference.rule is not None:
            yield f"  {name:<14}the rule is {difference.rule}"
    then, now = replay.reasons(divergence)
    yield from _reason_lines("recorded", then)
    yield from _reason_lines("now", now)
    yield f"  to accept it: {accepting(replay.recording.path, divergence)}"


def _reason_lines(when: str, findings: list[Finding]) -> Iterator[str]:
    for finding in findings[:1]:
        possibly = "possibly " if finding.inferred else ""
        indent = " " * (len(when) + 4)
        said = f"  {when}: {possibly}{finding.code} {finding.name}: {safe(finding.what)}"
        yield from textwrap.wrap(said, WIDTH, subsequent_indent=indent, drop_whitespace=True)
        yield from textwrap.wrap(safe(finding.why), WIDTH, initial_indent=indent,
                                 subsequent_indent=indent)  # fmt: skip


def _value(name: str, value: object, asked: Asked) -> str:
    if value is None:
        return "-"
    if name == "ret" and isinstance(value, int):
        known = errno_name(value)
        return f"{value} {known}" if known else str(value)
    if name == "answer":
        return "a reply" if value else "silence"
    if name == "msg_type" and isinstance(value, int):
        return f"{value} {op_name(value)}"
    if name == "latency" and isinstance(value, int):
        return duration(value)
    if name == "magic_version" and isinstance(value, int):
        return f"{value:#010x}"
    return safe(str(value))


def accepting(recording: Path, divergence: Divergence) -> str:
    """The command that makes the next replay accept what came."""
    rules = " ".join(accepting_rule(difference) for difference in divergence.differences)
    matcher = f"{divergence.asked.name} {rules}"
    return shlex.join(["upcall-trace", "edit", str(recording), "--match", matcher])


def accepting_rule(difference: Difference) -> str:
    """A rule that allows both what is recorded and what came, no more where that can be said."""
    both = [difference.recorded, difference.got]
    if difference.field == "latency" and isinstance(difference.got, int):
        return f"latency<={-(-difference.got // 1_000_000)}ms"
    if difference.field != "bytes" and all(isinstance(value, int) for value in both):
        return f"{difference.field}={both[0]}|{both[1]}"
    return f"{difference.field}=any"


def verdict_object(replay: Replay, seconds: float) -> dict[str, Any]:
    """`replay --live --json`."""
    verdict = replay.verdict
    return {
        "v": VERSION,
        "verdict": verdict.word,
        "requests": len(replay.script.asked),
        "replayed": verdict.asked,
        "same": verdict.same,
        "seconds": round(seconds, 6),
        "differences": [_divergence_object(replay, each) for each in verdict.divergences],
        "not_sent": [
            {"conn": each.asked.conn, "request": each.asked.request, "why": each.why}
            for each in verdict.not_sent
        ],
        "connections": [_parted_object(each) for each in verdict.parted],
        "remarks": list(dict.fromkeys(verdict.remarks)),
        "ended": verdict.ended or None,
        "interrupted": verdict.interrupted,
        "target": _target_object(replay.target),
    }


def _divergence_object(replay: Replay, divergence: Divergence) -> dict[str, Any]:
    asked = divergence.asked
    rehearsed = replay.plan.rehearsed.get(asked.key)
    return request_object(asked) | {
        "recorded": values(asked.reply),
        "predicted": values(rehearsed.reply) if rehearsed else None,
        "got": values(divergence.got.reply if divergence.got else None),
        "differing": [difference.field for difference in divergence.differences],
        "accept": accepting(replay.recording.path, divergence),
    }


def _parted_object(parted: Parted) -> dict[str, Any]:
    return {"conn": parted.conn, "recorded": parted.recorded, "got": parted.got}


def _kind(target: Target) -> str:
    if target.kind is None:
        return "possibly a real guest"
    name = target.fingerprint.get("name", target.kind)
    return {"simulated": "a simulated guest", "lab": f"the lab's {safe(name)}"}[target.kind]
