"""The store contract notices what may be wrong with a driver, and says which rule it breaks."""

from __future__ import annotations

import asyncio
import fnmatch
import json
import threading
import time
from collections.abc import Sequence
from typing import Any
from unittest import SkipTest

import pytest

from actorbot.stores.base import Record, Write
from actorbot.stores.memory import MemorySessionStore
from actorbot.testing import StoreContract
from tests.backends import AsyncDictStore, ComparingStore, DictStore, LeasedStore
from tests.waiting import SOON

Data = dict[str, Any]


class Merges(DictStore):
    def write(self, session_id: str, data: dict[str, Any]) -> None:
        self.data.setdefault(session_id, {}).update(data)


class FoldsCase(DictStore):
    def read(self, session_id: str) -> dict[str, Any] | None:
        return super().read(session_id.lower())

    def write(self, session_id: str, data: dict[str, Any]) -> None:
        super().write(session_id.lower(), data)


class MakesTextOfEverything(DictStore):
    def write(self, session_id: str, data: dict[str, Any]) -> None:
        kept = {key: value if isinstance(value, dict) else str(value) for key, value in data.items()}
        super().write(session_id, kept)


class DropsOurKey(DictStore):
    def write(self, session_id: str, data: dict[str, Any]) -> None:
        super().write(session_id, {key: value for key, value in data.items() if key != "$actorbot"})


class NeverDestroys(DictStore):
    def destroy(self, session_id: str) -> None:
        pass


class GivesEmptyForAbsent(DictStore):
    def read(self, session_id: str) -> dict[str, Any] | None:
        return super().read(session_id) or {}


class FailsToDestroyTheAbsent(DictStore):
    def destroy(self, session_id: str) -> None:
        del self.data[session_id]


class HidesTheExpired(DictStore):
    def read(self, session_id: str) -> dict[str, Any] | None:
        found = super().read(session_id)
        return None if found is None or found["$actorbot"]["expires_at"] < time.time() else found


class ComparesNothing(ComparingStore):
    def compare_and_write(self, session_id: str, data: dict[str, Any], base: str | None) -> bool:
        self.write(session_id, data)
        return True


class MixesUpItsBatches(DictStore):
    def read_many(self, session_ids: list[str]) -> dict[str, dict[str, Any]]:
        known = [session_id for session_id in session_ids if session_id in self.data]
        return dict(zip(known, [self.data[each] for each in sorted(known)], strict=True))


class LosesTheEmpty(DictStore):
    def write(self, session_id: str, data: dict[str, Any]) -> None:
        if len(data) > 1:
            super().write(session_id, data)


class RefusesEverything(ComparingStore):
    def compare_and_write(self, session_id: str, data: dict[str, Any], base: str | None) -> bool:
        return False


class KeepsOnlyTheFirst(DictStore):
    def write(self, session_id: str, data: Data) -> None:
        self.data.setdefault(session_id, data)


class OverwritesInPlace(DictStore):
    """As a file that is opened without being cut."""

    def write(self, session_id: str, data: Data) -> None:
        old = json.dumps(self.data.get(session_id, {}))
        text = json.dumps(data)
        self.data[session_id] = json.loads(text + old[len(text) :])


class CutsLongTexts(DictStore):
    """As a column that is too short."""

    def write(self, session_id: str, data: Data) -> None:
        super().write(session_id, {key: part[:1000] if isinstance(part, str) else part for key, part in data.items()})


class RoundsTimes(DictStore):
    """As a database whose times have whole seconds."""

    def write(self, session_id: str, data: Data) -> None:
        rest = data["$actorbot"]
        super().write(session_id, data | {"$actorbot": rest | {"expires_at": int(rest["expires_at"])}})


class CountsInFloats(DictStore):
    """As JavaScript does."""

    def write(self, session_id: str, data: Data) -> None:
        super().write(session_id, json.loads(json.dumps(data), parse_int=lambda digits: int(float(digits))))


class TakesDotsForPaths(DictStore):
    def write(self, session_id: str, data: Data) -> None:
        kept: Data = {}
        for key, value in data.items():
            first, dot, rest = key.partition(".")
            kept[first] = {rest: value} if dot else value
        super().write(session_id, kept)


class CutsLongIds(DictStore):
    def read(self, session_id: str) -> Data | None:
        return super().read(session_id[:255])

    def write(self, session_id: str, data: Data) -> None:
        super().write(session_id[:255], data)


