"""`lab`: a disposable live guest in QEMU."""

from __future__ import annotations

import codecs
import os
import signal
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import click

from ..errors import (
    ExitCode,
    NothingRun,
    Unreachable,
    UserError,
    WrongUsage,
)
from .lab_vmm import vmm_command
from .support.detached import Detached
from .support.files import CAPTURE
from .support.lab_orders import lab_name_option, order_lab, ready_lab
from .support.options import color_option
from .support.output import out, out_json, talk
from .support.signals import stop_on_signals

_GLANCE_S: Final = 2.0
_DOWN_S: Final = 10.0
_LOOK_UP_S: Final = 0.02
_BULK: Final = 64 << 10
_LINE_LIMIT: Final = 64 << 10


@click.group("lab")
def lab_command() -> None:
    """A disposable live guest: a real Linux kernel in QEMU that plugs what upcall asks it to.

    `lab setup --install` once, then `lab up`. It needs no KVM, and no root but for installing QEMU.
    `upcall-trace docs lab` has the details.
    """


lab_command.add_command(vmm_command)


@lab_command.command("setup")
@click.option("--install", is_flag=True, help="Get what is missing; works offline afterwards.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@color_option
def setup_command(install: bool, as_json: bool) -> ExitCode:
    """List what the lab needs and what is missing; with --install, get it.

    QEMU and a compiler come from apt-get, which needs root. The guest's kernel and
    vhost-device-vsock are kept in the user's cache and not installed. Ends with 4 while something
    is missing.
    """
    from ..lab import pieces
    from ..lab.initramfs import initramfs_for, is_built

    kernel = pieces.find_kernel()
    if install:
        pieces.install(talk, building=kernel is None or not is_built(kernel))
        kernel = pieces.find_kernel()
    built = initramfs_for(kernel, talk) if kernel and (install or is_built(kernel)) else None
    found = [*pieces.survey(), pieces.Piece("guest's file system", built, "lab setup --install")]
    missing = [piece for piece in found if piece.where is None]
    if as_json:
        rows = [
            {"name": piece.name, "where": str(piece.where) if piece.where else None,
             "remedy": None if piece.where else piece.remedy}
            for piece in found
        ]  # fmt: skip
        out_json({"v": 1, "ready": not missing, "pieces": rows})
    else:
        for piece in found:
            where = str(piece.where) if piece.where else f"missing: {piece.remedy}"
            out(f"{piece.name:<20} {where}", None if piece.where else "red")
    if missing:
        talk("not ready; get what is missing with: upcall-trace lab setup --install")
        return ExitCode.UNREACHABLE
    return ExitCode.EXPECTED


@lab_command.command("up")
@click.option(
    "--machine",
    type=click.Choice(["microvm", "pc"]),
    default="pc",
    show_default=True,
    help="microvm has virtio-mmio; pc has CPUs, PCI and memory.",
)
@click.option("--cpus", type=click.IntRange(1, 64), help="Room for this many CPUs; pc has 4.")
@click.option("--kernel", type=CAPTURE, metavar="FILE", help="Your own kernel, with upcall.")
@click.option("--initrd", type=CAPTURE, metavar="FILE", help="And its file system, if not ours.")
@click.option("--append", default="", metavar="WORDS", help="More of the kernel's command line.")
@click.option("--disk", "disks", type=click.IntRange(9, 31), multiple=True, metavar="SLOT",
              help="A disk more at boot, in this PCI slot of pc.")  # fmt: skip
@click.option("--boot-mmio", type=click.IntRange(0, 6), metavar="N",
              help="So many virtio-mmio devices of microvm are known at boot.")  # fmt: skip
@click.option("--name", metavar="NAME", help="What to call it; else after the machine.")
@click.option("-d", "--detach", is_flag=True, help="Come back once it is up; end with lab down.")
@click.option("--capture", type=CAPTURE, metavar="DIR", help="Record outside and inside into DIR.")
@click.option("--auto", is_flag=True, help="Plug on the VMM's side what a request needs.")
@click.option(
    "--accel", type=click.Choice(["tcg", "kvm"]), default="tcg", show_default=True,
    help="KVM is faster where it works.",
)  # fmt: skip
@click.option(
    "--boot-limit", default=60.0, show_default=True, help="Seconds to wait for the guest."
)
def up_command(
    machine: str,
    cpus: int | None,
    kernel: Path | None,
    initrd: Path | None,
    append: str,
    disks: tuple[int, ...],
    boot_mmio: int | None,
    name: str | None,
    detach: bool,
    capture: Path | None,
    auto: bool,
    accel: str,
    boot_limit: float,
) -> ExitCode:
    """Boot a guest and print the ADDRESS to send requests to.

    Runs until SIGINT or SIGTERM, or with --detach until `lab down`. With --capture DIR a proxy
    stands in front and the guest watches from inside: DIR gets proxy.upcap, vsockmon.pcap and
    console.log.
    """
    from ..lab.live import CONSOLE_FILE, DUMP_FILE, PROXY_FILE, Lab, Wishes
    from ..lab.place import Place

    begun = time.monotonic()
    if not boot_limit > 0:
        raise WrongUsage("--boot-limit is a number of seconds above 0")
    if disks and machine != "pc":
        raise WrongUsage("--disk is for pc: microvm has no PCI slots")
    if boot_mmio is not None and machine != "microvm":
        raise WrongUsage("--boot-mmio is for microvm: pc has no virtio-mmio")
    boot = replace(
        _boot(machine, cpus, kernel, initrd, capture is not None, accel),
        append=append, disks=tuple(sorted(set(disks))), boot_mmio=boot_mmio,
    )  # fmt: skip
    if capture is not None:
        _check_directory(capture, PROXY_FILE, DUMP_FILE, CONSOLE_FILE)
    up = Detached() if detach else None
    if up is not None and up.parent:
        return up.wait()
    stop = threading.Event()
    stop_on_signals(stop, hurry=False)  # ending takes a moment, and must not be cut short
    place = Place.take(name, machine)
    reason = ""
    try:
        wishes = Wishes(capture.absolute() if capture else None, auto, boot_limit)
        with Lab(boot, place, wishes, talk, stop) as lab:
            out(str(lab.address))
            _tell(lab, time.monotonic() - begun, detach)
            if up is not None:
                up.ready()
            lab.wait()
    except UserError as error:
        reason = str(error) if up is not None and up.is_ready else ""
        raise
    finally:
        place.close(reason)
    if capture is not None:
        talk(f"recorded in {capture}: {', '.join(sorted(p.name for p in capture.iterdir()))}")
    return ExitCode.EXPECTED


@lab_command.command("status")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def status_command(as_json: bool) -> ExitCode:
    """List the labs that are running, with what their guests have. Clears dead ones away."""
    from ..lab.place import labs

    alive, dead = labs()
    for lab in alive:
        if lab["phase"] == "ready":
            try:
                lab["state"] = order_lab(lab, {"state": True}, _GLANCE_S)["state"]
            except UserError:
                lab["phase"] = "silent"
    if as_json:
        out_json({"v": 1, "labs": alive, "dead": dead})
    else:
        for lab in alive:
            out(f"{lab['name']:<12} {lab['phase']:<8} {lab.get('address', '')}")
            if "state" in lab:
                out(f"{'':<12} {_state_text(lab['state'])}")
        if not alive:
            out("no lab is running")
    for gone in dead:
        talk(f"{gone['name']} is gone and was cleared away: {gone['reason']}")
    return ExitCode.EXPECTED


@lab_command.command("down")
@lab_name_option
@click.option("--all", "every", is_flag=True, help="All of them.")
@click.option("--force", is_flag=True, help="Kill one that does not react.")
def down_command(name: str | None, every: bool, force: bool) -> ExitCode:
    """End a lab, and wait until nothing of it is left."""
    from ..lab.place import find, labs

    chosen = labs()[0] if every else [find(name)]
    if not chosen:
        raise NothingRun("no lab is running")
    for lab in chosen:
        try:
            os.kill(lab["pid"], signal.SIGKILL if force else signal.SIGTERM)
        except (KeyError, ProcessLookupError):
            pass  # it begins, or ends by itself, just now
    deadline = time.monotonic() + _DOWN_S
    ending = {lab["name"] for lab in chosen}
    while ending & {lab["name"] for lab in labs()[0]}:
        if time.monotonic() > deadline:
            names = ", ".join(sorted(ending))
            raise Unreachable(f"{names} did not end within {_DOWN_S:g} s; there is --force")
        time.sleep(_LOOK_UP_S)
    return ExitCode.EXPECTED


@lab_command.command("console")
@lab_name_option
@click.option("--follow", is_flag=True, help="Go on while it grows.")
@click.option("--attach", is_flag=True, help="Type into it; Ctrl-] leaves.")
def console_command(name: str | None, follow: bool, attach: bool) -> ExitCode:
    """Print what the guest has printed so far."""
    from ..lab.place import find

    lab = ready_lab(find(name))
    if attach:
        from ..lab.shell import relay_terminal
        from ..sockets.addresses import connect_unix

        _need_terminal()
        with connect_unix(Path(lab["terminal"])) as stream:
            relay_terminal(stream)
        return ExitCode.EXPECTED
    rest = _print_lines(_console_text(Path(lab["console"]), follow))
    if rest:
        out(rest)
    return ExitCode.EXPECTED


@lab_command.command("shell")
@lab_name_option
@click.argument("command", nargs=-1)
def shell_command(name: str | None, command: tuple[str, ...]) -> ExitCode:
    """Open a shell in the guest, or run COMMAND there and print what it says.

    Ends with 1 when COMMAND fails.
    """
    from ..lab.place import find
    from ..lab.shell import Command, attach_shell

    vsock = Path(ready_lab(find(name))["vsock"])
    if not command:
        _need_terminal()
        attach_shell(vsock)
        return ExitCode.EXPECTED
    ran = Command(vsock, " ".join(command))
    rest = _print_lines(codecs.iterdecode(ran, "utf-8", "replace"))
    if rest:
        out(rest)
    if ran.status:
        talk(f"the command ended with {ran.status}")
        return ExitCode.DIFFERENT
    return ExitCode.EXPECTED


def _boot(
    machine: str, cpus: int | None, kernel: Path | None, initrd: Path | None, dump: bool, accel: str
) -> Any:
    """What to boot; raises UserError when a piece is missing."""
    from ..lab import pieces
    from ..lab.initramfs import initramfs_for
    from ..lab.machines import MACHINES, Boot

    chosen = MACHINES[machine]
    if initrd is not None and kernel is None:
        raise WrongUsage("--initrd goes with --kernel")
    for file in (kernel, initrd):
        if file is not None and not file.is_file():
            raise WrongUsage(f"{file} is not a file")
    missing = [piece.name for piece in pieces.survey() if piece.where is None]
    if kernel is not None and initrd is not None:
        missing = [name for name in missing if name != "guest kernel"]
    if missing:
        raise Unreachable(
            f"the lab lacks {', '.join(missing)}; get it with: upcall-trace lab setup --install"
        )
    if cpus is not None and kernel is None and cpus > chosen.most_cpus:
        raise WrongUsage(f"{machine} has {chosen.most_cpus} CPU with the lab's own kernel")
    stock = pieces.find_kernel()
    image = kernel.absolute() if kernel else stock.image if stock else Path()
    archive = initrd.absolute() if initrd else initramfs_for(stock, talk) if stock else Path()
    return Boot(
        chosen,
        image,
        archive,
        cpus or chosen.default_cpus,
        own_kernel=kernel is not None,
        own_initramfs=initrd is not None,
        dump=dump,
        accelerator="kvm" if accel == "kvm" else "tcg,thread=multi",
    )


def _tell(lab: Any, took_s: float, detached: bool) -> None:
    ending = f"upcall-trace lab down --name {lab.place.name}" if detached else "Ctrl-C"
    talk(f"lab {lab.place.name} is up after {took_s:.1f} s: {_state_text(lab.state())}")
    for line in lab.hints():
        talk(f"  upcall-trace {line}")
    talk(f"  control socket: {lab.control}; end it with {ending}")


def _state_text(state: dict[str, Any]) -> str:
    if "cpus_online" not in state:
        return "its init prints no STATE lines"
    cpus = ",".join(str(cpu) for cpu in state["cpus_online"])
    disks = " ".join(state["disks"]) or "no disks"
    return f"CPUs {cpus}; {disks}; {state['memory_kib'] >> 10} MiB"


def _console_text(log: Path, follow: bool) -> Iterator[str]:
    """What a console's log holds, and with `follow` what comes, until the lab is gone."""
    from ..lab.place import is_held

    with log.open("r", encoding="utf-8", errors="replace", newline="") as file:
        while True:
            text = file.read(_BULK)
            yield text
            if not text:
                if not follow:
                    return
                time.sleep(_LOOK_UP_S)
                follow = is_held(log.parent)  # once more, for the last words


def _print_lines(texts: Iterable[str]) -> str:
    """Print a guest's lines as they come; what is left without a newline. Long ones are cut up."""
    rest = ""
    for text in texts:
        *lines, rest = (rest + text).split("\n")
        if len(rest) > _LINE_LIMIT:
            lines, rest = [*lines, rest], ""
        for line in lines:
            out(line.removesuffix("\r"))
    return rest


def _check_directory(directory: Path, *names: str) -> None:
    """Make the directory of a recording; raises WrongUsage rather than to overwrite one."""
    taken = [name for name in names if (directory / name).exists()]
    if taken:
        raise WrongUsage(f"{directory} has {', '.join(taken)} already; choose another directory")
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WrongUsage(f"{directory} cannot be made: {error.strerror}") from None


def _need_terminal() -> None:
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise WrongUsage("this needs a terminal; lab shell COMMAND and lab console need none")
