"""All errors: one base to catch, facts as attributes, the driver's exception as `__cause__`."""

from __future__ import annotations

import pickle
from copy import deepcopy
from reprlib import Repr
from typing import Any, Final, Self

__all__ = [
    "ActorbotError",
    "ConfigError",
    "ConflictError",
    "CorruptSessionError",
    "DeadlockError",
    "DuplicateEventError",
    "ForeignSessionError",
    "ForkedError",
    "HandlerExitError",
    "HandlerTimeoutError",
    "InsecureStorageError",
    "InvalidSessionIdError",
    "JournalError",
    "ManagerClosedError",
    "NotEncodableError",
    "OutcomeUnknownError",
    "OverloadedError",
    "OwnershipLostError",
    "RemoteHandlerError",
    "SessionTooLargeError",
    "StoreError",
    "StoreLockedError",
    "StoreUnavailableError",
    "TurnEndedError",
    "TurnTimeoutError",
    "WrongLoopError",
]


class ActorbotError(Exception):
    """Base of every error that actorbot raises.

    Errors and their subclasses come through `copy`, `deepcopy` and pickle (a pool of processes)
    with their facts, their notes and their `__cause__`. What of these cannot be pickled comes as
    text.
    """

    def __copy__(self) -> Self:
        return made_again(type(self), self.args, _facts_of(self))  # type: ignore[no-any-return]

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        copied: Self = made_again(type(self), self.args, {})
        memo[id(self)] = copied
        for name, fact in _facts_of(self).items():
            object.__setattr__(copied, name, _deeply(fact, memo))
        return copied

    def __reduce__(self) -> tuple[Any, ...]:
        facts = {name: _packed(fact) for name, fact in _facts_of(self).items()}
        return _unpickled, (type(self), [_packed(part) for part in self.args], facts)


def _facts_of(error: BaseException) -> dict[str, Any]:
    """Return what belongs to *error* besides its type and its text."""
    facts = {**vars(error), "__suppress_context__": error.__suppress_context__}
    return facts if error.__cause__ is None else {"__cause__": error.__cause__, **facts}


def made_again(kind: Any, args: tuple[Any, ...], facts: dict[str, Any]) -> Any:
    """Make an error as it was, without `__init__`, whose arguments nobody has kept."""
    native = next(base for base in kind.__mro__ if base.__module__ == "builtins")
    error = native.__new__(kind)  # not an author's `__new__`, for the same reason
    error.args = args
    for name, fact in facts.items():
        object.__setattr__(error, name, fact)
    return error


def _deeply(fact: Any, memo: dict[int, Any]) -> Any:
    try:
        return deepcopy(fact, memo)
    except Exception:
        return fact  # anybody's object, a lock for example: both errors have the same


_Packed = tuple[bytes, str, bool]
_text = Repr()
_text.maxother = _text.maxstring = 1_000


def _packed(fact: object) -> _Packed:
    """Return *fact* as its own pickle, as text, and whether it is an error.

    A pickle inside the pickle: if one fact cannot be read, all others can.
    """
    try:
        data = pickle.dumps(fact)
    except Exception:  # of anybody's object
        data = b""
    return data, _text.repr(fact), isinstance(fact, BaseException)


def _unpacked(packed: _Packed) -> Any:
    data, text, is_error = packed
    try:
        return pickle.loads(data)
    except Exception:
        return ActorbotError(text) if is_error else text


def _unpickled(kind: Any, args: list[_Packed], facts: dict[str, _Packed]) -> Any:
    return made_again(kind, tuple(map(_unpacked, args)), {name: _unpacked(fact) for name, fact in facts.items()})


class ConfigError(ActorbotError, ValueError):
    """An option has a value outside its range; names the field, the value and the range."""

    def __init__(self, field: str, value: object, expected: str) -> None:
        super().__init__(f"{field}={_shown(value)}: expected {expected}")
        self.field = field
        self.value = value
        self.expected = expected


def _shown(value: object) -> str:
    try:
        return repr(value)
    except Exception:  # an int of more than 4,300 digits, or anybody's object
        return f"<{type(value).__name__}>"