class StripsIds(DictStore):
    def read(self, session_id: str) -> Data | None:
        return super().read(session_id.strip())

    def write(self, session_id: str, data: Data) -> None:
        super().write(session_id.strip(), data)


class DestroysByPattern(DictStore):
    def destroy(self, session_id: str) -> None:
        for each in fnmatch.filter(list(self.data), session_id):
            del self.data[each]


class GivesOutWhatItKeeps(DictStore):
    def read(self, session_id: str) -> Data | None:
        return self.data.get(session_id)


class TakesAnOutageForAbsence(DictStore):
    down = False

    def read(self, session_id: str) -> Data | None:
        try:
            self._check()
        except OSError:
            return None
        return super().read(session_id)

    def write(self, session_id: str, data: Data) -> None:
        self._check()
        super().write(session_id, data)

    def destroy(self, session_id: str) -> None:
        self._check()
        super().destroy(session_id)

    def _check(self) -> None:
        if self.down:
            raise ConnectionResetError


class SwallowsFailedWrites(DictStore):
    down = False

    def read(self, session_id: str) -> Data | None:
        if self.down:
            raise ConnectionResetError
        return super().read(session_id)

    def write(self, session_id: str, data: Data) -> None:
        if not self.down:
            super().write(session_id, data)


class WritesPartOfABatch(DictStore):
    def write_many(self, items: Sequence[tuple[str, Data]]) -> None:
        self.data.update(items[:50])


class SharesOneBuffer(AsyncDictStore):
    """Mixes up calls that are under way at the same time."""

    async def write(self, session_id: str, data: Data) -> None:
        self.buffer = data
        await asyncio.sleep(0)
        self.inner.write(session_id, self.buffer)


class LosesAllWhenClosed(DictStore):
    def close(self) -> None:
        self.data.clear()


class CannotBeOpenedAgain(DictStore):
    opened = False

    def init(self) -> None:
        if self.opened:
            raise RuntimeError("opened before")
        self.opened = True


class NeverForgetsTheDestroyed(ComparingStore):
    def __init__(self) -> None:
        super().__init__()
        self.gone: set[str] = set()

    def destroy(self, session_id: str) -> None:
        super().destroy(session_id)
        self.gone.add(session_id)

    def compare_and_write(self, session_id: str, data: Data, base: str | None) -> bool:
        return session_id not in self.gone and super().compare_and_write(session_id, data, base)


class WritesFirstWhateverIsThere(ComparingStore):
    def compare_and_write(self, session_id: str, data: Data, base: str | None) -> bool:
        if base is None:
            self.write(session_id, data)
            return True
        return super().compare_and_write(session_id, data, base)


class ForgetsWhatItDestroyed(MemorySessionStore):
    """A store of records that leaves no tombstone."""

    def write_many(self, writes: Sequence[Write]) -> Sequence[Any]:
        outcomes = super().write_many(writes)
        for write in writes:
            self._tombstones.pop(write.record.session_id, None)
        return outcomes


class SweepsEverything(MemorySessionStore):
    def sweep(self, now: float) -> list[Record]:
        return list(super().sweep(5e9))


class LeavesOutTheLast(MemorySessionStore):
    def scan(self) -> list[Any]:
        return list(super().scan())[:-1]


class ListsOnePage(MemorySessionStore):
    def scan(self) -> list[Any]:
        return list(super().scan())[:1_000]


