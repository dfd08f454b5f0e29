"""Theme, columns, keys and filters from the palette: they are kept, and lines of the user stay."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from upcall_trace.tui.data.settings import COLUMNS, Settings, read_settings, settings_path
from upcall_trace.tui.data.settings_file import write_settings

from .support import CAPTURES, Driven, drive

CPUS = CAPTURES / "cpu_lifecycle.upcap"
HAND_MADE = """\
# My own settings.
theme = "nord"  # at night

[keys]
# as in the other tool
next_failure = "f3"
quit = "f10"
"""


async def choose(browser: Driven, words: str) -> None:
    """The first entry of the palette that fits these words."""
    await browser.press("colon")
    await browser.type(words)
    await browser.until(words)
    await browser.press("enter")


def kept() -> Settings:
    return read_settings(settings_path())


def test_a_theme_is_chosen_and_kept() -> None:
    async def script(browser: Driven) -> None:
        await choose(browser, "Theme textual-light")
        assert browser.app.theme == "textual-light"
        assert browser.said == "the theme is textual-light"

    drive(script, CPUS)
    assert kept() == Settings(theme="textual-light")


def test_columns_are_hidden_and_shown_and_kept() -> None:
    async def script(browser: Driven) -> None:
        assert "UP204" in ladder(browser)
        assert "10.108038" in ladder(browser)
        assert " 1.2 " in ladder(browser)
        await choose(browser, "Hide the column codes")
        assert "UP204" not in ladder(browser)
        assert "[stale-load]" in ladder(browser)
        await choose(browser, "Hide the column doubts")
        assert "[stale-load]" not in ladder(browser)
        await choose(browser, "Hide the column time")
        assert "10.108038" not in ladder(browser)
        await choose(browser, "Hide the column number")
        assert " 1.2 " not in ladder(browser)
        await choose(browser, "Show the column row")
        assert " 2 ├─ add_cpu" in ladder(browser)
        await choose(browser, "Show the column time")
        assert ">10s 10.08s" in ladder(browser)
        assert browser.said == "the column time is shown"

    drive(script, CPUS, size=(160, 50))
    assert kept() == Settings(columns=("row", "time"))


def ladder(browser: Driven) -> str:
    return "\n".join(browser.panes.ladder.as_text())


@pytest.mark.parametrize("columns", [(), ("row",), tuple(COLUMNS)], ids=str)
@pytest.mark.parametrize("size", [(80, 24), (160, 50)], ids=str)
def test_with_any_columns_the_guest_stands_where_the_heading_says(
    columns: tuple[str, ...], size: tuple[int, int]
) -> None:
    async def script(browser: Driven) -> None:
        _, heading, *lines = browser.panes.ladder.as_text()  # below the border
        place = heading.index("guest") + len("guest") - 1
        assert {line.rstrip()[-1] for line in lines if line.strip()} <= {"│", "┤"}
        assert {len(line.rstrip()) - 1 for line in lines if line.strip()} == {place}

    drive(script, CPUS, size=size, settings=Settings(columns=columns))


def test_a_key_is_changed_and_kept() -> None:
    async def script(browser: Driven) -> None:
        await choose(browser, "Change the key of: Next failure")
        assert "Press the key for: Next failure" in browser.text()
        await browser.press("f5")
        assert browser.said == "f5 is the key of: Next failure"
        await browser.press("f5")
        assert browser.panes.operation is not None
        assert "UP201 vcpu-not-started at 1.0" in browser.text()
        await choose(browser, "Change the key of: Next finding")
        await browser.press("x")
        assert browser.said == "x is the key of: Next finding; it was that of: Export"
        await choose(browser, "Change the key of: Zoom")
        await browser.press("escape")

    drive(script, CPUS)
    assert kept() == Settings(keys={"next_failure": "f5", "next_finding": "x"})


def test_a_filter_is_saved_used_and_forgotten() -> None:
    async def script(browser: Driven) -> None:
        await choose(browser, "Save this filter")
        assert browser.said == "there is no filter to save: / types one"
        await browser.press("slash")
        await browser.type("op == del_cpu and ret < 0")
        await browser.press("enter")
        await choose(browser, "Save this filter")
        assert "save the filter as:" in browser.lines()[-1]
        await browser.type("failed removals")
        await browser.press("enter")
        assert browser.said == "the filter is saved as failed removals"
        await browser.press("slash", "ctrl+u", "enter")
        assert browser.panes.ladder.arranged.matches == 11
        await choose(browser, "Filter failed removals")
        assert browser.panes.ladder.arranged.matches == 2

    drive(script, CPUS)
    assert kept().filters == {"failed removals": "op == del_cpu and ret < 0"}

    async def another_day(browser: Driven) -> None:
        await choose(browser, "Filter failed removals")
        assert browser.panes.ladder.arranged.matches == 2
        await choose(browser, "Forget the filter failed removals")

    drive(another_day, CPUS, settings=kept())
    assert kept() == Settings()


def test_a_saved_filter_that_is_wrong_is_told() -> None:
    async def script(browser: Driven) -> None:
        await choose(browser, "Filter mine")
        assert "that filter is wrong at 1" in browser.said

    drive(script, CPUS, settings=Settings(filters={"mine": "nothing == 5"}))


def test_settings_that_cannot_be_kept_work_all_the_same() -> None:
    settings_path().parent.parent.mkdir(parents=True)
    settings_path().parent.write_text("a file where the folder should be")

    async def script(browser: Driven) -> None:
        await choose(browser, "Theme nord")
        assert browser.app.theme == "nord"
        assert "it is not kept: " in browser.said

    drive(script, CPUS)


def test_what_the_user_wrote_stays(tmp_path: Path) -> None:
    path = tmp_path / "tui.toml"
    path.write_text(HAND_MADE)
    settings = read_settings(path)
    write_settings(
        path, Settings("nord", {**settings.keys, "zoom": "f4"}, filters={"a b": "ret < 0"})
    )
    assert path.read_text() == HAND_MADE + 'zoom = "f4"\n\n[filters]\n"a b" = "ret < 0"\n'
    write_settings(path, settings)
    assert path.read_text() == HAND_MADE + "\n[filters]\n"
    write_settings(path, Settings("dracula", {"quit": "f10"}))
    assert "# My own settings.\n" in path.read_text()
    assert read_settings(path) == Settings("dracula", {"quit": "f10"})


def test_a_link_to_the_settings_stays_one(tmp_path: Path) -> None:
    own = tmp_path / "own.toml"
    own.write_text(HAND_MADE)
    (tmp_path / "tui.toml").symlink_to(own)
    write_settings(tmp_path / "tui.toml", Settings("dracula"))
    assert (tmp_path / "tui.toml").is_symlink()
    assert read_settings(own) == Settings("dracula")


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
SETTINGS = st.builds(
    Settings,
    theme=st.none() | TEXT,
    keys=st.dictionaries(TEXT, TEXT, max_size=3),
    columns=st.lists(st.sampled_from(list(COLUMNS)), unique=True).map(tuple),
    filters=st.dictionaries(TEXT, TEXT, max_size=3),
)
FILES = st.sampled_from(
    ["", HAND_MADE, "theme = 5", "columns = [\n'row',\n]\n", "not toml", "[keys]\nx = '''a\nb'''\n",
     "keys.quit = 'f9'\n", "[ filters ]\n'a' = 'b'\n", "\xff", "filters = {a = 'b'}\n"]
)  # fmt: skip


@given(settings=SETTINGS, before=FILES)
def test_what_was_written_is_read_whatever_the_file_was(
    settings: Settings, before: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("s") / "tui.toml"
    path.write_text(before, encoding="latin-1")
    write_settings(path, settings)
    assert read_settings(path) == settings
