"""A threaded process: a handler runs in the thread that dispatches.

No update is lost, however many threads there are.
"""

from concurrent.futures import ThreadPoolExecutor

from actorbot import Context, MemorySessionStore, SessionManager


def handle(context: Context) -> int:
    context.session["n"] = context.session.get("n", 0) + 1
    return int(context.session["n"])


def main() -> None:
    with SessionManager(MemorySessionStore(), handler=handle) as manager:
        with ThreadPoolExecutor(8) as threads:
            for _ in range(1_000):
                threads.submit(manager.dispatch_sync, "line:7", "hello")
        state = manager.peek_sync("line:7")
        print(f"1000 events from 8 threads, counted {state['n'] if state else 0}")


if __name__ == "__main__":
    main()
