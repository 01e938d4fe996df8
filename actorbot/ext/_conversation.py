"""Where a conversation with a model may be cut: between exchanges, or between steps of one.

An exchange is a user's message with all that answers it. A step is what a model gave at one time,
with the results of the tools that it called. Providers refuse a conversation that has a call
without its result, a result without its call, or a model's reasoning without what came of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any, Final

__all__ = ["fit", "newest"]

Item = Mapping[str, Any]

_CALLED_BY_ID: Final = frozenset({"mcp_approval_request", "local_shell_call_output"})


def newest(items: Sequence[Item], most: int) -> int:
    """Count the oldest items to drop, so that about the newest *most* are kept: whole exchanges.

    The last exchange is kept, however long it is. Where no user's message is, steps count.
    """
    least = len(items) - most
    if least <= 0:
        return 0
    places = _exchanges(items) or _steps(items)
    return next((place for place in places if place >= least), places[-1] if places else 0)


def fit(items: Sequence[Item], sizes: Sequence[int], room: int, most: int) -> tuple[int, slice]:
    """Tell what to drop so that the rest takes about *room* bytes: first items, and then a slice.

    Whole exchanges go first, from the oldest on. The last one is kept; if it alone is too large,
    its oldest steps go, from behind the user's message on. Its last step goes as well if nothing
    else helps: if it takes *most* bytes, with that message.
    """
    behind = [*accumulate(reversed(sizes), initial=0)][::-1]  # each place's bytes, with all after it
    places = _exchanges(items)
    begin = next((place for place in (0, *places) if behind[place] <= room), places[-1] if places else 0)
    if behind[begin] <= room:
        return begin, slice(0, 0)
    head = next((at for at in range(begin, len(items)) if not _is_users(items[at])), len(items))
    message = behind[begin] - behind[head]
    steps = [place for place in _steps(items) if place > head]
    end = next((place for place in steps if message + behind[place] <= room), steps[-1] if steps else head)
    if message + behind[end] >= most:
        end = len(items)
    return begin, slice(head - begin, end - begin)


def _exchanges(items: Sequence[Item]) -> list[int]:
    """List where an exchange begins, but not where a call from before has its result behind."""
    torn = _torn(items)
    return [place for place, item in enumerate(items) if _is_users(item) and place not in torn]


def _steps(items: Sequence[Item]) -> list[int]:
    """List where a step begins, or an exchange."""
    torn = _torn(items)
    return [
        place for place in range(1, len(items)) if place not in torn and items[place - 1].get("type") != "reasoning"
    ]


def _torn(items: Sequence[Item]) -> set[int]:
    """List the places where a cut would part a call from its result."""
    calls: dict[str, int] = {}
    torn: set[int] = set()
    for place, item in enumerate(items):
        call = item.get("call_id") or item.get("approval_request_id")
        if call is None and item.get("type") in _CALLED_BY_ID:
            call = item.get("id")
        if isinstance(call, str):
            torn.update(range(calls.setdefault(call, place) + 1, place + 1))
    return torn


def _is_users(item: Item) -> bool:
    return item.get("role") == "user"
