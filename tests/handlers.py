"""Handlers that many tests use."""

from __future__ import annotations

from actorbot import Context


def count_plainly(context: Context) -> int:
    """Count the session's events in "n", in a `def` handler."""
    context.session["n"] = context.session.get("n", 0) + 1
    return int(context.session["n"])


async def count(context: Context) -> int:
    """Count the session's events in "n"."""
    return count_plainly(context)


class OddError(BaseException):
    """Neither an Exception nor an exit."""
