"""What a store keeps to that says by a lease which process owns it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Final
from unittest import SkipTest

from actorbot.errors import ConfigError, StoreError
from actorbot.stores.base import LeaseFound, RecordStore, Write
from actorbot.testing._expect import (
    Rules,
    destroy,
    expect,
    expect_records,
    get,
    make_record,
    must,
    opened,
    put,
    read,
    write_all,
)

__all__ = ["LeaseRules"]

PATIENCE: Final = 30.0  # real seconds for a rule that uses threads
COARSE: Final = 1.5  # real seconds in which the clock of a server goes on, be it by whole seconds
ROUNDS: Final = 20  # of a race
THE_YEAR_2000: Final = 946_684_800.0  # wall-clock seconds
THE_YEAR_2200: Final = 7_258_118_400.0

# A lease is JSON, and has host names and names of programs. No "\0", which some databases refuse.
ODD: Final = "".join(map(chr, range(32, 127))) + "\t\n ' \" \\ %s {0} $1 :x ? äß 中文 🙂 \\u0000 "


class LeaseRules(Rules):
    """Rules that are skipped for a store or driver that keeps no lease.

    Each asks on a thread of its own, as a manager does: not on that of `init`.
    """

    persistent: bool
    """As in `StoreContract`; then two stores of one place are open side by side."""

    def break_store(self, store: Any) -> None:
        """As in `StoreContract`."""
        raise NotImplementedError

    def make_store_beside(self) -> Any:
        """Make a store of other sessions in the same place, such as one of another key prefix.

        Override it: without it the rule that two such stores have two leases is skipped.
        """
        raise SkipTest("make_store_beside is not overridden")

    def test_a_store_that_nobody_has_owned_has_no_lease(self) -> None:
        with leased(self.make_store()) as store:
            _expect_lease(store, None)

    def test_a_lease_is_put_where_there_is_none_and_only_once(self) -> None:
        with leased(self.make_store()) as store:
            _swap(store, "guess", "first", done=False)
            _expect_lease(store, None)
            _swap(store, None, "first")
            _expect_lease(store, "first")
            _swap(store, None, "second", done=False)

            _expect_lease(store, "first")

    def test_a_lease_replaces_the_one_that_was_read_and_no_other(self) -> None:
        with leased(self.make_store()) as store:
            _swap(store, None, "first")
            _swap(store, "first", "second")
            _expect_lease(store, "second")
            for old in ("first", "", "Second", "second ", " second", "sec", "%", "second\n"):
                _swap(store, old, "third", done=False)
                _expect_lease(store, "second")
            _swap(store, "second", "third")
            _swap(store, "third", "third")  # a start looks so whether the server takes writes

            _expect_lease(store, "third")

    def test_of_two_processes_that_take_a_lease_at_once_one_has_it(self) -> None:
        with leased(self.make_store()) as store, leased(self._second(store)) as other:
            old = None
            for n in range(ROUNDS):
                news = [f"round {n}, first", f"round {n}, second"]
                first, second = _side_by_side(
                    partial(store.swap_lease, old, news[0]), partial(other.swap_lease, old, news[1])
                )
                has = _on_thread(store.read_lease).text
                must(
                    [first, second].count(True) == 1 and has == news[0 if first else 1],
                    store,
                    f"of two that put another lease in the place of {old!r} at once, exactly one must be told that it"
                    f" was done: they were told {first} and {second}, and the lease is {has!r}",
                )
                old = has

    def test_any_text_of_a_lease_comes_back_equal(self) -> None:
        with leased(self.make_store()) as store:
            old = None
            for text in (ODD, '{"holders": {"a": "b"}}', ODD + "x" * 100_000, "short again"):
                _swap(store, old, text)
                _expect_lease(store, text)
                old = text

    def test_the_time_beside_a_lease_is_in_seconds_and_goes_on(self) -> None:
        with leased(self.make_store()) as store:
            first = _on_thread(store.read_lease)
            must(
                isinstance(first.now, float | int) and THE_YEAR_2000 < first.now < THE_YEAR_2200,
                store,
                f"read_lease gives {first.now!r} as the time: it must be wall-clock seconds, as time.time() gives",
            )
            must(
                first.up is None or (isinstance(first.up, float | int) and first.up >= 0),
                store,
                f"read_lease says that the server has been up for {first.up!r} s",
            )
            until = time.monotonic() + COARSE
            while (later := _on_thread(store.read_lease).now) == first.now and time.monotonic() < until:
                pass

            must(later > first.now, store, f"the time that read_lease gives does not go on: {first.now!r}, {later!r}")

    def test_a_lease_that_cannot_be_read_is_an_error_and_not_an_absent_one(self) -> None:
        given = self.make_store()
        with leased(given, breaks=True) as store:
            _swap(store, None, "first")
            self.break_store(given)
            for what, call in (("read", store.read_lease), ("swap", partial(store.swap_lease, "first", "second"))):
                try:
                    found = _on_thread(call)
                except StoreError:
                    continue
                said = "a failing store must raise, or a store that has an owner is taken for one without"
                must(False, store, f"{said}; {what}_lease gave {found!r}")

    def test_a_lease_is_no_session(self) -> None:
        with leased(self.make_store()) as store:
            _swap(store, None, "first")
            must(_listed(store) in (None, []), store, f"it lists the lease among its sessions: {_listed(store)}")
            expect_records(store, read(store, ["lease", "first", "ann"]), [None] * 3)
            ids = ["lease", "owner", "ann"]
            write_all(store, [Write(make_record(each, {"id": each}, expires_at=2e9), b"") for each in ids])
            _swap(store, "first", "second")
            for each in ids:
                expect(store, each, {"id": each})
            must(_listed(store) in (None, sorted(ids)), store, f"of {ids} it lists {_listed(store)}")
            list(store.sweep(4e9))
            for each in ids:
                destroy(store, each)

            _expect_lease(store, "second")

    def test_a_lease_is_kept_while_sessions_are_read_and_written(self) -> None:
        with leased(self.make_store()) as store:
            record, begun, ended = put(store, "ann", {"n": 0}), threading.Event(), threading.Event()
            kept: list[str] = []

            def keep() -> None:
                old = None
                try:
                    while not ended.is_set() or len(kept) < ROUNDS:
                        new = f"renewal {len(kept)}"
                        must(store.read_lease().text == old, store, f"the lease {old!r} was put there, and is gone")
                        must(store.swap_lease(old, new), store, f"the lease {old!r} was just read, and not replaced")
                        kept.append(new)
                        old = new
                        begun.set()
                finally:
                    begun.set()

            def write() -> None:
                nonlocal record
                begun.wait(PATIENCE)
                try:
                    for n in range(1, ROUNDS + 1):
                        record = put(store, "ann", {"n": n}, base=record)
                        must(get(store, "ann") == {"n": n}, store, "a session was torn while the lease was renewed")
                finally:
                    ended.set()

            renewing = _Thread(keep)
            write()
            renewing.result()

            _expect_lease(store, kept[-1])

    def test_a_lease_is_there_when_the_store_is_opened_anew(self) -> None:
        given = self.make_store()
        with leased(given) as store:
            _swap(store, None, "first")
        if not self.persistent:
            raise SkipTest("the store is not persistent")
        for again in (given, self.make_store()):
            with leased(again) as store:
                _expect_lease(store, "first")

    def test_stores_of_other_sessions_have_leases_of_their_own(self) -> None:
        with leased(self.make_store()) as store, leased(self.make_store_beside()) as beside:
            _swap(store, None, "first")
            _expect_lease(beside, None)
            _swap(beside, None, "second")

            _expect_lease(store, "first")
            for each in (store, beside):
                must(_listed(each) in (None, []), each, f"it lists another store's lease: {_listed(each)}")

    def _second(self, store: RecordStore) -> Any:
        """Return what another process has: the same place, by another store if there can be one."""
        return self.make_store() if self.persistent else store


@contextmanager
def leased(given: Any, *, breaks: bool = False) -> Iterator[RecordStore]:
    """Have a store as `opened` has it, or skip the rule if it keeps no lease."""
    with opened(given, breaks=breaks) as store:
        if not store.keeps_lease:
            raise SkipTest("the store keeps no lease")
        yield store


def _expect_lease(store: RecordStore, text: str | None) -> None:
    found = _on_thread(store.read_lease)
    must(isinstance(found, LeaseFound), store, f"read_lease must return a LeaseFound, not {type(found).__name__}")
    must(found.text == text, store, f"its lease should be {_short(text)} and reads as {_short(found.text)}")


def _swap(store: RecordStore, old: str | None, new: str, *, done: bool = True) -> None:
    found = _on_thread(partial(store.swap_lease, old, new))
    there = "must be done: that is what was there" if done else "must not be done: something else was there"
    must(found is done, store, f"to put {_short(new)} in the place of {_short(old)} {there}; swap_lease gave {found!r}")


def _listed(store: RecordStore) -> list[str] | None:
    """List the ids that a scan finds, once each; `None` if the store cannot list them."""
    try:
        store.count()
    except ConfigError:
        return None
    return sorted({getattr(each, "session_id", "") or "" for each in store.scan()})


def _short(text: str | None) -> str:
    return "absent" if text is None else f"{text[:80]!r}{'…' if len(text) > 80 else ''}"


class _Thread:
    """Runs *call* on a thread of its own, at once."""

    def __init__(self, call: Callable[[], Any]) -> None:
        self._call = call
        self._answer: Any = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="contract-lease", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._answer = self._call()
        except BaseException as error:
            self._error = error

    def result(self) -> Any:
        """Return what the call returns, when it has ended. Raises: what it raises."""
        self._thread.join(PATIENCE)
        if self._thread.is_alive():
            raise AssertionError(f"a call about the lease did not end within {PATIENCE:g} s")
        if self._error is not None:
            raise self._error
        return self._answer


def _on_thread(call: Callable[[], Any]) -> Any:
    return _Thread(call).result()


def _side_by_side(*calls: Callable[[], Any]) -> Sequence[Any]:
    together = threading.Barrier(len(calls))

    def start(call: Callable[[], Any]) -> Callable[[], Any]:
        def run() -> Any:
            together.wait(PATIENCE)
            return call()

        return run

    return [each.result() for each in [_Thread(start(call)) for call in calls]]
