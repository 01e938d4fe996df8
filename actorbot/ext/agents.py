"""OpenAI Agents SDK: an agent keeps its conversation in the user's session, as part of a turn."""

from __future__ import annotations

from copy import deepcopy
from typing import TYPE_CHECKING, Final

from actorbot._checks import check_count
from actorbot._manager.embedding import SessionManager, check_dict, joined, values

try:
    from agents import TResponseInputItem
except ImportError as error:
    raise ImportError(
        "actorbot.ext.agents needs openai-agents: pip install '.[agents]' in a clone of actorbot"
    ) from error

if TYPE_CHECKING:  # older versions have none
    from agents import SessionSettings

__all__ = ["AgentSession"]

ITEMS: Final = "agents:items"
"""The session's key for the items of the conversation, oldest first."""


class AgentSession:
    """The memory of a conversation, for `Runner.run(agent, text, session=AgentSession(…))`.

    Used on the manager's loop. Inside a turn of the session (a handler, `manager.turn`) it is part
    of the turn: a run that fails there leaves no trace. Elsewhere a read gives what was committed
    last, and each change is a short turn of its own: two runs at once would mix their items.

    With `max_items`, only about so many of the newest items are kept: whole exchanges, each from a
    user's message on, and always the last one. Without it, a conversation grows until its session
    exceeds `max_session_bytes` (SessionTooLargeError).
    """

    session_settings: SessionSettings | None = None

    def __init__(self, manager: SessionManager, session_id: str, *, max_items: int | None = None) -> None:
        """Raises: ConfigError."""
        check_dict(manager, "the agent keeps its items")
        self._manager = manager
        self._max_items = None if max_items is None else check_count("max_items", max_items)
        self.session_id = session_id

    async def get_items(self, limit: int | None = None) -> list[TResponseInputItem]:
        """Return the conversation, or its newest *limit* items, oldest first; a copy."""
        if limit is None and self.session_settings is not None:
            limit = self.session_settings.limit
        items = (await values(self._manager, self.session_id)).get(ITEMS, [])
        first = 0 if limit is None else max(0, len(items) - limit)
        return deepcopy(items[first:])

    async def add_items(self, items: list[TResponseInputItem]) -> None:
        """Add *items* at the end."""
        if not items:
            return
        async with joined(self._manager, self.session_id) as turn:
            kept = turn.session.setdefault(ITEMS, [])
            kept.extend(deepcopy(items))
            if self._max_items is not None:
                del kept[: _surplus(kept, self._max_items)]

    async def pop_item(self) -> TResponseInputItem | None:
        """Remove the newest item and return it; `None` if there is none."""
        async with joined(self._manager, self.session_id) as turn:
            kept: list[TResponseInputItem] = turn.session.get(ITEMS, [])
            return kept.pop() if kept else None

    async def clear_session(self) -> None:
        """Forget the conversation. The session's other values stay."""
        async with joined(self._manager, self.session_id) as turn:
            turn.session.pop(ITEMS, None)


def _surplus(items: list[TResponseInputItem], most: int) -> int:
    """Count the oldest items to drop.

    What is kept begins with a user's message, so that no tool call is cut from its result.
    """
    least = len(items) - most
    if least <= 0:
        return 0
    begins = [place for place, item in enumerate(items) if item.get("role") == "user"]
    return next((place for place in begins if place >= least), begins[-1] if begins else 0)
