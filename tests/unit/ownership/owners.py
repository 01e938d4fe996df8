"""Owners of a store, as a lease has them."""

from __future__ import annotations

from actorbot._ownership.lease import Holder, Lease, Mode
from actorbot._runtime.process import Process

LEASE = 10.0


def process(pid: int = 4711, host: str = "web-1") -> Process:
    """Describe a process of another machine."""
    return Process(host, pid, "bot.py", f"{pid}00", "pid:[1]", f"kernel of {host}")


def holder(mode: Mode = "exclusive", *, epoch: int = 1, until: float = LEASE, pid: int = 4711) -> Holder:
    """Make a holder that has renewed its lease for the last time so that it runs out at *until*."""
    return Holder(process(pid), mode, LEASE, epoch, until - LEASE, until)


def lease(epoch: int = 1, away: dict[str, Holder] | None = None, **holders: Holder) -> Lease:
    """Make a lease as a store keeps it."""
    return Lease.parse(Lease(epoch, holders, away or {}).to_text(), "a store")
