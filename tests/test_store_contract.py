"""Every store keeps the contract."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from actorbot.testing import FaultyStore, StoreContract
from tests.backends import STORES, AsyncDictStore, DictStore


@pytest.mark.parametrize("make_store", STORES.values(), ids=STORES.keys())
class TestOurStores(StoreContract):
    @pytest.fixture(autouse=True)
    def _prepare(self, make_store: Any, tmp_path: Path, request: pytest.FixtureRequest) -> None:
        self.make_store = lambda: make_store(tmp_path)  # type: ignore[method-assign]
        self.persistent = request.node.callspec.id == "file"


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
