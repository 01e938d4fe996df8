"""What the `ids()` of somebody's driver gives, as session ids."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from actorbot._state.session_id import check_session_id
from actorbot.errors import InvalidSessionIdError, StoreError

__all__ = ["sort_ids"]

SHOWN: Final = 80  # characters of what is no id


def sort_ids(found: Iterable[object], store: str) -> tuple[list[str], list[StoreError]]:
    """Return the session ids of *found*, and an error that names each that is none.

    Bytes are read as UTF-8, and a row of one column, as cursors give it, as what it holds. *store*
    names the driver.
    """
    ids: list[str] = []
    errors: list[StoreError] = []
    for each in found:
        try:
            ids.append(check_session_id(_text_of(each)))  # type: ignore[arg-type]  # which it checks
        except (InvalidSessionIdError, UnicodeDecodeError) as error:
            shown = repr(each)
            shown = shown if len(shown) <= SHOWN else f"{shown[:SHOWN]}…"
            reason = error.reason if isinstance(error, InvalidSessionIdError) else "it is no UTF-8"
            errors.append(StoreError(store, f"ids() gives {shown}, which is no session id: {reason}"))
    return ids, errors


def _text_of(item: object) -> object:
    if not isinstance(item, str | bytes | bytearray | memoryview):
        row = item.values() if isinstance(item, Mapping) else item
        try:
            (item,) = row  # type: ignore[misc]  # what has no parts is no row
        except (TypeError, ValueError):
            return item
    return bytes(item).decode() if isinstance(item, bytes | bytearray | memoryview) else item
