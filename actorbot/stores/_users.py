"""Who uses a store object: several managers may share one, and the last of them closes it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

from actorbot._runtime.forks import kept_from_children

__all__ = ["close_after_last", "is_used", "open_for"]


# Seconds after which an open or close is no longer waited for: less than the 5 of `store_deadline`,
# so that a driver whose close hangs can be opened again.
HANGS: Final = 2.0


@dataclass(slots=True, eq=False)
class _Use:
    store: Any  # kept, so that its id is not given to another
    users: dict[int, Callable[[], object]] = field(default_factory=dict)
    """By user, what opens the store for it."""
    looking: int = 0
    # Makes opening and closing one step each, and is held across them: a store that is being closed
    # must not be taken for open. Nothing else waits for this lock.
    lock: threading.Lock = field(default_factory=threading.Lock)


class _Uses:
    """All stores that are used, by the ids of the objects: a driver may not be hashable."""

    def __init__(self) -> None:
        self._leave_to_parent()
        kept_from_children.add(self)

    def _leave_to_parent(self) -> None:
        self._guard = threading.Lock()  # guards `of`, and `looking` of each
        self.of: dict[int, _Use] = {}

    @contextmanager
    def hold(self, store: Any) -> Iterator[dict[int, Callable[[], object]]]:
        with self._guard:
            use = self.of.setdefault(id(store), _Use(store))
            use.looking += 1
        taken = use.lock.acquire(timeout=HANGS)
        try:
            yield use.users
        finally:
            if taken:
                use.lock.release()
            with self._guard:
                use.looking -= 1
                if not (use.looking or use.users):
                    self.of.pop(id(store), None)


_uses = _Uses()


def open_for(user: object, store: Any, init: Callable[[], object]) -> None:
    """Call *init*, which opens the *store*; from then on *user* uses it. Raises: as *init*."""
    with _uses.hold(store) as users:
        users[id(user)] = init  # first: a close that was not waited for sees it when it comes back
        try:
            init()
        except BaseException:
            users.pop(id(user), None)
            raise


def close_after_last(user: object, store: Any, close: Callable[[], object]) -> None:
    """Note that *user* no longer uses the *store*, and call *close* if nobody else does.

    Nothing happens if *user* has not opened it. Raises: as *close*.
    """
    with _uses.hold(store) as users:
        if users.pop(id(user), None) is None or users:
            return
        close()
        # If the close hung, somebody has opened the store meanwhile, and needs it open.
        if (init := next(iter(users.values()), None)) is not None:
            init()


def is_used(store: Any) -> bool:
    """Tell whether somebody uses the *store* at the moment."""
    use = _uses.of.get(id(store))
    return use is not None and bool(use.users)
