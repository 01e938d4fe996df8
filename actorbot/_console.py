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
from collections.abc import Iterator
from concurrent.futures import Future
from importlib import import_module
from typing import Any, ClassVar, Final

from actorbot._bot import Bot
from actorbot._runtime.home import new_future
from actorbot.errors import ActorbotError, ConfigError, ManagerClosedError

__all__ = ["ConsoleBot"]

PROMPT: Final = "You > "
HELP: Final = """\
/help     shows these lines
/session  shows what the bot keeps of you
/quit     leaves, as does the end of the input (Ctrl-D) or Ctrl-C
All else is said to the bot."""


class ConsoleBot(Bot):
    """A bot to talk to on the console. `/help` says how; `/quit`, EOF, Ctrl-C leave.

    On a terminal the line can be edited, and the arrow keys bring earlier ones back. Where the
    input is no terminal, each line of it is printed, so that the output is the whole dialogue.
    """

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
            with _edited_lines() as edited:
                while (line := await self._ask(edited)) and line.strip().lower() != "/quit":
                    # A signal ends the talk; the event under way has until `close_timeout`.
                    await asyncio.shield(asyncio.create_task(self._answer(line.rstrip("\r\n"))))
        except BrokenPipeError:  # nobody reads the output any more; print nothing, also not at exit
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

    async def _ask(self, edited: bool) -> str:
        """Return a line that the user writes, with its end; `""` at the end of the input."""
        print("" if edited else PROMPT, end="", flush=True)
        line: Future[str] = new_future()
        # A daemon thread: nothing can interrupt a read of the console, and the process must end.
        threading.Thread(target=_read, args=(line, edited), name="console-input", daemon=True).start()
        text = ""
        try:
            text = await asyncio.wrap_future(line)
        finally:
            if not text:
                print(flush=True)
            elif not _is_terminal(sys.stdin):  # a terminal has shown it already
                print(text.rstrip("\r\n"), flush=True)
        return text

    async def _answer(self, text: str) -> None:
        word = text.strip().lower()
        try:
            if word == "/help":
                print(HELP, flush=True)
            elif word == "/session":
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


def _is_terminal(stream: Any) -> bool:
    return stream is not None and not stream.closed and bool(stream.isatty())


@contextlib.contextmanager
def _edited_lines() -> Iterator[bool]:
    """Have `input` let the user edit the line, where that can be; yield whether it does."""
    if not (_is_terminal(sys.stdin) and _is_terminal(sys.stdout)):
        yield False
        return
    try:
        readline, termios = import_module("readline"), import_module("termios")
    except ImportError:  # Windows, whose console edits lines by itself
        yield False
        return
    # Else it prints signs around each prompt that tell a terminal of pastes and keys.
    for setting in ("enable-bracketed-paste off", "enable-meta-key off"):
        readline.parse_and_bind(f"set {setting}")
    before = termios.tcgetattr(sys.stdin)
    try:
        yield True
    finally:
        # The thread may still be at a line, for which the terminal echoes nothing by itself.
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)


def _read(line: Future[str], edited: bool) -> None:
    try:
        if edited:
            line.set_result(f"{input(PROMPT)}\n")
        else:
            line.set_result(sys.stdin.readline() if sys.stdin is not None else "")
    except EOFError:
        line.set_result("")
    except Exception as error:
        line.set_exception(error)
