"""`Lent`: `session` and `turn` for a handler whose bot library looks at the handler's signature."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, Final

from actorbot._turns.context import Context

__all__ = ["Lent"]

LENT: Final = ("session", "turn")


class Lent:
    """Which of `session` and `turn` a handler names; `shown` is its signature without them."""

    def __init__(self, handler: Callable[..., Any]) -> None:
        try:
            self.signature = inspect.signature(handler, eval_str=True)
        except (NameError, AttributeError, TypeError):  # only a type checker knows an annotation
            self.signature = inspect.signature(handler)
        parameters = self.signature.parameters
        self.names = [name for name in LENT if name in parameters]
        shown = [parameter for name, parameter in parameters.items() if name not in LENT]
        self.shown = self.signature.replace(parameters=shown)

    def of(self, turn: Context) -> dict[str, Any]:
        """Return what the handler names, by name."""
        return {name: turn if name == "turn" else turn.session for name in self.names}

    def call(self, turn: Context, args: tuple[Any, ...], kwargs: dict[str, Any]) -> inspect.BoundArguments:
        """Return all arguments of the handler in their places: the library's, and what is lent."""
        arguments = self.shown.bind(*args, **kwargs).arguments | self.of(turn)
        ordered = {name: arguments[name] for name in self.signature.parameters if name in arguments}
        return inspect.BoundArguments(self.signature, ordered)