class CountsItsPages(MemorySessionStore):
    def count(self) -> int:
        return -(-super().count() // 100)


class HasAnEmptyLease(LeasedStore):
    def read_lease(self) -> tuple[str | None, float]:
        return self.lease or "", time.time()


class AnswersOneThread(LeasedStore):
    def init(self) -> None:
        self.thread = threading.get_ident()

    def read_lease(self) -> tuple[str | None, float]:
        if threading.get_ident() != self.thread:
            raise RuntimeError("made in another thread")
        return super().read_lease()


class PutsItsFirstLeaseTwice(LeasedStore):
    def swap_lease(self, old: str | None, new: str) -> bool:
        return super().swap_lease(self.lease if old is None else old, new)


class ComparesNoLease(LeasedStore):
    def swap_lease(self, old: str | None, new: str) -> bool:
        return super().swap_lease(self.lease if self.lease and old else old, new)


class ComparesLeasesAsSomeDatabasesDo(LeasedStore):
    def swap_lease(self, old: str | None, new: str) -> bool:
        alike = self.lease and old and self.lease.lower() == old.lower().rstrip()
        return super().swap_lease(self.lease if alike else old, new)


class CountsWhatHasChanged(LeasedStore):
    """As MySQL does, where nobody tells it otherwise."""

    def swap_lease(self, old: str | None, new: str) -> bool:
        return super().swap_lease(old, new) and old != new


class TwoTakeItsLease(LeasedStore):
    def __init__(self) -> None:
        super().__init__()
        self.both = threading.Barrier(2)

    def swap_lease(self, old: str | None, new: str) -> bool:
        found = self.lease
        self.both.wait(SOON)
        self.lease = new
        return found == old


class CutsItsLease(LeasedStore):
    def swap_lease(self, old: str | None, new: str) -> bool:
        return super().swap_lease(old and old[:65_535], new[:65_535])


class CountsMilliseconds(LeasedStore):
    def read_lease(self) -> tuple[str | None, float]:
        return self.lease, time.time() * 1000


class CountsFromItsStart(LeasedStore):
    def read_lease(self) -> tuple[str | None, float]:
        return self.lease, time.monotonic()


class StandsStill(LeasedStore):
    def read_lease(self) -> tuple[str | None, float]:
        return self.lease, 1.7e9


class TakesAnOutageForNoLease(LeasedStore):
    down = False

    def read_lease(self) -> tuple[str | None, float]:
        return None if self.down else self.lease, time.time()


class TakesAnOutageForALostRace(LeasedStore):
    down = False

    def read_lease(self) -> tuple[str | None, float]:
        if self.down:
            raise ConnectionResetError
        return super().read_lease()

    def swap_lease(self, old: str | None, new: str) -> bool:
        return not self.down and super().swap_lease(old, new)


class ListsItsLease(LeasedStore):
    def ids(self) -> list[str]:
        return [*self.data, *(["lease"] if self.lease else [])]


class LosesItsLeaseAtAWrite(LeasedStore):
    def write(self, session_id: str, data: Data) -> None:
        super().write(session_id, data)
        self.lease = None


class LosesItsLeaseWhenClosed(LeasedStore):
    def close(self) -> None:
        self.lease = None


class SharesItsLease(LeasedStore):
    def beside(self) -> LeasedStore:
        other = SharesItsLease()
        other.lease = "first"
        return other


BROKEN = {
    LeavesOutTheLast: "test_a_scan_yields_what_is_stored_and_nothing_else",
    ListsOnePage: "test_a_scan_of_many_sessions_is_whole",
    CountsItsPages: "test_a_store_counts_what_it_holds",
    Merges: "test_a_write_replaces_the_whole_session",
    KeepsOnlyTheFirst: "test_the_last_of_many_writes_is_what_is_read",
    OverwritesInPlace: "test_a_write_replaces_the_whole_session",
    CutsLongTexts: "test_a_large_session_comes_back_whole",
    RoundsTimes: "test_what_belongs_to_the_record_comes_back_too",
    CountsInFloats: "test_every_type_of_value_comes_back_equal_and_of_the_same_type",
    TakesDotsForPaths: "test_values_do_not_disturb_each_other",
    MakesTextOfEverything: "test_every_type_of_value_comes_back_equal_and_of_the_same_type",
    DropsOurKey: "test_what_belongs_to_the_record_comes_back_too",
    LosesTheEmpty: "test_a_session_without_values_is_not_an_absent_one",
    GivesEmptyForAbsent: "test_an_absent_session_reads_as_none",
    GivesOutWhatItKeeps: "test_what_was_read_may_be_changed_without_changing_what_is_stored",
    TakesAnOutageForAbsence: "test_a_failed_read_is_an_error_and_not_an_absent_session",
    SwallowsFailedWrites: "test_a_failed_write_is_an_error",
    FoldsCase: "test_odd_ids_stay_apart_and_exact",
    CutsLongIds: "test_odd_ids_stay_apart_and_exact",
    StripsIds: "test_odd_ids_stay_apart_and_exact",
    MixesUpItsBatches: "test_a_batch_is_answered_in_the_order_of_its_ids",
    WritesPartOfABatch: "test_a_batch_of_many_sessions_is_written_whole",
    SharesOneBuffer: "test_a_batch_of_many_sessions_is_written_whole",
    NeverDestroys: "test_a_destroyed_session_reads_as_absent",
    FailsToDestroyTheAbsent: "test_destroying_what_is_not_there_is_no_error",
    DestroysByPattern: "test_destroying_one_session_leaves_the_others",
    NeverForgetsTheDestroyed: "test_a_session_may_begin_again_after_it_was_destroyed",
    ForgetsWhatItDestroyed: "test_a_destroyed_session_does_not_come_back_by_an_older_write",
    HidesTheExpired: "test_an_expired_record_is_still_returned",
    SweepsEverything: "test_a_sweep_leaves_what_has_not_ended",
    CannotBeOpenedAgain: "test_a_closed_store_may_be_opened_again",
    LosesAllWhenClosed: "test_what_was_written_is_there_when_the_store_is_opened_anew",
    ComparesNothing: "test_a_write_on_a_stale_base_is_a_conflict_and_changes_nothing",
    WritesFirstWhateverIsThere: "test_a_first_write_where_something_is_stored_is_a_conflict",
    RefusesEverything: "test_the_same_write_sent_again_is_recognised_as_done",
    HasAnEmptyLease: "test_a_store_that_nobody_has_owned_has_no_lease",
    AnswersOneThread: "test_a_store_that_nobody_has_owned_has_no_lease",
    PutsItsFirstLeaseTwice: "test_a_lease_is_put_where_there_is_none_and_only_once",
    ComparesNoLease: "test_a_lease_replaces_the_one_that_was_read_and_no_other",
    ComparesLeasesAsSomeDatabasesDo: "test_a_lease_replaces_the_one_that_was_read_and_no_other",
    CountsWhatHasChanged: "test_a_lease_replaces_the_one_that_was_read_and_no_other",
    TwoTakeItsLease: "test_of_two_processes_that_take_a_lease_at_once_one_has_it",
    CutsItsLease: "test_any_text_of_a_lease_comes_back_equal",
    CountsMilliseconds: "test_the_time_beside_a_lease_is_in_seconds_and_goes_on",
    CountsFromItsStart: "test_the_time_beside_a_lease_is_in_seconds_and_goes_on",
    StandsStill: "test_the_time_beside_a_lease_is_in_seconds_and_goes_on",
    TakesAnOutageForNoLease: "test_a_lease_that_cannot_be_read_is_an_error_and_not_an_absent_one",
    TakesAnOutageForALostRace: "test_a_lease_that_cannot_be_read_is_an_error_and_not_an_absent_one",
    ListsItsLease: "test_a_lease_is_no_session",
    LosesItsLeaseAtAWrite: "test_a_lease_is_kept_while_sessions_are_read_and_written",
    LosesItsLeaseWhenClosed: "test_a_lease_is_there_when_the_store_is_opened_anew",
    SharesItsLease: "test_stores_of_other_sessions_have_leases_of_their_own",
}  # fmt: skip


class Contract(StoreContract):
    persistent = True

    def __init__(self, kind: type) -> None:
        self._store = kind()  # the same one each time, so that what is kept outlives its closing

    def make_store(self) -> Any:
        return self._store

    def break_store(self, store: Any) -> None:
        if not hasattr(store, "down"):
            raise SkipTest("it cannot be broken")
        store.down = True

    def make_store_beside(self) -> Any:
        return self._store.beside() if hasattr(self._store, "beside") else type(self._store)()


@pytest.mark.parametrize(("driver", "rule"), BROKEN.items(), ids=lambda each: getattr(each, "__name__", ""))
def test_the_contract_notices_a_broken_driver_and_names_it(driver: type, rule: str) -> None:
    with pytest.raises(
        Exception, match=driver.__name__ if issubclass(driver, DictStore | AsyncDictStore) else "memory"
    ):
        getattr(Contract(driver), rule)()


def test_no_rule_is_without_a_driver_that_breaks_it() -> None:
    rules = {name for name in dir(StoreContract) if name.startswith("test_")}

    assert (
        sorted(rules - set(BROKEN.values()))
        == [
            "test_a_session_that_somebody_else_has_written_is_not_ended",  # what DriverStore does with the driver's compare_and_write
            "test_reads_while_others_write_give_whole_records",  # a race, which no test could lose each time
        ]
    )


@pytest.mark.parametrize("kind", [DictStore, AsyncDictStore, ComparingStore, LeasedStore, MemorySessionStore])
def test_a_store_that_is_not_broken_breaks_no_rule(kind: type) -> None:
    for name in dir(StoreContract):
        if name.startswith("test_"):
            try:
                getattr(Contract(kind), name)()
            except SkipTest:
                continue
