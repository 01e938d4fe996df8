"""The states of python-telegram-bot's conversations, kept in sessions.

A `ConversationHandler` reads the state of a conversation from a mapping, `_conversations`, and
stores the next one there. PTB's own persistence would load the states of all users at the start.
Here the mapping is ours, and looks into the session whose turn is held. This is the one file that
uses a private name of PTB.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator, MutableMapping
from itertools import chain
from typing import Any, NoReturn

from telegram.ext import ConversationHandler, DictPersistence, PersistenceInput

from actorbot.errors import ConfigError

__all__ = ["Persistence", "keep_states", "persistent"]

Key = tuple[int | str, ...]
"""Which conversation: its chat, user and message, of these what the handler distinguishes."""

SessionOf = Callable[[int], dict[str, Any]]
"""Gives the held session of a chat or a user. Raises: TurnEndedError."""


class _States(MutableMapping[Key, object]):
    """The states of a ConversationHandler.

    Each is in the session of its user, or, where the handler is not `per_user`, of its chat.
    """

    def __init__(self, session_of: SessionOf, conversation: ConversationHandler[Any]) -> None:
        self._session_of = session_of
        self._name = conversation.name
        # Where in a key the session's number stands.
        self._place = 1 if conversation.per_chat and conversation.per_user else 0
        # Of handlers with block=False: the states that come when their tasks end.
        self._pending: dict[Key, object] = {}

    def _kept(self, key: Key) -> dict[str, object]:
        kept: dict[str, object] = self._session_of(int(key[self._place])).setdefault("conversations", {})
        return kept

    def _text(self, key: Key) -> str:
        return f"{self._name} {key!r}"

    def __getitem__(self, key: Key) -> object:
        return self._pending[key] if key in self._pending else self._kept(key)[self._text(key)]

    def __setitem__(self, key: Key, state: object) -> None:
        self._pending.pop(key, None)
        if isinstance(getattr(state, "task", None), asyncio.Task):
            self._pending[key] = state
        else:
            self._kept(key)[self._text(key)] = state

    def __delitem__(self, key: Key) -> None:
        self._pending.pop(key, None)
        self._kept(key).pop(self._text(key), None)

    def __iter__(self) -> Iterator[Key]:
        return iter(self._pending)

    def __len__(self) -> int:
        return len(self._pending)


def persistent(handlers: Iterable[object]) -> Iterator[ConversationHandler[Any]]:
    """Find the persistent conversations, also those inside others."""
    for handler in handlers:
        if isinstance(handler, ConversationHandler):
            if handler.persistent:
                yield handler
            yield from persistent([*handler.entry_points, *handler.fallbacks, *chain(*handler.states.values())])


def keep_states(conversation: ConversationHandler[Any], session_of: SessionOf) -> None:
    """Have the handler keep its states in `_States`. Raises: ConfigError."""
    if not conversation.per_chat and not conversation.per_user:
        raise ConfigError(
            "persistent", True, "per_chat or per_user, or there is no session to keep the conversation in"
        )
    if conversation.conversation_timeout is not None:
        timeout = conversation.conversation_timeout
        raise ConfigError(
            "conversation_timeout", timeout, "None with persistent=True: it would end outside of any turn"
        )
    if not isinstance(getattr(conversation, "_conversations", None), MutableMapping):
        raise RuntimeError(
            "this python-telegram-bot keeps the states of conversations elsewhere; 22.8 is known to work"
        )
    conversation._conversations = _States(session_of, conversation)


class Persistence(DictPersistence):
    """A persistence that keeps nothing. PTB wants one before a conversation may be persistent."""

    def __init__(self) -> None:
        super().__init__(store_data=PersistenceInput(False, False, False, False))

    async def update_conversation(self, name: str, key: Key, new_state: object) -> NoReturn:
        raise RuntimeError(f"the conversation {name!r} was added after initialize(): its states are not kept")
