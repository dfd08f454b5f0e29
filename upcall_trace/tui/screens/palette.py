"""The command palette's entries: every action that has a key, by its name."""

from __future__ import annotations

from functools import partial

from textual.binding import ActiveBinding
from textual.command import DiscoveryHit, Hit, Hits, Provider

from ..panes.bars import key_name


class Actions(Provider):
    """Finds actions among the bindings of the screen that the palette was opened on."""

    def _actions(self) -> list[tuple[str, str, ActiveBinding]]:
        found = {}
        for active in self.screen.active_bindings.values():
            binding = active.binding
            if binding.id and binding.description and binding.id not in found:
                told = f"{binding.description} ({key_name(binding)})"
                found[binding.id] = (told, binding.tooltip, active)
        return list(found.values())

    async def discover(self) -> Hits:
        """Everything, before anything is typed."""
        for name, told, active in self._actions():
            yield DiscoveryHit(name, partial(self._run, active), help=told or None)

    async def search(self, query: str) -> Hits:
        """What fits the words that were typed."""
        matcher = self.matcher(query)
        for name, told, active in self._actions():
            score = matcher.match(name)
            if score > 0:
                run = partial(self._run, active)
                yield Hit(score, matcher.highlight(name), run, help=told or None)

    async def _run(self, active: ActiveBinding) -> None:
        await self.app.run_action(active.binding.action, active.node)
