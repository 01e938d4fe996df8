"""G13, after a fork: the child is told that the manager is its parent's, and nothing hangs."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from actorbot import FileSessionStore, SessionManager, errors
from tests.handlers import count, count_plainly
from tests.programs import PROGRAM, run, stored
from tests.waiting import HANGS


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
async def test_a_forked_child_of_a_loop_is_told_so() -> None:
    async with SessionManager(handler=count) as manager:
        await manager.dispatch("ann", "hi")
        receipt = await manager.submit("ann", "hi")
        await receipt.result()
        child = os.fork()
        if child == 0:
            code = 1
            try:

                def told(call: Callable[[], Any]) -> bool:
                    coroutine = call()
                    try:
                        coroutine.send(None)
                    except errors.ForkedError:
                        return True
                    return False

                verbs = (
                    lambda: manager.dispatch("ann", "hi"), lambda: manager.submit("ann", "hi"),
                    lambda: manager.peek("ann"), lambda: manager.destroy("ann"), manager.flush, receipt.result,
                    receipt.durable, manager.close,
                )  # fmt: skip
                code = 7 if all(map(told, verbs)) else 2
            finally:
                os._exit(code)
        _, status = await asyncio.to_thread(os.waitpid, child, 0)
    assert os.waitstatus_to_exitcode(status) == 7


no_fork_warning = pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")


@no_fork_warning
def test_every_verb_of_a_forked_child_says_so(tmp_path: Path) -> None:
    with SessionManager(FileSessionStore(tmp_path / "s"), handler=count_plainly) as manager:
        receipt = manager.submit_sync("ann", "hi")
        receipt.result_sync(HANGS)
        verbs = {
            "dispatch": lambda: manager.dispatch_sync("ann", "hi"), "submit": lambda: manager.submit_sync("ann", "hi"),
            "turn": lambda: manager.turn_sync("ann").__enter__(), "flush": manager.flush_sync,
            "peek": lambda: manager.peek_sync("ann"), "destroy": lambda: manager.destroy_sync("ann"),
            "stats": manager.stats, "resident": lambda: list(manager.resident()), "result": receipt.result_sync,
            "durable": receipt.durable_sync, "close": manager.close_sync, "start": manager.start_sync,
        }  # fmt: skip
        child = os.fork()
        if child == 0:
            signal.alarm(10)
            wrong = []
            for name, verb in verbs.items():
                try:
                    verb()
                    wrong.append(name)
                except errors.ForkedError:
                    pass
                except BaseException as error:
                    wrong.append(f"{name}: {error!r}")
            if manager.health().status != "failing":
                wrong.append("health")
            (tmp_path / "wrong").write_text("\n".join(wrong))
            os._exit(0)
        _, status = os.waitpid(child, 0)

        assert os.waitstatus_to_exitcode(status) == 0
        assert (tmp_path / "wrong").read_text() == ""
        assert manager.dispatch_sync("ann", "hi") == 2


@pytest.mark.parametrize("home", ["with", "async with"])
def test_a_child_that_leaves_its_parents_block_ends_as_it_wants(home: str, tmp_path: Path) -> None:
    block = """
        pid = os.fork()
        if pid == 0:
            sys.exit(4)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""
    if home == "with":
        code = f"""{PROGRAM}
if True:
    with manager() as m:
        m.dispatch_sync("ann", "hi")
{block}"""
    else:
        code = f"""{PROGRAM}
async def main():
    async with manager() as m:
        await m.dispatch("ann", "hi")
{block}
asyncio.run(main())
"""
    status, out, err = run(code, tmp_path)

    assert "ForkedError" not in err
    assert (status, out) == (0, "4\n")
    assert stored(tmp_path, "ann") == 1


@no_fork_warning
def test_a_child_does_not_hold_the_lock_of_its_parents_store(tmp_path: Path) -> None:
    end_of_child, end = os.pipe()
    with SessionManager(FileSessionStore(tmp_path / "s"), handler=count_plainly) as manager:
        manager.dispatch_sync("ann", "hi")
        child = os.fork()
        if child == 0:
            os.close(end)
            os.read(end_of_child, 1)
            os._exit(0)
    try:
        os.close(end_of_child)
        with SessionManager(FileSessionStore(tmp_path / "s"), handler=count_plainly) as manager:
            assert manager.dispatch_sync("ann", "hi") == 2
    finally:
        os.close(end)
        os.waitpid(child, 0)


@no_fork_warning
def test_a_child_that_uses_its_parents_store_is_told_that_it_is_locked(tmp_path: Path) -> None:
    store = FileSessionStore(tmp_path / "s")
    with SessionManager(store, handler=count_plainly) as manager:
        manager.dispatch_sync("ann", "hi")
        child = os.fork()
        if child == 0:
            signal.alarm(10)
            try:
                with SessionManager(store, handler=count_plainly) as second:
                    second.dispatch_sync("ann", "hi")
            except errors.StoreLockedError:
                os._exit(7)
            os._exit(1)
        _, status = os.waitpid(child, 0)

    assert os.waitstatus_to_exitcode(status) == 7


def test_a_process_of_multiprocessing_may_start_a_manager_of_its_own(tmp_path: Path) -> None:
    code = f"""{PROGRAM}
import multiprocessing
def child(answers):
    with SessionManager(FileSessionStore("t"), handler=handle) as own:
        answers.put([own.dispatch_sync("ann", "hi") for _ in range(3)])
context = multiprocessing.get_context("fork")
with manager() as m:
    stop = threading.Event()
    def busy():
        while not stop.is_set():
            m.dispatch_sync("bob", "hi")
    threads = [threading.Thread(target=busy) for _ in range(3)]
    for each in threads: each.start()
    for _ in range(5):
        answers = context.Queue()
        process = context.Process(target=child, args=(answers,))
        process.start()
        print(answers.get(timeout=10)[0] > 0, flush=True)
        process.join(10)
        print(process.exitcode, flush=True)
    stop.set()
    for each in threads: each.join()
"""
    status, out, _ = run(code, tmp_path)

    assert (status, out) == (0, "True\n0\n" * 5)
