"""What every test gets: its own event loop where it is `async def`, and a look at the threads it
leaves behind.
"""

from __future__ import annotations

import asyncio
import functools
import gc
import inspect
import os
import signal
import threading
from collections.abc import Generator, Iterator
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import settings

from actorbot._ownership import keeper
from tests.servers import mongo_servers, redis_servers
from tests.waiting import HANGS

# No test judges by the clock, so an example may take its time. In CI, in place of Hypothesis's own
# profile of this name: new examples in each run, and how to repeat the one that fails.
settings.register_profile("here", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=False, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") else "here")

# A program that a shell starts in the background ignores Ctrl-C, and so do all that it starts.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_sessionstart(session: pytest.Session) -> None:
    """Start the servers that tests share, if this is one of several processes, and they run many
    tests. By then the servers are no young ones, at which a bot waits for an owner of before.
    """
    if hasattr(session.config, "workerinput"):
        for start in (redis_servers.shared, mongo_servers.shared):
            with suppress(
                Exception, pytest.skip.Exception, pytest.fail.Exception
            ):  # the tests that need it will say so
                start()


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Keep the garbage collector from what the tests are made of.

    That stays to the end, and there is so much of it that each walk over it takes half a second.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()
        gc.collect()
        gc.freeze()


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> None:
    """Wrap an `async def` test in `asyncio.run`; pytest then calls it like any other."""
    test = pyfuncitem.obj
    if inspect.iscoroutinefunction(test):

        @functools.wraps(test)
        def run(**arguments: object) -> None:
            asyncio.run(test(**arguments))

        pyfuncitem.obj = run


def pytest_sessionfinish(session: pytest.Session) -> None:
    redis_servers.end_shared()
    mongo_servers.stop_shared()
    if hasattr(session.config, "workeroutput"):  # one of several processes, which tells the first
        session.config.workeroutput["servers"] = sorted(servers_that_ran())


def servers_that_ran() -> set[str]:
    return {f"{kind} {version}" for kind, version in redis_servers.ran.items()} | mongo_servers.ran


_ran_elsewhere: set[str] = set()


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Note which servers the tests of another process ran against."""
    _ran_elsewhere.update(getattr(node, "workeroutput", {}).get("servers", ()))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say which servers the tests ran against."""
    for server in sorted(servers_that_ran() | _ran_elsewhere):
        terminalreporter.write_line(f"server: {server}")


@pytest.fixture(params=redis_servers.KINDS)
def redis_server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[redis_servers.Server]:
    """Each kind of server in turn, running, of the test's own: to kill, to freeze, to fill."""
    with redis_servers.Server(request.param, tmp_path_factory.mktemp("server")) as server:
        yield server


@pytest.fixture
def young_servers_will_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the lease of a server at once that a test has just started. A bot waits for a moment: an
    owner may be about to come back.
    """
    monkeypatch.setattr(keeper, "WATCHED", 0.0)


@pytest.fixture(autouse=True)
def no_thread_stays_behind() -> Iterator[None]:
    """Fail a test that leaves one of our threads running, or any thread that would keep the process
    from ending.
    """
    before = set(threading.enumerate())

    def left() -> list[threading.Thread]:
        started = [thread for thread in threading.enumerate() if thread not in before]
        return [thread for thread in started if not thread.daemon or thread.name.startswith("actorbot-")]

    yield
    for thread in left():
        thread.join(timeout=HANGS)
    assert not left(), f"threads left behind: {', '.join(thread.name for thread in left())}"
