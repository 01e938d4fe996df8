"""`ReplyRoom`: how many replies are on their way, and how many may be."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from actorbot.errors import OverloadedError

__all__ = ["ReplyRoom"]

IN_ALL: Final = 100  # sessions that fill the whole room if each has as many replies as it may have
SHARE: Final = 4  # the bytes of so many such sessions fill it
NEAR: Final = 0.9  # of a bound; from here on `manager.health` says so


class _Taken:
    """The room that one session has, or all have."""

    __slots__ = ("bytes", "replies")

    def __init__(self) -> None:
        self.replies = self.bytes = 0

    def add(self, replies: int, size: int) -> None:
        self.replies += replies
        self.bytes += size


class ReplyRoom:
    """Counts replies and their bytes, for each session and in all. Whoever changes it has a lock.

    The bytes are those of a message that is text or `bytes` (a character counts as one). A reply
    that finds none waiting has room, however large it is.
    """

    def __init__(self, most: int, most_bytes: int) -> None:
        self.most = most
        self._most_bytes = most_bytes
        self._sessions: dict[str, _Taken] = {}
        self._all = _Taken()
        self._crowded: set[str] = set()  # sessions that are near a bound

    @property
    def replies(self) -> int:
        """How many are on their way. Any thread."""
        return self._all.replies

    @property
    def bytes(self) -> int:
        """How many bytes they have. Any thread."""
        return self._all.bytes

    def check(self, session_id: str, messages: list[Any]) -> None:
        """Raises: OverloadedError if *messages* have no room."""
        mine, everybody = self._sessions.get(session_id, _NOTHING), self._all
        new, size = len(messages), _size(messages)
        alone, share = new == 1, self._most_bytes // SHARE
        self.refuse_more(session_id, new)
        if mine.replies + new > self.most:
            raise _no_room(f"session {session_id!r}", mine.replies, new, "replies", f"max_replies={self.most}")
        if everybody.replies + new > self.most * IN_ALL:
            raise _no_room("all sessions", everybody.replies, new, "replies", f"{IN_ALL} times max_replies={self.most}")
        if mine.bytes + size > share and (mine.bytes or not alone):
            bound = f"a quarter of max_dirty_bytes={self._most_bytes}"
            raise _no_room(f"session {session_id!r}", mine.bytes, size, "bytes of replies", bound)
        if everybody.bytes + size > self._most_bytes and (everybody.bytes or not alone):
            bound = f"max_dirty_bytes={self._most_bytes}"
            raise _no_room("all sessions", everybody.bytes, size, "bytes of replies", bound)

    def refuse_more(self, session_id: str, replies: int) -> None:
        """Raises: OverloadedError if a turn that has so many *replies* could not commit them."""
        if replies > self.most:
            raise OverloadedError(
                f"session {session_id!r}: its handler sends more replies than may wait for deliver, however few wait"
                f" (max_replies={self.most}): let it send fewer at a time, or raise max_replies"
            )

    def take(self, session_id: str, messages: list[Any]) -> None:
        """Count *messages* in, whether they have room or not."""
        if not messages:
            return
        taken = self._sessions.get(session_id)
        if taken is None:
            taken = self._sessions[session_id] = _Taken()
        self._change(session_id, taken, len(messages), _size(messages))

    def give_back(self, session_id: str, messages: list[Any]) -> None:
        """Count *messages* out."""
        if not messages:
            return
        taken = self._sessions[session_id]
        self._change(session_id, taken, -len(messages), -_size(messages))
        if not taken.replies:
            del self._sessions[session_id]

    def _change(self, session_id: str, taken: _Taken, replies: int, size: int) -> None:
        taken.add(replies, size)
        self._all.add(replies, size)
        if taken.replies >= NEAR * self.most or taken.bytes >= NEAR * self._most_bytes / SHARE:
            self._crowded.add(session_id)
        elif self._crowded:
            self._crowded.discard(session_id)

    def crowded(self) -> str | None:
        """Say which bound is reached, or nearly, if one is. Any thread."""
        if self.replies >= NEAR * self.most * IN_ALL:
            return f"{self.replies} replies wait for deliver ({IN_ALL} times max_replies: {self.most * IN_ALL})"
        if self.bytes >= NEAR * self._most_bytes:
            return f"{self.bytes} bytes of replies wait for deliver (max_dirty_bytes: {self._most_bytes})"
        for session_id in list(self._crowded):
            taken = self._sessions.get(session_id)
            if taken is not None:
                return (
                    f"{taken.replies} replies of session {session_id!r}, {taken.bytes} bytes, wait for deliver"
                    f" (max_replies: {self.most}; a quarter of max_dirty_bytes: {self._most_bytes // SHARE})"
                )
        return None


_NOTHING: Final = _Taken()


def _no_room(whose: str, taken: int, new: int, what: str, bound: str) -> OverloadedError:
    return OverloadedError(f"{whose}: {taken} {what} wait for deliver, and {new} more have no room ({bound})")


def _size(messages: Iterable[Any]) -> int:
    return sum(len(message) for message in messages if isinstance(message, str | bytes))
