"""Makes the documentation's pictures from the running browser: `python -m tools.make_pictures`."""

from __future__ import annotations

import asyncio
import os
import tempfile
from typing import Final, NamedTuple

from upcall_trace.tui.app import Browser
from upcall_trace.tui.data.settings import Settings
from upcall_trace.tui.screens.capture_screen import CaptureScreen
from upcall_trace.tui.screens.work import Given

from .generate_docs import ROOT

PICTURES: Final = ROOT / "docs" / "pictures"
_PATIENCE: Final = 2000


class Picture(NamedTuple):
    """One picture: of what, how large, and what is typed before it is taken."""

    name: str
    capture: str
    size: tuple[int, int]
    keys: tuple[str, ...] = ()
    theme: str = "textual-dark"
    console: bool = False


ALL: Final = (
    Picture("failure", "cpu_lifecycle", (120, 36), ("right_square_bracket",)),
    Picture("bytes", "stale_results", (120, 36), (*["right_square_bracket"] * 3, "4", *"jjjj")),
    Picture("wide", "guest_oops", (220, 44), ("right_square_bracket",), console=True),
    Picture("light", "mmio_lifecycle", (100, 30), ("right_square_bracket",), "textual-light"),
    Picture("narrow", "pci_memory", (80, 24), ("right_square_bracket", "5")),
)


async def take(picture: Picture) -> str:
    """The picture as SVG."""
    golden = ROOT / "tests" / "golden" / f"{picture.capture}.console.log"
    path = ROOT / "captures" / f"{picture.capture}.upcap"
    given = Given(path, console=golden if picture.console else None)
    app = Browser(given, Settings(theme=picture.theme))
    async with app.run_test(size=picture.size) as pilot:
        for key in ("", *picture.keys):
            if key:
                await pilot.press(key)
            for _ in range(_PATIENCE):
                await pilot.pause(0.01)
                screen = app.screen
                if isinstance(screen, CaptureScreen) and screen.is_at_rest:
                    break
        await pilot.pause(0.2)
        return app.export_screenshot(title=f"upcall-trace tui {path.name}")


def main() -> None:
    """Write every picture anew."""
    PICTURES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as home:
        os.environ |= {"XDG_STATE_HOME": home, "XDG_CONFIG_HOME": home}
        for picture in ALL:
            made = asyncio.run(take(picture))
            (PICTURES / f"{picture.name}.svg").write_text(_trimmed(made), encoding="utf-8")


def _trimmed(svg: str) -> str:
    return "\n".join(line.rstrip() for line in svg.splitlines()) + "\n"


if __name__ == "__main__":
    main()
