"""What the command says of who owns a store, and that it overwrites nothing of his."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from actorbot import FileSessionStore, FlushPolicy, MemorySessionStore, SessionManager, errors, store_from_url
from actorbot._ownership.lease import Holder, Lease
from actorbot._runtime.process import Process, this_process
from actorbot.cli._owner import judge_owner
from actorbot.stores import RecordStore, Write
from actorbot.stores.driver import as_records
from actorbot.testing._expect import make_record, write_all
from tests.backends import LeasedStore
from tests.handlers import count_plainly
from tests.servers import mongo_servers, redis_servers
from tests.tools.test_cli import examine, run, serve
from tests.tools.test_cli_sessions import in_files, in_mongo, in_redis
from tests.waiting import HANGS

QUIET = FlushPolicy.write_behind(max_delay=600.0)


class Driver(LeasedStore):
    """A driver that keeps a lease, and lists its sessions."""

    def ids(self) -> list[str]:
        return list(self.data)


@pytest.fixture(params=["redis", "mongo", "driver"])
def url(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A store that several processes can reach, with a session."""
    if request.param == "driver":
        driver = Driver()
        serve(monkeypatch, lambda url: driver)
        made = "plain://here"
    else:
        made = {"redis": in_redis, "mongo": in_mongo}[request.param](tmp_path)
    with as_records(store_from_url(made)) as store:
        write_all(store.init(), [Write(make_record("ann", {"n": 1}), b"")])
        store.close()
    return made


def own(url: str, **options: Any) -> SessionManager:
    """Let this process own the store."""
    options = {"handler": count_plainly, "flush": QUIET} | options
    return SessionManager(store_from_url(url), **options)


def lease_of(url: str, *, put: str | None = None) -> str | None:
    """Return what the store has as its lease, and *put* another one in its place."""
    with as_records(store_from_url(url)) as store:
        store.init()
        found = store.read_lease().text
        if put is not None:
            assert store.swap_lease(found, put)
        store.close()
        return found


def of_another(**changes: Any) -> Holder:
    """Make a holder on another machine, which has just renewed its lease."""
    now = time.time()
    process = Process(host="web-2", pid=4711, program="bot.py", started="1", namespace="n", kernel="k")
    return replace(Holder(process, "exclusive", 10.0, epoch=7, since=now - 60, until=now + 10), **changes)


LOOKING = [
    ("doctor", "{url}"),
    ("sessions", "ls", "{url}"),
    ("sessions", "ls", "{url}", "--json"),
    ("sessions", "show", "{url}", "ann"),
]


# --- who it is ----------------------------------------------------------------------------------


def test_a_living_owner_is_named_with_mode_epoch_and_times_and_loses_nothing(url: str) -> None:
    with own(url) as manager:
        assert manager.dispatch_sync("ann", "hi") == 2
        found = examine(url)["owner"]
        listed = run("sessions", "ls", url)
        mine = manager.stats().ownership
        assert mine is not None
        manager.flush_sync()

    assert found[0] == "ok"
    for said in (found[1], listed.stderr):
        assert f"process {os.getpid()} on {socket.gethostname()} (" in said
        assert f", exclusive, epoch {mine.epoch}, since 20" in said
        assert " s unless it renews it" in said
    assert listed.stderr.startswith("owner: ")
    assert listed.stderr.count("\n") == 1


def test_each_of_those_who_share_a_store_is_named(url: str) -> None:
    share = FlushPolicy.write_through()
    with own(url, flush=share), as_records(store_from_url(url)) as store:
        store.init()
        text = lease_of(url)
        lease = Lease.parse(text, store.name)
        other = of_another(mode="shared", epoch=lease.epoch + 1)
        assert text is not None
        assert store.swap_lease(text, Lease(other.epoch, {**lease.holders, "other": other}, {}).to_text())
        level, said = examine(url)["owner"]
        store.close()

    assert level == "ok"
    assert said.count(", shared, ") == 2
    assert f"process {os.getpid()} on " in said
    assert "process 4711 on web-2 (bot.py)" in said


