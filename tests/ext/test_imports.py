"""A program that takes every warning for an error can import each of the adapters."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.tiers import tiers

ADAPTERS = ["agents", "aiogram", "asgi", "discord", "line", "ptb", "slack", "webhooks"]


@pytest.mark.parametrize("module", tiers(ADAPTERS, "discord"))
def test_importing_an_adapter_is_quiet_though_every_warning_is_an_error(module: str) -> None:
    code = f"import actorbot.ext.{module}"

    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=120, check=False
    )

    assert (done.returncode, done.stderr) == (0, "")
