"""What `context.session` is: a dict, or a dataclass of the bot's author.

The values of a dataclass are checked when they are loaded and when they are stored.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, TypeAlias

from actorbot._state.annotations import Converter
from actorbot._state.codec import decode_state, encode_state
from actorbot._state.fields import MismatchError
from actorbot._state.values import UndecodableError
from actorbot.errors import ConfigError, NotEncodableError

__all__ = ["Session", "SessionShape"]


# During a turn, a session's values are a dict, to be changed in place, also deep inside. (A class
# of our own would have to be copied from and to the dict that the codec knows. That takes a
# twentieth of an event's time.)
if TYPE_CHECKING:
    Session: TypeAlias = dict[str, Any]
else:
    Session = dict


class SessionShape:
    """How a session's values become a dataclass of the author's, `session_type=`, and go back.

    `load` makes of decoded values (`{}` for a new session) what a handler sees; `encode` does the
    reverse. Each runs once per turn. Both check the values against the annotations: a value that
    `encode` let through and `load` refused would be lost. All fields need defaults, for new
    sessions.
    """

    def __init__(self, session_type: object) -> None:
        """Raises: ConfigError."""
        if not isinstance(session_type, type) or not dataclasses.is_dataclass(session_type):
            raise ConfigError("session_type", session_type, "dict or a dataclass")
        for field in dataclasses.fields(session_type):
            if field.default is field.default_factory is dataclasses.MISSING:
                raise ConfigError("session_type", session_type, f"a default for the field {field.name!r}, as for all")
        self._type = session_type
        self._loader = Converter(session_type)
        self._dumper = Converter(session_type, self._loader)

    def load(self, values: dict[str, Any]) -> Any:
        """Return an instance; what the author's code raises is the `__cause__` of the error.

        Raises: UndecodableError; ConfigError if not even a new session can be made.
        """
        try:
            return self._loader.root(values, 1)
        except MismatchError as error:
            if not values:
                expected = f"a dataclass that can be made without values ({error.reason})"
                raise ConfigError("session_type", self._type, expected) from error.cause
            raise UndecodableError(f"session{error.path}: {error.reason}") from error.cause

    def dump(self, session: Any) -> dict[str, Any]:
        """Return the values of an instance. Raises: NotEncodableError, SessionTooLargeError."""
        try:
            return self._dumper.root(session, 1)  # type: ignore[no-any-return]
        except MismatchError as error:
            raise NotEncodableError(f"session{error.path}", error.reason) from error.cause

    def encode(self, session: Any, max_bytes: int) -> bytes:
        """Return the bytes of an instance, from which `load` can make it again.

        A type that has code of its own, such as `__post_init__`, may refuse what a handler has
        made. So it is asked: the next turn would have to. Raises: as `dump`.
        """
        data = encode_state(self.dump(session), max_bytes)
        if self._loader.has_own_code:
            try:
                self._loader.root(decode_state(data, trusted=True), 1)
            except MismatchError as error:
                reason = f"the type refuses it: {error.reason}"
                raise NotEncodableError(f"session{error.path}", reason) from error.cause
        return data
