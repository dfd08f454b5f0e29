"""Tables and examples about the program itself, made by asking or running it.

`tools.generate_docs` names them in its table of blocks.
"""

from __future__ import annotations

import inspect
import json
import shlex
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import chdir
from pathlib import Path
from typing import Final

import click
from click.testing import CliRunner

from upcall_trace.cli import COMMANDS, cli
from upcall_trace.cli.support.options import Named
from upcall_trace.errors import EXIT_MEANINGS
from upcall_trace.trace.filters import FIELDS, FLAGS, BadFilter, parse
from upcall_trace.trace.operations import ANOMALY_BIT

from .markdown import code, fenced, table

ROOT: Final = Path(__file__).resolve().parent.parent
_CPUS: Final = "captures/cpu_lifecycle.upcap"
_PCI: Final = "captures/pci_memory.upcap"
_SOCKET: Final = "captures/guest_oops.upcap"
_MMIO: Final = "captures/mmio_lifecycle.upcap"
_STALE: Final = "captures/stale_results.upcap"
_INSIDE: Final = "captures/real_client_simple.upcap"


def run(command: str, capture: str, *options: str) -> str:
    """What a command says on stdout about a capture that is shipped."""
    with chdir(ROOT):  # paths are told as they are typed
        result = CliRunner().invoke(cli, [command, capture, *options], catch_exceptions=False)
    return result.stdout.rstrip()


def session(command: str, capture: str, *options: str, lines: int | None = None) -> str:
    """A command as it is typed, and the first `lines` lines of what it prints."""
    typed = " ".join(f"'{word}'" if " " in word else word for word in options)
    shown = run(command, capture, *options).splitlines()[:lines]
    prompt = f"$ upcall-trace {command} {capture} {typed}".rstrip()
    return fenced("\n".join([prompt, *shown]), "console")


def show_example() -> str:
    """The operations of a recording."""
    return session("show", _CPUS)


def stale_example() -> str:
    """Answers that are left over."""
    return session("show", "captures/stale_results.upcap")


def filter_example() -> str:
    """Some operations of a recording."""
    return session("show", _PCI, "--filter", "stale-error")


def state_example() -> str:
    """The state before an operation of a recording."""
    return session("state", _SOCKET, "--at", "2")


def provenance_example() -> str:
    """A reply with bytes of others."""
    return session("show", _STALE, "--hex", "--filter", "request == 3 and stale")


def info_example() -> str:
    """The counts of a recording."""
    return session("info", _CPUS)


def frames_on_the_socket() -> str:
    """The beginning of a connection as a client of the socket sees it."""
    return session("show", _SOCKET, "--frames", lines=9)


def frames_in_the_guest() -> str:
    """The beginning of a connection as vsockmon shows it."""
    return session("show", _INSIDE, "--frames", lines=7)


_EDIT: Final = "edit failure.upcap -o changed.upcap --drop 1.0 --set '1.5 mmio_irq=6'"


def _typed(*lines: str) -> list[tuple[str, str]]:
    """Command lines and what each prints, where `failure.upcap` is a recording that is shipped."""
    done = []
    with tempfile.TemporaryDirectory() as folder, chdir(folder):
        shutil.copy(ROOT / _MMIO, "failure.upcap")
        for line in lines:
            result = CliRunner().invoke(cli, shlex.split(line), catch_exceptions=False)
            done.append((f"$ upcall-trace {line}", result.stdout.rstrip()))
    return done


def diff_example() -> str:
    """A capture against what was made of it."""
    told = _typed(_EDIT, "diff failure.upcap changed.upcap")
    return fenced("\n".join(line for typed in told for line in typed if line), "console")


def minimise_example() -> str:
    """A recording made as small as its failure needs it."""
    ((typed, shown),) = _typed("minimise failure.upcap --operation 1.4 -o smallest.upcap")
    return fenced(f"{typed}\n{shown}", "console")


def json_diff() -> str:
    """What `diff --json` prints."""
    edit = "edit failure.upcap -o changed.upcap --set '1.4 ret=0'"
    (_, (_, shown)) = _typed(edit, "diff --json failure.upcap changed.upcap")
    return pretty(shown)


def exit_codes() -> str:
    """The exit codes of every command."""
    rows = [(exit_code.value, meaning) for exit_code, meaning in EXIT_MEANINGS.items()]
    return table(("code", "meaning"), rows)


# The command line.


def commands() -> str:
    """Every command with its help, its arguments and its options."""
    context = click.Context(cli, info_name="upcall-trace", **cli.context_settings)
    index = [(f"[`{name}`](#{name})", summary) for name, (_, summary) in COMMANDS.items()]
    parts = [table(("command", "what it does"), index), _options(cli, context)]
    for name in COMMANDS:
        parts += _command(name, context, "##")
    return "\n\n".join(parts)


def _command(name: str, context: click.Context, level: str) -> Iterator[str]:
    """One command, and below it those that it is a group of."""
    assert isinstance(context.command, click.Group)
    command = context.command.get_command(context, name)
    assert command is not None  # the name came from the group itself
    inner = click.Context(command, info_name=name, parent=context)
    title = inner.command_path.partition(" ")[2]
    yield f"{level} {title}"
    yield fenced(" ".join([inner.command_path, *command.collect_usage_pieces(inner)]))
    yield from _paragraphs(command)
    if isinstance(command, click.Group):
        for below in command.list_commands(inner):
            yield from _command(below, inner, "###")
    else:
        yield _options(command, inner)


