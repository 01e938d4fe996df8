"""A long-running process that takes events from an asyncio source.

It ends well on SIGTERM and Ctrl-C. The source here is standard input, a pipe or a terminal, with
one event on each line: `<user> <text>`. In your process it is a queue, a socket or a webhook.
"""

import asyncio
import signal
import sys

from actorbot import Context, FileSessionStore, SessionManager


async def handle(context: Context) -> int:
    context.session["n"] = context.session.get("n", 0) + 1
    context.send_text(f"{context.event!r} is your event number {context.session['n']}")
    return int(context.session["n"])


async def deliver(session_id: str, message: str) -> None:
    print(f"{session_id}: {message}", flush=True)


async def consume(source: asyncio.StreamReader, manager: SessionManager) -> None:
    async for line in source:
        user, _, text = line.decode(errors="replace").strip().partition(" ")
        await manager.submit(f"demo:{user}", text)  # users side by side, each user's events in order


async def main() -> None:
    loop = asyncio.get_running_loop()
    source = asyncio.StreamReader()
    pipe, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(source), sys.stdin)

    manager = SessionManager(FileSessionStore(".sessions"), handler=handle, deliver=deliver)
    await manager.start()
    consumer = asyncio.create_task(consume(source, manager))
    for number in (signal.SIGTERM, signal.SIGINT):
        # Only the consumer is cancelled: the close below must still run.
        loop.add_signal_handler(number, consumer.cancel)
    try:
        await consumer
    except asyncio.CancelledError:
        print("stopping: finishing what was accepted", flush=True)
    finally:
        report = await manager.close()
        pipe.close()
    print("everything is in the store" if report.clean else f"left behind: {report}", flush=True)


if __name__ == "__main__":
    asyncio.run(main())
