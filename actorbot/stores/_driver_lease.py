"""The lease of a driver of your own, if it has the two methods for it."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, Final

from actorbot._checks import check_plain
from actorbot.errors import ActorbotError, OutcomeUnknownError, StoreError, StoreUnavailableError
from actorbot.stores._lease import METHODS, LeaseFound, LeaseKeeping, keeps_lease

__all__ = ["DriverLease"]

MOST: Final = 1e11  # seconds that a clock may show; more are milliseconds


class DriverLease(LeaseKeeping):
    """The part of `DriverStore` that keeps the lease."""

    name: str
    _driver: Any

    @abstractmethod
    def _error(self, kind: type[StoreUnavailableError], what: str, error: BaseException) -> StoreUnavailableError:
        """Make an error for what the driver has raised."""

    def _check_lease(self) -> None:
        """Raises: ConfigError for an `async def`: its loop can be held up by a handler."""
        self.keeps_lease = keeps_lease(self._driver)
        for verb in METHODS if self.keeps_lease else ():
            check_plain(f"{self.name}.{verb}", getattr(self._driver, verb), "a method that blocks, not an async def")

    def read_lease(self) -> LeaseFound:
        try:
            text, now = self._driver.read_lease()
        except Exception as error:
            failure = self._lease_failure("read_lease", error)
        else:
            if (text is None or isinstance(text, str)) and isinstance(now, int | float) and 0 <= now < MOST:
                return LeaseFound(text, now)
            raise StoreError(self.name, "read_lease must return (the text or None, the server's wall-clock seconds)")
        raise failure

    def swap_lease(self, old: str | None, new: str) -> bool:
        try:
            swapped = self._driver.swap_lease(old, new)
        except Exception as error:
            failure = self._lease_failure("swap_lease", error)
        else:
            if isinstance(swapped, bool):
                return swapped
            raise StoreError(self.name, f"swap_lease must return whether it was done, not {type(swapped).__name__}")
        raise failure

    def _lease_failure(self, what: str, error: Exception) -> ActorbotError:
        return error if isinstance(error, ActorbotError) else self._error(OutcomeUnknownError, what, error)
