"""`Bot`: a manager with decorators, the base of a platform's bot."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Self, TypeVar

from actorbot._checks import check_function
from actorbot._event import Event
from actorbot._manager.access import Life
from actorbot._manager.manager import SessionManager
from actorbot._policy import FlushPolicy
from actorbot._reports import ShutdownReport
from actorbot._running.run import run
from actorbot.errors import ConfigError, ManagerClosedError, OwnershipLostError

__all__ = ["Bot"]

F = TypeVar("F", bound=Callable[..., Any])


class Bot:
    """A `SessionManager` with decorators. A platform's bot overrides `deliver` and `receive`.

    Without a store, sessions are kept in memory. `manager_options` are those of `SessionManager`.
    `run()` makes an event loop of its own. On a loop that runs already, `start()` the bot,
    `dispatch` what comes in, and `close()` it. Raises: ConfigError.
    """

    def __init__(self, session_store: Any = None, *, flush: FlushPolicy | None = None, **manager_options: Any) -> None:
        self._store = session_store
        self._options: dict[str, Any] = {"flush": flush, **manager_options}
        self._manager: SessionManager | None = None
        self._report = ShutdownReport((), 0, 0, 0.0)
        self._is_lost = False
        self._close_time: float | None = None  # while it runs, what is left of `close_timeout`
        self._told: Callable[[], None] | None = None  # while it runs: ends that
        self._shows: Callable[[str], None] | None = None  # while it runs: shows for whom it waits
        # To refuse a wrong option or method here rather than at the start:
        check_function("receive", self.receive)
        self._make_manager()

    def _make_manager(self) -> SessionManager:
        deliver = None if getattr(self.deliver, "__func__", None) is Bot.deliver else self.deliver
        return SessionManager(self._store, **({"deliver": deliver} | self._options))

    @property
    def manager(self) -> SessionManager:
        """The manager of a started bot. Raises: ConfigError before the start and after `close`."""
        if self._manager is None:
            raise ConfigError("bot", self, "a started bot: await start(), or run() it")
        return self._manager

    # --- what the author sets --------------------------------------------------------------------

    def on_event(self, handler: F) -> F:
        """Let *handler(context)* handle every event."""
        return self._set("handler", handler)

    def on_error(self, hook: F) -> F:
        """Call *hook(context, error)* after a failed turn, or about a reply not delivered."""
        return self._set("on_error", hook)

    def on_session_start(self, hook: F) -> F:
        """Call *hook(context)* before the first event of a new or expired session is handled."""
        return self._set("on_session_start", hook)

    def on_session_expire(self, hook: F) -> F:
        """Call *hook(session_id, state)* for an expired session that this bot finds."""
        return self._set("on_session_expire", hook)

    def _set(self, name: str, hook: F) -> F:
        if self._options.get(name) is not None:
            raise ConfigError(name, hook, "one function; there is one already")
        if self._manager is not None:
            raise ConfigError(name, hook, "to be set before the bot is started")
        check_function(name, hook)
        self._options[name] = hook
        return hook

    # --- life ------------------------------------------------------------------------------------

    def run(self) -> None:
        """Start, receive until nothing more comes or until SIGINT or SIGTERM, and close.

        All that follows a signal takes `close_timeout` seconds, or 1 s after a second signal; a
        third ends the process at once. It makes its own event loop. Signals come to the main thread
        alone: in another, `close` ends it. docs/running.md has more.

        While another process owns the store it waits, for `takeover_timeout` seconds, and says so.

        Raises: what `receive` raises, after the close; SystemExit(1) if sessions were not flushed,
        or if another process took over the store; SystemExit(2) if the bot could not start;
        WrongLoopError where a loop runs already.
        """
        run(self, self._make_manager()._options.close_timeout)

    # Positional only and loosely typed, so that a method with other names and narrower types, `def`
    # or `async def`, overrides it for every type checker.
    def deliver(self, session_id: str, message: Any, /) -> Any:
        """Send a reply to the user: a `def` or an `async def`. A platform's bot overrides it.

        Without one, no handler can reply. The option `deliver=` replaces it.
        """
        raise ConfigError("deliver", None, f"a method that sends a reply: override it in {type(self).__name__}")

    async def receive(self) -> None:
        """Dispatch what users write, until nothing more comes. A platform's bot overrides it.

        `run` cancels it on a signal. If it waits for `dispatch` then, that event is rolled back: so
        `submit` to the manager, or shield the dispatch. It may clean up for most of
        `close_timeout`; after that the bot ends without it.
        """
        raise ConfigError("receive", None, f"a method that dispatches events: override it in {type(self).__name__}")

    async def start(self) -> Self:
        """Open the store, and start on the running loop. Raises: ConfigError, store errors."""
        if self._manager is not None:
            raise ManagerClosedError("the bot was started before: close() it first")
        if self._options.get("handler") is None:
            raise ConfigError("on_event", None, "a handler: decorate one with @bot.on_event")
        self._manager = self._make_manager()
        self._manager._on_wait.append(self._note_wait)
        self._manager._on_lost.append(self._note_lost)
        self._is_lost = False
        try:
            await self._manager.start()
        except BaseException:
            self._manager = None
            raise
        return self

    async def close(self, timeout: float | None = None) -> ShutdownReport:
        """Finish accepted events, flush, and close the store. A second call returns the report.

        It also ends `run`. *timeout*: in seconds, or else `close_timeout`.
        """
        if self._told is not None:
            self._told()
        if self._manager is not None:
            self._report = await self._manager.close(self._close_time if timeout is None else timeout)
            self._manager = None
        return self._report

    # What `run` needs besides.

    def _hurry(self, seconds: float) -> None:
        if self._manager is not None:
            self._hurrying = asyncio.ensure_future(self._manager.close(seconds))

    def _give_up(self, seconds: float) -> None:
        if self._is_open() and self._manager is not None:
            self._manager._close_without_loop(seconds)

    def _is_open(self) -> bool:
        return self._manager is not None and self._manager._life in (Life.OPEN, Life.LOST, Life.CLOSING)

    def _is_flushed(self) -> bool:
        report = self._report if self._manager is None else self._manager._report
        return report is not None and not report.unflushed and not self._is_lost

    def _note_wait(self, owner: str) -> None:
        if self._shows is not None:
            self._shows(owner)

    def _note_lost(self, _: OwnershipLostError) -> None:
        """End the run: another process has taken over the store."""
        self._is_lost = True
        if self._told is not None:
            self._told()

    async def dispatch(self, session_id: str, text: str, *, event_id: str | None = None) -> Any:
        """Handle what a user wrote."""
        return await self.manager.dispatch(session_id, Event.from_text(text), event_id=event_id)
