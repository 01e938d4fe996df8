"""What is done with the benchmarks' figures: compared, reported, measured all at one go.

No figure is judged.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import pytest

from benchmarks import _own_servers, _plan, everything, report, residents
from benchmarks.__main__ import QUESTIONS, main
from benchmarks._goals import GOALS, Decision, decide
from benchmarks._plan import PLAN, Setting
from benchmarks._report import Figure, Result, Table, command, without_password
from benchmarks._saved import DONE, load
from tests.servers import redis_servers
from tests.tiers import tiers

TINY = "session --users 7 --events 200 --in-flight 8 --repeats 2 --seconds 0"
Better = Literal["higher", "lower", ""]


def saved(file: Path, *figures: Figure, question: str = "session", title: str = "a table", **changes: Any) -> str:
    """Write a result and return the name of its file."""
    result = Result(question, {"users": 7}, (Table(title, figures),), wrong=0)
    file.write_text(json.dumps(result.as_json() | changes))
    return str(file)


def rate(*values: float, name: str = "events/s", better: Better = "higher") -> Figure:
    return Figure(name, values, "actorbot", "", better)


# --- compare ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "after", "better", "counted", "status"),
    [
        ((90, 100, 110), (180, 200, 220), "higher", "1 better", 0),
        ((90, 100, 110), (180, 200, 220), "lower", "1 worse", 1),
        ((90, 100, 110), (180, 200, 220), "", "1 changed", 0),
        ((90, 100, 110), (50, 60, 70), "higher", "1 worse", 1),
        ((90, 100, 110), (50, 60, 70), "lower", "1 better", 0),
        ((90, 100, 110), (105, 200, 220), "higher", "1 the same within the spread", 0),  # the ranges overlap
        ((100, 100, 100), (104, 104, 104), "lower", "1 the same within the spread", 0),  # the medians are within 5 %
        ((100, 100, 100), (106, 106, 106), "lower", "1 worse", 1),
        ((0, 0, 0), (1, 2, 3), "lower", "1 worse", 1),
        ((0, 0, 0), (0, 0, 0), "lower", "1 the same within the spread", 0),
        ((90, 100), (10, 20, 30), "higher", "1 too few runs", 0),
        ((90, 100, 110), (10, 20), "higher", "1 too few runs", 0),
    ],
)
def test_a_figure_is_judged_by_its_medians_and_ranges(
    before: tuple[float, ...],
    after: tuple[float, ...],
    better: Better,
    counted: str,
    status: int,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    files = [
        saved(tmp_path / name, rate(*values, better=better)) for name, values in (("a.json", before), ("b.json", after))
    ]

    assert main(["compare", *files]) == 0
    assert counted in capsys.readouterr().out
    assert main(["compare", *files, "--fail"]) == status


def test_the_percentage_may_be_another_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [saved(tmp_path / f"{value}.json", rate(*[value] * 3)) for value in (100, 106)]

    assert main(["compare", *files, "--percent", "10"]) == 0
    assert "1 the same within the spread" in capsys.readouterr().out


def test_what_only_one_side_has_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for side, name in (("A", "p50"), ("B", "p99")):
        (tmp_path / side).mkdir()
        saved(tmp_path / side / "1.json", rate(1, 2, 3), rate(1, name=name))
        saved(tmp_path / side / "2.json", rate(1, 2, 3), title=f"table of {side}")

    assert main(["compare", str(tmp_path / "A"), str(tmp_path / "B"), "--fail"]) == 0

    said = capsys.readouterr().out.splitlines()
    for side, name in (("A", "p50"), ("B", "p99")):
        assert [line for line in said if name in line and f"only in {side}" in line]
        assert f"only in {side}: session: table of {side}" in said
    assert said[-2].startswith("1 figures")


def test_other_conditions_are_pointed_out_and_a_void_result_fails(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ours = saved(tmp_path / "a.json", rate(1, 2, 3), machine={"cores": "2", "pykka": "4.5.0"})
    theirs = saved(
        tmp_path / "b.json", rate(1, 2, 3), machine={"cores": "8", "pykka": "4.5.0"}, options={"users": 9}, wrong=4
    )

    assert main(["compare", ours, theirs]) == 0
    said = capsys.readouterr().out
    assert "different: cores: 2 in A, 8 in B" in said
    assert "different: session, a table: users: 7 in A, 9 in B" in said
    assert "pykka" not in said
    assert "4 counters were wrong" in said
    assert main(["compare", ours, theirs, "--fail"]) == 1


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"{", "not JSON"),
        (b"\xff\xfe\x00", "not JSON"),
        (b"[1, 2]", "no 'question'"),
        (b'{"question": 7}', "'question' is int"),
        (b'{"question": "session", "options": {}, "tables": [{}]}', "no 'figures'"),
    ],
)
@pytest.mark.parametrize("command", ["compare", "report"])
def test_a_file_that_is_no_result_is_named(
    command: str, content: bytes, complaint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad, good = tmp_path / "bad.json", saved(tmp_path / "good.json", rate(1, 2, 3))
    bad.write_bytes(content)

    assert main([command, *([good, str(bad)] if command == "compare" else [str(tmp_path)])]) == 2

    said = capsys.readouterr().err
    assert "bad.json" in said
    assert complaint in said


@pytest.mark.parametrize(
    "figure",
    [
        {"values": []},
        {"values": ["7"]},
        {"values": [float("nan")]},
        {"values": [True]},
        {"better": "sideways"},
    ],
)
def test_a_figure_that_no_run_has_measured_is_refused(
    figure: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = saved(tmp_path / "good.json", rate(1, 2, 3))
    content = json.loads(Path(good).read_text())
    content["tables"][0]["figures"][0] |= figure
    bad = tmp_path / "bad.json"
    bad.write_text(json.dumps(content))

    assert main(["compare", good, str(bad)]) == 2
    assert "bad.json" in capsys.readouterr().err


def test_two_tables_of_one_title_cannot_be_told_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("1.json", "2.json"):
        saved(tmp_path / name, rate(1, 2, 3))

    assert main(["compare", str(tmp_path), str(tmp_path)]) == 2
    assert "both have the table 'a table'" in capsys.readouterr().err


def test_a_file_that_is_not_there_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = saved(tmp_path / "good.json", rate(1, 2, 3))

    assert main(["compare", good, str(tmp_path / "absent.json")]) == 2
    assert "absent.json: No such file" in capsys.readouterr().err


def test_an_empty_folder_has_no_result(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(tmp_path)]) == 2
    assert "no result" in capsys.readouterr().err


# --- report -------------------------------------------------------------------------------------


@pytest.fixture
def small_waves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(residents, "WARM_UP", 10)
    monkeypatch.setattr(residents, "WAVE", 100)


@pytest.mark.long
@pytest.mark.usefixtures("small_waves")
def test_the_report_shows_the_figures_of_real_results(tmp_path: Path) -> None:
    assert main([*TINY.split(), "--json", str(tmp_path / "session.json")]) == 0
    assert main(["residents", "--sessions", "250", "--json", str(tmp_path / "residents.json")]) == 0

    assert main(["report", str(tmp_path)]) == 0

    page = (tmp_path / "report.md").read_text()
    for saved_ in load(tmp_path).results:
        for table in saved_.result.tables:
            assert f"**{table.title}**" in page
            for name, values in table.rows.items():
                assert f"| {name} | {' | '.join(values)} |" in page
    assert page.count("**not measured**") == len(GOALS)  # of other sizes than the goals are for
    assert "Your machine" in page
    for name in ("throughput", "latency", "memory"):
        assert f"![{name}]({name}.svg)" in page
        assert (tmp_path / f"{name}.svg").read_text().startswith("<?xml")
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert not (tmp_path / "policies.svg").exists()


@pytest.mark.parametrize("one_table", [True, False])
def test_policies_and_peers_are_drawn_if_they_are_there(one_table: bool, tmp_path: Path) -> None:
    policies = [
        [Figure("events/s", (number, number + 5), of), Figure("at risk", (number - 1,), of, "events")]
        for number, of in enumerate(("write-through", "journaled") if one_table else ("actorbot", "actorbot"), 1)
    ]
    tables = [policies[0] + policies[1]] if one_table else policies
    result = Result("policies", {}, tuple(Table(f"policy {n}", tuple(one)) for n, one in enumerate(tables)), wrong=0)
    (tmp_path / "policies.json").write_text(json.dumps(result.as_json()))
    peers = Table(
        "redis", (rate(50, 60), Figure("events/s", (9, 10), "another")), {"actorbot": "", "third": "not | here"}
    )
    (tmp_path / "peers.json").write_text(json.dumps(Result("peers", {}, (peers,), wrong=0).as_json()))

    assert main(["report", str(tmp_path)]) == 0

    page = (tmp_path / "report.md").read_text()
    assert "![policies](policies.svg)" in page
    assert "![peers](peers.svg)" in page
    assert "| third |  | not \\| here |" in page


def test_the_goals_of_several_runs_stand_side_by_side(tmp_path: Path) -> None:
    name = "passivations/s"
    for folder, reached in (("first", 14_000.0), ("second", 16_000.0), ("third", 17_000.0)):
        result = resident(rate(reached, name=name))
        (tmp_path / folder).mkdir()
        result.conclude(str(tmp_path / folder / "residents.json"))

    assert main(["report", f"{tmp_path}/third", "--earlier", f"{tmp_path}/first", f"{tmp_path}/second"]) == 0

    page = (tmp_path / "third" / "report.md").read_text()
    assert "| passivations/s | ≥ 15,000 | 14,000 **missed** | 16,000 **reached** | 17,000 **reached** |" in page
    assert "| goal | wanted | run 1 | run 2 | run 3 |" in page


def test_a_void_result_is_named_and_fails(tmp_path: Path) -> None:
    saved(tmp_path / "a.json", rate(1, 2, 3), wrong=4)

    assert main(["report", str(tmp_path)]) == 1
    assert "**Void:** a.json: 4 counters were wrong" in (tmp_path / "report.md").read_text()


def test_without_matplotlib_the_report_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    saved(tmp_path / "a.json", rate(1, 2, 3))
    for name in [name for name in sys.modules if name in ("benchmarks._plots", "benchmarks._drawing")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)

    for argv in (["report", str(tmp_path)], ["all", "--out", str(tmp_path)]):
        assert main(argv) == 2
        assert "pip install '.[bench]'" in capsys.readouterr().err


def test_neither_a_password_nor_a_folder_of_mine_gets_into_a_result() -> None:
    assert without_password("--url redis://me:secret@host:1/0 -x") == "--url redis://host:1/0 -x"
    assert command(["session", "--json", "/home/me/a.json", "--url", "redis://me:secret@h/0"]) == (
        "python -m benchmarks session --url redis://h/0"
    )
    assert without_password("a@b redis://host/0") == "a@b redis://host/0"


# --- goals --------------------------------------------------------------------------------------


def decided(figure: str, results: Sequence[Result]) -> list[tuple[str, str]]:
    found: list[Decision] = [one for one in decide(results) if one.goal.figure == figure]
    return [(one.verdict, one.reached) for one in found if one.verdict != "not measured"]


def resident(*figures: Figure, sessions: int = 100_000, wrong: int = 0) -> Result:
    return Result("residents", {"sessions": sessions}, (Table("a table", figures),), wrong)


@pytest.mark.parametrize(
    ("values", "verdict"),
    [
        ((1_500.0,), "reached"),
        ((1_501.0,), "missed"),
        ((1_400.0, 1_450.0, 1_600.0), "reached, not in every run"),
        ((1_400.0, 1_550.0, 1_600.0), "missed, not in every run"),
    ],
)
def test_a_goal_is_decided_by_the_median(values: tuple[float, ...], verdict: str) -> None:
    name = "bytes beyond the encoded record"

    assert [one for one, _ in decided(name, [resident(rate(*values, name=name))])] == [verdict]


def test_a_lower_bound_is_reached_from_above() -> None:
    for value, verdict in ((15_000.0, "reached"), (14_999.0, "missed")):
        assert decided("passivations/s", [resident(rate(value, name="passivations/s"))])[0][0] == verdict


def test_a_verdict_on_short_runs_is_a_hint() -> None:
    figure = Figure("oldest unflushed state", (0.9,), "actorbot")
    for seconds, verdict in ((6.0, "reached"), (2.0, "reached, a hint: runs of less than 5 s")):
        options = {"store": "redis", "users": 1_000, "seconds": seconds}
        result = Result("policies", options, (Table("write-behind:max_delay=0.5; uniform", (figure,)),), 0)
        assert decided("oldest unflushed state", [result])[0][0] == verdict


def test_a_goal_is_not_decided_by_what_was_measured_otherwise() -> None:
    name, other = "passivations/s", Figure("passivations/s", (20_000.0,), "somebody else")

    assert decided(name, []) == []
    assert decided(name, [resident(rate(20_000, name=name), sessions=99)]) == []
    assert decided(name, [resident(other)]) == []
    assert decided(name, [resident(rate(20_000, name=name), wrong=1)]) == [("void", "20,000")]


def test_threads_are_compared_with_those_of_fewer_residents() -> None:
    few, many = "threads, 5,000 resident", "threads, 100,000 resident"
    for counts, verdict in (((4.0, 4.0), ["reached"]), ((4.0, 8.0), ["missed"]), ((0.0, 0.0), [])):
        result = resident(rate(counts[0], name=few), rate(counts[1], name=many))
        assert [one for one, _ in decided(many, [result])] == verdict


def test_every_goal_of_a_question_in_the_plan_is_measured_by_it() -> None:
    planned = [options(setting) for setting in PLAN]
    for goal in [goal for goal in GOALS if goal.question in {one["question"] for one in planned}]:
        assert [
            one
            for one in planned
            if one["question"] == goal.question and all(one.get(name) == it for name, it in goal.options.items())
        ], goal.text


# --- all ----------------------------------------------------------------------------------------


def options(setting: Setting, quick: bool = False) -> dict[str, Any]:
    """Return what the command line of a setting says, without measuring anything."""
    name, *rest = setting.argv(quick)
    parser = argparse.ArgumentParser()
    QUESTIONS[name].add_arguments(parser)
    found = vars(parser.parse_args(rest)) | {"question": name}
    if name == "session":
        found["handler"] = found["handler"] or ("async" if found["home"] == "loop" else "sync")
    return found


def test_every_setting_of_the_plan_can_be_measured_and_has_a_file_of_its_own() -> None:
    for quick in (True, False):
        chosen = _plan.settings(quick, None)
        assert len({setting.name for setting in chosen}) == len(chosen) > 10
        for setting in chosen:
            assert options(setting, quick)["question"] in QUESTIONS
    assert {setting.store for setting in _plan.settings(False, ["file"])} == {"file"}


@pytest.mark.long
def test_all_measures_the_plan_and_reports_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_plan, "PLAN", (Setting(TINY), Setting(f"{TINY} --home threads")))
    out = tmp_path / "out"

    assert main(["all", "--out", str(out)]) == 0

    found = load(out)
    assert [one.outcome for one in found.index.settings] == [DONE, DONE]
    assert [one.result.options["home"] for one in found.results] == ["loop", "threads"]
    page = (out / "report.md").read_text()
    assert f"`python -m benchmarks {TINY} --home threads`" in page
    assert "Not measured" not in page
    assert str(out) not in page

    monkeypatch.setattr(_plan, "PLAN", (Setting(TINY),))
    (out / "note.txt").write_text("stays")
    assert main(["all", "--out", str(out)]) == 0
    assert len(load(out).results) == 1  # those of the earlier run are gone
    assert (out / "note.txt").exists()
    assert main(["compare", str(out), str(out / "index.json"), "--fail"]) == 0


def test_all_measures_with_a_server_that_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_plan, "PLAN", (Setting(f"{TINY} --store redis"),))

    assert main(["all", "--out", str(tmp_path), "--redis", redis_servers.shared().url]) == 0
    assert load(tmp_path).index.servers["redis"].startswith("Redis ")


@pytest.mark.long
def test_all_starts_a_server_and_ends_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    redis_servers.require("redis")
    monkeypatch.setattr(_plan, "PLAN", (Setting(f"{TINY} --store redis"),))

    assert main(["all", "--out", str(tmp_path)]) == 0

    (result,) = load(tmp_path).results
    with pytest.raises(_own_servers.NoServerError), _own_servers.server("redis", result.result.options["url"]):
        pass


def test_what_is_skipped_or_fails_is_named_and_the_rest_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = (Setting(f"{TINY} --store redis"), Setting(f"{TINY} --policy write-sideways"), Setting(TINY))
    monkeypatch.setattr(_plan, "PLAN", plan)
    nobody = f"redis://me:secret@127.0.0.1:{redis_servers.free_port()}/0"

    assert main(["all", "--out", str(tmp_path), "--redis", nobody]) == 1

    skipped, failed, done = (one.outcome for one in load(tmp_path).index.settings)
    page, said = (tmp_path / "report.md").read_text(), capsys.readouterr().err
    assert skipped.startswith("skipped: no answer at redis://127.0.0.1:")
    assert failed.startswith("failed with status 2: ")
    assert "write-sideways" in failed
    assert done == DONE
    for outcome in (skipped, failed):
        assert outcome in page
        assert outcome in said
    assert "secret" not in page + said + (tmp_path / "index.json").read_text()


def test_a_setting_that_takes_too_long_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_plan, "PLAN", (Setting(f"{TINY} --seconds 50"),))
    monkeypatch.setattr(everything, "LIMIT", 0.1)

    assert main(["all", "--out", str(tmp_path)]) == 1
    assert load(tmp_path).index.settings[0].outcome.startswith("failed: it took more than")


@pytest.mark.parametrize("number", tiers([signal.SIGINT, signal.SIGTERM]))
def test_interrupted_it_reports_what_is_there(number: signal.Signals, tmp_path: Path) -> None:
    program = (
        "import sys; from benchmarks import _plan; from benchmarks.__main__ import main\n"
        f"_plan.PLAN = (_plan.Setting({TINY!r}), _plan.Setting({TINY + ' --seconds 500'!r}), _plan.Setting({TINY!r}))\n"
        "sys.exit(main(sys.argv[1:]))"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, "all", "--out", str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=everything.ROOT,
        env=os.environ,
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("[2/3]"):  # it may be anywhere from here on
                process.send_signal(number)
                break
        process.communicate(timeout=50)

    assert process.returncode == 130
    outcomes = [one.outcome for one in load(tmp_path).index.settings]
    assert outcomes == [DONE, everything.INTERRUPTED, everything.INTERRUPTED]
    assert "interrupted" in (tmp_path / report.PAGE).read_text()


# --- the command --------------------------------------------------------------------------------


def test_a_server_that_is_not_there_is_named_in_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        main(["session", "--store", "redis", "--url", "redis://127.0.0.1:1/0", "--repeats", "1", "--events", "10"]) == 2
    )
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("the store cannot be reached: ")
    assert "127.0.0.1:1" in said
    assert "--url" in said


def test_without_what_the_benchmarks_need_they_say_what_to_install() -> None:
    program = "import sys, runpy; sys.modules['rich'] = None; runpy.run_module('benchmarks', run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=60)

    assert done.returncode == 1
    assert done.stderr == "the benchmarks need rich, which is not installed: pip install '.[bench]'\n"
