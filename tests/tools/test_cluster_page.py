"""docs/cluster.md: its start runs, and its defaults and rights are those of the code."""

from __future__ import annotations

import inspect
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from actorbot.cluster import Cluster, Shard
from actorbot.cluster._rights import RIGHTS
from tests import ROOT
from tests.servers.redis_servers import QUICK, Server

PAGE = (ROOT / "docs" / "cluster.md").read_text("utf-8")
PROGRAMS = dict(re.findall(r"```python\n# (\w+\.py): .*?\n(.*?)```", PAGE, re.DOTALL))
PATIENCE = 60.0  # seconds for a program


def test_a_caller_of_the_page_is_answered_by_a_shard_of_the_page(tmp_path: Path) -> None:
    def run(*program: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, *program], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    with Server(QUICK, tmp_path) as server:
        for name, program in PROGRAMS.items():
            (tmp_path / name).write_text(program.replace("redis://localhost/0", server.url))
        shard = run("-c", "import bot; bot.make_shard().run()")
        said = [run("say.py").communicate(timeout=PATIENCE) for _ in range(2)]
        shard.send_signal(signal.SIGTERM)
        shown = shard.communicate(timeout=PATIENCE)

    assert said == [("1\n", ""), ("DUPLICATE\n", "")]
    assert (shard.returncode, *shown) == (0, "telegram:42 That was number 1\n", "")


@pytest.mark.parametrize("kind", [Shard, Cluster])
def test_the_page_has_the_defaults_of_the_code(kind: type) -> None:
    table = PAGE.partition(f"| option of `{kind.__name__}` |")[2].partition("\n\n")[0]
    named = dict(re.findall(r"^\| `(\w+)=([^`]+)`", table, re.MULTILINE))
    parameters = inspect.signature(kind).parameters

    assert named
    assert {name: str(parameters[name].default) for name in named} == {
        name: text.strip('"').replace("_", "") for name, text in named.items()
    }


def test_the_page_has_the_rights_that_a_server_is_asked_for() -> None:
    assert f"~actorbot-cluster:{{mybot}}* {RIGHTS}\n" in PAGE
