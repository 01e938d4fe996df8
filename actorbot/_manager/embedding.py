"""What `actorbot.ext` and `actorbot.cluster` may ask of a manager, and all that they may ask.

Mostly: which turn a bot library's code runs in, and a turn for code that runs in none.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future
from contextlib import asynccontextmanager
from typing import Any, Protocol

from actorbot._flushing.waiters import Goal
from actorbot._manager.access import Life
from actorbot._manager.manager import SessionManager
from actorbot._manager.verbs import OnDuplicate
from actorbot._reports import Health
from actorbot._runtime.current import current
from actorbot._state.codec import encode_state
from actorbot._state.committed import EVENT_IDS, STATE, VERSION, digest_of
from actorbot._state.record import has_id
from actorbot._turns.acknowledge import write_through
from actorbot._turns.context import Context, chain, find_held
from actorbot._turns.lend import check_return
from actorbot._turns.session_actor import EVENT_ID_BYTES
from actorbot._turns.terms import Terms
from actorbot.errors import ConfigError, NotEncodableError, OwnershipLostError, SessionTooLargeError

__all__ = [
    "Front",
    "SessionManager",
    "Goal",
    "at_home",
    "borrowed",
    "bury",
    "check_commit",
    "check_dict",
    "check_here",
    "check_open",
    "committed",
    "confirm",
    "dispatch_with",
    "flushed",
    "has_forgotten",
    "held",
    "is_flushed",
    "is_here",
    "is_in_turn",
    "is_open",
    "joined",
    "max_mailbox",
    "max_session_bytes",
    "on_lost",
    "on_wait",
    "resident_ids",
    "run_lost_again",
    "size_of",
    "values",
    "wall",
]


class Front(Protocol):
    """Who takes events: a `SessionManager`, or a `Cluster`, which sends them to other processes."""

    _life: Life
    _on_wait: list[Callable[[str], object]]

    async def start(self) -> Any: ...

    async def close(self) -> Any: ...

    async def dispatch(self, session_id: str, event: Any, *, event_id: str | None = None) -> Any: ...

    def dispatch_sync(self, session_id: str, event: Any, *, event_id: str | None = None) -> Any: ...

    async def submit(self, session_id: str, event: Any, *, event_id: str | None = None) -> Any: ...

    def health(self) -> Health: ...


def is_here(front: Front) -> bool:
    """Tell whether turns are in this process, and events any objects."""
    return isinstance(front, SessionManager)


def check_here(front: Front, instead: str = "") -> None:
    """Check that turns are in this process, for who borrows them. Raises: ConfigError."""
    if not isinstance(front, SessionManager):
        instead = instead or (
            "Behind a Cluster take webhooks (actorbot.ext.asgi.webhook_app), or `await cluster.submit(session_id,"
            " values)` in a handler without this"
        )
        raise ConfigError("manager", front, f"a SessionManager, since a turn cannot leave its process. {instead}")


def held(manager: SessionManager, session_id: str) -> Context | None:
    """Return the session's open turn that the running code is part of; `None` if there is none.

    A task that was spawned inside the turn is part of it. What a library stores while its handler
    runs goes into this turn: to ask for a second one there would be refused (DeadlockError).

    Raises: TurnEndedError if the turn was taken from the code, by `handler_timeout` for example.
    What the code stored now would be half of an event.
    """
    return find_held(manager._shared, session_id)


def is_in_turn() -> bool:
    """Tell whether the running code is part of a turn, of any manager."""
    return next(chain(), None) is not None


@asynccontextmanager
async def borrowed(manager: SessionManager, session_id: str, event_id: str | None = None) -> AsyncIterator[Context]:
    """Do the same as `SessionManager.turn`, and forget the turn at its end.

    So `held` then finds the turn around this one again, and a time-out of this turn has no effect
    on what the code does next.
    """
    before = current.get()
    try:
        async with manager.turn(session_id, event_id=event_id) as turn:
            yield turn
    finally:
        current.set(before)


@asynccontextmanager
async def joined(manager: SessionManager, session_id: str) -> AsyncIterator[Context]:
    """Give the turn that is held, or a short one. Raises: as `held` and `SessionManager.turn`."""
    context = held(manager, session_id)
    if context is not None:
        yield context
        return
    async with borrowed(manager, session_id) as turn:
        yield turn


async def dispatch_with(
    manager: SessionManager,
    session_id: str,
    event: Any,
    *,
    event_id: str | None = None,
    durable: bool = False,
    on_duplicate: OnDuplicate = "duplicate",
    confirmation: Future[Any] | None = None,
    silent: bool = False,
    after: Goal | None = None,
    claim: bool = False,
) -> Any:
    """Do the same as `SessionManager.dispatch`, with a say in what becomes of the gated replies.

    They wait for *confirmation* to succeed, too, as do later ones of the session; if it fails or is
    cancelled, they are never sent. If *silent*, none is sent: the event changes its session, and
    its caller gets the answer. The same goes for what `on_error` replies. Ungated replies are sent
    at once, as ever.

    Where it comes *after* something that the session has committed (`committed`), it is not handled
    if a conflict has taken that. A *claim* is committed when the store has it, whatever the policy
    says, and fails if somebody else has written. Raises: ConflictError; what `dispatch` raises.
    """
    manager._check_here()
    losses = None if after is None else after.losses
    through = write_through if claim else None
    terms = Terms(durable=durable, silent=silent, confirmation=confirmation, losses=losses, acknowledge=through)
    return await manager._verbs.dispatch(session_id, event, event_id, terms, None, on_duplicate)


def committed(manager: SessionManager, session_id: str) -> Goal | None:
    """Return what the session has committed by now, to wait for; `None` if a conflict has taken it.

    For who has just dispatched an event, before anything else is awaited. Home loop.
    """
    actor = manager._actors.get(session_id)
    if actor is None or (state := actor.committed) is None:
        return None
    return Goal(actor, state[VERSION], len(actor.losses))


async def has_forgotten(manager: SessionManager, session_id: str, event_id: str) -> bool:
    """Tell whether the session is there, and knows that it has not handled this event.

    `False` if that was so many events ago that it may have forgotten the id. Home loop.
    Raises: what a read raises.
    """
    actor = manager._actors.get(session_id)
    state = None if actor is None else actor.committed
    if state is None:
        record = await manager._verbs._loader.read(session_id)
        state = None if record is None else record.committed
    if state is None or (state[STATE] is None and state[VERSION]):
        return state is None  # destroyed, whatever it was
    return not has_id(state[EVENT_IDS], digest_of(event_id)) and len(state[EVENT_IDS]) < EVENT_ID_BYTES


def is_flushed(goal: Goal) -> bool:
    """Tell whether the store has it. Any thread."""
    return goal.version <= goal.session.flushed


def flushed(manager: SessionManager, goal: Goal) -> Future[None]:
    """Return a future that ends when the store has it, which hurries nobody.

    It fails with ConflictError if a conflict has taken it; with StoreUnavailableError in an outage,
    after which it may be asked for again; with what it was abandoned with; and at a close.
    """
    assert manager._shared is not None
    return manager._shared.flusher.reach([goal], hurry=False)


def resident_ids(manager: SessionManager) -> list[str]:
    """List the sessions in memory. Any thread."""
    return list(manager._actors)


def run_lost_again(manager: SessionManager) -> None:
    """Have a started manager not report what a conflict has taken: somebody runs it again."""
    manager._parts.hooks.are_run_again = True


def at_home(manager: SessionManager, function: Callable[..., object], *args: Any) -> None:
    """Call *function* on the manager's loop, which wakes once for all that it is given meanwhile.

    Any thread. Raises: RuntimeError if the loop was closed.
    """
    manager._home.post(function, *args)


def bury(manager: SessionManager, session_id: str, event: Any, error: BaseException) -> None:
    """Make *event* a dead letter. Any thread."""
    manager._parts.hooks.bury(session_id, event, error)


async def values(manager: SessionManager, session_id: str) -> dict[str, Any]:
    """Return the session's values to read: those of the turn that is held, or a committed copy."""
    context = held(manager, session_id)
    if context is not None:
        return context.session  # type: ignore[no-any-return]
    return await manager.peek(session_id) or {}


