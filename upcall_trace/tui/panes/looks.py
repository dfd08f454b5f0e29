"""What each kind of text looks like, in the colours of the theme. None says by colour alone."""

from __future__ import annotations

from typing import Any, Final

from rich.style import Style
from textual.app import App
from textual.color import Color

_MUTED: Final = "muted"
_LOOKS: Final[dict[str, tuple[str, str]]] = {
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
_MUTED_SHARE: Final = 0.4
_CURSOR_SHARE: Final = {True: 0.3, False: 0.12}
"""Of the primary colour behind the cursor's line, in dark themes and in light ones."""
_made: dict[str, dict[str, Style]] = {}


def look(app: App[Any], kind: str) -> Style:
    """The style of a kind of text, to be laid over that of the pane."""
    styles = _made.get(app.theme)
    if styles is None:
        dark = app.current_theme.dark
        styles = _made[app.theme] = _styles(app.get_css_variables(), dark)
    return styles[kind]


def _styles(variables: dict[str, str], dark: bool) -> dict[str, Style]:
    background, plain = (Color.parse(variables[name]) for name in ("background", "foreground"))
    muted = plain.blend(background, _MUTED_SHARE)
    styles = {}
    for kind, (variable, attributes) in _LOOKS.items():
        colour = (
            muted if variable == _MUTED else Color.parse(variables[variable]) if variable else None
        )
        style = Style.parse(attributes) if attributes else Style.null()
        styles[kind] = style if colour is None else style + Style(color=colour.rich_color)
    under = background.blend(Color.parse(variables["primary"]), _CURSOR_SHARE[dark])
    styles[CURSOR] = Style(bgcolor=under.rich_color, bold=True)
    return styles
