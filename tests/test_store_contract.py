"""Every store keeps the contract."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings

from actorbot._codec import decode_state, encode_state
from actorbot._record import Record
from actorbot.stores.base import Write
from actorbot.testing import FaultyStore, StoreContract
from actorbot.testing._asking import Opened
from tests import servers
from tests.backends import STORES, AsyncDictStore, DictStore
from tests.test_codec import same, states


@pytest.mark.parametrize("make_store", STORES.values(), ids=STORES.keys())
class TestOurStores(StoreContract):
    @pytest.fixture(autouse=True)
    def _prepare(self, make_store: Any, tmp_path: Path, request: pytest.FixtureRequest) -> None:
        self.make_store = lambda: make_store(tmp_path)  # type: ignore[method-assign]
        self.persistent = request.node.callspec.id in {"file", "mongo", *servers.PLACES}


class TestAStoreThatFails(StoreContract):
    def make_store(self) -> Any:
        return FaultyStore()

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


@pytest.mark.parametrize("make_store", EVERY_STORE.values(), ids=EVERY_STORE.keys())
def test_whatever_a_session_holds_comes_back_from_every_store(make_store: Any) -> None:
    with tempfile.TemporaryDirectory() as folder, Opened(make_store(Path(folder))) as store:

        @settings(max_examples=50, deadline=None)
        @given(states)
        def check(state: dict[str, Any]) -> None:
            record = Record("ann", 1, encode_state(state, 1 << 20), b"", b"", 1.5e9, 4e9).next_write()
            assert store.write_many([Write(record, None)]) == [None]
            found = store.read_many(["ann"])[0]
            assert isinstance(found, Record)
            assert found.state is not None
            assert same(decode_state(found.state), state)

        check()
