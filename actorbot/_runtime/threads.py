"""Threads that run what others hand them: a pool for handlers, lanes of one thread for stores."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from queue import Empty, SimpleQueue

from actorbot._runtime.clock import Clock
from actorbot.errors import OverloadedError

__all__ = ["Lane", "Pool", "Task"]

Task = Callable[[], None]

logger = logging.getLogger("actorbot")

_here = threading.local()  # the lane of a lane's thread

MAX_AWAY = 512  # pool threads that may wait for other sessions, or be lost, at the same time


class Pool:
    """Runs tasks on at most `size` daemon threads that are neither waiting nor lost.

    A thread that is about to wait for another session says so (`blocking`). A thread whose task has
    run for `patience` seconds counts as lost until the task returns. For both the pool makes other
    threads. Else everybody would wait for ever if `size` handlers hang, or wait for sessions whose
    turn is still queued.
    """

    def __init__(self, size: int, name: str, clock: Clock, patience: float) -> None:
        self._size = size
        self._name = name
        self._clock = clock
        self._patience = patience
        self._tasks: SimpleQueue[Task | None] = SimpleQueue()
        # Guards _threads, _queued, _idle, _began, _away, _will_look and _closed. Never held while a
        # task runs.
        self._lock = threading.Lock()
        self._threads = 0
        self._queued = 0
        self._idle = 0
        # By thread, oldest first: since when its task runs. Without the lost threads.
        self._began: dict[int, float] = {}
        self._away: set[int] = set()  # the threads that do not count: they wait, or are lost
        self._will_look = False
        self._closed = False
        self._mine = threading.local()

    def submit(self, task: Task) -> None:
        """Run *task* soon, on a thread of the pool. It handles its errors; others are logged."""
        with self._lock:
            self._queued += 1
            self._grow()
        self._tasks.put(task)

    @contextmanager
    def blocking(self) -> Iterator[None]:
        """Mark the calling thread, if it is one of the pool's, as waiting.

        Raises: OverloadedError when too many wait.
        """
        me = threading.get_ident()
        if not getattr(self._mine, "is_worker", False) or me in self._away:
            yield
            return
        with self._lock:
            if len(self._away) >= MAX_AWAY:
                raise OverloadedError(f"{MAX_AWAY} handlers hang or wait for other sessions at the same time")
            self._away.add(me)
            self._grow()
        try:
            yield
        finally:
            with self._lock:
                self._away.discard(me)

    def close(self) -> None:
        """Let the threads end once the queue is empty.

        A task that never returns keeps its thread, a daemon.
        """
        with self._lock:
            self._closed = True
            threads = self._threads
        for _ in range(threads):
            self._tasks.put(None)

    def _grow(self, most: int = 1) -> None:
        # The caller holds the lock.
        if self._queued <= self._idle:
            return
        if self._threads - len(self._away) >= self._size:
            self._look_for_lost()
        for _ in range(min(most, self._size - self._threads + len(self._away))):
            self._threads += 1
            threading.Thread(target=self._run, name=f"{self._name}-{self._threads}", daemon=True).start()

    def _look_for_lost(self) -> None:
        # The caller holds the lock.
        now = self._clock.monotonic()
        for thread, began in list(self._began.items()):
            if thread in self._away:
                continue
            if began + self._patience > now:
                if not self._will_look:
                    self._will_look = True
                    self._clock.call_at(began + self._patience, self._look_again)
                return
            if len(self._away) >= MAX_AWAY:
                return
            del self._began[thread]
            self._away.add(thread)

    def _look_again(self) -> None:
        with self._lock:
            self._will_look = False
            self._grow(self._queued - self._idle)

    def _run(self) -> None:
        self._mine.is_worker = True
        me = threading.get_ident()
        while True:
            with self._lock:
                self._began.pop(me, None)
                self._away.discard(me)
                if self._threads - len(self._away) > self._size or (self._closed and not self._queued):
                    self._threads -= 1
                    return
                self._idle += 1
            task = self._tasks.get()
            now = self._clock.monotonic()
            with self._lock:
                self._idle -= 1
                if task is not None:
                    self._queued -= 1
                    self._began[me] = now
            if task is not None:
                _run_safely(task)


class Lane:
    """One daemon thread that runs tasks in the order in which they came.

    A driver that is not thread-safe needs that.
    """

    def __init__(self, name: str, number: int = 0, tasks: Iterable[Task] = ()) -> None:
        self.number = number
        """Which replacement this is: 0 for the first lane."""
        self.closed = False
        self._tasks: SimpleQueue[Task | None] = SimpleQueue()
        for task in tasks:
            self._tasks.put(task)
        threading.Thread(target=self._run, name=name, daemon=True).start()

    @staticmethod
    def here() -> Lane:
        """Return the lane whose thread this is."""
        return _here.lane  # type: ignore[no-any-return]

    def submit(self, task: Task) -> None:
        """Run *task* after those submitted before it."""
        self._tasks.put(task)

    def give_up(self) -> list[Task]:
        """Take back the tasks that have not begun, since the one that has begun does not end."""
        tasks: list[Task] = []
        while not self._tasks.empty():
            try:
                task = self._tasks.get_nowait()
            except Empty:
                break
            if task is not None:
                tasks.append(task)
        return tasks

    def close(self) -> None:
        """End the thread after what was submitted; does not wait."""
        self.closed = True
        self._tasks.put(None)

    def _run(self) -> None:
        _here.lane = self
        while (task := self._tasks.get()) is not None:
            _run_safely(task)


def _run_safely(task: Task) -> None:
    try:
        task()
    except BaseException:
        # Nothing may end a shared thread: not even a SystemExit from somebody's driver.
        logger.exception("a task failed on a thread of actorbot's")
