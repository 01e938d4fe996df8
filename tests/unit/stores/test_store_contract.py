"""Every store keeps the contract."""

from __future__ import annotations

import json
from collections.abc import Collection
from contextlib import ExitStack
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from actorbot._state.codec import decode_state
from actorbot.stores.base import Write
from actorbot.testing import FaultyStore, StoreContract
from actorbot.testing._expect import make_record, opened, read, write_all
from tests.backends import FURTHER, STORES, AsyncDictStore, DictStore, LeasedMemoryStore, each_store
from tests.servers import redis_servers
from tests.tiers import tiers
from tests.unit.state.test_codec import keys, same, values


@each_store
class TestOurStores(StoreContract):
    @pytest.fixture(autouse=True)
    def _prepare(self, make_store: Any, tmp_path: Path, request: pytest.FixtureRequest) -> None:
        self.make_store = lambda: make_store(tmp_path)  # type: ignore[method-assign]
        self.make_store_beside = lambda: make_store(tmp_path / "beside")  # type: ignore[method-assign]
        self.persistent = request.node.callspec.id in {"file", "mongo", *redis_servers.PLACES}


class TestAStoreThatFails(StoreContract):
    def make_store(self) -> Any:
        return FaultyStore(LeasedMemoryStore())

    def break_store(self, store: Any) -> None:
        store.outage()


class Failing(DictStore):
    """Fails while it is down."""

    down = False

    def read(self, session_id: str) -> dict[str, Any] | None:
        self._check()
        return super().read(session_id)

    def write(self, session_id: str, data: dict[str, Any]) -> None:
        self._check()
        super().write(session_id, data)

    def destroy(self, session_id: str) -> None:
        self._check()
        super().destroy(session_id)

    def close(self) -> None:
        self._check()

    def _check(self) -> None:
        if self.down:
            raise ConnectionResetError


class AsyncFailing(AsyncDictStore):
    def __init__(self) -> None:
        self.inner = Failing()

    async def close(self) -> None:
        self.inner.close()


class TestADriverThatFails(StoreContract):
    def make_store(self) -> Any:
        return Failing()

    def break_store(self, store: Any) -> None:
        store.down = True


class TestAnAsyncDriverThatFails(StoreContract):
    def make_store(self) -> Any:
        return AsyncFailing()

    def break_store(self, store: Any) -> None:
        store.inner.down = True


class JsonStore(DictStore):
    """Keeps text, as most databases do."""

    def read(self, session_id: str) -> dict[str, Any] | None:
        text = self.data.get(session_id)
        return None if text is None else json.loads(text)  # type: ignore[arg-type]

    def write(self, session_id: str, data: dict[str, Any]) -> None:
        self.data[session_id] = json.dumps(data, sort_keys=True, allow_nan=False)  # type: ignore[assignment]


EVERY_STORE = STORES | {"driver that keeps JSON": lambda _: JsonStore()}
QUICK = EVERY_STORE.keys() - FURTHER


# All stores in one test, since most of the time it takes to make a value.
BATCH = 20

odd_keys = st.sampled_from(
    [
        "",
        "\0",
        "a\0b",
        "a.b",
        ".",
        "$",
        "$ref",
        "$id",
        "$db",
        "$json",
        "$key:",
        "$key:$ref",
        "%00",
        "%",
        "$where",
        "_id",
    ]
)
any_states = st.dictionaries(keys | odd_keys, values | st.dictionaries(odd_keys, values, max_size=3), max_size=4)
MONGO_WOULD_CHANGE = [
    {"a": {"$ref": "b", "$id": 1, "$db": "c"}, "b": {"$json": "[]"}, "c": {"$key:%00": 1}, "\0%00": {"\0": 1}},
    {
        "many": Decimal("1." + "1" * 50), "large": Decimal("1E+6144"), "tiny": Decimal("1E-9999"), "zero": Decimal("-0.00"),
    },
]  # fmt: skip


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("examples", "names"), tiers([(500, QUICK), (5_000, EVERY_STORE.keys())]), ids=["few", "many"])
def test_whatever_a_session_holds_comes_back_from_every_store(
    examples: int, names: Collection[str], tmp_path: Path
) -> None:
    ids = [f"user:{n}" for n in range(BATCH)]
    with ExitStack() as stack:
        stores = {name: stack.enter_context(opened(EVERY_STORE[name](tmp_path / name))) for name in names}

        @settings(max_examples=examples // BATCH, deadline=None, suppress_health_check=[HealthCheck.too_slow])
        @given(st.lists(any_states, min_size=BATCH, max_size=BATCH))
        @example(MONGO_WOULD_CHANGE)
        def check(batch: list[dict[str, Any]]) -> None:
            records = [make_record(session_id, state) for session_id, state in zip(ids, batch, strict=False)]
            for name, store in stores.items():
                write_all(store, [Write(record, None) for record in records])
                found = [decode_state(each.state or b"") for each in read(store, ids[: len(batch)]) if each is not None]
                differing = [pair for pair in zip(batch, found, strict=True) if not same(*pair)]
                assert not differing, f"{name}: {differing[0][0]!r} came back as {differing[0][1]!r}"

        check()
