"""OpenAI Agents SDK: an agent keeps its conversation in the user's session, as part of a turn."""

from __future__ import annotations

import logging
from copy import deepcopy
from typing import TYPE_CHECKING, Any, Final

from actorbot._checks import check_count
from actorbot._manager.embedding import (
    SessionManager,
    check_dict,
    check_here,
    joined,
    max_session_bytes,
    size_of,
    values,
)
from actorbot.ext._conversation import fit, newest

try:
    from agents import TResponseInputItem
except ImportError as error:
    raise ImportError(
        "actorbot.ext.agents needs openai-agents: pip install '.[agents]' in a clone of actorbot"
    ) from error

if TYPE_CHECKING:  # older versions have none
    from agents import SessionSettings

__all__ = ["AgentSession"]

logger = logging.getLogger("actorbot")

ROOM: Final = 0.75  # of max_session_bytes; the manager warns of a session that takes 0.8
ITEMS: Final = "agents:items"
"""The session's key for the items of the conversation, oldest first."""


class AgentSession:
    """The memory of a conversation, for `Runner.run(agent, text, session=AgentSession(…))`.

    Used on the manager's loop. Inside a turn of the session (a handler, `manager.turn`) it is part
    of the turn: a run that fails there leaves no trace. Elsewhere a read gives what was committed
    last, and each change is a short turn of its own: two runs at once would mix their items.

    With `max_items`, only about so many of the newest items are kept: whole exchanges, each from a
    user's message on, and always the last one. With it or without, the oldest exchanges are
    forgotten when the session would take more than three quarters of `max_session_bytes`. If the
    last one alone is too large for that, its oldest tool calls are forgotten, each with its result.
    """

    session_settings: SessionSettings | None = None

    def __init__(self, manager: SessionManager, session_id: str, *, max_items: int | None = None) -> None:
        """Raises: ConfigError."""
        check_here(manager, "With a Cluster, run the agent in the shard's handler, and keep its items in the session")
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
            self._shorten(kept, turn.session)

    def _shorten(self, kept: list[TResponseInputItem], session: dict[str, Any]) -> None:
        """Drop the oldest of *kept*, which are among the values of *session*."""
        if self._max_items is not None:
            del kept[: newest(kept, self._max_items)]
        most = max_session_bytes(self._manager)
        if size_of(session, most) <= ROOM * most:
            return
        others = sum(size_of(value, most) + len(key) for key, value in session.items() if key != ITEMS)
        sizes = [size_of(item, most) for item in kept]
        begin, steps = fit(kept, sizes, int(ROOM * most) - others, most - others)
        del kept[:begin]
        if left_out := kept[steps]:
            del kept[steps]
            logger.warning(
                "session %r: a run is too large for a session (max_session_bytes): the memory leaves out its oldest"
                " %d items, tool calls with their results",
                self.session_id,
                len(left_out),
                extra={"session_id": self.session_id},
            )

    async def pop_item(self) -> TResponseInputItem | None:
        """Remove the newest item and return it; `None` if there is none."""
        async with joined(self._manager, self.session_id) as turn:
            kept: list[TResponseInputItem] = turn.session.get(ITEMS, [])
            return kept.pop() if kept else None

    async def clear_session(self) -> None:
        """Forget the conversation. The session's other values stay."""
        async with joined(self._manager, self.session_id) as turn:
            turn.session.pop(ITEMS, None)
