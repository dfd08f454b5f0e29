"""Boxes, lines and texts as SVG, in a light and in a dark theme. Coordinates are pixels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Final

Theme = Mapping[str, str]
"""Colours by what they are for."""

THEMES: Final[dict[str, Theme]] = {
    "": {
        "page": "#ffffff", "text": "#1f2430", "quiet": "#565d6d", "line": "#6b7280",
        "plain": "#f3f4f6", "host": "#e8eefc", "guest": "#e6f4ea", "marked": "#fdecd2",
        "bad": "#fbe3e4",
    },
    "-dark": {
        "page": "#1b1e27", "text": "#e8eaf0", "quiet": "#a9b0c0", "line": "#8b93a5",
        "plain": "#2a2e3a", "host": "#24324f", "guest": "#213b2c", "marked": "#4a3a1c",
        "bad": "#4d2730",
    },
}  # fmt: skip
"""A theme by the ending that it gives to a picture's name."""

_FONT: Final = "system-ui, 'DejaVu Sans', Arial, sans-serif"
_CODE: Final = "'DejaVu Sans Mono', Menlo, Consolas, monospace"
_LINE_HEIGHT: Final = 16


@dataclass
class Drawing:
    """A picture in the making. `title` is what it shows, for people who cannot see it."""

    title: str
    width: int
    height: int
    theme: Theme
    _parts: list[str] = field(default_factory=list)

    def text(
        self, x: float, y: float, said: str, *, anchor: str = "middle", size: int = 13,
        code: bool = False, quiet: bool = False, bold: bool = False,
    ) -> None:  # fmt: skip
        """One line of text, its baseline at `y`."""
        style = f'font-family="{_CODE if code else _FONT}" font-size="{size}"'
        style += ' font-weight="bold"' if bold else ""
        colour = self.theme["quiet" if quiet else "text"]
        self._parts.append(
            f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}" {style} fill="{colour}">'
            f"{escape(said, quote=False)}</text>"
        )

    def box(
        self, x: float, y: float, width: float, height: float, said: Sequence[str] = (), *,
        fill: str = "plain", code: bool = False, dashed: bool = False, size: int = 13,
    ) -> None:  # fmt: skip
        """A box with lines of text in its middle."""
        dash = ' stroke-dasharray="4 3"' if dashed else ""
        self._parts.append(
            f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="4"'
            f' fill="{self.theme[fill]}" stroke="{self.theme["line"]}"{dash}/>'
        )
        top = y + height / 2 - (len(said) - 1) * _LINE_HEIGHT / 2 + size / 3
        for number, line in enumerate(said):
            self.text(x + width / 2, top + number * _LINE_HEIGHT, line, code=code, size=size)

    def line(
        self, points: Sequence[tuple[float, float]], *, arrow: bool = True, dashed: bool = False,
        faint: bool = False,
    ) -> None:  # fmt: skip
        """A line through points, with a head at its end."""
        path = " ".join(f"{x:g},{y:g}" for x, y in points)
        style = ' stroke-dasharray="4 3"' if dashed else ""
        style += ' stroke-opacity="0.45"' if faint else ""
        style += ' marker-end="url(#head)"' if arrow else ""
        self._parts.append(
            f'<polyline points="{path}" fill="none" stroke="{self.theme["line"]}"{style}/>'
        )

    def svg(self) -> str:
        """The whole file."""
        head = (
            '<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8"'
            f' markerHeight="8" orient="auto"><path d="M0,0 L8,4 L0,8 z"'
            f' fill="{self.theme["line"]}"/></marker></defs>'
        )
        size = f'viewBox="0 0 {self.width} {self.height}" width="{self.width}"'
        size += f' height="{self.height}"'
        return "\n".join(
            [
                f'<svg xmlns="http://www.w3.org/2000/svg" role="img" {size}>',
                f"<title>{escape(self.title, quote=False)}</title>",
                head,
                f'<rect width="{self.width}" height="{self.height}" fill="{self.theme["page"]}"/>',
                *self._parts,
                "</svg>\n",
            ]
        )
