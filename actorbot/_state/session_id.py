"""The check of session ids, made before anything is touched."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping
from typing import Any, Final

from actorbot.errors import InvalidSessionIdError

__all__ = ["check_session_id", "check_session_ids"]

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


def check_session_ids(session_ids: str | Iterable[str]) -> list[str]:
    """Return the ids, each once; a `str` is one id. Raises: InvalidSessionIdError."""
    given: Any = session_ids
    if isinstance(given, str | bytes | Mapping) or not isinstance(given, Iterable):
        given = [given]
    return list(dict.fromkeys(map(check_session_id, given)))
