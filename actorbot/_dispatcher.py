"""Threads that run what others hand them: a bounded pool for user code, and single-threaded lanes for stores."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from queue import Empty, SimpleQueue

from actorbot.errors import OverloadedError

__all__ = ["Lane", "Pool", "Task"]

Task = Callable[[], None]

logger = logging.getLogger("actorbot")

MAX_BLOCKED = 512  # pool threads that may stand waiting for other sessions at one time


class Pool:
    """Runs tasks on at most `size` daemon threads that are not waiting for another session's turn.

    A thread that is about to wait says so (`blocking`), and the pool makes up for it with another one: without that, `size` handlers
    that wait for sessions whose turn is still queued would wait for ever.
    """

    def __init__(self, size: int, name: str) -> None:
        self._size = size
        self._name = name
        self._tasks: SimpleQueue[Task | None] = SimpleQueue()
        self._lock = threading.Lock()  # guards the counts below; never held while a task runs
        self._threads = 0
        self._queued = 0
        self._idle = 0
        self._blocked = 0
        self._closed = False
        self._mine = threading.local()

    def submit(self, task: Task) -> None:
        """Run *task* soon, on a thread of the pool. It handles its own errors; what escapes it is logged."""
        with self._lock:
            self._queued += 1
            self._grow()
        self._tasks.put(task)

    @contextmanager
    def blocking(self) -> Iterator[None]:
        """Mark the calling thread, if it is one of the pool's, as waiting. Raises: OverloadedError when too many are."""
        if not getattr(self._mine, "is_worker", False):
            yield
            return
        with self._lock:
            if self._blocked >= MAX_BLOCKED:
                raise OverloadedError(f"{MAX_BLOCKED} handlers are waiting for other sessions at the same time")
            self._blocked += 1
            self._grow()
        try:
            yield
        finally:
            with self._lock:
                self._blocked -= 1

    def close(self) -> None:
        """Let the threads end once the queue is empty; a task that never returns keeps its (daemon) thread."""
        with self._lock:
            self._closed = True
            threads = self._threads
        for _ in range(threads):
            self._tasks.put(None)

    def _grow(self) -> None:
        # The caller holds the lock.
        if self._queued > self._idle and self._threads - self._blocked < self._size:
            self._threads += 1
            threading.Thread(target=self._run, name=f"{self._name}-{self._threads}", daemon=True).start()

    def _run(self) -> None:
        self._mine.is_worker = True
        while True:
            with self._lock:
                if self._threads - self._blocked > self._size or (self._closed and not self._queued):
                    self._threads -= 1
                    return
                self._idle += 1
            task = self._tasks.get()
            with self._lock:
                self._idle -= 1
                if task is not None:
                    self._queued -= 1
            if task is not None:
                _run_safely(task)


class Lane:
    """One daemon thread that runs tasks in the order they came: what a driver that is not thread-safe needs."""

    def __init__(self, name: str, number: int = 0, tasks: Iterable[Task] = ()) -> None:
        self.number = number
        """The how manyth it is of those that took each other's place."""
        self._tasks: SimpleQueue[Task | None] = SimpleQueue()
        for task in tasks:
            self._tasks.put(task)
        threading.Thread(target=self._run, name=name, daemon=True).start()

    def submit(self, task: Task) -> None:
        """Run *task* after those submitted before it."""
        self._tasks.put(task)

    def give_up(self) -> list[Task]:
        """Take back the tasks that have not begun: the one that has does not come to its end."""
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
        self._tasks.put(None)

    def _run(self) -> None:
        while (task := self._tasks.get()) is not None:
            _run_safely(task)


def _run_safely(task: Task) -> None:
    try:
        task()
    except BaseException:
        # Nothing may end a shared thread: not even a SystemExit that slipped out of somebody's driver.
        logger.exception("a task failed on a thread of actorbot's")
