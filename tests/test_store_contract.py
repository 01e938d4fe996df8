"""Every store keeps the contract, and the contract notices those that do not."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from actorbot.testing import StoreContract
from tests.backends import STORES, ComparingStore, DictStore


@pytest.mark.parametrize("make_store", STORES.values(), ids=STORES.keys())
class TestOurStores(StoreContract):
    @pytest.fixture(autouse=True)
    def _prepare(self, make_store: Any, tmp_path: Path) -> None:
        self.make_store = lambda: make_store(tmp_path)  # type: ignore[method-assign]


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


class WritesWhatWasDestroyed(ComparingStore):
    def compare_and_write(self, session_id: str, data: dict[str, Any], base: str | None) -> bool:
        if session_id not in self.data:
            base = None
        return super().compare_and_write(session_id, data, base)


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


BROKEN = {
    Merges: "test_a_write_replaces_the_whole_session",
    FoldsCase: "test_odd_ids_stay_apart_and_exact",
    MakesTextOfEverything: "test_every_type_of_value_comes_back_equal_and_of_the_same_type",
    DropsOurKey: "test_what_belongs_to_the_record_comes_back_too",
    NeverDestroys: "test_a_destroyed_session_reads_as_absent",
    GivesEmptyForAbsent: "test_an_absent_session_reads_as_none",
    FailsToDestroyTheAbsent: "test_a_destroyed_session_reads_as_absent",
    HidesTheExpired: "test_an_expired_record_is_still_returned",
    ComparesNothing: "test_a_write_on_a_stale_base_is_a_conflict_and_changes_nothing",
    WritesWhatWasDestroyed: "test_a_destroyed_session_does_not_come_back_by_an_older_write",
    MixesUpItsBatches: "test_a_batch_is_answered_in_the_order_of_its_ids",
    LosesTheEmpty: "test_a_session_without_values_is_not_an_absent_one",
    RefusesEverything: "test_the_same_write_sent_again_is_recognised_as_done",
}


@pytest.mark.parametrize(("driver", "test"), BROKEN.items(), ids=lambda each: getattr(each, "__name__", None))
def test_the_contract_notices_a_broken_driver(driver: type, test: str) -> None:
    class Contract(StoreContract):
        def make_store(self) -> Any:
            return driver()

    with pytest.raises((AssertionError, KeyError)):
        getattr(Contract(), test)()
