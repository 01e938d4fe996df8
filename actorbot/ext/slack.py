"""Slack's Bolt: a listener, `async def` or `def`, that runs inside its session's turn."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from contextlib import AsyncExitStack, ExitStack
from functools import wraps
from inspect import Parameter
from typing import Any

from actorbot._checks import check_function, check_plain
from actorbot._manager.embedding import SessionManager, check_here, check_open
from actorbot.errors import DuplicateEventError, InvalidSessionIdError
from actorbot.ext._owning import watch
from actorbot.ext._signature import Lent
from actorbot.ext._slack_ids import asked_user, session_id_of_ids, thread_user

try:
    from slack_bolt.context.base_context import BaseContext
    from slack_bolt.request import internals
except ImportError as error:
    raise ImportError("actorbot.ext.slack needs slack-bolt: pip install '.[slack]' in a clone of actorbot") from error

__all__ = ["in_turn", "session_id_of"]

Listener = Callable[..., Any]


def session_id_of(context: BaseContext) -> str:
    """Return `slack:{team}:{channel}:{user}` without the parts that the request does not have.

    The same as `actorbot.ext.webhooks.Slack` gives. Views, global shortcuts and the steps of
    workflows have no channel: `slack:{team}:{user}`. The team is the workspace, or the whole
    organisation, that has installed the app. Raises: InvalidSessionIdError.
    """
    session_id = session_id_of_ids(
        team=context.team_id,
        organisation=context.enterprise_id,
        has_organisation_installed=context.is_enterprise_install,
        channel=context.channel_id,
        user=context.user_id or asked_user(context.get("inputs")),
    )
    if session_id is None:
        raise InvalidSessionIdError(
            "the Slack request names no team, channel or user; give in_turn a session_id= of your own"
        )
    return session_id


def _find_users_of_threads() -> None:
    """Have Bolt's contexts name the user also when an assistant's thread begins or changes.

    Slack names him there, and Bolt looks elsewhere: in such an event `context.user_id` is `None`,
    and the body is out of reach. A Bolt that finds him by itself is not changed by this.
    """
    find = internals.extract_user_id

    def extract_user_id(payload: dict[str, Any]) -> str | None:
        return find(payload) or thread_user(payload)

    for name in (internals.__name__, "slack_bolt.request.async_internals"):
        if name in sys.modules:  # the second needs aiohttp, and takes the function from the first
            sys.modules[name].extract_user_id = extract_user_id  # type: ignore[attr-defined]


_find_users_of_threads()


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
    to Bolt's error handler. When another process has taken over the store, SIGTERM is raised in
    this one, if the program handles that. Raises: ConfigError.
    """

    check_here(manager)
    check_plain("session_id", session_id, "a function of Bolt's context")
    watch(manager)

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
                check_open(manager)  # what is acknowledged does not come again
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
                check_open(manager)
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
