"""The examples of the page about running a bot are what systemd and Docker take."""

from __future__ import annotations

import configparser
import inspect
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from actorbot import SessionManager
from tests import ROOT

PAGE = (ROOT / "docs" / "running.md").read_text(encoding="utf-8")
ENOUGH = inspect.signature(SessionManager).parameters["close_timeout"].default + 5


def block(language: str) -> str:
    (text,) = re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)
    return str(text)


def test_the_unit_restarts_a_bot_that_failed_and_gives_it_the_time_to_close() -> None:
    unit = configparser.ConfigParser(strict=True)
    unit.optionxform = str  # type: ignore[assignment, method-assign]
    unit.read_string(block("ini"))
    service = unit["Service"]

    assert service["Restart"] == "on-failure"
    assert float(service["TimeoutStopSec"]) >= ENOUGH
    assert "KillSignal" not in service


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd here")
def test_systemd_takes_the_unit(tmp_path: Path) -> None:
    unit = tmp_path / "bot.service"
    unit.write_text(block("ini").replace("/opt/bot/.venv/bin/python", sys.executable), encoding="utf-8")
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(unit)], capture_output=True, text=True, timeout=60, check=False
    )

    assert not [line for line in done.stderr.splitlines() if "bot.service" in line]


def test_the_container_s_first_process_is_the_bot() -> None:
    (command,) = re.findall(r"^CMD (.*)$", block("dockerfile"), re.MULTILINE)

    assert json.loads(command) == ["python", "bot.py"]
    assert "ENTRYPOINT" not in block("dockerfile")


def test_docker_waits_until_the_bot_has_closed() -> None:
    waits = [int(each) for each in re.findall(r"(?:--stop-timeout=|stop_grace_period: )(\d+)", PAGE)]

    assert len(waits) == 2
    assert min(waits) >= ENOUGH
