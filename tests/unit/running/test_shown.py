"""An author's mistake is seen, also where nobody has set up logging."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.programs import run

TYPO = """
import logging
from actorbot import Bot, Event, SessionManager

class ListBot(Bot):
    async def deliver(self, session_id, message):
        print(session_id, message)

    async def receive(self):
        await self.manager.submit("list:ann", Event.from_text("hi"))

bot = ListBot()

@bot.on_event
async def echo(context):
    context.session["n"] = context.sessions["n"] + 1
"""
MISTAKE = "AttributeError: 'Context' object has no attribute 'sessions'"


def test_a_mistake_in_a_handler_is_shown_with_its_place_and_ends_nothing(tmp_path: Path) -> None:
    status, _, err = run(f"{TYPO}bot.run()", tmp_path)

    assert status == 0
    assert err.count(MISTAKE) == 1
    assert "'list:ann'" in err
    assert 'File "<string>", line 16, in echo' in err


def test_a_mistake_in_deliver_is_shown_with_its_place(tmp_path: Path) -> None:
    code = TYPO.replace('context.session["n"] = context.sessions["n"] + 1', 'context.send_text("hi")')
    status, _, err = run(code.replace("print(session_id, message)", "raise LookupError(1)") + "bot.run()", tmp_path)

    assert status == 0
    assert err.count("LookupError: 1") == 1
    assert "in deliver" in err


@pytest.mark.parametrize(
    ("setting", "shown"),
    [
        ("logging.basicConfig()", 1),
        ("logging.basicConfig(filename='log')", 0),
        ("logging.getLogger('actorbot').addHandler(logging.StreamHandler())", 1),
        ("logging.getLogger('actorbot').propagate = False", 0),
        ("logging.getLogger('actorbot').setLevel(logging.CRITICAL)", 0),
        ("logging.lastResort = None", 0),
    ],
)
def test_who_sets_up_logging_decides_what_is_shown(setting: str, shown: int, tmp_path: Path) -> None:
    _, _, err = run(f"{TYPO}{setting}\nbot.run()", tmp_path)

    assert err.count(MISTAKE) == shown


def test_logging_that_is_set_up_while_the_bot_runs_is_not_doubled(tmp_path: Path) -> None:
    code = TYPO.replace("async def receive(self):", "async def receive(self):\n        logging.basicConfig()")
    _, _, err = run(f"{code}bot.run()", tmp_path)

    assert err.count(MISTAKE) == 1


def test_a_bot_that_has_run_shows_nothing_of_others(tmp_path: Path) -> None:
    after = "with SessionManager(handler=echo) as m: m.submit_sync('ann', 1)"
    _, _, err = run(f"{TYPO}bot._options['handler'] = lambda context: None\nbot.run()\n{after}", tmp_path)

    assert err == ""
