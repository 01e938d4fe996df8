"""aiogram 3: each update is handled in its session's turn, and what the bot's states and data are is kept inside that session."""

from __future__ import annotations

from asyncio import Task, current_task
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, Final

from actorbot._manager.embedding import SessionManager, borrowed, check_dict, held, joined, values
from actorbot._turns.context import Context
from actorbot.errors import DuplicateEventError

try:
    from aiogram import Dispatcher
    from aiogram.dispatcher.middlewares.error import ErrorsMiddleware
    from aiogram.dispatcher.middlewares.user_context import UserContextMiddleware
    from aiogram.fsm.state import State
    from aiogram.fsm.storage.base import BaseEventIsolation, BaseStorage, StateType, StorageKey
    from aiogram.types import TelegramObject
except ImportError as error:
    raise ImportError(
        "actorbot.ext.aiogram needs aiogram 3: pip install '.[aiogram]' in a clone of actorbot"
    ) from error

__all__ = ["AiogramSessions", "deliver"]

FSM: Final = "aiogram:fsm"
"""The session's key for what aiogram's FSM keeps: `{destiny: {"state": …, "data": …}}`."""

Next = Callable[[TelegramObject, dict[str, Any]], Awaitable[Any]]


class AiogramSessions:
    """What an aiogram bot needs of a session manager. On the manager's loop.

    `Dispatcher(storage=sessions.storage, events_isolation=sessions.isolation)`, then `sessions.install(dispatcher)`.
    The manager is started and closed by who made it: `dispatcher.startup.register(manager.start)`, and `close` likewise.
    """

    def __init__(self, manager: SessionManager) -> None:
        """Raises: ConfigError if the manager has a `session_type`: what aiogram keeps needs a key in a dict."""
        check_dict(manager, "aiogram keeps its states")
        self._manager = manager
        self._holders: dict[Context, Task[Any] | None] = {}  # which task has a turn
        self.storage: BaseStorage = _Storage(manager)
        """FSM states and data: inside the turn that is held; elsewhere, in a background job say, in a short turn of their own."""
        self.isolation: BaseEventIsolation = _Isolation(self)
        """A lock is the session's turn; whoever holds that already has it."""

    @staticmethod
    def session_id(key: StorageKey) -> str:
        """Return the id of the session that a key of aiogram's belongs to: `"telegram:<bot>:<chat>:<user>"`.

        `:topic:<thread>` and `:business:<connection>` follow where the key has them. All destinies of a key share its session.
        """
        session_id = f"telegram:{key.bot_id}:{key.chat_id}:{key.user_id}"
        if key.thread_id is not None:
            session_id += f":topic:{key.thread_id}"
        if key.business_connection_id is not None:
            session_id += f":business:{key.business_connection_id}"
        return session_id

    def install(self, dispatcher: Dispatcher) -> None:
        """Handle each update in its session's turn, from before its state is looked up; an `update_id` seen before is passed over.

        Handlers, filters and your own middlewares may take `session`, the session's values, and `turn`, their `Context`.
        Call it once, before the bot starts.
        """

        async def in_turn(handler: Next, event: TelegramObject, data: dict[str, Any]) -> Any:
            context = dispatcher.fsm.resolve_event_context(data["bot"], data)
            if context is None:
                return await handler(event, data)  # about no user: a poll's new figures, or a channel's post
            return await self._handle(handler, event, data, context.key)

        # Where an outer middleware comes by itself the state has been looked up. aiogram's first two stay: errors are answered
        # outside the turn, and the second finds out whose the update is.
        chain = dispatcher.update.outer_middleware
        rest = [each for each in chain if not isinstance(each, ErrorsMiddleware | UserContextMiddleware)]
        for each in rest:
            chain.unregister(each)
        for each in (in_turn, *rest):
            chain.register(each)

    async def _handle(self, handler: Next, event: Any, data: dict[str, Any], key: StorageKey) -> Any:
        async with AsyncExitStack() as stack:
            try:
                turn = await stack.enter_async_context(self._turn(self.session_id(key), str(event.update_id)))
            except DuplicateEventError:
                return None
            session = turn.session
            data["turn"] = turn
            data.setdefault("session", session)  # bots with a database often have a `session` already
            try:
                return await handler(event, data)
            finally:  # whoever answers an error is given the same data, and must not write into what was rolled back
                for name, value in (("turn", turn), ("session", session)):
                    if data.get(name) is value:
                        del data[name]

    @asynccontextmanager
    async def _turn(self, session_id: str, event_id: str | None = None) -> AsyncIterator[Context]:
        async with borrowed(self._manager, session_id, event_id) as turn:
            self._holders[turn] = current_task()
            try:
                yield turn
            finally:
                del self._holders[turn]


async def deliver(session_id: str, method: Awaitable[Any]) -> Any:
    """Call the Telegram method that a turn has queued: `turn.send(message.answer("Hello"))`. For `SessionManager(deliver=deliver)`."""
    return await method


class _Isolation(BaseEventIsolation):
    def __init__(self, sessions: AiogramSessions) -> None:
        self._sessions = sessions

    @asynccontextmanager
    async def lock(self, key: StorageKey) -> AsyncGenerator[None, None]:
        sessions, session_id = self._sessions, self._sessions.session_id(key)
        turn = held(sessions._manager, session_id)
        if turn is not None and sessions._holders.get(turn) is current_task():
            yield
            return
        async with sessions._turn(session_id):
            yield

    async def close(self) -> None:
        """Leave the manager open: it is not ours."""


class _Storage(BaseStorage):
    def __init__(self, manager: SessionManager) -> None:
        self._manager = manager

    async def set_state(self, key: StorageKey, state: StateType = None) -> None:
        await self._put(key, "state", state.state if isinstance(state, State) else state)

    async def get_state(self, key: StorageKey) -> str | None:
        return (await self._get(key)).get("state")

    async def set_data(self, key: StorageKey, data: Mapping[str, Any]) -> None:
        await self._put(key, "data", dict(data))

    async def get_data(self, key: StorageKey) -> dict[str, Any]:
        return dict((await self._get(key)).get("data", {}))

    async def update_data(self, key: StorageKey, data: Mapping[str, Any]) -> dict[str, Any]:
        async with joined(self._manager, AiogramSessions.session_id(key)):  # one turn for both
            return await super().update_data(key, data)

    async def close(self) -> None:
        """Leave the manager open: it is not ours."""

    async def _get(self, key: StorageKey) -> dict[str, Any]:
        session = await values(self._manager, AiogramSessions.session_id(key))
        kept: dict[str, Any] = session.get(FSM, {}).get(key.destiny, {})
        return kept

    async def _put(self, key: StorageKey, part: str, value: Any) -> None:
        """Keep *value*, or nothing where it is empty: a state that was cleared leaves no trace."""
        async with joined(self._manager, AiogramSessions.session_id(key)) as turn:
            destinies = turn.session.setdefault(FSM, {})
            kept = destinies.setdefault(key.destiny, {})
            if value:
                kept[part] = value
            else:
                kept.pop(part, None)
            if not kept:
                del destinies[key.destiny]
            if not destinies:
                del turn.session[FSM]
