"""The user's settings, and the captures that were opened lately."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from ...capture.toml_files import BadToml, read_toml
from ...errors import UserError, WrongUsage
from ...user_folders import user_folder
from ...views.text import safe

_RECENT: Final = 20


COLUMNS: Final[dict[str, str]] = {
    "row": "Number among all operations, as state --at takes it",
    "number": "Number of connection and request",
    "time": "Time of a request, and what its answer took",
    "codes": "Codes of findings",
    "doubts": "Doubts about an answer",
}
"""What the ladder can show beside what crossed, in its order."""
USUAL_COLUMNS: Final = ("number", "time", "codes", "doubts")


@dataclass(frozen=True, slots=True)
class Settings:
    """`theme` is a theme's name, None for the usual one; `keys` give bindings other keys.

    `columns` are those of the ladder, and `filters` expressions by the user's names for them.
    """

    theme: str | None = None
    keys: dict[str, str] = field(default_factory=dict)
    columns: tuple[str, ...] = USUAL_COLUMNS
    filters: dict[str, str] = field(default_factory=dict)


def settings_path() -> Path:
    """The file of settings: `$XDG_CONFIG_HOME/upcall-trace/tui.toml`; raises WrongUsage."""
    return _own("XDG_CONFIG_HOME", ".config") / "tui.toml"


def read_settings(path: Path) -> Settings:
    """The settings in a file, the usual ones when there is none; raises WrongUsage."""
    try:
        values = read_toml(path)
    except FileNotFoundError:
        return Settings()
    except OSError as error:
        raise WrongUsage(f"{path}: {error.strerror}") from None
    except BadToml as error:
        raise WrongUsage(f"{path}: {error}") from None
    theme, columns = values.pop("theme", None), values.pop("columns", list(USUAL_COLUMNS))
    keys, filters = values.pop("keys", {}), values.pop("filters", {})
    if values:
        raise WrongUsage(f"{path}: {safe(next(iter(values)))} is not a setting")
    if not (theme is None or isinstance(theme, str)):
        raise WrongUsage(f"{path}: theme is the name of a theme")
    if not isinstance(columns, list) or any(each not in list(COLUMNS) for each in columns):
        raise WrongUsage(f"{path}: columns is a list; known are {', '.join(COLUMNS)}")
    for table, of in (
        (keys, "keys are names of actions, each with a key"),
        (filters, "filters are names of yours, each with an expression"),
    ):
        if not isinstance(table, dict) or not all(isinstance(each, str) for each in table.values()):
            raise WrongUsage(f"{path}: {of}")
    return Settings(theme, keys, tuple(columns), filters)


def user_settings() -> Settings:
    """The user's own, the usual ones for a user without a home; raises WrongUsage."""
    try:
        path = settings_path()
    except WrongUsage:
        return Settings()
    return read_settings(path)


def _recent_path() -> Path:
    return _own("XDG_STATE_HOME", ".local/state") / "recent"


def recent() -> list[Path]:
    """The captures that were opened lately and are still there, the last one first."""
    try:
        names = _recent_path().read_text(encoding="utf-8", errors="surrogateescape")
    except (OSError, UserError):
        return []
    return [path for path in map(Path, names.split("\0")[:_RECENT]) if path.is_file()]


def remember(path: Path) -> None:
    """Put a capture at the head of the recent ones; where that cannot be kept, it is not."""
    kept = [path.absolute(), *(other for other in recent() if other != path.absolute())]
    try:
        place = _recent_path()
        place.parent.mkdir(parents=True, exist_ok=True)
        text = "\0".join(map(str, kept[:_RECENT]))
        place.write_text(text, encoding="utf-8", errors="surrogateescape")
    except (OSError, UserError):
        pass


def _own(variable: str, usual: str) -> Path:
    return user_folder(variable, usual) / "upcall-trace"
