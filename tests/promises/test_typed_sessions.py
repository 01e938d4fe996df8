"""A session of the author's own type: what is kept comes back as it was, and what its type refuses
is never committed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import pytest

from actorbot import Context, FlushPolicy, SessionManager, errors
from actorbot.testing import ManualClock
from tests.backends import each_store
from tests.homes import both_homes


@dataclass
class Idle:
    pass


@dataclass
class AskingName:
    tries: int = 0


@dataclass
class AskingAge:
    tries: int = 0
    name: str = ""


@dataclass
class Talk:
    step: AskingAge | AskingName | Idle = field(default_factory=Idle)
    history: list[AskingAge | AskingName] = field(default_factory=list)


TALK = Talk(AskingName(2), [AskingName(1), AskingAge(3, "Ann"), AskingName(0)])


@each_store
async def test_one_of_several_dataclasses_comes_back_as_that_one(
    make_store: Callable[[Path], Any], tmp_path: Path
) -> None:
    def talk(context: Context) -> Talk:
        if context.event == "set":
            vars(context.session).update(vars(TALK))
        return context.session  # type: ignore[no-any-return]

    clock = ManualClock()
    async with SessionManager(
        make_store(tmp_path), handler=talk, session_type=Talk, clock=clock, idle_timeout=60.0
    ) as manager:
        await manager.dispatch("ann", "set")
        await clock.advance(120.0)
        assert list(manager.resident()) == []
        assert await manager.dispatch("ann", "get") == TALK


class RefusalError(Exception):
    """Some error of the author's."""


@dataclass
class Cart:
    most: ClassVar[int] = 3
    raises: ClassVar[Any] = ValueError
    items: int = 0

    def __post_init__(self) -> None:
        if self.items > self.most:
            raise self.raises("no more than 3 items")


def add(context: Context) -> int:
    context.session.items += 1
    if context.event == "add":
        context.send_text("added")
    return context.session.items  # type: ignore[no-any-return]


POLICIES = (FlushPolicy.write_behind(), FlushPolicy.write_through(), "journaled")


@both_homes
@pytest.mark.parametrize("policy", POLICIES, ids=str)
@pytest.mark.parametrize("raises", [ValueError, RefusalError, KeyError, AssertionError, SystemExit])
def test_what_a_sessions_own_type_refuses_is_never_committed(
    home: Any, policy: Any, raises: type[BaseException], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Cart, "raises", raises)
    heard: list[BaseException] = []
    sent: list[str] = []
    flush = FlushPolicy.journaled(tmp_path / "journal") if policy == "journaled" else policy
    with home(
        handler=add,
        session_type=Cart,
        flush=flush,
        deliver=lambda session_id, text: sent.append(text),
        on_error=lambda context, error: heard.append(error),
    ) as manager:
        for n in range(3):
            assert manager.dispatch_sync("ann", "add") == n + 1
        for failed in range(2):
            with pytest.raises(errors.NotEncodableError, match="no more than 3 items") as caught:
                manager.dispatch_sync("ann", "add", event_id="m1")
            assert type(caught.value.__cause__) is raises
            assert (caught.value.path, caught.value.session_id) == ("session", "ann")
            assert heard[failed:] == [caught.value]
            assert manager.peek_sync("ann") == {"items": 3}
        with pytest.raises(errors.NotEncodableError), manager.turn_sync("ann") as turn:
            turn.session.items = 9
        assert manager.dispatch_sync("bob", "add") == 1
        manager.destroy_sync("ann")
        assert manager.dispatch_sync("ann", "add") == 1
    assert len(sent) == 5


