"""The flush policy: when a dispatch is acknowledged, and how unflushed state reaches the store."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, fields
from operator import attrgetter
from typing import Any, Final, Literal, Self

from actorbot._checks import DAY, check_count, check_seconds, check_word
from actorbot.errors import ConfigError

__all__ = ["FlushPolicy", "Retry"]

_BEHIND: Final = ("max_delay", "max_events", "max_dirty_bytes", "when_full")
_SHARED: Final = ("batch_size", "store_deadline", "retry.attempts", "retry.base", "retry.cap")
_JOURNAL: Final = ("path", "sync")
_KNOBS: Final[dict[str, tuple[str, ...]]] = {
    "write-through": _SHARED,
    "write-behind": _BEHIND + _SHARED,
    "journaled": _JOURNAL + _BEHIND + _SHARED,
}
_QUOTES: Final = ("'", '"')
_KNOB: Final = re.compile(
    r"""\s* ([^=,]*?) \s* (?: (=) \s* ( "(?:[^"]|"")*" | '(?:[^']|'')*' | [^,]*? ) \s* )? (?=,|\Z)""", re.VERBOSE
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Retry:
    """How often and how soon a failed write is tried again."""

    attempts: int = 5
    """How many tries a write has, the first one included, before its caller gets the error.

    1 to 1,000. After that many failed calls in a row the store counts as down, and a write has one
    try. A session that nobody waits for stays dirty, and is tried again every `cap` seconds.
    """
    base: float = 0.1
    """Seconds between the first two tries; each further pause is twice as long (0.001 to a day)."""
    cap: float = 5.0
    """The longest pause in seconds (`base` to a day)."""

    def __post_init__(self) -> None:
        check_count("retry.attempts", self.attempts, 1, 1_000)
        check_seconds("retry.base", self.base, least=0.001, most=DAY)
        check_seconds("retry.cap", self.cap, least=self.base, most=DAY)

    def delay(self, attempt: int) -> float:
        """Return the seconds to wait after *attempt* has failed; the first attempt is 1.

        There is no jitter. It would keep many clients from coming back at the same instant; a
        manager retries for all its sessions as one client.
        """
        doublings = min(attempt - 1, 30)  # the least base is then above the greatest cap; no float overflows
        return min(self.cap, self.base * 2.0**doublings)


