"""python-telegram-bot: each update is handled in the turns of its chat and its user.

Their sessions keep `chat_data`, `user_data` and the states of conversations.

`PTBSessions.install(builder)` makes the builder build a subclass of `Application`, which takes the
turns. An update processor could not: it knows neither the application nor a handler's failure, and
is not used by a program that calls `process_update` itself.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from contextvars import ContextVar
from itertools import chain as flat
from typing import Any, Final, NoReturn, TypeVar
from weakref import WeakValueDictionary

from actorbot._manager.embedding import (
    SessionManager,
    check_commit,
    check_dict,
    check_here,
    held,
    is_in_turn,
    is_open,
    max_mailbox,
)
from actorbot._turns.context import Context
from actorbot.errors import ConfigError, DuplicateEventError, OwnershipLostError, TurnEndedError
from actorbot.ext._owning import end_process, watch

try:
    from telegram import Message, Update
    from telegram.ext import Application, ApplicationBuilder
except ImportError as error:
    raise ImportError(
        "actorbot.ext.ptb needs python-telegram-bot: pip install '.[ptb]' in a clone of actorbot"
    ) from error

from actorbot.ext._ptb_conversations import Persistence, keep_states, persistent

__all__ = ["PTBSessions"]

logger = logging.getLogger("actorbot")

# Updates at once, also those that wait for their chat. PTB has a task for each of them anyway.
UPDATES: Final = 10_000

Builder = TypeVar("Builder", bound=ApplicationBuilder[Any, Any, Any, Any, Any, Any])


class PTBSessions:
    """The sessions of one Telegram bot.

    Each group or channel has one, and each user, whose private chat has the same. Their ids are
    `telegram:<bot>:<number>`; Telegram's numbers are positive for users and negative for groups. An
    update holds the turns of its chat and its user. A session has the keys `user_data`, `chat_data`
    and `conversations`, and what you add.

    Use it on the event loop that the application runs on.
    """

    def __init__(self, manager: SessionManager) -> None:
        """Use *manager*. The application starts and closes it, if nobody has started it.

        It begins to receive when the manager has its store. When another process has taken that
        over, it ceases: by a SIGTERM that is raised in this process, if the program handles that.
        Raises: ConfigError.
        """
        check_here(manager)
        check_dict(manager, "python-telegram-bot keeps user_data and chat_data")
        self._manager = manager
        self._lines: WeakValueDictionary[str, _Line] = WeakValueDictionary()
        self._application: Application[Any, Any, Any, Any, Any, Any] | None = None
        watch(manager, self._end)

    def _end(self, error: OwnershipLostError) -> None:
        """Cease to receive: an update that is fetched now would count as handled."""
        if not end_process(error) and self._application is not None:
            updater = self._application.updater
            if updater is not None and updater.running:
                self._ending = asyncio.create_task(updater.stop())

    def install(self, builder: Builder) -> Builder:
        """Make *builder* build an application on these sessions; return the builder.

        This sets its `application_class`, its `persistence`, and its `concurrent_updates` to
        10,000; you may set those again, to more than 1.
        """
        builder.application_class(_Application, {"sessions": self})
        builder.persistence(Persistence())
        builder.concurrent_updates(UPDATES)
        return builder

    @property
    def bot(self) -> Any:
        """The application's bot, for example for `deliver`."""
        if self._application is None:
            raise RuntimeError("no application was built on these sessions: PTBSessions.install(builder) comes first")
        return self._application.bot

    def session_id(self, number: int) -> str:
        """Return the id of the session of a chat or a user. The application must be initialized."""
        return f"telegram:{self.bot.id}:{number}"

    @staticmethod
    def chat_id(session_id: str) -> int:
        """Return the chat (or user) of a session, to which `deliver` sends its messages."""
        return int(session_id.rpartition(":")[2])

    def held(self, update: Update) -> Context:
        """Return the turn that is held for the update's chat, or for its user if it has no chat.

        Raises: TurnEndedError.
        """
        number = _chat_or_user(update)
        if number is None:
            raise ValueError("an update without a chat and without a user, a poll for example, has no session")
        return self._held(number)

    def session(self, update: Update) -> Any:
        """Return the session of the update's chat, to change in place: `held(update).session`."""
        return self.held(update).session

    @asynccontextmanager
    async def turn(self, number: int, *more: int, event_id: str | None = None) -> AsyncIterator[Context]:
        """Hold the turns of chats and users, for example in a job, which runs in no turn.

        Gives the turn of *number*. Turns are always taken in the order of their numbers, so groups
        before users: updates never wait for each other in a circle. Each session changes as a whole
        or not at all. If the time of one is up, or its values cannot be kept, none changes. Inside
        another turn, this does not wait for room in a mailbox.

        Raises: DuplicateEventError at the entry, DeadlockError, OverloadedError, ConflictError at
        the exit.
        """
        ids = [self.session_id(each) for each in sorted({number, *more})]
        async with AsyncExitStack() as stack:
            # A deadlock is found in mailboxes, but not in these lines. So code that has a turn must
            # not wait in a line.
            if not is_in_turn():
                await self._line_up(ids, stack)
            turns = [await stack.enter_async_context(self._manager.turn(each, event_id=event_id)) for each in ids]
            yield self._held(number)
            for turn in turns[:-1]:  # the last commits first: if it fails, so do the others
                check_commit(turn)
            if len(turns) > 1:  # nothing interrupts a commit, or comes between two
                await asyncio.shield(stack.pop_all().aclose())

    async def _line_up(self, ids: list[str], stack: AsyncExitStack) -> None:
        """Wait until the mailboxes have room, since PTB cannot be asked to try again later.

        *stack* gives the places back. Each line lets in nobody else until the last place is found:
        so no update of a group overtakes one that waits for room in its user's mailbox.
        """
        async with AsyncExitStack() as entering:
            for session_id in ids:
                line = self._lines.setdefault(session_id, _Line(max_mailbox(self._manager)))
                await entering.enter_async_context(line.entering)
                await stack.enter_async_context(line.place())

    def _session_of(self, number: int) -> Any:
        return self._held(number).session

    def _held(self, number: int) -> Context:
        session_id = self.session_id(number)
        context = held(self._manager, session_id)
        if context is None:
            reason = (
                "its turn is not held here; in a job, or in a handler with block=False, take it:"
                f" `async with sessions.turn({number}):`"
            )
            raise TurnEndedError(session_id, reason)
        return context


