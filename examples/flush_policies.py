"""What a flush policy changes: how often the store is written, when an event is acknowledged."""

import asyncio
from pathlib import Path
from tempfile import TemporaryDirectory

from actorbot import Context, FlushPolicy, SessionManager
from actorbot.testing import RecordingStore


def handle(context: Context) -> None:
    context.session["n"] = context.session.get("n", 0) + 1


async def main() -> None:
    for text in ("write-through", "write-behind", "write-behind:max_delay=0.05,max_events=10"):
        await count_writes(text, FlushPolicy.parse(text))
    with TemporaryDirectory() as folder:
        await count_writes("journaled", FlushPolicy.journaled(Path(folder) / "bot.journal"))


async def count_writes(name: str, policy: FlushPolicy) -> None:
    store = RecordingStore()
    async with SessionManager(store, handler=handle, flush=policy) as manager:
        for _ in range(100):
            await manager.dispatch("console:1", "hello")
        await manager.flush()
    print(f"{name}: 100 events, {len(store.writes)} writes")


if __name__ == "__main__":
    asyncio.run(main())
