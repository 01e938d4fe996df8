"""discord.py: event handlers and commands, of every kind, that run inside their session's turn."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Coroutine, Sequence
from contextlib import AsyncExitStack
from functools import wraps
from typing import Any, Final

from actorbot._checks import check_function, check_plain
from actorbot._manager.embedding import SessionManager, check_here
from actorbot.errors import DuplicateEventError
from actorbot.ext._owning import watch
from actorbot.ext._signature import Lent

try:
    with warnings.catch_warnings():
        # Of its voice module, on Pythons before 3.13. A bot's author can do nothing about it, and
        # under `-W error` could not import this.
        warnings.filterwarnings("ignore", "'audioop' is deprecated", DeprecationWarning)
        from discord import Interaction, Message
        from discord.ext.commands import Context, Parameter
except ImportError as error:
    raise ImportError(
        "actorbot.ext.discord needs discord.py: pip install '.[discord]' in a clone of actorbot"
    ) from error

__all__ = ["in_turn", "session_id_of"]

SOURCES: Final = (Message, Interaction, Context)
Source = Message | Interaction[Any] | Context[Any]
Handler = Callable[..., Coroutine[Any, Any, Any]]


def session_id_of(source: Source) -> str:
    """Return `discord:{guild}:{channel}:{author}` of a message, an interaction or a context.

    A thread is a channel. A direct message has no guild: `discord:{channel}:{author}`.
    """
    if isinstance(source, Interaction):
        parts = [source.guild_id, source.channel_id, source.user.id]
    else:
        parts = [source.guild.id if source.guild else None, source.channel.id, source.author.id]
    return ":".join(["discord", *(str(part) for part in parts if part is not None)])


def in_turn(
    manager: SessionManager, *, session_id: Callable[[Any], str] = session_id_of
) -> Callable[[Handler], Handler]:
    """Make a handler run inside its session's turn: commit when it returns, roll back if it raises.

    For `on_message` and other events about one message, for prefix, hybrid and slash commands,
    buttons, selects and modals. It stands below discord.py's own decorators, and runs on the loop
    that the manager is at home on.

    The handler may take the parameters `session` (its values) and `turn` (the whole context:
    `turn.send_text`, `turn.is_new`, …); discord.py does not see them. `session_id` makes the
    session's id from the handler's first message, interaction or context.

    When the handler has succeeded with a message or interaction that Discord then delivers again,
    it does not run again. What the handler raises, and OverloadedError, ManagerClosedError or an
    error of the store, goes to discord.py. When another process has taken over the store, SIGTERM
    is raised in this one, if the program handles that. Raises: ConfigError, TypeError.
    """

    check_here(manager)
    check_plain("session_id", session_id, "a function of a message, an interaction or a context")
    watch(manager)

    def decorate(handler: Handler) -> Handler:
        check_function("handler", handler, "an `async def`")
        if not inspect.iscoroutinefunction(handler):
            raise TypeError("in_turn stands directly above an `async def`, below the decorators of discord.py")
        lent = Lent(handler)
        name = handler.__qualname__

        @wraps(handler)
        def shown() -> None:
            """Has a signature for discord.py, which deletes that of `run` for a hybrid command."""

        # discord.py's commands need parameters of its own class.
        parameters = [
            Parameter(each.name, each.kind, default=each.default, annotation=each.annotation)
            for each in lent.shown.parameters.values()
        ]
        shown.__signature__ = lent.shown.replace(parameters=parameters)  # type: ignore[attr-defined]

        @wraps(shown)
        async def run(*args: Any, **kwargs: Any) -> Any:
            found = [each for each in args if isinstance(each, SOURCES)]
            if not found:
                raise TypeError(
                    f"{name} was called with no message, interaction or context: borrow manager.turn() inside it"
                )
            delivery = _delivery(found)
            # With the handler's name: a message can have several handlers.
            event_id = None if delivery is None else f"{delivery}:{name}"
            async with AsyncExitStack() as stack:
                try:
                    turn = await stack.enter_async_context(manager.turn(session_id(found[0]), event_id=event_id))
                except DuplicateEventError:
                    return None
                call = lent.call(turn, args, kwargs)
                return await handler(*call.args, **call.kwargs)

        return run

    return decorate


def _delivery(found: Sequence[Source]) -> str | None:
    """Return what stays the same when Discord delivers the same again.

    `None` for `on_message_edit`: an edited message keeps its id.
    """
    source = found[0]
    if isinstance(source, Context):
        if source.interaction is not None:
            return str(source.interaction.id)
        source = source.message
    elif isinstance(source, Interaction):
        return str(source.id)
    elif len(found) > 1:
        return None
    # With the time of the edit: a bot may run a command again that its user has edited.
    return f"{source.id}:{source.edited_at or ''}"
