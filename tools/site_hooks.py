"""What the website needs beyond docs/: files outside of it that pages link to, and dark pictures.

MkDocs loads this hook. A link of a page is first followed in the checkout, then turned into one
inside the site, so that pages read well in both places. A picture with a dark file beside it is
shown in the theme of the page.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any, Final

from mkdocs.structure.files import File, Files

ROOT: Final = Path(__file__).resolve().parent.parent
_README: Final = "readme-of-the-project.md"
_IMAGE: Final = re.compile(r"(!\[[^\]]*\])\(([\w/-]+)(\.\w+)\)")
_LINK: Final = re.compile(r"\]\((?!https?:|#)([^)#\s]+)(#[^)]*)?\)")


_PLACES: Final = {
    "README.md": _README,
    "CHANGELOG.md": "changelog.md",
    "LICENSE": "license.txt",
    "captures/README.md": "captures/README.md",
    "requirements/node.txt": "requirements/node.txt",
}
"""Files of the checkout that pages link to, and their place in the site."""
_SOURCES: Final = {place: source for source, place in _PLACES.items()}


def on_files(files: Files, config: Any) -> Files:
    """Add the files outside of docs/."""
    for source, place in _PLACES.items():
        files.append(File.generated(config, place, abs_src_path=str(ROOT / source)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Turn links of the checkout into links of the site."""
    place = page.file.src_uri
    source = _SOURCES.get(place, f"docs/{place}")

    def moved(link: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(source), link[1]))
        there = _PLACES.get(target, target.removeprefix("docs/"))
        if there == "schemas":
            there = "schemas/operation.schema.json"
        return f"]({posixpath.relpath(there, posixpath.dirname(place) or '.')}{link[2] or ''})"

    def both(image: re.Match[str]) -> str:
        dark = f"{image[2]}-dark{image[3]}"
        folder = ROOT / posixpath.dirname(source)
        if not (folder / dark).is_file():
            return image[0]
        light = f"{image[1]}({image[2]}{image[3]}#only-light)"
        return f"{light}\n{image[1]}({dark}#only-dark)"

    return _LINK.sub(moved, _IMAGE.sub(both, markdown))