def check_commit(turn: Context) -> None:
    """Raises: what a commit of *turn* would: TurnEndedError, NotEncodableError, CancelledError, …

    From here on, a cancellation of the task comes too late.
    """
    check_return(turn)


def check_dict(manager: SessionManager, what: str) -> None:
    """Check that sessions are dicts: *what* a library does needs a key. Raises: ConfigError."""
    if manager._options.shape is not None:
        raise ConfigError("session_type", "a dataclass", f"dict: {what} in the session, under a key of its own")


def is_open(front: Front) -> bool:
    """Tell whether it has started and is not closed."""
    return front._life is Life.OPEN


def on_wait(front: Front, tell: Callable[[str], object]) -> None:
    """Call *tell* when the start of *front* begins to wait, with whom for: its store's owner, say.

    At home, once, however often the same function is given. Not for a wait of some seconds that
    passes by itself: no owner is known, or it has gone.
    """
    if tell not in front._on_wait:
        front._on_wait.append(tell)


def on_lost(manager: Front, tell: Callable[[OwnershipLostError], object]) -> None:
    """Call *tell* when another process has taken over the store of *manager*. At home, once.

    The same function is called once, however often it is given. If the store is lost already, it is
    called here. A cluster is never lost: it has no store.
    """
    if isinstance(manager, SessionManager) and tell not in manager._on_lost:
        manager._on_lost.append(tell)
        if manager._lost is not None:
            tell(manager._lost)


def check_open(manager: SessionManager) -> None:
    """Raises: ManagerClosedError, OwnershipLostError, ForkedError unless events can be handled."""
    manager._check_open()


async def confirm(manager: Front) -> None:
    """Wait until it is certain that this process still owns the store, where that is in doubt.

    Called before somebody outside is told of an event: the process may have been frozen since that
    was acknowledged. At home. Raises: OwnershipLostError; StoreUnavailableError if it was closed
    before it could tell. A cluster's answer is certain when it comes.
    """
    if isinstance(manager, SessionManager) and manager._shared is not None:
        await manager._shared.confirm()


def max_mailbox(manager: SessionManager) -> int:
    """Return how many events may wait for their turn in one session."""
    return manager._options.max_mailbox


def max_session_bytes(manager: SessionManager) -> int:
    """Return how many bytes a session may take."""
    return manager._options.max_session_bytes


def size_of(value: Any, most: int) -> int:
    """Return how many bytes *value* takes in a session; *most* if it takes more.

    0 for what no session keeps: the commit says where that is.
    """
    try:
        return len(encode_state({"": value}, most))
    except SessionTooLargeError:
        return most
    except NotEncodableError:
        return 0


def wall(front: Front) -> float:
    """Return the wall-clock seconds, by a manager's clock or the machine's."""
    return front._options.clock.wall() if isinstance(front, SessionManager) else time.time()
