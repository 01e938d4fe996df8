"""aiogram 3: each update is handled in its session's turn, and the session keeps the FSM's data."""

from __future__ import annotations

from asyncio import Task, create_task, current_task
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Any, Final

from actorbot._manager.embedding import SessionManager, borrowed, check_dict, check_here, held, joined, values
from actorbot._turns.context import Context
from actorbot.errors import DuplicateEventError, OwnershipLostError
from actorbot.ext._owning import end_process, watch

try:
    from aiogram import Dispatcher, exceptions
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

# What aiogram's own storages raise; older versions have no name for it.
NOT_DICT_LIKE: Final[type[Exception]] = getattr(exceptions, "DataNotDictLikeError", TypeError)

FSM: Final = "aiogram:fsm"
"""The session's key for what aiogram's FSM keeps: `{destiny: {"state": …, "data": …}}`."""

Next = Callable[[TelegramObject, dict[str, Any]], Awaitable[Any]]


class AiogramSessions:
    """What an aiogram bot needs of a session manager. On the manager's loop.

    Make `Dispatcher(storage=sessions.storage, events_isolation=sessions.isolation)`, then call
    `sessions.install(dispatcher)`. You start and close the manager, for example by
    `dispatcher.startup.register(manager.start)` and `dispatcher.shutdown.register(manager.close)`.
    Polling begins when the manager has its store. When another process has taken that over, it
    ends: by a SIGTERM that is raised in this process, if the program handles that.
    """

    def __init__(self, manager: SessionManager) -> None:
        """Raises: ConfigError if the manager has a `session_type`; aiogram needs a dict."""
        check_here(manager)
        check_dict(manager, "aiogram keeps its states")
        self._manager = manager
        self._holders: dict[Context, Task[Any] | None] = {}  # the task that has each turn
        self._ending: Task[None] | None = None  # kept here: a loop keeps no task alive
        self.storage: BaseStorage = _Storage(manager)
        """FSM states and data, kept inside the turn that is held.

        Elsewhere, in a background job for example, each change is a short turn of its own.
        """
        self.isolation: BaseEventIsolation = _Isolation(self)
        """A lock is the session's turn. Code that has the turn has the lock."""

    @staticmethod
    def session_id(key: StorageKey) -> str:
        """Return the id of a key's session: `"telegram:<bot>:<chat>:<user>"`.

        `:topic:<thread>` and `:business:<connection>` follow if the key has them. All destinies of
        a key share its session.
        """
        session_id = f"telegram:{key.bot_id}:{key.chat_id}:{key.user_id}"
        if key.thread_id is not None:
            session_id += f":topic:{key.thread_id}"
        if key.business_connection_id is not None:
            session_id += f":business:{key.business_connection_id}"
        return session_id

    def install(self, dispatcher: Dispatcher) -> None:
        """Handle each update in its session's turn, which begins before the FSM looks up its state.

        An `update_id` that was handled before is skipped. Handlers, filters and your own
        middlewares may take `session`, the session's values, and `turn`, the `Context`. Call this
        once, before the bot starts.
        """

        async def stop_polling() -> None:
            with suppress(RuntimeError):  # it does not poll
                await dispatcher.stop_polling()

        def end(error: OwnershipLostError) -> None:
            if not end_process(error):
                self._ending = create_task(stop_polling())

        watch(self._manager, end)

        async def in_turn(handler: Next, event: TelegramObject, data: dict[str, Any]) -> Any:
            context = dispatcher.fsm.resolve_event_context(data["bot"], data)
            if context is None:
                return await handler(event, data)  # of no user: a channel's post, for example
            return await self._handle(handler, event, data, context.key)

        # An outer middleware that is just added would run after the state was looked up. So all are
        # registered again, after ours. aiogram's first two stay in front: the first answers errors,
        # outside of the turn, and the second finds out whose update it is.
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
            data.setdefault("session", session)  # a database's `session` may be there already
            try:
                return await handler(event, data)
            finally:  # an error handler gets the same data; what was rolled back is not for it
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
    """Call the Telegram method that a turn has sent: `turn.send(message.answer("Hello"))`.

    For `SessionManager(deliver=deliver)`.
    """
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
        if not isinstance(data, Mapping):
            raise NOT_DICT_LIKE(f"Data must be a dict or dict-like object, got {type(data).__name__}")
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
        """Keep *value*. If it is empty, remove the key: a cleared state leaves no trace."""
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