@dataclass(frozen=True, slots=True, kw_only=True)
class FlushPolicy:
    """When a dispatch is acknowledged, and how what it changed reaches the store.

    Made by `write_through()`, by `write_behind()`, by `journaled()`, or by `parse()` from the text
    that `str()` gives.
    """

    mode: Literal["write-through", "write-behind", "journaled"]
    path: str = ""
    """The journal's file, made if it is missing. Beside it are files of its name with an ending."""
    sync: Literal["full", "normal"] = "full"
    """Whether the journal is synced before an event is acknowledged, or only now and then.

    With `normal`, a power loss costs the last moments.
    """
    max_delay: float = 1.0
    """Seconds from a session's first unflushed event to its flush (above 0, up to a day)."""
    max_events: int = 100
    """At this many unflushed events, the session's next turn waits for a flush (1 to 1,000,000).

    Not during an outage of the store.
    """
    batch_size: int = 100
    """How many sessions go to the store in one call (1 to 10,000)."""
    max_dirty_bytes: int = 256 * 1024**2
    """The bound on unflushed state, in bytes over all sessions (64 KiB to 1 TiB)."""
    when_full: Literal["wait", "reject"] = "wait"
    """What becomes of an event at that bound: it waits, or is refused with `OverloadedError`."""
    store_deadline: float = 5.0
    """Seconds that one call to the store may take (above 0, up to a day)."""
    retry: Retry = Retry()
    """What happens when that call fails."""

    def __post_init__(self) -> None:
        check_word("mode", self.mode, tuple(_KNOBS))
        check_seconds("max_delay", self.max_delay, most=DAY)
        check_count("max_events", self.max_events, 1, 1_000_000)
        check_count("batch_size", self.batch_size, 1, 10_000)
        check_count("max_dirty_bytes", self.max_dirty_bytes, 64 * 1024, 1024**4)
        check_word("when_full", self.when_full, ("wait", "reject"))
        check_seconds("store_deadline", self.store_deadline, most=DAY)
        if not isinstance(self.retry, Retry):
            raise ConfigError("retry", self.retry, "a Retry")
        check_word("sync", self.sync, ("full", "normal"))
        path: object = self.path
        if not isinstance(path, str) or "\0" in path or (self.mode == "journaled" and not path):
            raise ConfigError("path", path, "the path of the journal's file")
        if path == ":memory:" or path.startswith("file:"):
            raise ConfigError(
                "path", path, "the path of a file; a journal in memory keeps nothing, and SQLite's URIs are no paths"
            )
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name in _JOURNAL + _BEHIND and field.name not in _KNOBS[self.mode] and value != field.default:
                raise ConfigError(field.name, value, f"nothing: {self.mode} has no such knob")

    # The defaults below are those of the fields above: `= batch_size` is the default of that field.

    @classmethod
    def write_through(
        cls, *, batch_size: int = batch_size, store_deadline: float = store_deadline, retry: Retry = retry
    ) -> Self:
        """Acknowledge a dispatch when the store has confirmed its write."""
        return cls(mode="write-through", batch_size=batch_size, store_deadline=store_deadline, retry=retry)

    @classmethod
    def write_behind(
        cls,
        *,
        max_delay: float = max_delay,
        max_events: int = max_events,
        batch_size: int = batch_size,
        max_dirty_bytes: int = max_dirty_bytes,
        when_full: Literal["wait", "reject"] = when_full,
        store_deadline: float = store_deadline,
        retry: Retry = retry,
    ) -> Self:
        """Acknowledge a dispatch when its handler returns; flush within `max_delay` seconds."""
        return cls(
            mode="write-behind",
            max_delay=max_delay,
            max_events=max_events,
            batch_size=batch_size,
            max_dirty_bytes=max_dirty_bytes,
            when_full=when_full,
            store_deadline=store_deadline,
            retry=retry,
        )

    @classmethod
    def journaled(
        cls,
        path: str | os.PathLike[str],
        *,
        sync: Literal["full", "normal"] = sync,
        max_delay: float = max_delay,
        max_events: int = max_events,
        batch_size: int = batch_size,
        max_dirty_bytes: int = max_dirty_bytes,
        when_full: Literal["wait", "reject"] = when_full,
        store_deadline: float = store_deadline,
        retry: Retry = retry,
    ) -> Self:
        """Acknowledge a dispatch when a local file, the journal, has it; flush as write-behind."""
        return cls(
            mode="journaled",
            path=os.fspath(path) if isinstance(path, os.PathLike) else path,
            sync=sync,
            max_delay=max_delay,
            max_events=max_events,
            batch_size=batch_size,
            max_dirty_bytes=max_dirty_bytes,
            when_full=when_full,
            store_deadline=store_deadline,
            retry=retry,
        )

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a policy from text, such as `write-behind:max_delay=0.5,retry.attempts=3`.

        The knobs are those of the constructor of that name, in any order. Each may be left out; if
        all are, so may the colon. Spaces around a word do not matter; its case does. A path with a
        comma, or with spaces at its ends, stands in quotes; a quote inside them is written twice.

        Raises: ConfigError, which names the knob and what it takes, or the knobs that there are.
        """
        if not isinstance(text, str):
            raise ConfigError("flush", text, "text such as 'write-behind:max_delay=0.5'")
        mode, colon, rest = (part.strip() for part in text.partition(":"))
        if mode not in _KNOBS:
            raise ConfigError("flush", text, f"{' or '.join(_KNOBS)}, and its knobs as in 'write-behind:max_delay=0.5'")
        values: dict[str, Any] = {"mode": mode}
        for knob, name, value in _knobs(rest) if colon else ():
            if value is None:
                raise ConfigError("flush", text, f"name=value between commas, not {knob!r}")
            if name not in _KNOBS[mode]:
                raise ConfigError(name, value, f"a name that {mode} knows: {', '.join(_KNOBS[mode])}")
            if name in values:
                raise ConfigError(name, value, "no second value")
            values[name] = value if name in _JOURNAL else _number_or_text(value)
        retry = {name: values.pop(f"retry.{name}") for name in Retry.__slots__ if f"retry.{name}" in values}
        return cls(retry=Retry(**retry), **values)

    def __str__(self) -> str:
        default = FlushPolicy(mode=self.mode, path=self.path and "-")
        knobs = ((name, attrgetter(name)) for name in _KNOBS[self.mode])
        changed = [f"{name}={_quoted(value(self))}" for name, value in knobs if value(self) != value(default)]
        return f"{self.mode}:{','.join(changed)}" if changed else self.mode


def _knobs(text: str) -> Iterator[tuple[str, str, str | None]]:
    """Yield each knob between commas as it stands, its name, and its value if it has one."""
    end = 0
    while end <= len(text):
        found = _KNOB.match(text, end)
        assert found is not None  # it matches anything
        name, equals, value = found.groups()
        if value and value[0] in _QUOTES and value[0] == value[-1] and len(value) > 1:
            value = value[1:-1].replace(value[0] * 2, value[0])
        yield found[0], name, value if equals else None
        end = found.end() + 1  # behind the comma


def _quoted(value: object) -> str:
    """Return *value* as `parse` reads it."""
    text = f"{value}"
    plain = text == text.strip() and "," not in text and text[:1] not in _QUOTES
    return text if plain else '"{}"'.format(text.replace('"', '""'))


def _number_or_text(text: str) -> int | float | str:
    """Return *text* as a number if it is one. The constructor checks whether a knob takes it."""
    for number in (int, float):
        try:
            return number(text)
        except ValueError:
            continue
    return text
