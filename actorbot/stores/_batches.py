"""A call about many sessions that fails as a whole: is the store down, or is it one of them?"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from actorbot.errors import ActorbotError, ConflictError, StoreError, StoreUnavailableError
from actorbot.stores._secrets import GIVEN

__all__ = ["as_ours", "ask_in_parts", "is_outage", "patience"]


def is_outage(error: BaseException) -> bool:
    """Tell whether *error* says that the store is down: then fewer sessions fare no better.

    Such are the errors of a store, but a conflict; a lost connection; a time-out. All else may be
    about one session: a driver may raise anything for a value that it cannot store.
    """
    if isinstance(error, StoreError):
        return not isinstance(error, ConflictError)
    return isinstance(error, ConnectionError | TimeoutError) or not isinstance(error, Exception)


def patience(size: int) -> int:
    """Return how many calls in a row may fail before a store counts as down.

    *size* is that of the first: up to 2 + 2 log2(size). Halves are asked in turn, the larger ones
    first. With one bad session, at least one call of each three succeeds.
    """
    return 2 * size.bit_length() + 2


def as_ours(
    kind: type[StoreUnavailableError], store: str, error: Exception, session_id: str | None = None
) -> ActorbotError:
    """Return *error* as an ActorbotError, of that *kind* if it is none yet."""
    if isinstance(error, ActorbotError):
        return error
    said, cause = GIVEN.tell(error)
    ours = kind(store, said, session_id=session_id)
    ours.__cause__ = cause
    return ours


def ask_in_parts(
    kind: type[StoreUnavailableError],
    store: str,
    call: Callable[[Sequence[Any]], Sequence[Any]],
    items: Sequence[Any],
    name: Callable[[Any], str] = str,
) -> list[Any]:
    """Return what `call(items)` returns: an answer for each item.

    If it raises, and not because the store is down, the items are divided until the bad one is
    alone; the error, as one of *kind*, is its answer. *name* gives the session id of an item. With
    one bad item these are 2 log2(n) further calls, and never more than 2n.

    Raises: what *call* raises when the store is down; an error if it takes none of many.
    """
    answers: dict[int, Any] = {}
    answered = False
    parts = deque([range(len(items))]) if items else deque()
    failed = 0
    while parts:
        part = parts.popleft()
        try:
            found = call([items[at] for at in part])
            if len(found) != len(part):
                raise kind(store, f"{len(found)} answers for {len(part)} sessions")
            answers.update(zip(part, found, strict=True))
            answered = True
            continue
        except Exception as error:
            if is_outage(error):
                raise
            failed += 1
            if not answered and failed > patience(len(items)):
                raise as_ours(kind, store, error) from None
            if len(part) == 1:
                failure = as_ours(kind, store, error, name(items[part[0]]))
        if len(part) == 1:
            answers[part[0]] = failure
        else:
            half = (len(part) + 1) // 2
            parts += (part[:half], part[half:])
    return [answers[at] for at in range(len(items))]
