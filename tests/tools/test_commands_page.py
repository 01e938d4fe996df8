"""docs/commands.md: what it shows is what the command prints."""

from __future__ import annotations

import asyncio
import re
import shlex
import time
from dataclasses import replace
from pathlib import Path

import pytest

from actorbot import FileSessionStore
from actorbot.cluster import Shard
from actorbot.stores import Write
from actorbot.testing._expect import make_record, write_all
from tests import ROOT
from tests.servers.redis_servers import QUICK, Server
from tests.tools.test_cli import run, run_apart
from tests.unit.cluster.shards import bench

DAY = 86_400
PAGE = (ROOT / "docs" / "commands.md").read_text("utf-8")
SHOWN = {  # by command: what follows it in the page
    command: output
    for block in re.findall(r"^```console\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    for command, output in re.findall(r"^\$ (.*)\n((?:[^$].*\n|\n)*)", block, re.MULTILINE)
}


def without_times(text: str) -> list[str]:
    """Return the lines in order, since a folder has none; with a word in place of each time."""
    text = re.sub(r"\d{4}-\d\d-\d\d \d\d:\d\d", "<when>", text)
    return sorted(re.sub(r"\((in )?\d+ \w+?s?( ago)?\) *", "<how far>", text).splitlines())


def test_what_the_page_shows_of_sessions_is_what_is_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("VISUAL", raising=False)
    monkeypatch.setenv("EDITOR", "sed -i s/true/false/")
    store, now = FileSessionStore("sessions").init(), time.time()
    tim = make_record("telegram:42", {"nickname": "Tim", "paid": True}, expires_at=now + 3 * DAY)
    ann = make_record("telegram:43", {"nickname": "Ann", "paid": True}, expires_at=now + 4 * DAY)
    write_all(store, [Write(replace(tim, version=4), b""), Write(replace(ann, version=5), b"")])
    store.close()

    done = []
    for command, output in SHOWN.items():
        name, verb, *rest = shlex.split(command)
        if (name, verb) == ("actorbot", "sessions") and "copy" not in rest:
            words = [word.replace("file:///var/lib/bot/sessions", f"file://{tmp_path}/sessions") for word in rest]
            printed = run_apart(verb, *words, cwd=tmp_path)
            assert without_times(printed.stdout + printed.stderr) == without_times(output), command
            done.append(rest[0])
    assert done == ["ls", "show", "edit", "rm", "export"]


async def test_what_the_page_shows_of_a_cluster_is_what_is_printed() -> None:
    (shown,) = (output for command, output in SHOWN.items() if command.startswith("actorbot cluster status"))
    (leaving,) = (output for command, output in SHOWN.items() if command.startswith("actorbot cluster drain"))
    async with bench() as b:
        shard = await b.shard()
        printed = await asyncio.to_thread(run, "cluster", "status", b.url, b.name)
        leave = asyncio.create_task(leave_when_asked(shard))
        drained = await asyncio.to_thread(run, "cluster", "drain", b.url, b.name, shard.stats().member)
        await leave

    def shape(text: str) -> list[str]:
        return [re.sub(r"\S*\d\S*", "N", line).split(":")[-1].strip() for line in text.splitlines()]

    assert shape(printed.stdout)[0].split() == shape(shown)[0].split()
    assert shape(printed.stdout.replace(f"{b.name}:", "mybot:"))[-1] == shape(shown)[-1]
    assert shape(drained.stderr + drained.stdout)[-2:] == shape(leaving)[-2:]


async def leave_when_asked(shard: Shard) -> None:
    await shard.receive()
    await shard.close()


def test_what_the_page_shows_of_the_doctor_is_what_it_looks_at(tmp_path: Path) -> None:
    (output,) = (output for command, output in SHOWN.items() if command.startswith("actorbot doctor"))
    with Server(QUICK, tmp_path, "--maxmemory-policy", "allkeys-lru", "--appendfsync", "everysec") as server:
        printed = run("doctor", server.url).stdout

    def columns(text: str) -> list[tuple[str, str]]:
        return [(line[:7].strip(), line[9:25].strip()) for line in text.splitlines()]

    assert columns(printed) == columns(output)
