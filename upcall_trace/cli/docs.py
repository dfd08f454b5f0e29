"""`docs`: the pages of the documentation in the terminal."""

from __future__ import annotations

import click

from ..errors import ExitCode
from .support.options import Named, color_option
from .support.output import is_formatted, out, show_markdown
from .support.pages import contents, page, page_names


@click.command("docs")
@click.argument("name", metavar="[PAGE]", type=Named("PAGE", page_names), required=False)
@color_option
def docs_command(name: str | None) -> ExitCode:
    """Read a page of the documentation; without PAGE, list the pages.

    On a terminal the page is formatted and goes through a pager, $PAGER if you set one. Anywhere
    else it is printed as the Markdown that it is.
    """
    if name is None:
        for each, what in contents():
            out(f"{each:<20} {what}")
    elif is_formatted():
        show_markdown(page(name))
    else:
        out(page(name).rstrip("\n"))
    return ExitCode.EXPECTED
