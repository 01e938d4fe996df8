"""Damaged records in Redis: set aside, under a key beside that of their session."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final

from actorbot._state.record import find_flaw
from actorbot.errors import ActorbotError
from actorbot.stores._redis_link import Link, is_refused
from actorbot.stores.base import ASIDE_AGE, Write

__all__ = ["Damage"]

SUFFIX: Final = b".damaged"
_ASIDE: Final = re.compile(rb".+\.damaged(-[0-9a-f]{8})?", re.DOTALL)
_WEEK: Final = int(ASIDE_AGE)


class Damage:
    """Sets damaged values aside, each for a week. *note* is told id, reason and place of each."""

    def __init__(self, link: Link, note: Callable[[str, str, str], None]) -> None:
        self._link = link
        self._note = note

    @staticmethod
    def may_be_aside(key: bytes) -> bool:
        """Tell whether *key* may be what `set_aside` has made, and no session's."""
        return _ASIDE.fullmatch(key) is not None

    def look_at(self, session_id: str, key: bytes, value: bytes) -> None:
        """Set aside the *value* that a write has replaced, if it is damaged."""
        reason = find_flaw(value[1 + 8 * value[0] :])
        if reason is None:
            return
        place = "lost: Redis did not take it"
        for aside in _names(key):  # a session may have the first of these names
            answer = self._link.run([(aside, ("SET", aside, value, "NX", "EX", _WEEK))], writes=True)[0]
            if isinstance(answer, ActorbotError):
                place = f"lost: {answer}"
            elif answer is not None:
                place = f"kept for a week under the key {aside.decode()!r}"
                break
        self._note(session_id, reason, place)

    def make_way(self, writes: Sequence[Write], keys: Sequence[bytes]) -> list[Write]:
        """Fit each of *writes* that may go over a damaged value to what its key holds.

        A value that is text is compared as the script compares it, and set aside when the script
        returns it. What is of another type is set aside now.
        """
        fitted = list(writes)
        over = [n for n, write in enumerate(writes) if write.over_damage]
        for n, value in zip(over, self._link.run([(keys[n], ("GET", keys[n])) for n in over]), strict=True):
            if isinstance(value, bytes):
                flaw = find_flaw(value[1 + 8 * value[0] :]) if value else None
                base = value[1 : 1 + 8 * min(1, value[0])] if flaw else writes[n].base
                fitted[n] = replace(writes[n], base=base)
            elif is_refused(value) and "WRONGTYPE" in str(value):
                self._rename(writes[n].record.session_id, keys[n])
        return fitted

    def _rename(self, session_id: str, key: bytes) -> None:
        for aside in _names(key):
            moved, ends = self._link.run(
                [(key, ("RENAMENX", key, aside)), (key, ("EXPIRE", aside, _WEEK))], writes=True
            )
            if moved == 1 and ends == 1:
                place = f"kept for a week under the key {aside.decode()!r}"
                self._note(session_id, "its key held something that is not a record of actorbot", place)
                return


def _names(key: bytes) -> tuple[bytes, bytes]:
    return key + SUFFIX, key + SUFFIX + b"-" + os.urandom(4).hex().encode()
