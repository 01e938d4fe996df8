"""The bot of the page that actorbot began with: handlers by decorator, and a console to talk to it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any, Self, TypeVar

from actorbot._manager import SessionManager, ShutdownReport
from actorbot._messages import Event
from actorbot._policy import FlushPolicy
from actorbot.errors import ActorbotError, ConfigError

__all__ = ["Bot", "ConsoleBot"]

logger = logging.getLogger("actorbot")

F = TypeVar("F", bound=Callable[..., Any])


class Bot:
    """A `SessionManager` with decorators. Subclass it for a platform: give it `deliver`, and dispatch what users write.

    `manager_options` are those of `SessionManager`. Memory store when none is given.
    """

    def __init__(self, session_store: Any = None, *, flush: FlushPolicy | None = None, **manager_options: Any) -> None:
        self._store = session_store
        self._options: dict[str, Any] = {"flush": flush, **manager_options}
        self._manager: SessionManager | None = None

    @property
    def manager(self) -> SessionManager:
        """The manager, once the bot was started. Raises: ConfigError before."""
        if self._manager is None:
            raise ConfigError("bot", self, "a started bot: await start(), or run() it")
        return self._manager

    def on_event(self, handler: F) -> F:
        """Let *handler(context)* handle every event."""
        return self._set("handler", handler)

    def on_error(self, hook: F) -> F:
        """Call *hook(context, error)* after a handler's failure was rolled back, and for replies that could not be delivered."""
        return self._set("on_error", hook)

    def on_session_start(self, hook: F) -> F:
        """Call *hook(context)* before the handler, for the first event of a new or expired session."""
        return self._set("on_session_start", hook)

    def on_session_expire(self, hook: F) -> F:
        """Call *hook(session_id, state)* for an expired session that this bot comes across."""
        return self._set("on_session_expire", hook)

    def _set(self, name: str, hook: F) -> F:
        if self._options.get(name) is not None:
            raise ConfigError(name, hook, "one function; there is one already")
        self._options[name] = hook
        return hook

    async def start(self) -> Self:
        """Open the store and come to life on the running loop. Raises: ConfigError without a handler; store errors."""
        if self._options.get("handler") is None:
            raise ConfigError("on_event", None, "a handler: decorate one with @bot.on_event")
        manager = SessionManager(self._store, **({"deliver": self._hook_deliver()} | self._options))
        self._manager = await manager.start()
        return self

    def _hook_deliver(self) -> Callable[[str, Any], Any] | None:
        return None

    async def close(self, timeout: float | None = None) -> ShutdownReport:
        """Finish accepted events, flush, and close the store."""
        return await self.manager.close(timeout)

    async def dispatch(self, session_id: str, text: str, *, event_id: str | None = None) -> Any:
        """Handle what a user wrote."""
        return await self.manager.dispatch(session_id, Event.from_text(text), event_id=event_id)


class ConsoleBot(Bot):
    """A bot to talk to on the console. `/session` shows the state, `/quit` leaves, and so do EOF and Ctrl-C."""

    session_id = "console:1"

    def _hook_deliver(self) -> Callable[[str, Any], Any] | None:
        async def deliver(_: str, message: Any) -> None:
            print(f"Bot > {message}", flush=True)

        return deliver

    def run(self) -> None:
        """Talk until EOF, `/quit`, SIGINT or SIGTERM; flush, and return. It owns its event loop; call it in the main thread."""
        asyncio.run(self._run())

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        stop = asyncio.Event()
        await self.start()
        handled = []
        for number in (signal.SIGINT, signal.SIGTERM):
            with contextlib.suppress(NotImplementedError, ValueError, RuntimeError):
                loop.add_signal_handler(number, stop.set)
                handled.append(number)
        try:
            await self._talk(loop, stop)
        finally:
            await self.close()
            for number in handled:
                loop.remove_signal_handler(number)

    async def _talk(self, loop: asyncio.AbstractEventLoop, stop: asyncio.Event) -> None:
        lines: asyncio.Queue[str | None] = asyncio.Queue()
        go_on = threading.Semaphore(0)

        def read() -> None:
            # A daemon thread: a read of the console cannot be interrupted, and must not keep the process.
            for line in iter(sys.stdin.readline, ""):
                loop.call_soon_threadsafe(lines.put_nowait, line.rstrip("\r\n"))
                go_on.acquire()
                if stop.is_set():
                    return
            with contextlib.suppress(RuntimeError):  # the loop has been left by then
                loop.call_soon_threadsafe(lines.put_nowait, None)

        threading.Thread(target=read, name="console-input", daemon=True).start()
        stopped = loop.create_task(stop.wait())
        while not stop.is_set():
            print("You > ", end="", flush=True)
            got = loop.create_task(lines.get())
            await asyncio.wait({got, stopped}, return_when=asyncio.FIRST_COMPLETED)
            line = got.result() if got.done() else None
            got.cancel()
            if line is None or line.strip().lower() == "/quit":
                break
            await self._answer(line)
            go_on.release()
        if stop.is_set() or line is None:
            print(flush=True)
        stop.set()
        go_on.release()
        await stopped

    async def _answer(self, line: str) -> None:
        if line.strip().lower() == "/session":
            state = await self.manager.peek(self.session_id)
            print(json.dumps(state, indent=2, ensure_ascii=False, default=str), flush=True)
            return
        try:
            await self.dispatch(self.session_id, line)
        except Exception as error:
            if not isinstance(error, ActorbotError):
                logger.exception("the handler failed")
            print(f"({type(error).__name__}: {error})", file=sys.stderr, flush=True)
        await self.manager.delivered(self.session_id)
