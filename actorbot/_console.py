"""`ConsoleBot`: a bot to talk to on the console."""

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
from actorbot.errors import ActorbotError, ConfigError, ManagerClosedError

__all__ = ["ConsoleBot"]


class ConsoleBot(Bot):
    """A bot to talk to on the console. `/session` shows the state; `/quit`, EOF, Ctrl-C leave."""

    session_id: ClassVar[str] = "console:1"

    async def deliver(self, session_id: str, message: Any) -> None:
        """Print a reply."""
        print(f"Bot > {message}", flush=True)

    async def receive(self) -> None:
        """Talk until EOF or `/quit`."""
        # Neither bytes that are no text nor text that the console cannot show end the conversation.
        for stream, errors in ((sys.stdin, "replace"), (sys.stdout, "backslashreplace")):
            if isinstance(stream, io.TextIOWrapper):
                with contextlib.suppress(io.UnsupportedOperation):  # it has been read from
                    stream.reconfigure(errors=errors)
        try:
            while (line := await self._ask()) and line.strip().lower() != "/quit":
                # A signal ends the talk; the event under way has until `close_timeout`.
                await asyncio.shield(asyncio.create_task(self._answer(line.rstrip("\r\n"))))
        except BrokenPipeError:  # nobody reads the output any more; print nothing, also not at exit
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

    async def _ask(self) -> str:
        """Return a line that the user writes, with its end; `""` at the end of the input."""
        print("You > ", end="", flush=True)
        line: Future[str] = new_future()
        # A daemon thread: nothing can interrupt a read of the console, and the process must end.
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
        except GeneratorExit:  # the loop has gone
            raise
        except BaseException:  # from the handler: show its author where
            traceback.print_exc()
        with contextlib.suppress(ManagerClosedError, ConfigError):  # the close has waited for the replies
            await self.manager.delivered(self.session_id)


def _read(line: Future[str]) -> None:
    try:
        line.set_result(sys.stdin.readline() if sys.stdin is not None else "")
    except Exception as error:
        line.set_exception(error)
