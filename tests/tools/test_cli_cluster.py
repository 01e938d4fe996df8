"""`actorbot cluster status` and `drain`: what they say of a cluster, and of what is not there."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from typing import Any

import pytest
from click.testing import Result

from actorbot import Context
from actorbot.cluster._slots import slot_of
from tests.servers import redis_servers
from tests.servers.redis_servers import QUICK, Server, free_port
from tests.tools.test_cli import SECRET, run
from tests.unit.cluster.shards import SLOTS, Bench, bench
from tests.waiting import HANGS, soon, until


async def ask(*args: str) -> Result:
    """Run the command on another thread, while the shards go on here."""
    return await asyncio.wait_for(asyncio.to_thread(run, "cluster", *args), HANGS)


async def status(b: Bench) -> tuple[int, Any]:
    done = await ask("status", b.url, b.name, "--json")
    return done.exit_code, json.loads(done.stdout)


async def test_the_status_shows_the_members_their_slots_and_what_waits() -> None:
    finish = asyncio.Event()

    async def slow(context: Context) -> None:
        await finish.wait()

    async with bench() as b:
        first, second, cluster = await b.shard(slow), await b.shard(slow), await b.cluster()
        await until(lambda: len(first.stats().slots) == len(second.stats().slots) == SLOTS // 2)
        await cluster.submit("ann", "hi")
        code, said = await status(b)
        shown = await ask("status", b.url, b.name)
        finish.set()

    assert (code, shown.exit_code) == (0, 0)
    assert (said["cluster"], said["slots"], said["unowned"], said["lag"]) == (b.name, SLOTS, [], 1)
    assert [(member["slots"], member["leaving"]) for member in said["members"]] == [(SLOTS // 2, False)] * 2
    owner = said["leases"][slot_of("ann", SLOTS)]
    (ann,) = [member for member in said["members"] if member["id"] == owner["owner"]]
    assert (owner["waiting"], ann["waiting"], ann["epoch"] >= owner["epoch"]) == (1, 1, True)
    headings, *rows, summary = shown.stdout.splitlines()
    assert headings.split() == ["MEMBER", "SLOTS", "LAG", "IN", "HAND", "HANDLED", "RERUNS", "CONFLICTS", "FENCED", "EPOCH",
                                "LEASE", "PROGRAM", "SINCE"]  # fmt: skip
    assert [row.split()[:2] for row in rows] == [[member["id"], "4"] for member in said["members"]]
    assert summary == f"cluster {b.name}: 8 slots, 0 without an owner; 1 event waits"


async def test_on_a_narrow_terminal_the_figures_that_matter_most_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich takes that for a terminal
    async with bench() as b:
        await b.shard()
        headings = {}
        for columns in (200, 100, 60):
            monkeypatch.setenv("COLUMNS", str(columns))
            lines = (await ask("status", b.url, b.name)).stdout.splitlines()
            assert max(map(len, lines[:-1])) <= columns
            assert len(lines) == 3
            headings[columns] = lines[0].split()

    assert headings[200][-2:] == ["PROGRAM", "SINCE"]
    assert headings[100][-3:] == ["FENCED", "EPOCH", "LEASE"]
    assert headings[60] == ["MEMBER", "SLOTS", "LAG", "IN", "HAND", "HANDLED", "LEASE"]


async def test_slots_that_nobody_owns_are_named_and_the_exit_status_says_so() -> None:
    async with bench() as b:
        shard, cluster = await b.shard(), await b.cluster()
        await shard.close()
        await cluster.submit("ann", "hi")
        code, said = await status(b)
        shown = await ask("status", b.url, b.name)

    assert (code, said["members"], said["unowned"]) == (1, [], list(range(SLOTS)))
    assert shown.exit_code == 1
    assert shown.stderr == (
        "there is no member\nError: no slot has an owner; 1 event waits there until a shard takes them: `actorbot cluster"
        " run` starts one\n"
    )


async def test_the_slots_of_a_shard_whose_lease_ran_out_have_no_owner() -> None:
    async with bench() as b:
        shard = await b.shard(lease=60.0)  # which is not renewed while the test looks
        b.let_run_out(shard.stats().member)
        redis_servers.shared().ask("HSET", b.key("leases"), 3, "9|0|somebody-else", 5, "9|0|")
        code, said = await status(b)
        b.take_over("ann", owner="alive")  # so that not all is lost
        shown = await ask("status", b.url, b.name)

    assert (code, said["unowned"]) == (1, list(range(SLOTS)))
    assert "ran out" in shown.stdout
    slot = slot_of("ann", SLOTS)
    others = ", ".join(f"{a}-{b}" if a < b else f"{a}" for a, b in ((0, slot - 1), (slot + 1, SLOTS - 1)) if a <= b)
    assert f"Error: 7 slots without an owner ({others}); 0 events wait there" in shown.stderr


async def test_a_cluster_that_was_never_started_is_told_apart_from_one_without_members() -> None:
    url = redis_servers.shared().url
    for command in (("status",), ("drain", "--all")):
        done = await ask(*command, url, "nobody")
        assert (done.exit_code, done.stdout) == (1, "")
        assert done.stderr == (
            "Error: cluster nobody: this server knows none of that name, since no shard of it was ever started there\n"
        )


@pytest.mark.parametrize("command", ["status", "drain --all"])
def test_a_server_that_is_not_there_or_refuses_is_named_without_the_password(command: str) -> None:
    port = free_port()
    away = run("cluster", *command.split(), f"redis://bot:{SECRET}@127.0.0.1:{port}/0", "mybot")
    refused = run("cluster", *command.split(), f"redis://bot:{SECRET}@127.0.0.1:{redis_servers.shared().port}", "mybot")

    assert (away.exit_code, refused.exit_code) == (1, 1)
    assert away.stderr.startswith(f"Error: cluster mybot: 127.0.0.1:{port} does not answer: ConnectionRefusedError")
    assert refused.stderr == (
        f"Error: cluster mybot: 127.0.0.1:{redis_servers.shared().port} does not accept this user or password\n"
    )
    assert SECRET not in away.output + refused.output + str(away.exception) + str(refused.exception)


@pytest.mark.parametrize(
    ("url", "name", "said"),
    [
        ("http://localhost", "mybot", "expected redis://"),
        ("redis://localhost", "my bot", "cluster='my bot': expected a name of 1 to 100 printable characters"),
    ],
)
def test_a_url_or_a_name_that_is_none_is_one_line(url: str, name: str, said: str) -> None:
    done = run("cluster", "status", url, name)

    assert (done.exit_code, done.stdout) == (1, "")
    assert said in done.stderr
    assert done.stderr.count("\n") == 1


def test_without_its_extra_the_command_says_what_to_install_and_the_others_work() -> None:
    code = (
        "import sys\n"
        "sys.modules['redis'] = sys.modules['hiredis'] = None\n"
        "from actorbot.cli._command import command\n"
        "command(prog_name='actorbot')\n"
    )

    def tried(*args: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", code, *args], capture_output=True, text=True, timeout=HANGS, check=False
        )

    missing = tried("cluster", "status", "redis://localhost", "mybot")
    assert missing.returncode == 1
    assert missing.stderr.startswith("Error: actorbot.cluster needs redis-py")
    assert missing.stderr.count("\n") == 1
    assert "cluster" in tried("--help").stdout
    assert tried("doctor", "memory://").returncode == 0


async def test_a_member_that_is_drained_gives_its_slots_to_the_others_and_leaves() -> None:
    async with bench() as b:
        first, second, cluster = await b.shard(), await b.shard(), await b.cluster()
        await until(lambda: len(second.stats().slots) == SLOTS // 2)
        await asyncio.gather(*(cluster.dispatch(f"user:{number}", "before") for number in range(20)))
        name = first.stats().member
        leaves = asyncio.create_task(_run(first))
        done = await ask("drain", b.url, b.name, name[:-1])  # the beginning of an id will do
        await soon(leaves)

        assert (done.exit_code, done.stdout) == (0, "1 member left\n")
        lines = done.stderr.splitlines()
        assert lines[0] == f"{name}: has 4 slots"
        assert lines[-1] == f"{name}: has left"
        assert [member.slots for member in await cluster.members()] == [SLOTS]
        counts = await asyncio.gather(*(cluster.dispatch(f"user:{number}", "after") for number in range(20)))
        assert counts == [2] * 20


async def _run(shard: Any) -> None:
    """Do what `Shard.run` does once it has started."""
    await shard.receive()
    await shard.close()


async def test_when_all_leave_events_wait_and_the_command_says_so() -> None:
    async with bench() as b:
        shards = [await b.shard(), await b.shard()]
        leave = [asyncio.create_task(_run(shard)) for shard in shards]
        done = await ask("drain", b.url, b.name, "--all")
        await soon(asyncio.gather(*leave))
        again = await ask("drain", b.url, b.name, "--all")

    assert (done.exit_code, done.stdout) == (0, "2 members left\n")
    assert "note: nobody else is there; events wait in the log until a shard is started\n" in done.stderr
    assert (again.exit_code, again.stderr) == (0, "there is no member that could leave\n")


async def test_a_member_that_does_not_leave_in_time_is_named_and_goes_on_leaving() -> None:
    finish = asyncio.Event()

    async def slow(context: Context) -> None:
        await finish.wait()

    async with bench() as b:
        shard, cluster = await b.shard(slow), await b.cluster()
        await cluster.submit("ann", "hi")
        await until(lambda: shard.stats().in_hand == 1)
        name = shard.stats().member
        leaves = asyncio.create_task(_run(shard))
        done = await ask("drain", b.url, b.name, name, "--timeout", "0.5")
        finish.set()
        await soon(leaves)

    assert done.exit_code == 1
    assert done.stderr.splitlines()[-1].startswith(f"Error: {name}: has ")
    assert done.stderr.endswith("after 0.5 s, and goes on leaving\n")


async def test_a_member_that_has_ended_hears_nothing_and_is_named() -> None:
    async with bench() as b:
        await (await b.shard()).close()
        redis_servers.shared().ask("ZADD", b.key("members"), 1, "ended-1-ab")
        named = await ask("drain", b.url, b.name, "ended-1-ab", "--timeout", "0")
        every = await ask("drain", b.url, b.name, "--all")

    assert named.exit_code == 1
    assert "Error: ended-1-ab: its lease ran out" in named.stderr
    assert (every.exit_code, every.stderr) == (0, "there is no member that could leave\n")


async def test_a_drain_asks_for_members_that_are_there() -> None:
    async with bench() as b:
        first, second = await b.shard(), await b.shard()
        names = [first.stats().member, second.stats().member]
        host = names[0].rpartition("-")[0].rpartition("-")[0]
        unknown = await ask("drain", b.url, b.name, "web-9")
        ambiguous = await ask("drain", b.url, b.name, host)
        nobody = await ask("drain", b.url, b.name)
        both = await ask("drain", b.url, b.name, names[0], "--all")

    assert [done.exit_code for done in (unknown, ambiguous, nobody, both)] == [1, 1, 2, 2]
    assert unknown.stderr == f"Error: 'web-9' is no member; there are: {', '.join(names)}\n"
    assert ambiguous.stderr == f"Error: {host!r} is the beginning of several members: {', '.join(names)}\n"
    assert nobody.stderr.endswith("Error: name the members that are to leave, or say --all\n")
    assert both.stderr.endswith("Error: name the members that are to leave, or say --all\n")


def test_a_server_that_goes_while_members_leave_ends_the_command(tmp_path: Any) -> None:
    with Server(QUICK, tmp_path) as server:
        server.ask("HSET", "actorbot-cluster:{mybot}:meta", "protocol", 1, "slots", 8, "max_waiting", 10)
        server.ask("ZADD", "actorbot-cluster:{mybot}:members", 2**52, "web-1-1-ab")
        with subprocess.Popen(
            [sys.executable, "-m", "actorbot", "cluster", "drain", server.url, "mybot", "web-1-1-ab"],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        ) as process:  # fmt: skip
            assert process.stderr is not None
            assert process.stderr.readline().startswith("note:")
            assert process.stderr.readline() == "web-1-1-ab: has 0 slots\n"
            server.kill()
            said = process.stderr.read()

    assert process.returncode == 1
    assert said.startswith(f"Error: cluster mybot: 127.0.0.1:{server.port} ")
    assert said.count("\n") == 1
