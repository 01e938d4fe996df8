"""Follows bots that want to own one store: what each acknowledged and when, and whether the store
has it.
"""

from __future__ import annotations

import json
import signal
import threading
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from time import monotonic
from typing import Any, Self

from actorbot import store_from_url
from tests.faults._kills import ForkServer, state_in
from tests.faults._owner import Owning
from tests.servers import mongo_servers, redis_servers

PATIENCE = 20.0  # seconds for a bot to say something


class Bot:
    """One bot, and what it has said so far.

    A thread of its own listens: a full pipe would stop the bot.
    """

    def __init__(self, server: ForkServer, owning: Owning) -> None:
        self.owning = owning
        self.life = server.fork(owning)
        self.acknowledged: list[tuple[str, str, float]] = []
        """Session, tag, and the wall-clock second."""
        self.replies: list[tuple[str, str, float]] = []
        self.faults: list[str] = []
        self.kept: dict[str, list[str]] = defaultdict(list)
        """What `on_conflict` was handed: the tags of each session."""
        self._said: dict[str, list[list[str]]] = defaultdict(list)
        self._news = threading.Condition()  # guards all of this
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    @property
    def pid(self) -> int:
        return self.life.pid

    @property
    def taken(self) -> float:
        """The wall-clock second at which it had taken the lease."""
        return float(self._said["started"][0][3])

    @property
    def claims(self) -> bool:
        return self._said["started"][0][2] == "1"

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
            case ["ack", session, tag, when]:
                self.acknowledged.append((session, tag, float(when)))
            case ["reply", session, tag, when]:
                self.replies.append((session, tag, float(when)))
            case ["fault", *text]:
                self.faults.append(" ".join(text))
            case ["kept", session, *tags]:
                self.kept[session] += tags
        self._said[words[0]].append(words[1:])

    def said(self, word: str) -> bool:
        return bool(self._said[word])

    def hears(self, word: str, count: int = 1, seconds: float = PATIENCE) -> str:
        """Wait until it has said *word* so many times; return what followed the last of these."""
        with self._news:
            if not self._news.wait_for(lambda: len(self._said[word]) >= count or self._has_ended(), seconds):
                raise AssertionError(f"{self.owning.name} never says {word!r}, {count} times; {self.summary()}")
            assert len(self._said[word]) >= count, f"{self.owning.name} ended before {word!r}; {self.summary()}"
            return " ".join(self._said[word][count - 1])

    def loses_or_works(self, events: int) -> bool:
        """Wait until it has noticed that it has lost its store; `False` if it goes on so long."""
        with self._news:
            goal = len(self._said["ack"]) + events
            assert self._news.wait_for(
                lambda: self._said["lost"] or len(self._said["ack"]) >= goal or self._has_ended(), PATIENCE
            ), self.summary()
            assert not self._has_ended(), self.summary()
            return bool(self._said["lost"])

    def _has_ended(self) -> bool:
        return self.life.status is not None

    def works(self, events: int = 100) -> None:
        """Wait until it has acknowledged so many more events."""
        self.hears("ack", len(self.acknowledged) + events)

    def summary(self) -> str:
        words = {word: len(said) for word, said in self._said.items()}
        newest = {word: self._said[word][-2:] for word in ("waits", "error", "fault")}
        return f"{words}, status {self.life.status}, {newest}"

    # --- what is done to it ----------------------------------------------------------------------

    def freeze(self) -> None:
        self.life.signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self.life.signal(signal.SIGCONT)

    def kill(self) -> None:
        """Kill it, and wait for its end."""
        self.life.signal(signal.SIGKILL)
        self._thread.join(PATIENCE)
        assert self.life.status is not None, "the pipe of a killed bot does not end"

    def ask_to_close(self) -> None:
        self.life.signal(signal.SIGTERM)

    def close(self) -> bool:
        """Close it as a supervisor does; tell whether it has left nothing behind."""
        self.ask_to_close()
        clean = self.hears("closed") == "1"
        self._thread.join(PATIENCE)
        assert self.life.status == 0, self.summary()
        return clean

    def report(self) -> dict[str, Any]:
        """Have it say how it is, and how its verbs fail if it has lost its store."""
        reports = len(self._said["report"])
        self.life.signal(signal.SIGUSR1)
        found: dict[str, Any] = json.loads(self.hears("report", reports + 1))
        return found


class Bots:
    """Starts bots on one store, and ends them."""

    def __init__(self, server: ForkServer, url: str, **owning: Any) -> None:
        self._server = server
        self.owning = Owning(name="", url=url, **owning)
        self.all: list[Bot] = []

    def begin(self, *, server: ForkServer | None = None, **changes: Any) -> Bot:
        """Begin a bot, by another *server* if one is given. Its name is one that no other has."""
        bot = Bot(server or self._server, replace(self.owning, name=_name(len(self.all)), **changes))
        self.all.append(bot)
        return bot

    def start(self, **changes: Any) -> Bot:
        """Begin a bot, and wait until it is open."""
        bot = self.begin(**changes)
        bot.hears("started")
        return bot

    def stored(self) -> dict[str, list[str]]:
        """Return the tags of each session as they are in the store, read without a manager."""
        store = store_from_url(self.owning.url)
        store.init()
        try:
            ids = [f"user:{number}" for number in range(self.owning.sessions)]
            return {each: (state_in(store, each) or {}).get("tags", []) for each in ids}
        finally:
            store.close()

    def check(self, *, lost: Iterable[Bot] = ()) -> dict[str, list[str]]:
        """Check that the store has each acknowledged event once, those of a bot in their order.

        Not all of a bot that has *lost* its store, or was killed: return what is missing of these,
        for each session.
        """
        stored, missing = self.stored(), defaultdict(list)
        for bot in self.all:
            assert bot.faults == []
        for session, tags in stored.items():
            assert len(tags) == len(set(tags)), f"an event of {session} counts twice"
            for bot in self.all:
                mine = [int(tag.partition(":")[2]) for tag in tags if tag.startswith(f"{bot.owning.name}:")]
                assert mine == sorted(mine)
        for bot in self.all:
            for session, tag, _ in bot.acknowledged:
                if tag not in stored[session]:
                    assert bot in lost, f"{tag}, acknowledged, is not in {session}: {stored[session][-5:]}"
                    missing[session].append(tag)
        return missing

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for bot in self.all:
            if bot.life.status is None:
                bot.kill()


def _name(number: int) -> str:
    return chr(ord("a") + number % 26) + (str(number // 26) if number >= 26 else "")


# --- places -------------------------------------------------------------------------------------


@contextmanager
def place(kind: str, folder: Path) -> Iterator[str]:
    """Yield the URL of a store of *kind*, empty, for the test whose *folder* it is."""
    match kind:
        case "file":
            yield f"file://{folder}/sessions"
        case "mongo" | "mongo replica set":
            url = mongo_servers.shared(kind != "mongo").url
            yield f"{url}{'&' if '?' in url else '?'}database=actorbot_owners&collection_name={folder.name}"
        case "redis cluster":
            with redis_servers.cluster(redis_servers.QUICK, folder) as nodes:
                yield f"{nodes[0].url}?key_prefix=bot:"
        case _:
            yield f"{redis_servers.shared(kind).url}?key_prefix={folder.name}:"
