"""A manager over a store that fails, on a clock that a machine moves, against a plain dict:
whatever the order, nothing is lost.
"""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from actorbot import DUPLICATE, Context, SessionManager, errors
from actorbot.errors import OutcomeUnknownError
from actorbot.testing import FaultyStore, ManualClock
from tests import inside

USERS = st.sampled_from(["ann", "bob", "cyd"])
EVENT_IDS = st.sampled_from([None, "1", "2", "3"])
STEPS = 50
RUNS, MORE_RUNS = 60, 400


class RefusedError(Exception):
    pass


async def handle(context: Context) -> int:
    context.session["n"] = context.session.get("n", 0) + 1
    context.send_text(f"{context.event}")
    if context.event == "fail":
        raise RefusedError
    if context.event == "reset":
        context.end_session()
    return int(context.session["n"])


class Sessions(RuleBasedStateMachine):
    """`model` is what each user must find; `seen` the event ids that counted since the session
    began.
    """

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.store = FaultyStore()
        self.store.expires_in = 1_000.0
        self.clock = ManualClock()
        self.model: dict[str, int] = {}
        self.seen: dict[str, set[str]] = {}
        self.last: dict[str, float] = {}
        self.reset_at: dict[str, float] = {}
        self.said: list[str] = []
        self.expected: list[str] = []
        self.down = False
        self.manager: SessionManager | None = None

    def do(self, coroutine: Any) -> Any:
        return self.loop.run_until_complete(asyncio.wait_for(coroutine, 20))

    @initialize()
    def open(self) -> None:
        async def deliver(session_id: str, text: str) -> None:
            self.said.append(f"{session_id} {text}")

        self.manager = SessionManager(
            self.store, handler=handle, deliver=deliver, clock=self.clock, idle_timeout=30.0, close_timeout=2.0
        )
        self.do(self.manager.start())

    @property
    def at(self) -> SessionManager:
        assert self.manager is not None
        return self.manager

    def resident(self) -> set[str]:
        return {session_id for session_id, _ in self.at.resident()}

    def end_what_is_old(self) -> None:
        for user in [user for user, last in self.last.items() if self.clock.wall() - last >= self.store.expires_in]:
            self.model.pop(user, None)
            self.seen.pop(user, None)
            del self.last[user]

    def reachable(self, user: str) -> bool:
        return not self.down or user in self.resident()

    @rule(user=USERS, event=st.sampled_from(["hi", "hi", "hi", "fail", "reset"]), event_id=EVENT_IDS)
    def dispatch(self, user: str, event: str, event_id: str | None) -> None:
        self.end_what_is_old()
        if not self.reachable(user):
            try:
                self.do(self.at.dispatch(user, event, event_id=event_id))
            except errors.StoreUnavailableError:
                return
            raise AssertionError("an unreadable session was served")
        if self.clock.wall() - self.reset_at.get(user, self.clock.wall()) >= 1_000.0:
            event_id = None  # a destroyed session's ids are forgotten with its tombstone, some time after an hour
        counted = event_id is not None and event_id in self.seen.get(user, ())
        try:
            answer = self.do(self.at.dispatch(user, event, event_id=event_id))
        except RefusedError:
            assert event == "fail"
            assert not counted
            return
        if counted:
            assert answer is DUPLICATE
            return
        assert answer == self.model.get(user, 0) + 1
        self.expected.append(f"{user} {event}")
        self.last[user] = self.clock.wall()
        if event_id is not None:
            self.seen.setdefault(user, set()).add(event_id)
        if event == "reset":
            self.model.pop(user, None)
            self.reset_at[user] = self.clock.wall()
            del self.last[user]
        else:
            self.model[user] = answer

    @rule(user=USERS)
    def borrow(self, user: str) -> None:
        self.end_what_is_old()
        if not self.reachable(user):
            return

        async def add() -> None:
            async with self.at.turn(user) as turn:
                turn.session["n"] = turn.session.get("n", 0) + 1

        self.do(add())
        self.model[user] = self.model.get(user, 0) + 1
        self.last[user] = self.clock.wall()

    @rule(seconds=st.sampled_from([0.1, 1.0, 6.0, 40.0, 500.0]))
    def let_time_pass(self, seconds: float) -> None:
        self.do(self.clock.advance(seconds))

    @precondition(lambda self: not self.down)
    @rule()
    def lose_the_store(self) -> None:
        self.store.outage()
        self.down = True

    @precondition(lambda self: self.down)
    @rule()
    def find_the_store(self) -> None:
        self.store.restore()
        self.down = False
        self.do(self.clock.advance(10.0))

    @precondition(lambda self: not self.down)
    @rule(writes=st.integers(1, 2))
    def lose_replies(self, writes: int) -> None:
        self.store.lose_replies(writes)

    @precondition(lambda self: not self.down)
    @rule(user=USERS)
    def destroy(self, user: str) -> None:
        async def destroy_and_let_time_pass() -> None:
            while True:
                task = asyncio.ensure_future(self.at.destroy(user))
                while not task.done():
                    await self.clock.advance(0.2)
                    await asyncio.sleep(0)
                try:
                    return await task
                except OutcomeUnknownError:
                    pass  # its call took long by this clock, which runs ahead of the store's thread: once more

        self.do(destroy_and_let_time_pass())
        self.model.pop(user, None)
        self.seen.pop(user, None)

    @precondition(lambda self: not self.down)
    @rule()
    def restart(self) -> None:
        self.store.lose_replies(0)
        self.do(self.clock.advance(10.0))
        report = self.do(self.at.close())
        assert report.clean, report
        self.open()

    @invariant()
    def everybody_finds_what_was_acknowledged(self) -> None:
        if self.manager is None:
            return
        self.end_what_is_old()
        for user in ("ann", "bob", "cyd"):
            if self.reachable(user):
                state = self.do(self.at.peek(user))
                assert (state or {}).get("n", 0) == self.model.get(user, 0), user

    @invariant()
    def replies_are_those_of_acknowledged_events_in_order(self) -> None:
        if self.manager is None:
            return
        self.do(inside.home(self.at).wait(inside.outbox(self.at).emptied()))
        for user in ("ann", "bob", "cyd"):
            said = [each for each in self.said if each.startswith(user)]
            assert said == [each for each in self.expected if each.startswith(user)]

    def teardown(self) -> None:
        self.store.restore()
        self.store.lose_replies(0)
        if self.manager is not None:
            self.do(self.manager.close())
        self.loop.close()


Sessions.TestCase.settings = settings(max_examples=RUNS, stateful_step_count=STEPS, deadline=None)
TestSessions = pytest.mark.timeout(600)(Sessions.TestCase)


class MoreSessions(Sessions):
    pass


MoreSessions.TestCase.settings = settings(max_examples=MORE_RUNS, stateful_step_count=STEPS, deadline=None)
TestMoreSessions = pytest.mark.long(pytest.mark.timeout(1_200)(MoreSessions.TestCase))
