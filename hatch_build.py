"""The README as a package index shows it, where nothing of the checkout is beside it.

The build backend calls it. With `UPCALL_TRACE_TREE` in the environment, the address of a tree of
files such as https://github.com/OWNER/NAME/blob/v1.0.0, links lead there. Without it a page is
named by the command that shows it, and pictures are left out.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

_IMAGE = re.compile(r"^!\[([^\]]*)\]\((?!https?:)([^)]+)\)\n\n", re.MULTILINE)
_LINK = re.compile(r"(?<!!)\[([^\]]*)\]\((?!https?:|#)([^)]+)\)")


def for_index(readme: str, tree: str | None) -> str:
    """The text with no link that is relative."""
    if tree:
        raw = tree.replace("/blob/", "/raw/")
        readme = _IMAGE.sub(rf"![\1]({raw}/\2)\n\n", readme)
        return _LINK.sub(rf"[\1]({tree}/\2)", readme)
    return _LINK.sub(_named, _IMAGE.sub("", readme))


def _named(link: re.Match[str]) -> str:
    page = re.fullmatch(r"docs/([a-z-]+)\.md", link[2])
    return f"`upcall-trace docs {page[1]}`" if page else link[1]


class CustomMetadataHook(MetadataHookInterface):
    """What hatchling looks for in this file."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Put the README into the metadata."""
        text = (Path(self.root) / "README.md").read_text(encoding="utf-8")
        text = for_index(text, os.environ.get("UPCALL_TRACE_TREE"))
        metadata["readme"] = {"content-type": "text/markdown", "text": text}
