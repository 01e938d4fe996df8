"""The mailbox of a session: who has its turn, and who waits for it."""

from __future__ import annotations

from actorbot._runtime.mailbox import Mailbox


class Waiter:
    def __init__(self) -> None:
        self.has_turn = False

    def grant(self) -> bool:
        self.has_turn = True
        return True

    def fail(self, error: BaseException) -> None:
        raise error


def test_a_mailbox_with_somebody_in_line_stays_open_and_gives_him_the_turn() -> None:
    mailbox, waiter = Mailbox(), Waiter()
    assert mailbox.join(waiter, limit=1)

    assert not mailbox.close_if_nobody_waits()
    mailbox.leave()

    assert waiter.has_turn
    assert not mailbox.closed


def test_a_closed_mailbox_takes_nobody_in_and_gives_no_turn() -> None:
    mailbox, waiter = Mailbox(), Waiter()

    assert mailbox.close_if_nobody_waits()
    mailbox.leave()

    assert not mailbox.join(waiter, limit=1)
    assert not mailbox.enter()
    assert not waiter.has_turn
