"""All errors: one base to catch, facts as attributes, the driver's exception as `__cause__`."""

from __future__ import annotations

__all__ = [
    "ActorbotError",
    "ConfigError",
    "ConflictError",
    "CorruptSessionError",
    "DeadlockError",
    "DuplicateEventError",
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
    "SessionTooLargeError",
    "StoreError",
    "StoreLockedError",
    "StoreUnavailableError",
    "TurnEndedError",
    "TurnTimeoutError",
    "WrongLoopError",
]


class ActorbotError(Exception):
    """Base of every error that actorbot raises."""


class ConfigError(ActorbotError, ValueError):
    """An option has a value outside its range; names the field, the value and the range."""

    def __init__(self, field: str, value: object, expected: str) -> None:
        super().__init__(f"{field}={value!r}: expected {expected}")
        self.field = field
        self.value = value
        self.expected = expected


class InvalidSessionIdError(ActorbotError, ValueError):
    """This is no session id: a `str` of 1 to 512 UTF-8 bytes, without control characters.

    Nothing was touched.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(f"invalid session id: {reason}; build ids as '<platform>:<user>', for example 'telegram:42'")
        self.reason = reason


# --- the session's data -------------------------------------------------------------------------


class NotEncodableError(ActorbotError, TypeError):
    """The state holds something that a session cannot keep.

    `path` says where: `session['cart'][2]`.
    """

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(
            f"{path}: {reason}; the event was rolled back. A session keeps JSON-like values, bytes, dates,"
            " timedelta, UUID, Decimal, tuples and sets"
        )
        self.path = path
        self.reason = reason


class SessionTooLargeError(ActorbotError, ValueError):
    """The state is nested too deeply, or larger than `max_session_bytes`.

    `path` says where, `limit` how much is allowed.
    """

    def __init__(self, path: str, reason: str, *, limit: int) -> None:
        super().__init__(f"{path}: {reason}; the event was rolled back. Keep less in the session")
        self.path = path
        self.reason = reason
        self.limit = limit


class CorruptSessionError(ActorbotError):
    """A stored record cannot be decoded. It stays in its place, unless the session is in memory."""

    def __init__(self, store: str, session_id: str, reason: str) -> None:
        super().__init__(
            f"{store}: the record of session {session_id!r} cannot be read: {reason}."
            " It was left as it is; repair it, or remove it with destroy()"
        )
        self.store = store
        self.session_id = session_id
        self.reason = reason


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
    """Another process has this file store, or this journal, open."""


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


class ForkedError(ActorbotError):
    """The process was forked after the manager started: the parent has its threads and locks.

    Start a manager after the fork.
    """


class WrongLoopError(ActorbotError):
    """An async verb was called outside the manager's event loop, or a `_sync` verb on it."""
