"""Callers are told once what became of their entries."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

from actorbot._journal.ahead import Ahead
from actorbot._journal.untold import Untold
from actorbot._state.committed import NOTHING
from actorbot.errors import ActorbotError
from tests.waiting import until_sync


class Noted(Ahead):
    def __init__(self, session_id: str, told: Counter[str]) -> None:
        super().__init__(session_id, NOTHING, b"", ())
        self.told = told

    def settle(self, error: ActorbotError | None) -> None:
        self.told[self.session_id] += 1


def test_a_late_transaction_that_comes_back_while_callers_are_told_tells_none_of_them_again() -> None:
    told: Counter[str] = Counter()
    late = [True]

    def post(function: Callable[..., object], *args: Any) -> None:
        if late:
            late.clear()
            untold.add([Noted("meanwhile", told)], None)
            untold.tell_while_writing()
        function(*args)

    untold = Untold(post)
    for session_id in ("first", "second"):
        untold.add([Noted(session_id, told)], None)
    untold.tell()
    until_sync(lambda: len(told) == 3)
    untold.close()
    assert told == {"first": 1, "second": 1, "meanwhile": 1}
    assert len(untold) == 0
