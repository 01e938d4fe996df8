"""For the tests of your bot and of your own store.

A clock that stands still, stores that record and fail, and the store contract.
"""

from actorbot.testing._contract import StoreContract
from actorbot.testing._manual_clock import ManualClock
from actorbot.testing._stores import FaultyStore, RecordingStore

__all__ = ["FaultyStore", "ManualClock", "RecordingStore", "StoreContract"]
