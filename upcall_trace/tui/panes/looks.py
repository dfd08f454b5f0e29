"""What each kind of text looks like, in the colours of the theme. None says by colour alone.

Every colour of text is moved towards black or white until it can be read on every ground that the
browser has: with a contrast of 4.5 to 1, as the Web Content Accessibility Guidelines ask for.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from rich.style import Style
from textual.app import App
from textual.color import BLACK, WHITE, Color

_MUTED: Final = "text-muted"
LOOKS: Final[dict[str, tuple[str, str]]] = {
    "": ("", ""),
    "ok": ("text-success", ""),
    "note": ("text-primary", ""),
    "warning": ("text-warning", ""),
    "error": ("text-error", "bold"),
    "fatal": ("text-error", "bold underline"),
    "slow": ("text-accent", ""),
    "late": ("text-warning", "bold"),
    "stuck": ("text-error", "bold underline"),
    "dim": (_MUTED, ""),
    "key": ("", "bold"),
    "link": ("text-primary", "underline"),
    "heading": (_MUTED, "bold"),
    "remark": ("text-primary", "italic"),
    "fresh": ("text-success", ""),
    "stale": ("text-warning", "bold"),
    "padding": (_MUTED, ""),
    "marked": ("", "reverse"),
    "added": ("text-success", "bold"),
    "removed": ("text-error", ""),
}
"""A variable of the theme, empty for the colour of plain text, and attributes."""
CURSOR: Final = "cursor"
_TEXTS: Final = ("primary", "secondary", "warning", "error", "success", "accent")
_GROUNDS: Final = ("background", "surface", "panel")
_CURSOR: Final = "cursor-ground"
_MUTED_SHARE: Final = 0.4
_CURSOR_SHARE: Final = {True: 0.3, False: 0.12}
"""Of the primary colour behind the cursor's line, in dark themes and in light ones."""
LEAST_CONTRAST: Final = 4.5
_ROUNDING: Final = 0.1
"""A colour on the screen has whole numbers for its parts."""
_STEPS: Final = 20
_made: dict[tuple[str, bool], dict[str, Style]] = {}


def contrast(text: Color, ground: Color) -> float:
    """By WCAG 2: 1 for none, 21 for black on white."""
    dark, light = sorted(_luminance(colour) for colour in (text, ground))
    return (light + 0.05) / (dark + 0.05)


def _luminance(colour: Color) -> float:
    red, green, blue = (
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4
        for part in colour.normalized
    )
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def _readable(text: Color, grounds: Iterable[Color], dark: bool) -> Color:
    """The nearest colour of text that can be read on all of the grounds."""
    grounds, end = list(grounds), WHITE if dark else BLACK
    for step in range(_STEPS):
        moved = text.blend(end, step / _STEPS, 1.0)
        if min(contrast(moved, each) for each in grounds) >= LEAST_CONTRAST + _ROUNDING:
            return moved
    return end


def readable_variables(variables: Mapping[str, str], dark: bool) -> dict[str, str]:
    """The variables of a theme with colours of text that can be read; one that leaves all colours
    to the terminal stays as it is."""
    if any(variables[name].startswith("ansi") for name in ("background", "foreground")):
        return {**variables, _MUTED: variables["foreground"], _CURSOR: variables["surface"]}
    parsed = {name: Color.parse(variables[name]) for name in (*_GROUNDS, "foreground", "primary")}
    background = parsed["background"]
    cursor = background.blend(parsed["primary"], _CURSOR_SHARE[dark], 1.0)
    grounds = [*(parsed[name] for name in _GROUNDS), cursor]
    plain = parsed["foreground"]
    texts = {f"text-{name}": Color.parse(variables[f"text-{name}"]) for name in _TEXTS}
    texts |= {
        "foreground": plain,
        "text": plain,
        _MUTED: plain.blend(background, _MUTED_SHARE, 1.0),
    }
    readable = {name: _readable(colour, grounds, dark).hex for name, colour in texts.items()}
    return {**variables, **readable, _CURSOR: cursor.hex}


def look(app: App[Any], kind: str) -> Style:
    """The style of a kind of text, to be laid over that of the pane."""
    key = app.theme, app.no_color
    styles = _made.get(key)
    if styles is None:
        styles = _made[key] = _styles(app.get_css_variables(), app.no_color)
    return styles[kind]


def _styles(variables: Mapping[str, str], no_color: bool) -> dict[str, Style]:
    """Without colours only what is unimportant differs from plain text: it is darker."""
    styles = {}
    for kind, (variable, attributes) in LOOKS.items():
        style = Style.parse(attributes) if attributes else Style.null()
        if variable and (variable == _MUTED or not no_color):
            colour = Color.parse(variables[variable])
            if not colour.is_transparent:
                style += Style(color=colour.rich_color)
        styles[kind] = style
    styles[CURSOR] = Style(bgcolor=Color.parse(variables[_CURSOR]).rich_color, bold=True)
    return styles
