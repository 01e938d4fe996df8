"""Slack's Bolt: a listener, `async def` or `def`, that runs inside its session's turn."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import AsyncExitStack, ExitStack
from functools import wraps
from inspect import Parameter
from typing import Any

from actorbot._checks import check_function, check_plain
from actorbot._manager.embedding import SessionManager
from actorbot.errors import DuplicateEventError, InvalidSessionIdError
from actorbot.ext._signature import Lent

try:
    from slack_bolt.context.base_context import BaseContext
except ImportError as error:
    raise ImportError("actorbot.ext.slack needs slack-bolt: pip install '.[slack]' in a clone of actorbot") from error

__all__ = ["in_turn", "session_id_of"]

Listener = Callable[..., Any]


def session_id_of(context: BaseContext) -> str:
    """Return `slack:{team}:{channel}:{user}` without the parts that the request does not have.

    Views, global shortcuts and the home tab have no channel: `slack:{team}:{user}`. The team is the
    workspace that has installed the app. It is the organisation, if that has installed the app and
    Slack names no workspace. Raises: InvalidSessionIdError.
    """
    parts = [context.team_id or context.enterprise_id, context.channel_id, context.user_id]
    if not any(parts):
        raise InvalidSessionIdError(
            "the Slack request names no team, channel or user; give in_turn a session_id= of your own"
        )
    return ":".join(["slack", *filter(None, parts)])


def in_turn(
    manager: SessionManager, *, session_id: Callable[[BaseContext], str] = session_id_of
) -> Callable[[Listener], Listener]:
    """Make a Bolt listener run inside its session's turn: commit at its end, or roll back.

    It stands below Bolt's own decorator. The listener names what it wants, as always in Bolt, and
    may also name `session` (its values) and `turn` (the whole context: `turn.send_text`,
    `turn.is_new`, …). An `async def` listener belongs to an AsyncApp on the manager's loop; a `def`
    listener to an App, whose thread waits for it. `session_id` makes the session's id from Bolt's
    context.

    When the listener has succeeded, a delivery that Slack repeats (by its `event_id` or
    `trigger_id`) does not run it again. If it names neither `ack` nor `args`, the request is
    acknowledged before the wait for the turn; otherwise the listener acknowledges, inside it.

    What the listener raises, and OverloadedError, ManagerClosedError or an error of the store, goes
    to Bolt's error handler. Raises: ConfigError.
    """

    check_plain("session_id", session_id, "a function of Bolt's context")

    def decorate(listener: Listener) -> Listener:
        check_function("listener", listener)
        lent = Lent(listener)
        acknowledges = not lent.shown.parameters.keys().isdisjoint(("ack", "args"))
        wants_request = "request" in lent.shown.parameters
        name = getattr(listener, "__qualname__", type(listener).__qualname__)

        def borrowing(request: Any, given: dict[str, Any]) -> tuple[str, str | None]:
            if wants_request:
                given["request"] = request
            # One request may have several (lazy) listeners, each with a turn of its own.
            delivery = request.body.get("event_id") or request.body.get("trigger_id")
            return session_id(request.context), f"{delivery}:{name}" if delivery else None

        async def run(*bound: Any, request: Any, **given: Any) -> Any:
            ack = request.context.ack
            if not acknowledges and ack.response is None:
                await ack()
            where, event_id = borrowing(request, given)
            async with AsyncExitStack() as stack:
                try:
                    turn = await stack.enter_async_context(manager.turn(where, event_id=event_id))
                except DuplicateEventError:
                    return None if ack.response is not None else await ack()
                return await listener(*bound, **given, **lent.of(turn))

        def run_sync(*bound: Any, request: Any, **given: Any) -> Any:
            ack = request.context.ack
            if not acknowledges and ack.response is None:
                ack()
            where, event_id = borrowing(request, given)
            with ExitStack() as stack:
                try:
                    turn = stack.enter_context(manager.turn_sync(where, event_id=event_id))
                except DuplicateEventError:
                    return None if ack.response is not None else ack()
                return listener(*bound, **given, **lent.of(turn))

        return _shown_to_bolt(wraps(listener)(run if inspect.iscoroutinefunction(listener) else run_sync), lent)

    return decorate


def _shown_to_bolt(run: Any, lent: Lent) -> Listener:
    """Show Bolt a signature that names the request, and nothing of what is lent.

    Bolt gives a listener what its signature names.
    """
    parameters = list(lent.shown.parameters.values())
    if "request" not in lent.shown.parameters:
        named = [each for each in parameters if each.kind <= Parameter.POSITIONAL_OR_KEYWORD]
        request = Parameter("request", Parameter.POSITIONAL_OR_KEYWORD, default=None)
        parameters.insert(len(named), request)
    run.__signature__ = lent.shown.replace(parameters=parameters)
    del run.__wrapped__  # or Bolt would look at the listener itself
    return run  # type: ignore[no-any-return]
