"""The comparison with other libraries at a tiny size, without their environments and without a
network. No figure is judged.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from benchmarks import _peer_env, peers
from benchmarks.__main__ import main
from benchmarks._peer_env import Environment, MissingPeerError
from benchmarks._workload import make_workload
from tests.servers import mongo_servers, redis_servers
from tests.tiers import tiers

TINY = ("--users", "7", "--events", "200", "--repeats", "1", "--seconds", "0.05")
HERE = ("lock per user", "pykka", "actorbot")  # those that need no environment of their own


def ask(file: Path, *options: str) -> tuple[int, dict[str, Any]]:
    """Run the question; return its status and what it found."""
    status = main(["peers", *TINY, *options, "--json", str(file), "--environments", str(file.parent / "environments")])
    return status, json.loads(file.read_text())


def values(result: dict[str, Any]) -> dict[tuple[str, str], list[float]]:
    (table,) = result["tables"]
    return {(figure["name"], figure["of"]): figure["values"] for figure in table["figures"]}


@pytest.mark.parametrize(
    ("store", "handler"),
    tiers([("memory", "async"), ("memory", "awaits"), ("redis", "awaits"), ("mongo", "async")], ("redis", "awaits")),
)
def test_actorbot_and_what_is_written_by_hand_lose_nothing(store: str, handler: str, tmp_path: Path) -> None:
    at = {
        "memory": list,
        "redis": lambda: ["--url", redis_servers.shared().url],
        "mongo": lambda: ["--url", mongo_servers.shared().url],
    }[store]()

    status, result = ask(tmp_path / "figures.json", "--store", store, "--handler", handler, *at, "--only", *HERE)

    assert (status, result["wrong"], result["details"]["missing"]) == (0, 0, {})
    runs = result["details"]["runs"]
    assert {run["peer"] for run in runs} == set(HERE)
    assert len(runs) == 3
    assert all(run["events"] >= 64 and run["lost"] == 0 for run in runs)
    figures = values(result)
    assert 1.0 in (figures["ratio", "lock per user"][0], figures["ratio", "pykka"][0])
    assert all(figures["ratio", of][0] > 0 for of in HERE)
    if store == "redis":
        with Redis.from_url(at[1]) as redis:
            assert redis.keys("benchmark-*") == []
    assert not (tmp_path / "environments").exists()


@pytest.mark.long  # it makes an environment
def test_a_peer_that_cannot_be_installed_is_named_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("COLUMNS", "200")

    status, result = ask(tmp_path / "figures.json", "--only", "aiogram", "actorbot")

    assert status == 0
    assert result["details"]["missing"]["aiogram"].startswith("missing: python ended with status 1: ")
    assert "aiogram==" in result["details"]["missing"]["aiogram"]
    assert {of for _, of in values(result)} == {"actorbot"}
    assert result["tables"][0]["remarks"]["aiogram"] == result["details"]["missing"]["aiogram"]
    assert "missing: python ended" in capsys.readouterr().out


def test_a_peer_without_its_tools_is_named_with_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda tool: None)

    _, result = ask(tmp_path / "figures.json", "--only", "grammy", "actorbot")

    assert result["details"]["missing"] == {"grammy": "missing: there is no node"}


def test_an_environment_is_made_once_and_one_that_was_left_half_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_peer_env, "ENVIRONMENTS", {"nothing": Environment("pip", ())})
    ran: list[str] = []
    monkeypatch.setattr(_peer_env, "run", lambda command, *_: ran.append(command[2]))

    for _ in range(2):
        _peer_env.make("nothing", tmp_path)
    (place,) = tmp_path.iterdir()
    (place / "rest").touch()
    (place / _peer_env.MADE).unlink()
    command, settings = _peer_env.make("nothing", tmp_path)

    assert ran == ["venv", "pip"] * 2
    assert command == [str(place / "bin" / "python")]
    assert settings == {"PYTHONPATH": str(_peer_env.ROOT)}
    assert [path.name for path in place.iterdir()] == [_peer_env.MADE]


CARELESS = peers.Peer("careless", Path(__file__).with_name("careless_peer.py"), "pykka")


def test_the_loss_of_a_peer_is_a_figure_and_not_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "PEERS", (CARELESS, *peers.PEERS))

    file, only = tmp_path / "figures.json", ("--only", "careless", "lock per user", "actorbot")

    status, result = ask(file, *only, "--repeats", "2")

    figures = values(result)
    assert (status, result["wrong"]) == (0, 0)
    assert min(figures["lost updates", "careless"]) > 0
    assert 0 < figures["lost", "careless"][0] < 100
    assert figures["ratio", "lock per user"] == [1, 1]  # whoever loses is not what others are compared with


def test_a_loss_of_actorbot_ends_the_run_with_status_1(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "PEERS", (peers.Peer("actorbot", CARELESS.program, "actorbot"),))

    status, result = ask(tmp_path / "figures.json")

    assert status == 1
    assert result["wrong"] > 0


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("raise ValueError('no sessions here')", "ended with status 1: ValueError: no sessions here"),
        ("print('done')", "it did not say what it measured: 'done\\n'"),
        ("import os; os.kill(os.getpid(), 9)", "ended with status -9: it said nothing"),
    ],
)
def test_a_program_that_fails_is_named_with_the_reason(
    program: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "failing.py").write_text(program)
    monkeypatch.setattr(peers, "PEERS", (peers.Peer("failing", tmp_path / "failing.py", "pykka"), peers.PEERS[-1]))

    status, result = ask(tmp_path / "figures.json")

    assert status == 0
    assert result["details"]["missing"]["failing"].endswith(reason)
    assert {run["peer"] for run in result["details"]["runs"]} == {"actorbot"}


def test_a_program_of_actorbot_that_fails_ends_the_run_with_status_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "failing.py").write_text("raise SystemExit(1)")
    monkeypatch.setattr(peers, "PEERS", (peers.Peer("actorbot", tmp_path / "failing.py", "actorbot"),))

    assert ask(tmp_path / "figures.json")[0] == 1


def test_a_peer_that_has_no_such_store_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["peers", *TINY, "--store", "redis", "--only", "ptb"]) == 2
    assert "none of them keeps sessions in redis" in capsys.readouterr().err


def test_a_program_that_does_not_end_is_given_up() -> None:
    with pytest.raises(MissingPeerError, match=r"sleep was not done after 0\.1 s"):
        _peer_env.run(["sleep", "60"], {}, 0.1)


def test_events_of_an_unfinished_round_are_expected_in_the_order_in_which_they_were_taken() -> None:
    workload = make_workload(3, 10, 1, "uniform")
    counters = dict.fromkeys(workload.users, 0)
    for user, _ in workload.events + workload.events[:4]:
        counters[user] += 1
    line = {
        "events": 14,
        "seconds": 1.0,
        "flush_seconds": 0.0,
        "cpu_seconds": 1.0,
        "latency_ms": {},
        "counters": counters,
    }

    exact = peers.judge("somebody", json.dumps(line), workload)
    counters[workload.events[0][0]] -= 1
    one_less = peers.judge("somebody", json.dumps(line), workload)
    counters[workload.events[0][0]] += 2

    assert (exact.lost, exact.wrong_counters) == (0, 0)
    assert (one_less.lost, one_less.wrong_counters) == (1, 1)
    with pytest.raises(MissingPeerError, match="events that there were not"):
        peers.judge("somebody", json.dumps(line), workload)
    assert peers.judge("actorbot", json.dumps(line), workload).wrong_counters == 1