@both_homes
@pytest.mark.parametrize("raises", [ValueError, RefusalError, KeyError, SystemExit])
def test_a_record_that_its_type_refuses_stays_is_told_once_and_can_be_destroyed(
    home: Any, raises: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[tuple[Any, BaseException]] = []
    with home(
        handler=add, session_type=Cart, on_error=lambda context, error: heard.append((context.event, error))
    ) as manager:
        for _ in range(3):
            manager.dispatch_sync("ann", "put in")
        monkeypatch.setattr(Cart, "most", 2)  # as a new release of the bot might have it
        monkeypatch.setattr(Cart, "raises", raises)
        with pytest.raises(errors.CorruptSessionError, match="no more than 3 items") as caught:
            manager.dispatch_sync("ann", "put in")
        assert type(caught.value.__cause__) is raises
        assert heard == [("put in", caught.value)]
        with pytest.raises(errors.CorruptSessionError), manager.turn_sync("ann"):
            pass
        assert len(heard) == 2
        assert manager.peek_sync("ann") == {"items": 3}
        assert manager.dispatch_sync("bob", "put in") == 1
        assert manager.stats().running == 0
        manager.destroy_sync("ann")
        assert manager.dispatch_sync("ann", "put in") == 1


async def test_on_error_may_use_the_session_that_its_type_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    async def cure(context: Context, error: BaseException) -> None:
        await manager.destroy(context.session_id)

    monkeypatch.setattr(Cart, "most", 3)
    async with SessionManager(handler=add, session_type=Cart, on_error=cure) as manager:
        for _ in range(3):
            await manager.dispatch("ann", "put in")
        monkeypatch.setattr(Cart, "most", 2)
        with pytest.raises(errors.CorruptSessionError):
            await manager.dispatch("ann", "put in")
        assert await manager.dispatch("ann", "put in") == 1


async def test_a_type_that_cannot_even_make_a_new_session_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[BaseException] = []
    monkeypatch.setattr(Cart, "most", -1)
    async with SessionManager(
        handler=add, session_type=Cart, on_error=lambda context, error: heard.append(error)
    ) as manager:
        with pytest.raises(errors.ConfigError, match=r"session_type=.*Cart.*no more than 3 items") as caught:
            await manager.dispatch("ann", "put in")
        assert heard == [caught.value]
        assert type(caught.value.__cause__) is ValueError


@dataclass
class Order:
    paid: bool = False
    lines: list[Idle] = field(default_factory=list)
    count = 0  # it has no annotation, so it is no field

    @cached_property
    def total(self) -> int:
        return len(self.lines)

    @property
    def is_open(self) -> bool:
        return not self.paid


@dataclass(slots=True)
class Slotted:
    paid: bool = False


@dataclass
class Basket:
    items: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.sum = sum(self.items)


@pytest.mark.parametrize(
    ("session_type", "change", "path", "says"),
    [
        (Order, lambda order: setattr(order, "is_paid", True), "session.is_paid", "paid, lines"),
        (Order, lambda order: setattr(order, "count", order.count + 1), "session.count", "paid, lines"),
        (
            Order,
            lambda order: (order.lines.append(Idle()), setattr(order.lines[0], "name", "x")),
            "session.lines[0].name",
            "Idle has no such field",
        ),
        (Basket, lambda basket: setattr(basket, "item", [1]), "session.item", "items"),
    ],
)
async def test_a_misspelt_attribute_fails_the_event_and_is_named(
    session_type: type, change: Callable[[Any], Any], path: str, says: str
) -> None:
    async with SessionManager(handler=lambda context: change(context.session), session_type=session_type) as manager:
        with pytest.raises(errors.NotEncodableError, match=says) as caught:
            await manager.dispatch("ann", "hi")
        assert caught.value.path == path
        assert await manager.peek("ann") is None


@pytest.mark.parametrize(
    ("session_type", "change"),
    [
        (Order, lambda order: order.total),
        (Order, lambda order: setattr(order, "_cache", 5)),
        (Basket, lambda basket: basket.items.append(1)),
        (Slotted, lambda slotted: setattr(slotted, "paid", True)),
    ],
    ids=["cached property", "private", "computed by __post_init__", "slots"],
)
async def test_what_a_type_keeps_for_itself_is_no_mistake(session_type: type, change: Callable[[Any], Any]) -> None:
    async with SessionManager(handler=lambda context: change(context.session), session_type=session_type) as manager:
        for _ in range(2):
            await manager.dispatch("ann", "hi")
        assert await manager.peek("ann") is not None
