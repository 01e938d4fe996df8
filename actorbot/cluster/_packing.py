"""How events, results and errors travel: as what a session may hold, never as pickle."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any, Final, Literal, NamedTuple

from actorbot import errors
from actorbot._event import DUPLICATE, Event, Message, WebhookEvent
from actorbot._state.codec import decode_state, encode_state, pack_fields, unpack_fields
from actorbot._state.values import UndecodableError
from actorbot.errors import ActorbotError, NotEncodableError, RemoteHandlerError, SessionTooLargeError

__all__ = [
    "Kind",
    "Request",
    "pack_answers",
    "pack_error",
    "pack_request",
    "pack_result",
    "pack_value",
    "unpack_answers",
    "unpack_outcome",
    "unpack_request",
    "unpack_value",
]

Kind = Literal["dispatch", "submit", "peek", "destroy", "flush", "flush all"]

MOST: Final = 4 * 1024 * 1024
"""Bytes that an event, or a result, may take."""

_VALUE, _DUPLICATE, _RAISED, _OURS = range(4)
_PLAIN: Final = (str, int, float, bool, type(None))
_TEXT: Final = 10_000  # characters of an error
_THEN: Final = {"event": "nothing was sent", "result": "what the handler has changed is kept"}
_EVENTS: Final[dict[str, Any]] = {kind.__name__: kind for kind in (Event, WebhookEvent)}


class Request(NamedTuple):
    """What a caller asks of a session."""

    kind: Kind
    session_id: str
    event: bytes
    """Packed by `pack_value`."""
    event_id: str
    """The caller's own, or one that no other event has: who is sent twice counts once."""
    caller: str
    number: int
    """Which of this caller's requests it is."""
    durable: bool = False
    """Of a flush: whether the event of this id is to be in the store, or else it is an error."""
    result_again: bool = False
    """Whether a duplicate is answered with the result of the first time."""


def pack_request(request: Request) -> bytes:
    """Return *request* as bytes."""
    return pack_fields(list(request))


def unpack_request(payload: bytes) -> Request:
    """Return what `pack_request` has packed. Raises: UndecodableError."""
    fields = unpack_fields(payload)
    if type(fields) is not list or len(fields) != len(Request._fields):
        raise UndecodableError("it is no request")
    return Request(*fields)


def pack_value(value: Any, what: str) -> bytes:
    """Return *value*, which an error calls *what*, as bytes.

    Raises: NotEncodableError, SessionTooLargeError.
    """
    name = type(value).__name__
    if _EVENTS.get(name) is type(value):
        fields = {each.name: getattr(value, each.name) for each in dataclasses.fields(value)}
        packed = {name: fields | {"message": value.message.text}}
    else:
        packed = {what: value}
    try:
        return encode_state(packed, MOST)
    except NotEncodableError as error:
        raise NotEncodableError(_place(error.path, what), error.reason, then=_THEN[what]) from error.__cause__
    except SessionTooLargeError as error:
        raise SessionTooLargeError(what, f"takes more than {MOST} bytes", limit=MOST, then=_THEN[what]) from error


def unpack_value(data: bytes) -> Any:
    """Return what `pack_value` has packed. Raises: UndecodableError."""
    ((name, value),) = decode_state(data).items()
    kind = _EVENTS.get(name)
    if kind is None:
        return value
    try:
        return kind(**value | {"message": Message(value["message"])})
    except (KeyError, TypeError) as error:
        raise UndecodableError(f"{name} of another release: {error}") from error


def _place(path: str, what: str) -> str:
    """Say where it is: `session['event'][2]` is `event[2]`, as far as its sender is concerned."""
    return f"{what}{path.partition(']')[2]}"


# --- outcomes -------------------------------------------------------------------------------------


def pack_result(value: Any) -> bytes:
    """Return what a handler has returned as bytes. Raises: NotEncodableError, …"""
    if value is DUPLICATE:
        return pack_fields([_DUPLICATE, b""])
    return pack_fields([_VALUE, pack_value(value, "result")])


def pack_error(error: BaseException) -> bytes:
    """Return what was raised as bytes: actorbot's errors with their facts, others as text."""
    name = type(error).__name__
    if isinstance(error, ActorbotError) and getattr(errors, name, None) is type(error):
        facts = {name: fact for name, fact in vars(error).items() if type(fact) in _PLAIN}
        facts |= {name: _text(fact) for name, fact in facts.items() if type(fact) is str}
        return pack_fields([_OURS, [name, [_text(arg) for arg in error.args], facts]])
    return pack_fields([_RAISED, [name, _text(error)]])


def _text(said: object) -> str:
    """Return what can be sent of a text, or of what an author's class says of itself."""
    try:
        text = str(said)[:_TEXT]
    except Exception as error:
        text = f"(its text cannot be had: {type(error).__name__})"
    return text.encode(errors="backslashreplace").decode()


def unpack_outcome(data: bytes, session_id: str) -> Any:
    """Return the result that was packed, or raise the error. Raises: UndecodableError, too."""
    kind, what = unpack_fields(data)
    if kind == _DUPLICATE:
        return DUPLICATE
    if kind == _VALUE:
        return unpack_value(what)
    if kind == _OURS:
        name, args, facts = what
        error = getattr(errors, name, None)
        if isinstance(error, type) and issubclass(error, ActorbotError):
            raise errors.made_again(error, args, facts)
        raise ActorbotError(*args)  # of a newer release
    raise RemoteHandlerError(*what, session_id=session_id)


def pack_answers(answers: Iterable[tuple[int, bytes]]) -> bytes:
    """Return outcomes, each with the number of its request, as bytes."""
    return pack_fields([list(answer) for answer in answers])


def unpack_answers(payload: bytes) -> list[tuple[int, bytes]]:
    """Return what `pack_answers` has packed."""
    return [(number, outcome) for number, outcome in unpack_fields(payload)]
