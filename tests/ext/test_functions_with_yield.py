"""A function with a `yield` is refused where a bot library's adapter is given one."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest

from actorbot import SessionManager
from actorbot.errors import ConfigError
from actorbot.ext.discord import in_turn as discord_in_turn
from actorbot.ext.line import listener as line_listener
from actorbot.ext.slack import in_turn as slack_in_turn
from actorbot.ext.webhooks import Signed, Telegram
from tests.generators import WITH_YIELD, async_generator, generator, later, logged, refuses


@pytest.mark.parametrize("function", WITH_YIELD.values(), ids=WITH_YIELD)
def test_the_bots_of_other_libraries_refuse_it_too(function: Callable[..., Any]) -> None:
    manager = SessionManager(handler=len)
    for decorate, field in ((slack_in_turn, "listener"), (discord_in_turn, "handler"), (line_listener, "listener")):
        with refuses(field):
            decorate(manager)(function)
    for make in (slack_in_turn, discord_in_turn):
        with refuses("session_id"):
            make(manager, session_id=function)
    with refuses("session_id"):
        Telegram("secret", session_id=function)
    for field in ("session_id", "event_id", "text"):
        with refuses(field):
            Signed("secret", **{"session_id": str, field: function})


@pytest.mark.parametrize("verify", [generator, async_generator, later, logged(generator)])
def test_a_platform_whose_check_of_a_signature_would_not_run_is_refused(verify: Callable[..., Any]) -> None:
    mine = type("Mine", (Telegram,), {"verify": verify})

    with pytest.raises(ConfigError, match=r"^Mine\.verify="):
        mine("secret")


def test_what_nobody_awaits_is_refused_as_an_async_def() -> None:
    manager = SessionManager(handler=len)

    for field, give in {
        "session_id": lambda: Telegram("secret", session_id=later),
        "text": lambda: Signed("secret", session_id=str, text=functools.partial(later)),
        "listener": lambda: line_listener(manager)(later),
    }.items():
        with pytest.raises(ConfigError, match=f"^{field}=.*a plain `def`"):
            give()
    for make in (slack_in_turn, discord_in_turn):
        with pytest.raises(ConfigError, match=r"^session_id=.*a plain `def`"):
            make(manager, session_id=later)
