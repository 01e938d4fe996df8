"""`ConsoleBot`: the bot of the page that actorbot began with, to talk to on the console."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import os
import sys
import threading
import traceback
from concurrent.futures import Future
from typing import Any, ClassVar

from actorbot._bot import Bot
from actorbot._runtime.home import new_future
from actorbot.errors import ActorbotError, ManagerClosedError

__all__ = ["ConsoleBot"]


class ConsoleBot(Bot):
    """A bot to talk to on the console. `/session` shows the state, `/quit` leaves, and so do EOF and Ctrl-C."""

    session_id: ClassVar[str] = "console:1"

    async def deliver(self, session_id: str, message: Any) -> None:
        """Print a reply."""
        print(f"Bot > {message}", flush=True)

    async def receive(self) -> None:
        """Talk until EOF or `/quit`."""
        # Bytes that are no text, and text that the console cannot show, are no reason to end a conversation.
        for stream, errors in ((sys.stdin, "replace"), (sys.stdout, "backslashreplace")):
            if isinstance(stream, io.TextIOWrapper):
                with contextlib.suppress(io.UnsupportedOperation):  # somebody has read from it before us
                    stream.reconfigure(errors=errors)
        try:
            while (line := await self._ask()) and line.strip().lower() != "/quit":
                # A signal ends the talk; the event under way has until `close_timeout`.
                await asyncio.shield(asyncio.create_task(self._answer(line.rstrip("\r\n"))))
        except BrokenPipeError:  # who read what is printed has gone; nothing is left to say, at exit neither
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

    async def _ask(self) -> str:
        """Return what the user writes, with the end of its line; `""` at the end of the input."""
        print("You > ", end="", flush=True)
        line: Future[str] = new_future()
        # A daemon thread: a read of the console cannot be interrupted, and must not keep the process.
        threading.Thread(target=_read, args=(line,), name="console-input", daemon=True).start()
        text = ""
        try:
            text = await asyncio.wrap_future(line)
        finally:
            if not text:
                print(flush=True)
        return text

    async def _answer(self, text: str) -> None:
        try:
            if text.strip().lower() == "/session":
                state = await self.manager.peek(self.session_id)
                print(json.dumps(state, indent=2, ensure_ascii=False, default=str), flush=True)
            else:
                await self.dispatch(self.session_id, text)
        except ActorbotError as error:
            print(f"({type(error).__name__}: {error})", file=sys.stderr, flush=True)
        except (Exception, asyncio.CancelledError):  # the handler's: its author wants to see where
            traceback.print_exc()
        with contextlib.suppress(ManagerClosedError):  # a close waits for the replies itself
            await self.manager.delivered(self.session_id)


def _read(line: Future[str]) -> None:
    try:
        line.set_result(sys.stdin.readline() if sys.stdin is not None else "")
    except Exception as error:
        line.set_exception(error)
