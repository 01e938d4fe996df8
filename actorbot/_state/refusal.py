"""What is wrong in a session that cannot be kept, and where.

It is asked only after a refusal, so it may take its time.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import isfinite
from typing import Any, NamedTuple

from actorbot._state.values import BOXES, MAX_DEPTH, MAX_INT, SCALARS
from actorbot.errors import NotEncodableError, SessionTooLargeError

__all__ = ["explain", "name_session"]


def name_session(error: NotEncodableError | SessionTooLargeError, session_id: str) -> None:
    """Name the session in an error of code that does not know whose values it looks at."""
    if error.session_id is None:
        error.session_id = session_id
        error.args = (f"session {session_id!r}: {error}",)


class _Step(NamedTuple):
    label: str
    box: Any
    parts: Iterator[tuple[str, Any, str | None]]


def explain(state: dict[str, Any], limit: int, error: Exception) -> NotEncodableError | SessionTooLargeError:
    """Return the first thing that is wrong in *state*, with its path, or else *error*.

    Goes depth first, through each box once.
    """
    steps = [_Step("session", state, _parts(state))]
    is_open = {id(state): True}
    deep: SessionTooLargeError | None = None
    budget = limit
    while steps:
        for label, value, problem in steps[-1].parts:
            budget -= 1
            if budget < 0:
                return SessionTooLargeError(
                    "session", f"takes more than the {limit} bytes allowed (max_session_bytes)", limit=limit
                )
            if problem is None and type(value) in BOXES:
                if is_open.get(id(value)):
                    return NotEncodableError(_path(steps, label), "is a cycle: it is inside itself")
                if id(value) not in is_open:
                    is_open[id(value)] = True
                    steps.append(_Step(label, value, _parts(value)))
                    break
            elif problem := problem or _problem(value):
                return deep or NotEncodableError(_path(steps, label), problem)
        else:
            is_open[id(steps.pop().box)] = False
        if len(steps) > MAX_DEPTH and deep is None:  # goes on: it may be a long cycle
            deep = SessionTooLargeError(_path(steps), f"is nested deeper than {MAX_DEPTH} levels", limit=MAX_DEPTH)
    if deep is not None or isinstance(error, SessionTooLargeError):
        return deep or error  # type: ignore[return-value]
    return NotEncodableError("session", str(error))


def _path(steps: list[_Step], label: str = "") -> str:
    return "".join(step.label for step in steps[: MAX_DEPTH + 1]) + label


def _parts(box: Any) -> Iterator[tuple[str, Any, str | None]]:
    """Yield the label, the value and perhaps already the problem of each part of *box*."""
    if not isinstance(box, dict):
        for index, value in enumerate(box):
            yield ("{...}" if isinstance(box, set | frozenset) else f"[{index}]"), value, None
        return
    for key, value in box.items():
        if type(key) is not str:
            yield "", key, f"has a key of type {type(key).__name__}; keys are str"
        elif problem := _problem(key):
            yield "", key, f"has a key that {problem}"
        yield f"[{key[:40]!r}]", value, None


def _problem(value: Any) -> str | None:
    """Say why *value*, which has no parts, cannot be kept, or return `None`."""
    kind = type(value)
    try:
        if kind is str:
            value.encode()
        elif kind in SCALARS:
            SCALARS[kind].dump(value)
    except UnicodeEncodeError:
        return "holds a lone surrogate, which is not text"
    except ValueError as error:
        return str(error)
    if kind is int and not -MAX_INT <= value + 1 <= MAX_INT + 1:
        return "is beyond the integers of signed 64 bit"
    if kind is float and not isfinite(value):
        return "is not a finite number"
    if value is None or kind in SCALARS or kind in {str, bool, int, float, bytes}:
        return None
    for known in (*BOXES, *SCALARS, str, int, float, bytes):
        if isinstance(value, known):
            return f"is of type {kind.__qualname__}; {known.__name__} itself can be kept, its subclasses cannot"
    return f"is of type {kind.__qualname__}, which a session cannot keep"
