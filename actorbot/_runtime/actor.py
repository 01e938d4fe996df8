"""Our actors, on pykka. This is the one module that imports pykka.

It relies on some private hooks of pykka, and checks at import that they exist.
"""

from __future__ import annotations

from importlib.metadata import version
from typing import Any, ClassVar, Protocol

import pykka
from pykka._envelope import Envelope

__all__ = ["EndOfBatch", "Envelope", "Inbox", "PooledActor", "ServiceActor", "check_pykka"]

RELIED_ON = (
    "_actor_loop_running",
    "_create_actor_inbox",
    "_create_future",
    "_handle_receive",
    "_start_actor_loop",
    "on_receive",
)


def check_pykka() -> None:
    """Raise ImportError if this release of pykka lacks a hook that our actors are built on."""
    missing = [name for name in RELIED_ON if not hasattr(pykka.Actor, name)]
    if missing:
        raise ImportError(
            f"actorbot needs pykka>=4.5,<5; the installed pykka {version('pykka')} has no"
            f" Actor.{', Actor.'.join(missing)}"
        )


check_pykka()


class EndOfBatch(BaseException):
    """Leaves pykka's receive loop at the end of a batch.

    pykka calls `inbox.get()` outside the `try` of its loop, so an exception from there leaves the
    loop. Thanks to this, an actor can run without a thread of its own. It is a `BaseException`, so
    that no `except Exception` in a handler can catch it.
    """


class Inbox(Protocol):
    """What pykka asks of an actor's inbox."""

    def put(self, envelope: Envelope[Any], /) -> None: ...

    def get(self) -> Envelope[Any]: ...

    def empty(self) -> bool: ...


class _Stopped:
    """pykka's `actor_stopped`, for actors that nobody stops through their ref.

    The `threading.Event` that pykka would make takes 1.2 KB for each actor.
    """

    __slots__ = ()

    def is_set(self) -> bool:
        return False

    def set(self) -> None:
        raise NotImplementedError("a session actor leaves memory through its table, never through pykka's stop()")


_NEVER_STOPPED = _Stopped()


class PooledActor(pykka.Actor):
    """An actor without a thread: whoever has its turn runs it.

    `pykka.Actor.__init__` is not called. Its inbox, event, ref and URN take 6 KB, and a process has
    100,000 of these actors. The ref is made when somebody asks for it. These actors are not in
    pykka's global registry, where each removal is a linear search.
    """

    actor_inbox: Inbox

    @property
    def actor_urn(self) -> str:  # type: ignore[override]  # an attribute in pykka
        return f"urn:actorbot:{id(self):x}"

    @property
    def actor_stopped(self) -> _Stopped:  # type: ignore[override]  # an attribute in pykka
        return _NEVER_STOPPED

    @property
    def actor_ref(self) -> pykka.ActorRef[Any]:  # made on demand
        return pykka.ActorRef(self)

    def run_batch(self) -> None:
        """Run pykka's receive loop until the inbox ends the batch. The caller has the turn."""
        try:
            self._actor_loop_running()
        except EndOfBatch:
            return

    def _handle_receive(self, message: Any) -> Any:
        # Not pykka's own: it would serve proxies and stop requests, and both would bypass the turn.
        return self.on_receive(message)

    @staticmethod
    def _create_actor_inbox() -> Inbox:
        raise NotImplementedError("a pooled actor is handed its inbox")

    @staticmethod
    def _create_future() -> pykka.Future[Any]:
        raise NotImplementedError("session actors are told, not asked")

    def _start_actor_loop(self) -> None:
        raise NotImplementedError("a pooled actor has no loop of its own")


class ServiceActor(pykka.ThreadingActor):
    """An actor with a thread of its own: the sweeper, one for each manager.

    The thread is a daemon, since a process that forgets to close its manager must be able to end.
    The actor is not in pykka's global registry, since a `stop_all()` of the embedding program must
    not stop the sweeper.
    """

    use_daemon_thread: ClassVar[bool] = True

    def begin(self) -> None:
        """Start the thread."""
        self._start_actor_loop()

    def end(self) -> None:
        """Stop the thread after what it has been told so far. Does not wait for that."""
        if not self.actor_stopped.is_set():
            self.actor_ref.stop(block=False)

    def notify(self, message: Any) -> bool:
        """Tell the actor something. Any thread. `False` if the actor has ended.

        That can be when a timer or the end of a call comes late.
        """
        try:
            self.actor_ref.tell(message)
        except pykka.ActorDeadError:
            return False
        return True

    def is_running(self) -> bool:
        """Tell whether the actor still takes messages."""
        return not self.actor_stopped.is_set()
