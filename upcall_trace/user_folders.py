"""Where a user's files are, after the XDG base directory specification."""

from __future__ import annotations

import os
from pathlib import Path

from .errors import WrongUsage


def home() -> Path:
    """The user's home; raises WrongUsage where there is none, as in some containers."""
    try:
        return Path.home()
    except RuntimeError:
        raise WrongUsage("you have no home folder here: set HOME") from None


def user_folder(variable: str, usual: str) -> Path:
    """The folder that an absolute path in `variable` names, else `usual` in the user's home.

    Raises WrongUsage as `home` does.
    """
    given = os.environ.get(variable, "")
    return Path(given) if Path(given).is_absolute() else home() / usual


def typed_path(text: str) -> Path:
    """The path that somebody typed where no shell reads `~`; raises WrongUsage for no such user."""
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise WrongUsage(
            f"{text.partition('/')[0]} is not a user with a home folder here"
        ) from None
