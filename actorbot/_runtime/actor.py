"""Our actor base on pykka: the one module that imports it, and the place where the hooks that we rely on are checked."""

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
    """Fail at import, in one sentence, when a pykka release lacks a hook that the session actors are built on."""
    missing = [name for name in RELIED_ON if not hasattr(pykka.Actor, name)]
    if missing:
        raise ImportError(
            f"actorbot needs pykka>=4.5,<5; the installed pykka {version('pykka')} has no Actor.{', Actor.'.join(missing)}"
        )


check_pykka()


class EndOfBatch(BaseException):
    """Leaves pykka's receive loop when a batch is over.

    pykka calls `inbox.get()` outside the `try` of its loop, so this passes through it untouched; that is what lets an actor
    run without a thread of its own. `BaseException`, so that no handler's `except Exception` can swallow it.
    """


class Inbox(Protocol):
    """What pykka asks of an actor's inbox."""

    def put(self, envelope: Envelope[Any], /) -> None: ...

    def get(self) -> Envelope[Any]: ...

    def empty(self) -> bool: ...


class _Stopped:
    """pykka's `actor_stopped` for actors that are never stopped through their ref (an `Event` costs 1.2 KB each)."""

    __slots__ = ()

    def is_set(self) -> bool:
        return False

    def set(self) -> None:
        raise NotImplementedError("a session actor leaves memory through its registry, never through pykka's stop()")


_NEVER_STOPPED = _Stopped()


class PooledActor(pykka.Actor):
    """An actor without a thread: whoever holds its turn runs it.

    `pykka.Actor.__init__` is not called: its inbox, event, ref and URN cost 6 KB, and a process holds 100,000 of these. The ref is
    made when somebody asks for it, and such actors are not in pykka's global registry, where a removal is a linear search.
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
        """Run what the inbox gives, through pykka's receive loop, until the inbox ends the batch. The caller holds the turn."""
        try:
            self._actor_loop_running()
        except EndOfBatch:
            return

    def _handle_receive(self, message: Any) -> Any:
        # pykka would serve proxies and stop requests here: both would bypass the turn.
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
    """An actor with a thread of its own: the registry and the flusher, one of each per manager.

    The thread is a daemon: a process that forgets to close its manager must still be able to end. It is not in pykka's global
    registry: a `stop_all()` of the embedding program must not take the flusher from its sessions.
    """

    use_daemon_thread: ClassVar[bool] = True

    def begin(self) -> None:
        """Start the thread; the actor was made by its constructor."""
        self._start_actor_loop()

    def end(self) -> None:
        """Stop the thread after what it has been told so far; does not wait."""
        if not self.actor_stopped.is_set():
            self.actor_ref.stop(block=False)

    def notify(self, message: Any) -> bool:
        """Tell the actor something, from any thread; `False` if it has ended, as it may have when a timer or a late call comes."""
        try:
            self.actor_ref.tell(message)
        except pykka.ActorDeadError:
            return False
        return True

    def is_running(self) -> bool:
        """Tell whether the actor still takes messages."""
        return not self.actor_stopped.is_set()
