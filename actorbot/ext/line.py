"""actorbot inside bots of line-bot-sdk v3 that use its `WebhookParser` or its `WebhookHandler`.

A bot that uses neither can take `Line(channel_secret)` of `actorbot.ext.webhooks`, which needs no
SDK. The session ids are the same. When another process has taken over the store of the manager,
SIGTERM is raised in this one, if the program handles that.
"""

from __future__ import annotations

import asyncio
import functools
import json
import logging
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import Any, Final

from actorbot._checks import check_plain
from actorbot._event import DUPLICATE
from actorbot._manager.embedding import Front, SessionManager, check_here, is_here
from actorbot._turns.context import Context
from actorbot.errors import DuplicateEventError
from actorbot.ext._owning import watch
from actorbot.ext.webhooks import Line, WebhookEvent

try:
    from linebot.v3.webhooks import Event
except ImportError as error:
    raise ImportError("actorbot.ext.line needs line-bot-sdk: pip install '.[line]' in a clone of actorbot") from error

__all__ = ["dispatch_all", "dispatch_all_sync", "listener", "session_id_of"]


logger = logging.getLogger("actorbot")

_LINE: Final = Line("to find the parts of events; it verifies nothing")


def session_id_of(event: Event) -> str | None:
    """Return `line:<group, room or user>`.

    `None` if an event has no source, or if the SDK does not know the type of the event, of its
    message or of its source: it then leaves out who has sent it.
    """
    for name in ("group_id", "room_id", "user_id"):
        found = getattr(event.source, name, None)
        if found:
            return f"line:{found}"
    return None


async def dispatch_all(manager: Front, events: Iterable[Event]) -> list[Any]:
    """Dispatch the events of `WebhookParser.parse` at once, each with its `webhookEventId`.

    Return what the handler returned for each; `None` stands for an event without a session, which
    is logged. *manager* may be a `Cluster`. The SDK's events cannot leave their process: the
    shard's handler gets the `WebhookEvent` of `actorbot.ext.webhooks.Line`, of which `raw` has the
    event as LINE names its parts (`Event.from_dict(raw)` makes it the SDK's again).

    Raises, when all have ended: ExceptionGroup of what failed. Answer LINE something other than 200
    then. When it delivers again, the events that did not fail are duplicates.
    """
    watch(manager)
    ends = await asyncio.gather(*(_dispatch(manager, event) for event in events), return_exceptions=True)
    return _settled(ends)


def dispatch_all_sync(manager: Front, events: Iterable[Event]) -> list[Any]:
    """The same as `dispatch_all`, for threads: one event after the other, in the calling thread."""
    watch(manager)
    ends: list[Any] = []
    for event in events:
        whose = _session_id_of(event)
        try:
            dispatch = manager.dispatch_sync
            ends.append(whose and dispatch(whose, _sent(manager, event), event_id=event.webhook_event_id))
        except Exception as error:
            ends.append(error)
    return _settled(ends)


def listener(manager: SessionManager) -> Callable[[Callable[[Any, Context], Any]], Callable[[Any], Any]]:
    """Make a decorator for what is given to `WebhookHandler.add`.

    A `def on_message(event, turn)` then runs in the turn of its session. `turn` is what
    `manager.turn_sync` lends: what is changed in `turn.session` is committed at the end, or rolled
    back if the function raises. For an event that was handled before, `DUPLICATE` is returned. For
    events that have a source. Any thread but that of the manager's loop. Raises: ConfigError.
    """
    check_here(manager, "With a Cluster, parse by WebhookParser, and send by dispatch_all or dispatch_all_sync")
    watch(manager)

    def decorate(function: Callable[[Any, Context], Any]) -> Callable[[Any], Any]:
        check_plain("listener", function, "a function of (event, turn)")

        @functools.wraps(function)
        def listen(event: Any) -> Any:
            with ExitStack() as stack:
                try:
                    # An event without a source is refused here: InvalidSessionIdError.
                    session_id: Any = session_id_of(event)
                    turn = stack.enter_context(manager.turn_sync(session_id, event_id=event.webhook_event_id))
                except DuplicateEventError:
                    return DUPLICATE
                return function(event, turn)

        return listen

    return decorate


def _session_id_of(event: Event) -> str | None:
    """As `session_id_of`, and log an event that no handler will see."""
    session_id = session_id_of(event)
    if session_id is None and event.source is not None:  # somebody has sent it
        logger.warning(
            "no session for an event of type %r: this line-bot-sdk does not know it, or a part of it, and has lost its"
            " user; a newer one may know it, and actorbot.ext.webhooks.Line needs none",
            event.type,
        )
    elif session_id is None:
        logger.info("no session for an event of type %r, which nobody has sent; no handler sees it", event.type)
    return session_id


async def _dispatch(manager: Front, event: Event) -> Any:
    whose = _session_id_of(event)
    return whose and await manager.dispatch(whose, _sent(manager, event), event_id=event.webhook_event_id)


def _sent(manager: Front, event: Event) -> Event | WebhookEvent:
    """Return *event*, or else as values that can leave this process."""
    if is_here(manager):
        return event
    (found,) = _LINE.events({"events": [json.loads(event.to_json())]})
    return found.event


def _settled(ends: list[Any]) -> list[Any]:
    failures = [end for end in ends if isinstance(end, BaseException)]
    if failures:
        raise BaseExceptionGroup(f"{len(failures)} of {len(ends)} events failed", failures)
    return ends
