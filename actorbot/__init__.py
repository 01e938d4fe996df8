"""Conversation sessions for bots: one actor per user, events in order, turns atomic, state flushed
behind the conversation.

How an event flows: `SessionManager.dispatch` finds the session's actor in memory, or makes it and
reads its record. It takes the actor's turn, or waits for it in the actor's mailbox. The turn
decodes the committed state and calls the handler with a `Context`. Then it encodes what the handler
left and commits it; the replies go out. Later the flusher takes what was committed to the
`SessionStore`, in batches. A session that is idle and flushed leaves memory. CONTRIBUTING.md has
the rooms of the code.
"""

import logging
from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from actorbot import errors
from actorbot._bot import Bot
from actorbot._console import ConsoleBot
from actorbot._event import DUPLICATE, Event
from actorbot._manager.manager import SessionManager
from actorbot._manager.receipt import Receipt
from actorbot._policy import FlushPolicy, Retry
from actorbot._reports import ShutdownReport
from actorbot._state.typed import Session
from actorbot._turns.context import Context
from actorbot.stores.base import ONE_YEAR, SessionStore
from actorbot.stores.file import FileSessionStore
from actorbot.stores.memory import MemorySessionStore
from actorbot.stores.url import store_from_url

if TYPE_CHECKING:
    __version__: str
    from actorbot.stores.mongo import MongoSessionStore as MongoSessionStore
    from actorbot.stores.redis import RedisSessionStore as RedisSessionStore

__all__ = [
    "DUPLICATE",
    "ONE_YEAR",
    "Bot",
    "ConsoleBot",
    "Context",
    "Event",
    "FileSessionStore",
    "FlushPolicy",
    "MemorySessionStore",
    "Receipt",
    "Retry",
    "Session",
    "SessionManager",
    "SessionStore",
    "ShutdownReport",
    "errors",
    "store_from_url",
]

logging.getLogger("actorbot").addHandler(logging.NullHandler())

# Each needs a driver, which an extra installs. Imported when first asked for, and not by
# `import *`, which works without.
_ON_DEMAND = {"MongoSessionStore": "actorbot.stores.mongo", "RedisSessionStore": "actorbot.stores.redis"}


def __getattr__(name: str) -> Any:
    if name == "__version__":  # read from the installed package when somebody asks
        return version("actorbot")
    if name in _ON_DEMAND:
        return getattr(import_module(_ON_DEMAND[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
