"""Handlers and entries that do what nobody expects: no session stands still because of them."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from actorbot import Context
from actorbot.errors import ManagerClosedError, OwnershipLostError, RemoteHandlerError
from tests.unit.cluster.shards import bench, remember
from tests.waiting import soon, until


class SilentError(Exception):
    """One that cannot say what it is."""

    def __str__(self) -> str:
        raise ValueError("no text")


@pytest.mark.parametrize("error", [ValueError("a name of bytes: \udcff"), SilentError()])
async def test_an_error_whose_text_cannot_be_sent_reaches_its_caller_all_the_same(error: Exception) -> None:
    async def handle(context: Context) -> int:
        if context.event == "bad":
            raise error
        return await remember(context)

    async with bench() as b:
        await b.shard(handle)
        cluster = await b.cluster()
        with pytest.raises(RemoteHandlerError) as caught:
            await soon(asyncio.ensure_future(cluster.dispatch("ann", "bad")))
        assert caught.value.type_name == type(error).__name__
        assert await cluster.dispatch("ann", "good") == 1


@pytest.mark.parametrize("error", [ManagerClosedError("of a handler's own"), OwnershipLostError("file", "ann")])
async def test_a_handler_that_uses_something_closed_fails_as_any_other(error: Exception, monkeypatch: Any) -> None:
    monkeypatch.setattr("actorbot.cluster._lane.TRIES", 3)

    async def handle(context: Context) -> int:
        if context.event == "bad":
            raise error
        return await remember(context)

    async with bench() as b:
        await b.shard(handle)
        cluster = await b.cluster()
        with pytest.raises(type(error)):
            await soon(asyncio.ensure_future(cluster.dispatch("ann", "bad")))
        await until(lambda: b.entries("ann") == 0)
        assert await cluster.dispatch("ann", "good") == 1
