"""The command palette's entries: every action that has a key, saved filters, and the settings."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from typing import Any, NamedTuple, Protocol

from textual.binding import ActiveBinding
from textual.command import DiscoveryHit, Hit, Hits, Provider

from ..data.settings import COLUMNS, Settings
from ..panes.bars import key_name


class Offer(NamedTuple):
    """One line of the palette."""

    name: str
    told: str
    run: Callable[[], Awaitable[None] | None]


class KeepsSettings(Protocol):
    """The app, as far as the palette changes its settings."""

    settings: Settings
    available_themes: dict[str, Any]

    def use_theme(self, name: str) -> None: ...
    def turn_column(self, name: str) -> None: ...
    def ask_for_key(self, name: str, told: str) -> None: ...
    def use_filter(self, name: str) -> None: ...
    def forget_filter(self, name: str) -> None: ...
    def ask_for_filter_name(self) -> None: ...


class Entries(Provider):
    """Everything that can be done by its name."""

    def _bindings(self) -> dict[str, ActiveBinding]:
        found: dict[str, ActiveBinding] = {}
        for active in self.screen.active_bindings.values():
            binding = active.binding
            if binding.id and binding.description:
                found.setdefault(binding.id, active)
        return found

    def _entries(self) -> Iterator[Offer]:
        bindings = self._bindings()
        for active in bindings.values():
            binding = active.binding
            run = partial(self.app.run_action, binding.action, active.node)
            yield Offer(f"{binding.description} ({key_name(binding)})", binding.tooltip, _only(run))
        kept: KeepsSettings = self.app  # type: ignore[assignment]  # the Browser is the only app of ours
        yield Offer("Save this filter", "Under a name, for the next time", kept.ask_for_filter_name)
        for name, text in kept.settings.filters.items():
            yield Offer(f"Filter {name}", text, partial(kept.use_filter, name))
            yield Offer(f"Forget the filter {name}", text, partial(kept.forget_filter, name))
        for name, told in COLUMNS.items():
            word = "Hide" if name in kept.settings.columns else "Show"
            yield Offer(f"{word} the column {name}", told, partial(kept.turn_column, name))
        for name in sorted(kept.available_themes):
            yield Offer(f"Theme {name}", "Kept in the settings", partial(kept.use_theme, name))
        for name, active in bindings.items():
            told = active.binding.description
            run_key = partial(kept.ask_for_key, name, told)
            yield Offer(f"Change the key of: {told}", key_name(active.binding), run_key)

    async def discover(self) -> Hits:
        """Everything, before anything is typed."""
        for name, told, run in self._entries():
            yield DiscoveryHit(name, run, help=told or None)

    async def search(self, query: str) -> Hits:
        """What fits the words that were typed."""
        matcher = self.matcher(query)
        for name, told, run in self._entries():
            score = matcher.match(name)
            if score > 0:
                yield Hit(score, matcher.highlight(name), run, help=told or None)


def _only(run: Callable[[], Awaitable[Any]]) -> Callable[[], Awaitable[None]]:
    """Without the result, which the palette has no use for."""

    async def ran() -> None:
        await run()

    return ran