def _paragraphs(command: click.Command) -> Iterator[str]:
    """The command's help, one line a paragraph."""
    for paragraph in inspect.cleandoc(command.help or "").split("\n\n"):
        yield " ".join(paragraph.split())


def _options(command: click.Command, context: click.Context) -> str:
    rows = [
        (", ".join(map(code, (*option.opts, *option.secondary_opts))), _value(option), option.help)
        for option in command.get_params(context)
        if isinstance(option, click.Option)
    ]
    return table(("option", "value", "meaning"), rows)


def _value(option: click.Option) -> str:
    """What has to follow the option, and whether it may be left out or repeated."""
    if option.is_flag:
        return ""
    if isinstance(option.type, click.Choice):
        value = " or ".join(map(code, option.type.choices))
    else:
        number = option.type.name.startswith(("integer", "float"))
        named = option.type.name if isinstance(option.type, Named) else "PATH"
        value = option.metavar or ("NUMBER" if number else named)
    remarks = ["required"] if option.required else []
    if option.multiple:
        remarks.append("may be repeated")
    elif isinstance(option.default, (str, int, float)):
        remarks.append(f"default {code(option.default)}")
    return ", ".join([value, *remarks])


# Filters.

_KINDS: Final = {
    "number": "number",
    "duration": "time with a unit",
    "op": "name of an operation",
    "errno": "name of an errno",
    "code": "a code",
    "severity": "a severity",
}
_MISTAKES: Final = (
    "latncy > 250ms",
    "latency > 250",
    "mmio_base == big",
    "op == add_cpus",
    "errno < EEXIST",
    "ret",
    "stale == 1",
    "ret < 0 and",
    "ret < 0 conn == 1",
)


def filter_fields() -> str:
    """What can be compared."""
    rows = [(code(f.name), _KINDS[f.kind], f.meaning) for f in FIELDS.values()]
    return table(("field", "compared with", "what it is"), rows)


def filter_flags() -> str:
    """What stands alone."""
    rows = [(code(name), meaning) for name, (meaning, _) in FLAGS.items()]
    return table(("flag", "true when"), rows)


def filter_errors() -> str:
    """What the language answers to mistakes."""
    rows = [(code(text), _complaint(text)) for text in _MISTAKES]
    return table(("expression", "answer"), rows)


def _complaint(text: str) -> str:
    try:
        parse(text)
    except BadFilter as error:
        return str(error)
    raise AssertionError(f"{text} is no mistake")


ANOMALY_MEANINGS: Final = {
    "bad-magic": "the request has a wrong `magic_version`: the guest did not execute it",
    "stale-success": "`ret` is 0 and the guest never wrote it for this request, which has a bad "
    "magic",
    "stale-error": "`ret` is, or may be, the errno of an earlier reply: the request has a bad "
    "magic, or it is a PCI request and its `ret` is that of the reply before, or that reply is not "
    "known",
    "stale-load": "the reply has bytes beyond what its `msg_size` covers that are not 0: they are "
    "left over from an earlier reply",
    "split-request": "this is the rest of a request that came in pieces; the guest took it for a "
    "request of its own",
    "short-request": "fewer than 1024 bytes came and no rest followed: the guest executed them "
    "over the request before",
    "overlapping-requests": "it was sent while an earlier one had no answer yet",
    "over-long-request": "this is what was left of a send of more than 1024 bytes; the guest took "
    "it for a request of its own",
    "reply-mismatch": "the reply is of another type than the request, or has a bad magic",
}


def anomalies() -> str:
    """The doubts that an operation can come with."""
    rows = [(code(name), bit, ANOMALY_MEANINGS[name]) for name, bit in ANOMALY_BIT.items()]
    return table(("anomaly", "bit", "meaning"), rows)


# JSON.


def pretty(line: str) -> str:
    """One object, for reading: a line for each key."""
    keys = (f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in json.loads(line).items())
    return fenced("\n".join(["{", ",\n".join(keys), "}"]), "json")


def json_operation() -> str:
    """One line of `show --json`."""
    return pretty(run("show", _CPUS, "--json").splitlines()[2])


def json_frame() -> str:
    """One line of `show --frames --json`."""
    return pretty(run("show", _SOCKET, "--frames", "--json").splitlines()[1])


def json_provenance() -> str:
    """One frame's provenance."""
    frames = map(json.loads, run("show", _STALE, "--hex", "--json").splitlines())
    runs = [frame["provenance"] for frame in frames if "stale" in str(frame["provenance"])]
    lines = ",\n".join(f"  {json.dumps(each)}" for each in runs[0])
    return fenced(f"[\n{lines}\n]", "json")


def json_state() -> str:
    """What `state --json` prints."""
    return pretty(run("state", _SOCKET, "--at", "2", "--json"))


def json_info() -> str:
    """What `info --json` prints."""
    return pretty(run("info", _CPUS, "--json"))
