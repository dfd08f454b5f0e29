"""The command line: a table of commands, each in its own module that is imported when it runs."""

from __future__ import annotations

import io
import os
import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

import click

from .. import __version__
from ..errors import ExitCode, UserError
from ..plugins import Plugin, note_services, take_noted
from .support.collecting import kept_to_the_end
from .support.output import talk
from .support.plugged_commands import exit_code, held, plugged_command, plugged_names
from .support.signals import interrupted_by_signals

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

# numpy holds columns here; the threads of its linear algebra only make every start slower.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

COMMANDS: Final[dict[str, tuple[str, str]]] = {
    "demo": ("demo", "Record a client against a simulated guest, and show it."),
    "record": ("record", "Record upcall traffic: a proxy on the VMM's socket, or an interface."),
    "peek": ("peek", "Show upcall in a VM's memory: last requests, last replies."),
    "guest": ("guest", "Answer upcall requests as a real guest kernel does."),
    "send": ("send", "Send one request and show what the guest answers."),
    "replay": ("replay", "Send a recording again and compare every reply."),
    "conform": ("conform", "Test whether a guest answers as Kata's kernel does."),
    "diff": ("diff", "Compare two captures, operation by operation."),
    "edit": ("edit", "Change a capture: drop, move or rewrite operations, add matchers."),
    "minimise": ("minimise", "Shrink a recording to what a failure needs."),
    "show": ("show", "List a capture's operations, each request with its reply."),
    "tui": ("tui", "Browse a capture in the terminal, also while it is recorded."),
    "diagnose": ("diagnose", "Say why operations failed, and what to do next."),
    "state": ("state", "What the guest had before an operation, or at the end."),
    "info": ("info", "Counts, times, latencies and completeness of a capture."),
    "import": ("convert", "Turn a transcript, pcap or pcapng file into a capture."),
    "export": ("convert", "Write a capture in another format."),
    "filter": ("compose", "Keep the operations that match an expression."),
    "merge": ("compose", "Put several captures together into one."),
    "split": ("compose", "Write each connection of a capture to a file of its own."),
    "recover": ("compose", "Save what is whole of a damaged capture, with a new index."),
    "bundle": ("bundle", "Pack captures, logs and findings into one archive for an issue."),
    "fleet": ("fleet", "The captures of many hosts as one dataset, and questions to it."),
    "wireshark": ("wireshark", "The dissector for Wireshark and tshark: install it, or its path."),
    "lab": ("lab", "A disposable live guest: a real kernel in QEMU."),
    "doctor": ("doctor", "List what can be captured on this host, and why the rest cannot."),
    "docs": ("docs", "Read the documentation in the terminal."),
    "completion": ("completion", "Complete on Tab in bash, zsh and fish."),
    "plugins": ("plugins", "List what installed packages add, and what of it is broken."),
}
"""Name -> (module of this package, one line of help). The module holds `NAME_command`."""


NOT_IN_A_SMALL_INSTALLATION: Final = ("jinja2", "lark", "qemu", "scapy", "textual")
"""Libraries that an installation for nodes leaves out. docs/install.md."""


class _LazyGroup(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*COMMANDS, *plugged_names(COMMANDS)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            plugin = plugged_names(COMMANDS).get(cmd_name)
            return plugged_command(plugin, ctx) if plugin else None
        name = f"{__name__}.{COMMANDS[cmd_name][0]}"
        if name not in sys.modules:
            with kept_to_the_end():
                import_module(name)
        command: click.Command = getattr(sys.modules[name], f"{cmd_name}_command")
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])
        if plugged := plugged_names(COMMANDS):
            with formatter.section("Commands of plugins"):
                formatter.write_dl([(name, _origin(each)) for name, each in plugged.items()])

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """As click does it, but without importing every command for its line of help."""
        from click.shell_completion import CompletionItem

        told = {name: text for name, (_, text) in COMMANDS.items()}
        told |= {name: _origin(plugin) for name, plugin in plugged_names(COMMANDS).items()}
        fitting = [(name, text) for name, text in told.items() if name.startswith(incomplete)]
        items = [CompletionItem(name, help=text) for name, text in fitting]
        return items + click.Command.shell_complete(self, ctx, incomplete)

    def invoke(self, ctx: click.Context) -> Any:
        with held(ctx):
            returned = super().invoke(ctx)
        return exit_code(ctx, returned)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            near = _nearest(args[0])
            hint = f"; did you mean {near!r}?" if near else ""
            raise click.UsageError(error.message.rstrip(".") + hint, ctx) from None


def _origin(plugin: Plugin) -> str:
    return f"From the package {plugin.package} {plugin.version}."


def _nearest(name: str) -> str | None:
    import difflib  # only on a mistyped command

    names = [*COMMANDS, *plugged_names(COMMANDS)]
    return next(iter(difflib.get_close_matches(name, names, n=1)), None)


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="upcall-trace")
def cli() -> None:
    """Record, decode and simulate guest hotplug over Dragonball's upcall channel."""


def main(arguments: list[str] | None = None) -> Any:
    """Run the command line; the process ends with one of `ExitCode`."""
    _occupy_standard_descriptors()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # for terminals that are not UTF-8
    try:
        with interrupted_by_signals():
            code = cli.main(arguments, prog_name="upcall-trace", standalone_mode=False)
        if sys.stdout:  # none when it was closed before we began
            sys.stdout.flush()
    except click.exceptions.Exit as stop:
        code = stop.exit_code
    except click.ClickException as error:
        _tell(error)
        code = ExitCode.USAGE
    except (click.Abort, KeyboardInterrupt):
        talk("interrupted")
        code = ExitCode.INTERRUPTED
    except UserError as error:
        talk(f"upcall-trace: {error}")
        code = error.exit_code
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in NOT_IN_A_SMALL_INSTALLATION:
            raise
        talk(f"upcall-trace: this installation is without {error.name}: pip install upcall-trace")
        code = ExitCode.USAGE
    except SystemExit as stop:
        # Nothing but click ends so, with 1, when the reader of our output left, as head does.
        code = ExitCode.EXPECTED if stop.code == 1 else stop.code
    except OSError as error:
        talk(f"upcall-trace: the output cannot be written: {error.strerror or error}")
        _give_up_stdout()
        code = ExitCode.LOST
    note_services()
    for trouble in take_noted():
        talk(f"upcall-trace: {trouble}")
        code = code or ExitCode.LOST  # what the plugin would have said is missing
    sys.exit(int(code or 0))


def _occupy_standard_descriptors() -> None:
    """Where one was closed before we began, the next file would get its number, and our remarks."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)


def _give_up_stdout() -> None:
    """What is still buffered cannot be written either; at exit Python would try, and say so."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.close(nowhere)


def _tell(error: click.ClickException) -> None:
    """What click has to say, which may repeat what was on the command line."""
    said = io.StringIO()
    error.show(said)
    for line in said.getvalue().rstrip("\n").expandtabs(4).split("\n"):
        talk(line)