class _Line:
    """Where updates wait for room in the mailbox of a session.

    They may fill half of it. The rest is for turns inside of turns.
    """

    def __init__(self, max_mailbox: int) -> None:
        self.entering = asyncio.Lock()  # held by the update that looks for its places
        self._places = asyncio.Semaphore(max(1, max_mailbox // 2))

    @asynccontextmanager
    async def place(self) -> AsyncIterator[None]:
        async with self._places:
            yield  # and keeps the line alive


class _Application(Application[Any, Any, Any, Any, Any, Any]):
    """An application that handles each update inside the turns of its chat and its user."""

    def __init__(self, *, sessions: PTBSessions, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        for name in ("user_data", "chat_data"):
            kind = getattr(self.context_types, name)
            if kind is not dict:
                raise ConfigError(f"context_types.{name}", kind, "dict, which is what a session keeps")
        self.user_data = _Data(sessions, "user_data")
        self.chat_data = _Data(sessions, "chat_data")
        self._sessions = sessions
        self._starting: asyncio.Task[Any] | None = None  # the start of the manager, if it is ours
        sessions._application = self

    # --- life ------------------------------------------------------------------------------------

    async def initialize(self) -> None:
        await super().initialize()
        for conversation in persistent(flat.from_iterable(self.handlers.values())):
            keep_states(conversation, self._sessions._session_of)
        if not is_open(self._sessions._manager):
            self._starting = asyncio.create_task(self._sessions._manager.start())
            await self._starting

    async def shutdown(self) -> None:
        starting = self._starting
        if starting is not None and not self.running:
            starting.cancel()  # PTB leaves it behind when a signal ends its wait for the store
            await asyncio.wait({starting})
            if not starting.cancelled() and starting.exception() is None:
                await self._sessions._manager.close()  # first: its last replies need the bot
        await super().shutdown()

    # --- updates ---------------------------------------------------------------------------------

    async def process_update(self, update: object) -> None:
        if not isinstance(update, Update) or not (numbers := _numbers(update)):
            await super().process_update(update)
            return
        failures: list[Exception] = []
        before = _failures.set(failures)
        try:
            async with self._sessions.turn(*numbers, event_id=str(update.update_id)):
                await super().process_update(update)
                if failures:
                    raise failures[0]
        except DuplicateEventError as error:
            logger.debug("update %s was handled before: %s", update.update_id, error)
        except Exception as error:
            if error not in failures:  # not a handler's: the handlers ended well or never began
                await super().process_error(update, error)
        finally:
            _failures.reset(before)

    async def process_error(self, update: object, error: Exception, job: Any = None, coroutine: Any = None) -> bool:
        stop = await super().process_error(update, error, job, coroutine)
        failures = _failures.get()
        if failures is None or update is None or job is not None or coroutine is not None:
            return stop  # not from a handler that this turn waits for
        failures.append(error)
        return True  # stops later groups: their replies and changes would be rolled back

    # --- data ------------------------------------------------------------------------------------

    def drop_user_data(self, user_id: int) -> None:
        self.user_data[user_id].clear()

    def drop_chat_data(self, chat_id: int) -> None:
        self.chat_data[chat_id].clear()

    def migrate_chat_data(
        self, message: Message | None = None, old_chat_id: int | None = None, new_chat_id: int | None = None
    ) -> None:
        if message is not None:
            old_chat_id = message.migrate_from_chat_id or message.chat.id
            new_chat_id = message.migrate_to_chat_id or message.chat.id
        if old_chat_id is None or new_chat_id is None or old_chat_id == new_chat_id:
            raise ValueError("migrate_chat_data needs a message about a migration, or both chat ids")
        old, new = self.chat_data[old_chat_id], self.chat_data[new_chat_id]
        # Telegram tells of a migration in both chats. The second time nothing is left to move.
        new.update(old)
        old.clear()

    def _mark_for_persistence_update(self, **_: Any) -> None:
        """Note nobody for the persistence, which never asks. Private to PTB: the notes pile up."""


_failures: ContextVar[list[Exception] | None] = ContextVar("actorbot_ptb_failures", default=None)
"""What handlers of the update that is being processed have failed with."""


def _chat_or_user(update: Update) -> int | None:
    found = update.effective_chat or update.effective_user
    return None if found is None else found.id


def _numbers(update: Update) -> set[int]:
    """Return the chats and users of an update. A group that becomes a supergroup counts as two."""
    numbers = {found.id for found in (update.effective_chat, update.effective_user) if found is not None}
    if update.message is not None:
        numbers |= {update.message.migrate_to_chat_id or 0, update.message.migrate_from_chat_id or 0} - {0}
    return numbers


class _Data(Mapping[int, dict[Any, Any]]):
    """`application.user_data` or `.chat_data`: what the held sessions keep under that name."""

    def __init__(self, sessions: PTBSessions, name: str) -> None:
        self._sessions = sessions
        self._name = name

    def __getitem__(self, number: int) -> dict[Any, Any]:
        values: dict[Any, Any] = self._sessions._session_of(number).setdefault(self._name, {})
        return values

    def __iter__(self) -> NoReturn:
        raise self._unlisted()

    def __len__(self) -> NoReturn:
        raise self._unlisted()

    def _unlisted(self) -> TypeError:
        return TypeError(f"{self._name} cannot be listed: sessions are not kept in memory; ask the store for them")
