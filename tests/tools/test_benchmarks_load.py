"""The questions about one manager under a load of some kind, at a tiny size: they run and check
every counter. No figure is judged.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from actorbot import FlushPolicy, MemorySessionStore, SessionManager, ShutdownReport
from actorbot.stores.base import RecordStore
from benchmarks import churn, deploy, drain, hotkey, outage, policies
from benchmarks.__main__ import main
from benchmarks._actorbot import handle
from benchmarks._ledger import Instant, Ledger, noting_commits
from benchmarks._stored import fill
from tests.tools.test_benchmarks import at_server

pytestmark = pytest.mark.long  # each runs a load for seconds

STORES = ["memory", "file", "redis", "mongo"]
SHORT = ("--in-flight", "8", "--repeats", "1", "--seconds", "0")


def answer(question: str, *options: str, file: Path) -> dict[str, Any]:
    """Ask *question*, and return what it wrote to *file*, which says that no counter was wrong."""
    status = main([question, *options, "--json", str(file)])

    result: dict[str, Any] = json.loads(file.read_text())
    assert (status, result["question"], result["wrong"]) == (0, question, 0)
    return result


@pytest.mark.parametrize("store", ["memory", "redis"])
def test_hotkey_counts_the_events_of_the_busy_user_and_of_the_quiet_one(store: str, tmp_path: Path) -> None:
    options = ["--store", store, *at_server(store), "--events", "300", "--sessions", "4", *SHORT]

    result = answer("hotkey", *options, file=tmp_path / "figures.json")

    runs = result["details"]["runs"]
    cases = [("async", 1), ("async", 4), ("awaits", 1), ("awaits", 4)]
    assert [(run["handler"], run["sessions"]) for run in runs] == cases
    assert [(run["timed"]["events"], run["lost"]) for run in runs] == [(300, 0)] * 4
    assert all(run["probes"] >= 1 for run in runs)
    assert [{figure["of"] for figure in table["figures"]} for table in result["tables"]] == [
        {"1 session", "4 sessions"}
    ] * 2


@pytest.mark.parametrize("store", STORES)
def test_churn_counts_what_was_acknowledged_while_sessions_come_and_go(store: str, tmp_path: Path) -> None:
    options = ["--store", store, *at_server(store), "--users", "200", "--resident", "40", "--events", "400", *SHORT]

    result = answer("churn", *options, file=tmp_path / "figures.json")

    runs = result["details"]["runs"]
    assert [run["distribution"] for run in runs] == ["uniform", "zipf"]
    for run in runs:
        assert run["lost"] == 0
        assert run["peak_resident"] <= 40
        assert run["activations"] >= 40
        assert run["passivations"] >= run["activations"] - 40
        assert run["timed"]["events"] == 400


@pytest.mark.parametrize("store", STORES)
def test_policies_measures_what_a_kill_would_cost_under_each(store: str, tmp_path: Path) -> None:
    options = ["--store", store, *at_server(store), "--users", "20", "--events", "200", "--folder", str(tmp_path)]

    result = answer("policies", *options, *SHORT, file=tmp_path / "figures.json")

    runs = {run["policy"]: run for run in result["details"]["runs"]}
    assert list(runs) == list(policies.POLICIES)
    for text, run in runs.items():
        assert (run["lost"], run["broken"], run["timed"]["events"]) == (0, 0, 200)
        assert run["loss"] == 0 or text.startswith("write-behind")
    assert runs["write-through"]["store_writes"] == 200
    assert [path.name for path in tmp_path.iterdir()] == ["figures.json"]


@pytest.mark.parametrize("text", ["write-behind:max_delay=5", "journaled:max_delay=5"])
def test_a_kill_costs_what_neither_the_store_nor_the_journal_has(text: str, tmp_path: Path) -> None:
    async def look() -> tuple[Counter[str], Counter[str]]:
        acknowledged, journal, store = Counter[str](), dict[int, bytes](), Ledger(MemorySessionStore())
        flush = FlushPolicy.parse(policies.with_path(text, str(tmp_path / "journal")))
        with noting_commits(journal.update):
            async with SessionManager(store, handler=handle, flush=flush) as manager:
                for user in ("ann", "bob", "ann"):
                    await manager.dispatch(user, "hello")
                    acknowledged[user] += 1
                before = Instant.take(acknowledged, journal, store)
                await manager.flush("ann")
                return before.lost(), Instant.take(acknowledged, journal, store).lost()

    before, after = asyncio.run(look())

    journaled = text.startswith("journaled")
    assert before == ({} if journaled else {"ann": 2, "bob": 1})
    assert after == ({} if journaled else {"bob": 1})


@pytest.mark.parametrize("loss", [1, 0])
def test_a_kill_that_would_cost_more_than_is_promised_ends_the_question_with_status_1(
    loss: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Instant, "lost", lambda instant: Counter({"bench:0": loss}))
    options = ["--store", "memory", "--policies", "write-through", "--users", "5", "--events", "50", *SHORT]

    assert main(["policies", *options]) == loss


@pytest.mark.parametrize("how", [[], ["--hangs"]])
@pytest.mark.parametrize("store", STORES)
def test_outage_counts_what_was_acknowledged_before_during_and_after(
    store: str, how: list[str], tmp_path: Path
) -> None:
    options = ["--store", store, *at_server(store), *how, "--users", "20", "--rate", "500", "--folder", str(tmp_path)]

    result = answer("outage", *options, "--down", "0.3", "--around", "0.2", file=tmp_path / "figures.json")

    runs = result["details"]["runs"]
    assert [run["policy"] for run in runs] == ["write-behind", "journaled"]
    for run in runs:
        assert (run["failed"], run["lost"], run["behind"]) == (0, 0, 0)
        assert sum(run["events"].values()) == 350
        assert run["events"]["during"] >= 1
        assert run["peak_dirty_bytes"] > 0
        assert run["catch_up"] >= 0
    assert (runs[1]["peak_journal_bytes"] > 0) == (
        store != "memory"
    )  # which keeps the journal, and is not bounded by it
    assert [path.name for path in tmp_path.iterdir()] == ["figures.json"]


@pytest.mark.parametrize("store", STORES)
def test_drain_finds_in_the_store_what_the_close_has_flushed(store: str, tmp_path: Path) -> None:
    options = ["--store", store, *at_server(store), "--sessions", "30", "120", "--repeats", "1"]

    result = answer("drain", *options, file=tmp_path / "figures.json")

    runs = result["details"]["runs"]
    assert [(run["sessions"], run["dirty"], run["lost"]) for run in runs] == [(30, 300, 0), (120, 1200, 0)]
    assert all(run["report"]["unflushed"] == [] for run in runs)


@pytest.mark.parametrize("store", ["redis", "mongo"])
def test_deploy_counts_what_was_posted_to_the_processes_of_two_deploys(store: str, tmp_path: Path) -> None:
    options = ["--store", store, *at_server(store), "--users", "5", "--rate", "50", "--deploys", "2", "--around", "0.2"]

    result = answer("deploy", *options, file=tmp_path / "figures.json")

    assert len(result["details"]["deploys"]) == 2
    assert all(each["gap"] > 0 for each in result["details"]["deploys"])
    assert result["details"]["events"] > 0


def test_a_deploy_that_loses_an_event_ends_the_question_with_status_1(monkeypatch: pytest.MonkeyPatch) -> None:
    count: Any = deploy.wrong_counts
    monkeypatch.setattr(deploy, "wrong_counts", lambda store, sent: count(store, {**sent, 0: sent[0] + 1}))
    options = [*at_server("redis"), "--users", "2", "--rate", "50", "--deploys", "1", "--around", "0.1"]

    assert main(["deploy", *options]) == 1


def test_drain_notices_a_session_that_was_neither_flushed_nor_named() -> None:
    store = MemorySessionStore().init()
    fill(store, ["ann"])
    named, unnamed = (ShutdownReport(ids, 0, 0, 1.0) for ids in (("bob",), ()))

    assert drain.check(store, ["ann", "bob"], 20, named).wrong_counters == 0
    assert drain.check(store, ["ann", "bob"], 20, unnamed).wrong_counters == 1
    assert drain.check(store, ["ann", "bob"], 20, ShutdownReport(("ann", "bob"), 0, 0, 1.0)).reported_in_vain == 1


@pytest.mark.long
@pytest.mark.parametrize(
    ("question", "module", "options"),
    [
        ("hotkey", hotkey, ["--events", "100", "--sessions", "4", *SHORT]),
        ("churn", churn, ["--store", "memory", "--users", "50", "--resident", "20", "--events", "100", *SHORT]),
        ("policies", policies, ["--store", "memory", "--users", "5", "--events", "50", *SHORT]),
        ("outage", outage, ["--store", "memory", "--users", "5", "--rate", "500", "--down", "0.1", "--around", "0.1"]),
        ("drain", drain, ["--store", "memory", "--sessions", "20", "--repeats", "1"]),
    ],
)
def test_a_counter_that_is_wrong_ends_the_question_with_status_1(
    question: str, module: Any, options: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    count: Any = module.wrong_counters

    def too_many(store: RecordStore, expected: dict[str, int]) -> Any:
        return count(store, {**expected, "bench:0": expected["bench:0"] + 1})

    monkeypatch.setattr(module, "wrong_counters", too_many)

    assert main([question, *options]) == 1
