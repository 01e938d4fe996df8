"""What the hop to a shard costs, at a tiny size and without the environments of other systems. No
figure is judged.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from benchmarks import _peer_env, cluster
from benchmarks.__main__ import main
from benchmarks._contenders import ALONE, ASYNC, LOOPS, OURS, PLAIN, RAY, SMALL
from benchmarks._goals import decide
from benchmarks._peer_env import MissingPeerError
from benchmarks._programs import Program, cpu_seconds, pss
from benchmarks._report import Result
from tests.servers import redis_servers

TINY = ("--users", "200", "--repeats", "2", "--each", "0.1", "--work", "0.2")


def ask(file: Path, *options: str) -> tuple[int, dict[str, Any]]:
    """Run the question; return its status and what it found."""
    url = redis_servers.shared().url
    environments = str(file.parent / "environments")
    status = main(["cluster", *TINY, "--url", url, *options, "--json", str(file), "--environments", environments])
    with Redis.from_url(url) as redis:
        assert redis.keys("*benchmark-*") == []
    return status, json.loads(file.read_text())


@pytest.mark.long
def test_events_that_hop_to_a_shard_are_counted_in_the_store_and_nothing_is_left_there(tmp_path: Path) -> None:
    status, result = ask(tmp_path / "figures.json", "--without", "ray", "nats")

    assert (status, result["wrong"], result["details"]["missing"]) == (0, 0, {})
    runs = result["details"]["runs"]
    assert {(run["of"], run["what"]) for run in runs} == {
        (of, what) for what, (_, _, names) in cluster.WHAT.items() for of in names
    }
    assert all(run["events"] > 0 for run in runs)
    assert set(result["details"]["memory"]) == {OURS, SMALL}
    assert len(result["tables"]) == 5


@pytest.mark.long
def test_another_system_that_cannot_be_installed_is_named_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_peer_env.shutil, "which", lambda _: None)
    monkeypatch.setenv("PIP_NO_INDEX", "1")

    status, result = ask(tmp_path / "figures.json", "--repeats", "1", "--without", "nats")

    assert (status, result["wrong"]) == (0, 0)
    assert result["details"]["missing"][RAY].startswith("missing: python ended with status 1: ")
    assert result["tables"][0]["remarks"][RAY] == result["details"]["missing"][RAY]


@pytest.mark.long
def test_a_count_that_is_wrong_ends_the_question_with_status_1(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    count = cluster.wrong_counters
    monkeypatch.setattr(cluster, "wrong_counters", lambda store, sent: count(store, {**sent, "bench:0": 10**9}))

    status, result = ask(tmp_path / "figures.json", "--without", "ray", "nats", "--repeats", "1")

    assert status == 1
    assert result["wrong"] == len(cluster.GROUPS) + 2


# --- figures -------------------------------------------------------------------------------------

RATES: Mapping[str, Mapping[str, float]] = {
    cluster.ONE: {PLAIN: 4_000, OURS: 2_000, ASYNC: 2_500},
    cluster.SOME: {ALONE: 100_000, OURS: 10_000},
    cluster.MANY: {ALONE: 100_000, OURS: 20_000},
    cluster.SINGLE: {LOOPS: 500, OURS: 400},
    cluster.DOUBLE: {LOOPS: 1_000, OURS: 720},
}


def result_of_runs() -> Result:
    """Make the result of two rounds with the same rates, and answers that take as long."""
    runs = {
        (of, what): [cluster.Run(of, what, int(rate), 1.0, p50=1 / rate, p99=2 / rate, cpu={"caller": 0.5})] * 2
        for what, rates in RATES.items()
        for of, rate in rates.items()
    }
    options = cluster.options_of(main_options())
    memory = {OURS: 40_000_000, SMALL: 32_000_000}
    return Result("cluster", options, tuple(cluster.tables(main_options(), runs, memory, {RAY: "not here"})), wrong=0)


def main_options() -> Any:
    parser = cluster.argparse.ArgumentParser()
    cluster.add_arguments(parser)
    return parser.parse_args([])


def test_what_is_compared_are_neighbours_of_the_same_round() -> None:
    found = {
        (table.title.partition(",")[0], figure.name): figure.values
        for table in result_of_runs().tables
        for figure in table.figures
        if figure.of == OURS
    }

    assert found["one event at a time", f"p50 ÷ {PLAIN}"] == (2.0, 2.0)
    assert found["1", f"ratio to {ALONE}"] == (0.2, 0.2)
    assert found["64 in flight", f"ratio to {ALONE}"] == (0.1, 0.1)
    computing = "a handler that computes for 2 ms"
    assert found[computing, "2 ÷ 1"] == (1.8, 1.8)
    assert found[computing, "2 ÷ 1, as a share of the loops'"] == (0.9, 0.9)
    assert found[computing, "share of the work of 2 loops"] == (0.72, 0.72)
    assert found["memory of a process with all sessions", "ratio to a manager alone"] == (1.25,)


def test_each_goal_of_a_cluster_is_decided() -> None:
    decisions = {one.goal.figure: one.verdict for one in decide([result_of_runs()]) if one.goal.question == "cluster"}

    assert decisions == {
        f"p50 ÷ {PLAIN}": "reached",
        f"ratio to {ALONE}": "missed",
        "share of the work of 2 loops": "missed",
        "ratio to a manager alone": "reached",
    }


def test_the_report_draws_a_cluster(tmp_path: Path) -> None:
    result_of_runs().conclude(str(tmp_path / "cluster.json"))

    assert main(["report", str(tmp_path)]) == 0

    page = (tmp_path / "report.md").read_text()
    assert "![cluster](cluster.svg)" in page
    assert "not here" in page


# --- programs ------------------------------------------------------------------------------------


def program(text: str) -> Program:
    return Program([sys.executable, "-c", f"import sys; sys.stdin.readline(); {text}"], {}, {})


def test_a_program_that_ends_is_named_with_its_last_words() -> None:
    with (
        pytest.raises(MissingPeerError, match=r"has ended: ValueError: no sessions here$"),
        program("raise ValueError('no sessions here')"),
    ):
        pass


def test_a_program_answers_each_order_and_ends_with_its_input() -> None:
    with program("print(2, flush=True); [print(len(line), flush=True) for line in sys.stdin]") as there:
        assert there.ready == 2
        assert there.ask({}) == len("{}\n")
        assert cpu_seconds(there.pid) >= 0.0
        assert pss(there.pid) >= 0
