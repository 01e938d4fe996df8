"""What keeps the promises of a cluster, and how a shard is without it.

A test that takes one of these out of its shards must find that something is wrong.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from hashlib import sha1
from types import SimpleNamespace
from typing import Any

from actorbot import SessionManager
from actorbot.cluster import _line, _scripts
from actorbot.cluster._log import Settlement, Standing
from actorbot.cluster._redis_log import RedisLog


def forget_early() -> None:
    """Take an event out of the log when it is acknowledged, and not when it is flushed."""
    settle = RedisLog.settle

    async def settled(
        self: RedisLog, member: str, settlements: Sequence[Settlement], answers: Mapping[str, bytes]
    ) -> list[int]:
        early = [each._replace(acknowledged=[], done=[*each.acknowledged, *each.done]) for each in settlements]
        return await settle(self, member, early, answers)

    RedisLog.settle = settled  # type: ignore[method-assign]


def claim_nothing() -> None:
    """Take over the slots of a shard that may still write, and store nothing before it does."""
    lease = RedisLog.lease

    async def leased(
        self: RedisLog, member: str, lease_: float, held: Mapping[int, int], info: str, **options: Any
    ) -> Standing:
        standing = await lease(self, member, lease_, held, info, **options)
        return replace(standing, granted=[each._replace(claims=False) for each in standing.granted])

    RedisLog.lease = leased  # type: ignore[method-assign]


def settle_anyway() -> None:
    """Settle, whoever owns the slot by now."""
    change_script("SETTLE", b"if owner ~= me or epoch_now ~= epoch then", b"if false then")


def change_script(name: str, right: bytes, wrong: bytes) -> None:
    """Have the server do something else."""
    text = getattr(_scripts, name).text
    assert text.count(right) == 1
    text = text.replace(right, wrong)
    script = _scripts.Script(text, sha1(text).hexdigest().encode())
    setattr(_scripts, name, script)
    _line.ALL = (*_line.ALL, script)  # type: ignore[misc]


def take_at_once() -> None:
    """Take the slots of members that had no server to renew their leases at."""
    change_script("LEASE", b"if now < last or now - last > lease / 2 then", b"if false then")


def give_back_early() -> None:
    """Give slots back before their sessions are flushed."""
    release = SessionManager.release
    flushing = set()

    async def released(self: SessionManager, session_ids: Iterable[str], **options: Any) -> Any:
        async def later() -> None:
            await asyncio.sleep(0.5)  # in which the next owner begins
            await release(self, session_ids, **options)

        task = asyncio.get_running_loop().create_task(later())
        flushing.add(task)
        task.add_done_callback(flushing.discard)
        return SimpleNamespace(clean=True)

    SessionManager.release = released  # type: ignore[method-assign]


FENCES: dict[str, Callable[[], None]] = {
    "": lambda: None,
    "entries until the flush": forget_early,
    "the claim": claim_nothing,
    "the epoch": settle_anyway,
    "the flush": give_back_early,
    "the moment to renew": take_at_once,
}
