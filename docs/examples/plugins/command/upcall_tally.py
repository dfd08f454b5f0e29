"""`upcall-trace tally CAPTURE`: how often each operation was asked for, and how often it failed."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import click

import upcall_trace


@click.command()
@click.argument("capture", type=click.Path(path_type=Path))
@click.option("--failed", is_flag=True, help="Count only what failed.")
def tally(capture: Path, failed: bool) -> int:
    """Count the operations of CAPTURE by name."""
    opened = upcall_trace.open_capture(capture)
    chosen = opened.select("failed") if failed else opened.operations
    counts = Counter(operation.op for operation in chosen)
    for name, count in counts.most_common():
        click.echo(f"{count:>6} {name}")
    return 0 if counts else 6  # the exit code; 6 says that nothing was there
