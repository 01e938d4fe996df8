"""What a turn lends a handler by name, where a bot library looks at the handler's signature to learn what to hand it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, Final

from actorbot._turns.context import Context

__all__ = ["Lent"]

LENT: Final = ("session", "turn")


class Lent:
    """Which of `session` and `turn` a handler names, and the signature that its library is to see: the same without them."""

    def __init__(self, handler: Callable[..., Any]) -> None:
        try:
            self.signature = inspect.signature(handler, eval_str=True)
        except (NameError, AttributeError, TypeError):  # an annotation that only a type checker knows
            self.signature = inspect.signature(handler)
        parameters = self.signature.parameters
        self.names = [name for name in LENT if name in parameters]
        shown = [parameter for name, parameter in parameters.items() if name not in LENT]
        self.shown = self.signature.replace(parameters=shown)

    def of(self, turn: Context) -> dict[str, Any]:
        """Return what the handler has named, by name."""
        return {name: turn if name == "turn" else turn.session for name in self.names}

    def call(self, turn: Context, args: tuple[Any, ...], kwargs: dict[str, Any]) -> inspect.BoundArguments:
        """Return what the handler is called with: what the library handed over, and what is lent, each in its place."""
        arguments = self.shown.bind(*args, **kwargs).arguments | self.of(turn)
        ordered = {name: arguments[name] for name in self.signature.parameters if name in arguments}
        return inspect.BoundArguments(self.signature, ordered)
