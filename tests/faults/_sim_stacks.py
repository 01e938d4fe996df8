"""Stacks that can stand still: threads of which one runs at a time, when it is told to."""

from __future__ import annotations

import threading
from collections.abc import Callable

__all__ = ["Stack", "Stacks"]


class Stack:
    """A thread that runs a task, as far as it comes each time."""

    def __init__(self) -> None:
        self.task: Callable[[], None] | None = None
        self.error: BaseException | None = None
        """What the task that has come to its end raised."""
        self.over = False
        self._may_go_on = _taken()
        self._stands_still = _taken()
        threading.Thread(target=self._run, name="stack", daemon=True).start()

    def step(self) -> None:
        """Have it go on, and wait until it stands still."""
        self._may_go_on.release()
        self._stands_still.acquire()

    def stand_still(self) -> None:
        """On its thread: let the others go on."""
        self._stands_still.release()
        self._may_go_on.acquire()

    def _run(self) -> None:
        while True:
            self._may_go_on.acquire()
            if self.task is None:
                return
            self.error = None
            try:
                self.task()
            except BaseException as error:  # for who has it go on
                self.error = error
            self.task, self.over = None, True
            self._stands_still.release()

    def end(self) -> None:
        self.task = None
        self._may_go_on.release()


class Stacks:
    """All of a world, used again and again."""

    def __init__(self) -> None:
        self._idle: list[Stack] = []
        self._running: Stack | None = None

    def take(self, task: Callable[[], None]) -> Stack:
        """Return one that begins *task* at its first step."""
        stack = self._idle.pop() if self._idle else Stack()
        stack.task, stack.over = task, False
        return stack

    def step(self, stack: Stack) -> bool:
        """Have it go on until it pauses; tell whether it has come to its end."""
        self._running = stack
        stack.step()
        self._running = None
        return stack.over

    def pause(self) -> None:
        """On the stack that runs: stand still until its next step."""
        stack = self._running
        assert stack is not None
        stack.stand_still()

    def give_back(self, stack: Stack) -> None:
        self._idle.append(stack)

    def close(self) -> None:
        """End the threads."""
        for stack in self._idle:
            stack.end()


def _taken() -> threading.Lock:
    """A lock is three times as quick as a semaphore: whoever waits for it takes it."""
    lock = threading.Lock()
    lock.acquire()
    return lock
