"""A bot that waits for its store says so; one that has lost it, or never got it, is told to end.

As a supervisor would tell it: by SIGTERM. So its library ceases to receive, by its own way of
ending; the manager is closed; and whoever watches over the process starts it again.
"""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Callable
from typing import Final

from actorbot._manager.embedding import Front, is_here, on_lost, on_wait
from actorbot._running.shown import shown
from actorbot.errors import OwnershipLostError

__all__ = ["end_process", "say_alone", "say_wait", "watch"]

logger = logging.getLogger("actorbot")

_UNHEARD: Final = (signal.SIG_DFL, signal.SIG_IGN, None)


def watch(manager: Front, end: Callable[[OwnershipLostError], object] | None = None) -> None:
    """Say it when *manager* waits for its store, and *end* the process when it has lost it.

    To call it twice is no error.
    """
    on_wait(manager, say_wait if is_here(manager) else say_alone)
    on_lost(manager, end or end_process)


def say_wait(owner: str) -> None:
    """Say that nothing is handled before the *owner* has given the store up."""
    with shown():  # servers set up no logging but their own
        logger.warning("not ready yet: this process waits for the owner of its store: %s", owner)


def say_alone(shard: str) -> None:
    """Say that nothing is handled before a *shard* has been started."""
    with shown():
        logger.warning("not ready yet: this process waits for %s", shard)


def end_process(reason: Exception) -> bool:
    """Raise SIGTERM in this process, if the program handles that. Say so, and return whether.

    Any thread.
    """
    is_heard = signal.getsignal(signal.SIGTERM) not in _UNHEARD
    with shown():
        if is_heard:
            logger.error("this process cannot go on, and is told to end (SIGTERM): %s", reason)
        else:
            logger.error("this process cannot go on; restart it, since nothing here handles SIGTERM: %s", reason)
    if is_heard:
        _tell_main_thread()
    return is_heard


def _tell_main_thread() -> None:
    # It runs all handlers. If it waits for something, a signal to another thread does not wake it.
    if hasattr(signal, "pthread_kill"):
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)
    else:  # Windows
        signal.raise_signal(signal.SIGTERM)
