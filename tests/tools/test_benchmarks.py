"""The benchmarks at a tiny size: they run, they check every counter, and they would notice a lost
update. No figure is judged.
"""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import msgpack
import pytest
from pymongo import MongoClient
from redis import Redis

from benchmarks import residents, session
from benchmarks.__main__ import main
from benchmarks._drive import run_in_threads, run_on_loop
from benchmarks._floors import FolderShelf, LockFloor, PykkaFloor
from benchmarks._servers import DATABASE
from benchmarks._workload import make_workload, remember, remember_and_await
from tests.servers import mongo_servers, redis_servers
from tests.tiers import tiers

TINY = ("--users", "7", "--events", "200", "--in-flight", "8", "--repeats", "2", "--seconds", "0")


@pytest.mark.parametrize("home", ["loop", "threads"])
@pytest.mark.parametrize("store", tiers(["memory", "file"], "file"))
@pytest.mark.parametrize("distribution", tiers(["uniform", "zipf"], "zipf"))
def test_session_counts_every_event_in_the_store(
    home: str, store: str, distribution: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "figures.json"

    status = main(
        ["session", *TINY, "--home", home, "--store", store, "--distribution", distribution, "--json", str(file)]
    )

    result = json.loads(file.read_text())
    assert (status, result["question"], result["wrong"]) == (0, "session", 0)
    assert result["options"]["handler"] == ("async" if home == "loop" else "sync")
    assert [run["events"] for run in result["details"]["runs"]] == [200] * 4
    (table,) = result["tables"]
    figures = {(figure["name"], figure["of"]): figure["values"] for figure in table["figures"]}
    assert len(figures["ratio to the floor", "actorbot"]) == 2
    for contender in {of for _, of in figures}:
        assert figures["lost updates", contender] == [0, 0]
        assert 0 < figures["p50", contender][0] <= figures["p99.9", contender][0]
    assert "lost updates" in capsys.readouterr().out


@pytest.mark.parametrize("handler", tiers(["async", "awaits"]))
@pytest.mark.parametrize("store", ["redis", "mongo"])
def test_session_counts_every_event_in_a_server_and_leaves_nothing_there(store: str, handler: str) -> None:
    server = redis_servers.shared() if store == "redis" else mongo_servers.shared()

    status = main(["session", *TINY, "--store", store, "--url", server.url, "--handler", handler])

    assert status == 0
    if store == "redis":
        with Redis.from_url(server.url) as redis:
            assert redis.keys("benchmark-*") == []
    else:
        with MongoClient[Any](server.url) as mongo:
            assert mongo[DATABASE].list_collection_names() == []


def test_a_server_is_not_measured_from_threads(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["session", *TINY, "--store", "redis", "--home", "threads"]) == 2
    assert "on a loop" in capsys.readouterr().err


@pytest.mark.parametrize("handler", tiers(["async", "awaits", "sync"], "awaits"))
@pytest.mark.parametrize("home", ["loop", "threads"])
def test_every_kind_of_handler_is_measured_in_both_homes(handler: str, home: str) -> None:
    assert main(["session", *TINY, "--home", home, "--handler", handler]) == 0


def test_write_through_writes_once_for_each_event(tmp_path: Path) -> None:
    file = tmp_path / "figures.json"

    assert main(["session", *TINY, "--policy", "write-through", "--json", str(file)]) == 0

    assert {run["writes_per_event"] for run in json.loads(file.read_text())["details"]["runs"]} == {1.0}


class Careless(LockFloor):
    """A bot that reads, waits and writes without a lock."""

    name = "no lock"

    async def _dispatch(self, session_id: str, text: str) -> None:
        data = self._shelf.get(session_id)
        state = {} if data is None else msgpack.unpackb(data)
        await remember_and_await(state, text)
        self._shelf[session_id] = msgpack.packb(state)

    def __init__(self, *_: Any) -> None:
        super().__init__({}, "awaits")
        self.dispatch = self._dispatch


def test_lost_updates_end_the_run_with_status_1(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "_floor", lambda setting, workload: Careless())

    assert main(["session", *TINY]) == 1


def test_lost_updates_are_counted() -> None:
    workload = make_workload(3, 100, 8, "uniform")

    run = asyncio.run(run_on_loop(Careless(), workload, seconds=0.0))

    assert run.lost > 0
    assert 1 <= run.wrong_counters <= 3


def test_a_run_goes_on_until_its_time_is_over_and_counts_all_rounds() -> None:
    workload = make_workload(3, 50, 4, "uniform")

    on_loop = asyncio.run(run_on_loop(LockFloor({}, "async"), workload, seconds=0.05))
    in_threads = run_in_threads(PykkaFloor({}), workload, seconds=0.05)

    for run in (on_loop, in_threads):
        assert run.seconds >= 0.05
        assert run.events > 50
        assert run.events % 50 == 0
        assert run.wrong_counters == 0


def test_the_floor_leaves_no_folder_behind() -> None:
    shelf = FolderShelf()

    run = asyncio.run(run_on_loop(LockFloor(shelf, "async"), make_workload(3, 50, 4, "uniform"), seconds=0.0))

    assert run.wrong_counters == 0
    assert not shelf.folder.exists()


def test_a_session_of_the_workload_is_encoded_in_300_to_1000_bytes() -> None:
    session: dict[str, Any] = {}
    sizes = []
    for _, text in make_workload(1, 200, 1, "uniform").events:
        remember(session, text)
        sizes.append(len(msgpack.packb(session)))

    assert len(session["last"]) == 10
    assert session["n"] == 200
    assert 300 <= min(sizes[10:]) <= max(sizes) <= 1000


def test_the_same_arguments_draw_the_same_workload_and_zipf_has_a_favourite() -> None:
    uniform, zipf = (make_workload(100, 2_000, 8, distribution) for distribution in ("uniform", "zipf"))

    assert make_workload(100, 2_000, 8, "uniform") == uniform
    assert len(uniform.head(10).events) == 10
    most = [max(sum(user == one for user, _ in each.events) for one in each.users) for each in (uniform, zipf)]
    assert most[1] > 5 * most[0]


def test_residents_all_come_and_all_leave(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(residents, "WARM_UP", 10)
    monkeypatch.setattr(residents, "WAVE", 100)
    monkeypatch.setattr(residents, "EVENTS", 300)
    file = tmp_path / "figures.json"

    status = main(["residents", "--sessions", "250", "--json", str(file)])

    figures = json.loads(file.read_text())["details"]
    assert status == 0
    assert figures["sessions"] == 250
    assert figures["left_behind"] == 0
    assert figures["threads_first"] == figures["threads_last"]
    assert 300 <= figures["record_bytes"] <= 1000


@pytest.mark.parametrize("options", [("--users", "0"), ("--policy", "write-behind:max_delay=0"), ("--home", "moon")])
def test_a_bad_option_is_refused_before_anything_runs(
    options: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["session", *options])

    assert exit_.value.code == 2
    assert options[0] in capsys.readouterr().err


def test_the_percentile_is_a_value_that_was_measured() -> None:
    assert [session.percentile(range(1, 1001), percent) for percent in (50.0, 99.0, 99.9)] == [500, 990, 999]
    assert session.percentile([5], 99.9) == 5


def test_a_stock_actor_lives_no_longer_than_its_run() -> None:
    floor = PykkaFloor({})
    floor.open(["bench:0"])
    ref = floor._refs["bench:0"]

    floor.close()

    assert not ref.is_alive()


@pytest.mark.parametrize("store", tiers(["memory", "file", "redis", "mongo"]))
def test_activation_counts_every_session_in_the_store(store: str, tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    options = ["--sessions", "300", "--in-flight", "8", "64", "--repeats", "1", *at_server(store), "--json", str(file)]

    assert main(["activation", "--store", store, *options]) == 0
    runs = json.loads(file.read_text())["details"]["runs"]
    assert [(run["in_flight"], run["lost"]) for run in runs] == [(8, 0), (8, 0), (64, 0), (64, 0)]


@pytest.mark.parametrize("store", tiers(["memory", "redis"]))
def test_offered_counts_every_event_in_the_store(store: str, tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    options = ["--rate", "500", "--resident", "300", "--seconds", "0.3", "--repeats", "1", *at_server(store)]

    assert main(["offered", "--store", store, *options, "--json", str(file)]) == 0
    run = json.loads(file.read_text())["details"]["runs"][0]
    assert (run["lost"], run["failed"], run["wrong_counters"]) == (0, 0, 0)
    assert run["events"] >= 100


@pytest.mark.parametrize("sync", tiers(["full", "normal"]))
def test_journal_counts_every_event_and_repeats_the_same_transactions(sync: str, tmp_path: Path) -> None:
    file = tmp_path / "figures.json"

    assert main(["journal", *TINY, "--sync", sync, "--folder", str(tmp_path), "--json", str(file)]) == 0
    (table,) = json.loads(file.read_text())["tables"]
    figures = {(figure["name"], figure["of"]): figure["values"] for figure in table["figures"]}
    assert len(figures["ratio", "actorbot"]) == 2
    assert 1 <= figures["records in a transaction", "actorbot"][0] <= 8
    assert [path.name for path in tmp_path.iterdir()] == ["figures.json"]


def at_server(store: str) -> list[str]:
    if store == "redis":
        return ["--url", redis_servers.shared().url]
    return ["--url", mongo_servers.shared().url] if store == "mongo" else []
