"""The questions about one manager under a load of some kind, at a tiny size: they run and check every counter. No figure is judged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from actorbot.stores.base import RecordStore
from benchmarks import churn, hotkey
from benchmarks.__main__ import main
from tests.test_benchmarks import at_server

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


@pytest.mark.parametrize(
    ("question", "module", "options"),
    [
        ("hotkey", hotkey, ["--events", "100", "--sessions", "4", *SHORT]),
        ("churn", churn, ["--store", "memory", "--users", "50", "--resident", "20", "--events", "100", *SHORT]),
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