class InvalidSessionIdError(ActorbotError, ValueError):
    """This is no session id: a `str` of 1 to 512 UTF-8 bytes, without control characters.

    Nothing was touched.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(f"invalid session id: {reason}; build ids as '<platform>:<user>', for example 'telegram:42'")
        self.reason = reason


# --- the session's data -------------------------------------------------------------------------


_ROLLED_BACK: Final = "the event was rolled back"


class NotEncodableError(ActorbotError, TypeError):
    """The state holds something that a session cannot keep.

    `path` says where: `session['cart'][2]`. `session_id` names the session; it is `None` where a
    document is read that nobody has called a session yet. If the session's own type refuses its
    values, what that has raised is the `__cause__`.
    """

    def __init__(self, path: str, reason: str, *, session_id: str | None = None, then: str = _ROLLED_BACK) -> None:
        super().__init__(
            f"{_place(session_id, path)}: {reason}; {then}. A session keeps JSON-like values, bytes,"
            " dates, timedelta, UUID, Decimal, tuples and sets, and of these what its session_type takes"
        )
        self.path = path
        self.reason = reason
        self.session_id = session_id


class SessionTooLargeError(ActorbotError, ValueError):
    """The state is nested too deeply, or larger than `max_session_bytes`.

    `path` says where, `limit` how much is allowed; `session_id` as in NotEncodableError.
    """

    def __init__(
        self, path: str, reason: str, *, limit: int, session_id: str | None = None, then: str = _ROLLED_BACK
    ) -> None:
        advice = ". Keep less in the session" if then is _ROLLED_BACK else ""
        super().__init__(f"{_place(session_id, path)}: {reason}; {then}{advice}")
        self.path = path
        self.reason = reason
        self.limit = limit
        self.session_id = session_id


def _place(session_id: str | None, path: str) -> str:
    return path if session_id is None else f"session {session_id!r}: {path}"


class CorruptSessionError(ActorbotError):
    """A stored record cannot be decoded. It stays in its place, unless the session is in memory."""

    def __init__(self, store: str, session_id: str, reason: str) -> None:
        super().__init__(
            f"{store}: the record of session {session_id!r} cannot be read: {reason}."
            f" It was left as it is; {self._advice}"
        )
        self.store = store
        self.session_id = session_id
        self.reason = reason

    _advice = "repair it, or remove it with destroy()"


class ForeignSessionError(CorruptSessionError):
    """The key of this session holds another bot's session *inner*.

    `key_prefix` is the other bot's; one of the two prefixes begins with the other. Do not destroy
    the session: nothing is wrong with it.
    """

    def __init__(self, store: str, session_id: str, inner: str, key_prefix: str) -> None:
        super().__init__(store, session_id, f"its key is that of session {inner!r} under the prefix {key_prefix!r}")
        self.key_prefix = key_prefix

    _advice = "let no bot's key prefix begin with another's"


# --- the store ----------------------------------------------------------------------------------


class StoreError(ActorbotError):
    """A store failed. `store` names it; `session_id` names the session if it was about one."""

    def __init__(self, store: str, message: str, *, session_id: str | None = None) -> None:
        super().__init__(f"{store}: {message}" if session_id is None else f"{store}: session {session_id!r}: {message}")
        self.store = store
        self.session_id = session_id


class StoreUnavailableError(StoreError):
    """The store cannot be reached or did not answer within its deadline."""


class OutcomeUnknownError(StoreUnavailableError):
    """A write was sent, and nobody knows whether it was done.

    The session is read again before its next turn. The same `event_id` may be sent again.
    """


class ConflictError(StoreError):
    """Another process has written the session since it was read. Its write was not overwritten."""


class StoreLockedError(StoreError):
    """Another process owns this store, or has this journal open.

    `owner` names it, as far as it is known: its process, host and program.
    """

    def __init__(self, store: str, message: str, *, owner: str | None = None) -> None:
        super().__init__(store, message)
        self.owner = owner


class OwnershipLostError(StoreError):
    """Another process has taken over this store: this one acknowledges nothing more."""


class JournalError(StoreError):
    """The journal is damaged, or the file is no journal. It was left as it is."""


class InsecureStorageError(StoreError):
    """The storage folder is a symlink, or belongs to another user, or others may write to it."""


# --- the turn -----------------------------------------------------------------------------------


class TurnError(ActorbotError):
    """Something about one session's turn; `session_id` names the session."""

    def __init__(self, session_id: str, message: str) -> None:
        super().__init__(f"session {session_id!r}: {message}")
        self.session_id = session_id


class DeadlockError(TurnError):
    """Sessions would wait in a circle for each other's turns.

    The shortest circle: a turn that waits for its own session.
    """


class DuplicateEventError(TurnError):
    """`turn(…, event_id=…)` was given an event id that this session has counted before."""


class HandlerExitError(TurnError):
    """A handler raised `SystemExit` or `KeyboardInterrupt`: the `__cause__`. The bot goes on."""


class HandlerTimeoutError(TurnError, TimeoutError):
    """A handler ran longer than `handler_timeout` seconds; its changes were discarded."""


class TurnEndedError(TurnError):
    """A context was used after its turn had ended, or after its handler had timed out."""


class TurnTimeoutError(TurnError, TimeoutError):
    """The `timeout=` of a call ran out. An event that still waited for its turn was withdrawn."""


# --- the manager --------------------------------------------------------------------------------


class OverloadedError(ActorbotError):
    """A bound is reached. `reason` names it; try again after `retry_after` seconds."""

    def __init__(self, reason: str, *, retry_after: float = 1.0) -> None:
        super().__init__(f"{reason}; try again in {retry_after:g} s")
        self.reason = reason
        self.retry_after = retry_after


class ManagerClosedError(ActorbotError):
    """The manager is closed, closing, or was never started."""


class RemoteHandlerError(ActorbotError):
    """A handler in another process raised something of its own; its changes were discarded.

    `type_name` is the name of its type, and `text` what it says.
    """

    def __init__(self, type_name: str, text: str, *, session_id: str | None = None) -> None:
        where = "" if session_id is None else f"session {session_id!r}: "
        super().__init__(f"{where}the handler raised {type_name}: {text}")
        self.type_name = type_name
        self.text = text
        self.session_id = session_id


class ForkedError(ActorbotError):
    """The process was forked after the manager started: the parent has its threads and locks.

    Start a manager after the fork.
    """


class WrongLoopError(ActorbotError):
    """An async verb was called outside the manager's event loop, or a `_sync` verb on it.

    Or there is no loop of asyncio's at all, as under trio.
    """