@pytest.mark.parametrize("args", LOOKING, ids=" ".join)
def test_where_there_is_no_owner_looking_makes_none(url: str, args: tuple[str, ...]) -> None:
    done = run(*(each.format(url=url) for each in args))

    assert done.exit_code == 0
    assert lease_of(url) is None
    if args[0] == "doctor":
        assert examine(url)["owner"] == ("ok", "nobody")
    elif args[1] == "ls":
        assert done.stderr == "owner: nobody\n"


@pytest.mark.parametrize("args", LOOKING, ids=" ".join)
def test_looking_changes_nothing_of_a_lease_whoever_has_it(url: str, args: tuple[str, ...]) -> None:
    lease = Lease(7, {"other": of_another(until=time.time() - 20)}, {}).to_text()
    lease_of(url, put=lease)

    assert run(*(each.format(url=url) for each in args)).exit_code == 0
    assert lease_of(url) == lease


def test_json_on_the_output_is_not_disturbed(url: str) -> None:
    with own(url):
        done = run("sessions", "ls", url, "--json")

    assert [json.loads(line)["session_id"] for line in done.stdout.splitlines()] == ["ann"]


def gone() -> Process:
    """A process of this machine that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait(timeout=HANGS)
    return replace(this_process(), pid=process.pid)


UNWELL: dict[str, tuple[Callable[[], Lease], str]] = {
    "ran out": (lambda: Lease(7, {"x": of_another(until=time.time() - 20)}, {}), "epoch 7.* which ran out 2[0-9].[0-9] s ago"),
    "has ended": (lambda: Lease(7, {"x": of_another(process=gone())}, {}), "has ended without giving it back: the next start takes it"),
    "may write late": (lambda: Lease(8, {}, {"x": of_another()}), "nobody; may still write late: process 4711 on web-2"),
}  # fmt: skip


@pytest.mark.parametrize("name", UNWELL)
def test_the_doctor_warns_of_an_owner_who_may_not_come_back(name: str, url: str) -> None:
    lease, says = UNWELL[name]
    lease_of(url, put=lease().to_text())
    level, said = examine(url)["owner"]

    assert level == "warning"
    assert re.search(says, said)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "hello",
        "[]",
        '{"format": 2}',
        '{"format": 1}',
        Lease(1, {"x": of_another()}, {}).to_text().replace("4711", "-1"),
    ],
)
def test_a_lease_that_cannot_be_read_is_a_failure_and_hides_no_session(url: str, text: str) -> None:
    lease_of(url, put=text)
    level, said = examine(url)["owner"]
    listed = run("sessions", "ls", url)

    assert level == "failure"
    assert "the lease that says who owns it" in said
    assert "remove it" in said
    assert listed.exit_code == 0
    assert "ann" in listed.stdout
    assert listed.stderr.startswith("note: who owns it cannot be told: ")


def test_something_else_in_the_place_of_the_lease_is_a_failure(tmp_path: Path) -> None:
    redis, mongo = in_redis(tmp_path), in_mongo(tmp_path)
    for url in (redis, mongo):
        store: RecordStore = store_from_url(url).init()
        store.close()
    key = f"{redis.partition('key_prefix=')[2]}\0lease"
    assert redis_servers.shared().ask("LPUSH", key, "x") == 1
    with mongo_servers.shared().client() as client:
        name = mongo.partition("collection_name=")[2]
        client.actorbot[f"{name}.lease"].insert_one({"_id": "lease", "text": 7})

    for url in (redis, mongo):
        level, said = examine(url)["owner"]
        assert level == "failure"
        assert "look at it" in said
        assert run("sessions", "ls", url).exit_code == 0


def test_a_store_that_keeps_no_lease_has_no_owner_to_name(tmp_path: Path) -> None:
    assert list(judge_owner(MemorySessionStore())) == []
    assert run("sessions", "ls", "memory://").stderr.startswith("there is no session")
    FileSessionStore(tmp_path / "sessions").init().close()
    assert run("sessions", "ls", in_files(tmp_path)).stderr.startswith("there is no session")


@pytest.mark.parametrize(
    "args",
    [("doctor", "{url}"), ("sessions", "ls", "{url}"), ("sessions", "rm", "{url}", "ann", "--yes")],
    ids=" ".join,
)
def test_a_folder_that_a_bot_has_open_names_the_bot(args: tuple[str, ...], tmp_path: Path) -> None:
    with SessionManager(FileSessionStore(tmp_path / "sessions"), handler=count_plainly):
        done = run(*(each.format(url=in_files(tmp_path)) for each in args))

    assert done.exit_code == 1
    assert f"process {os.getpid()} on {socket.gethostname()}" in done.stderr


# --- writing ------------------------------------------------------------------------------------


def test_rm_says_who_owns_the_store_and_what_that_costs(url: str) -> None:
    with own(url):
        owned = run("sessions", "rm", url, "bob", "--yes")
    free = run("sessions", "rm", url, "bob", "--yes")

    assert f"is owned by process {os.getpid()} on " in owned.stderr
    assert "its next flush of that is a conflict" in owned.stderr
    assert (owned.exit_code, owned.stdout) == (0, "bob: was not there\n")
    assert (free.exit_code, free.stderr) == (0, "")


def test_rm_names_the_owner_before_it_asks(url: str) -> None:
    with own(url):
        done = run("sessions", "rm", url, "ann")

    assert done.exit_code == 2  # nobody is there to ask
    assert done.stderr.startswith("note: ")
    assert f"is owned by process {os.getpid()} on " in done.stderr
    assert run("sessions", "show", url, "ann").exit_code == 0


def test_copy_says_who_owns_either_store(url: str, tmp_path: Path) -> None:
    with own(url):
        out_of = run("sessions", "copy", url, in_files(tmp_path))
        into = run("sessions", "copy", in_files(tmp_path), url)

    assert (out_of.exit_code, into.exit_code) == (0, 0)
    assert out_of.stderr.count("is owned by") == into.stderr.count("is owned by") == 1
    assert "has not flushed yet is not copied" in out_of.stderr
    assert "its next flush of that is a conflict" in into.stderr


@pytest.mark.parametrize("place", [in_redis, in_mongo])
def test_a_session_that_rm_destroys_under_its_owner_is_a_conflict_there_and_stays_gone(
    place: Callable[[Path], str], tmp_path: Path
) -> None:
    url = place(tmp_path)
    taken: list[tuple[str, Any]] = []
    with own(url, on_conflict=lambda session_id, state: taken.append((session_id, state))) as manager:
        manager.dispatch_sync("ann", "hi")
        manager.flush_sync()
        assert run("sessions", "rm", url, "ann", "--yes").stdout.startswith("ann: destroyed (version 1")
        assert manager.dispatch_sync("ann", "hi") == 2  # it has her in memory
        with pytest.raises(errors.ConflictError):
            manager.flush_sync("ann")
        assert manager.peek_sync("ann") is None
        assert [each.state for each in manager.conflicts()] == [{"n": 2}]
    assert taken == [("ann", {"n": 2})]


class Busy(MemorySessionStore):
    """Somebody writes a session again whenever it was read."""

    def read_many(self, session_ids: Any) -> Any:
        found = super().read_many(session_ids)
        for each in found:
            if each is not None and each.session_id in self.hot:
                write_all(self, [Write(each.next_write(), each.write_id)])
        return found

    hot = ("ann", "eve")


def test_rm_destroys_nothing_that_was_written_since_it_looked_and_goes_on_with_the_rest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store = Busy()
    write_all(store.init(), [Write(make_record(each, {"n": 1}), b"") for each in ("ann", "bob", "eve")])
    serve(monkeypatch, lambda url: store)
    monkeypatch.setattr(store, "close", lambda: None)
    done = run("sessions", "rm", "plain://here", "ann", "bob", "eve", "--yes")

    assert done.exit_code == 1
    assert done.stdout.startswith("bob: destroyed (version 1")
    assert done.stderr.count("\n") == 2
    for session_id in store.hot:
        assert f"not destroyed: memory: session '{session_id}': it was written by someone else" in done.stderr
        assert (store.read(session_id) or {})["n"] == 1
    assert "try again" in done.stderr
    assert store.read("bob") is None
