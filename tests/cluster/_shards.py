"""Starts shards as processes, does to them what happens to processes, and ends them."""

from __future__ import annotations

import signal
import threading
from collections import Counter, defaultdict
from dataclasses import replace
from time import monotonic
from typing import Any, Self

from tests.cluster._shard import Shape
from tests.faults._kills import ForkServer
from tests.waiting import until_sync

PATIENCE = 30.0  # seconds for a shard to say something


class Process:
    """One shard, and what it has said so far.

    A thread of its own listens: a full pipe would stop the shard.
    """

    def __init__(self, server: ForkServer, shape: Shape) -> None:
        self.shape = shape
        self.life = server.fork(shape)
        self.replies: Counter[tuple[str, int]] = Counter()
        self.conflicts = 0
        self.faults: list[str] = []
        self._said: dict[str, list[list[str]]] = defaultdict(list)
        self._news = threading.Condition()  # guards all of this
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    @property
    def pid(self) -> int:
        return self.life.pid

    @property
    def status(self) -> int | None:
        """The exit status; `None` while it lives."""
        return self.life.status

    def _listen(self) -> None:
        while self.life.status is None:
            for words in self.life.lines(monotonic() + PATIENCE):
                with self._news:
                    self._take(words)
                    self._news.notify_all()
        with self._news:
            self._news.notify_all()

    def _take(self, words: list[str]) -> None:
        match words:
            case ["reply", session, tag]:
                self.replies[session, int(tag)] += 1
            case ["conflict", _]:
                self.conflicts += 1
            case ["fault", *text]:
                self.faults.append(" ".join(text))
            case [word, *rest]:
                self._said[word].append(rest)

    def hears(self, word: str) -> str:
        """Wait until it has said *word*; return what followed it."""
        with self._news:
            self._news.wait_for(lambda: self._said[word] or self.status is not None, PATIENCE)
            assert self._said[word], f"the shard never says {word!r}; status {self.status}, {self.faults}"
            return " ".join(self._said[word][0])

    # --- what is done to it ----------------------------------------------------------------------

    def freeze(self) -> None:
        self.life.signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self.life.signal(signal.SIGCONT)

    def kill(self) -> None:
        """Kill it, and wait for its end."""
        self.life.signal(signal.SIGKILL)
        self._ended()

    def ask_to_end(self) -> None:
        self.life.signal(signal.SIGTERM)

    def end(self) -> int:
        """End it as a supervisor does; return its exit status."""
        self.ask_to_end()
        return self._ended()

    def _ended(self) -> int:
        self._thread.join(PATIENCE)
        assert self.status is not None, "the shard does not end"
        return self.status


class Shards:
    """The shards of one cluster."""

    def __init__(self, server: ForkServer, url: str, store: str, **shape: Any) -> None:
        self._server = server
        self.shape = Shape(url=url, store=store, **shape)
        self.all: list[Process] = []

    def begin(self, **changes: Any) -> Process:
        """Begin a shard."""
        process = Process(self._server, replace(self.shape, **changes))
        self.all.append(process)
        return process

    def start(self, count: int = 1, **changes: Any) -> list[Process]:
        """Begin so many shards, and wait until they take part."""
        begun = [self.begin(**changes) for _ in range(count)]
        for process in begun:
            process.hears("started")
        return begun

    @property
    def living(self) -> list[Process]:
        return [process for process in self.all if process.status is None]

    def end(self) -> None:
        """End all that live, as a supervisor does, the one after the other; each flushes first."""
        for process in self.living:
            process.thaw()
            assert process.end() == 0, process.faults

    def replies(self) -> Counter[tuple[str, int]]:
        """Count how often each event's reply was sent."""
        return sum((process.replies for process in self.all), Counter())

    def faults(self) -> list[str]:
        return [fault for process in self.all for fault in process.faults]

    def conflicts(self) -> int:
        return sum(process.conflicts for process in self.all)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.living:
            process.kill()
        until_sync(lambda: not self.living)
