"""The check of a session id, made before anything is touched."""

from __future__ import annotations

import unicodedata
from typing import Final

from actorbot.errors import InvalidSessionIdError

__all__ = ["check_session_id"]

MAX_ID_BYTES: Final = 512


def check_session_id(session_id: str) -> str:
    """Return *session_id* as a plain `str`. Raises: InvalidSessionIdError."""
    if not isinstance(session_id, str):
        raise InvalidSessionIdError(f"expected a str, got {type(session_id).__name__}")
    session_id = str.__str__(session_id)  # it may be a StrEnum; a record keeps a str
    if not session_id:
        raise InvalidSessionIdError("it is empty")
    try:
        size = len(session_id.encode())
    except UnicodeEncodeError:
        raise InvalidSessionIdError("it holds a lone surrogate") from None
    if size > MAX_ID_BYTES:
        raise InvalidSessionIdError(f"it has {size} UTF-8 bytes; at most {MAX_ID_BYTES} are allowed")
    if not session_id.isprintable() and any(unicodedata.category(character) == "Cc" for character in session_id):
        raise InvalidSessionIdError("it holds a control character")
    return session_id
