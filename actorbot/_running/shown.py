"""What actorbot logs, shown to an author who has set up no logging."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["is_set_up", "shown"]


@contextmanager
def shown() -> Iterator[None]:
    """Show warnings and errors on stderr, with their tracebacks, while no logging is set up."""
    handler = _Shown(logging.WARNING)
    logger = logging.getLogger("actorbot")
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


class _Shown(logging.Handler):
    """Hands records to Python's handler of last resort, which the NullHandler of actorbot hides."""

    def emit(self, record: logging.LogRecord) -> None:
        # Looked up each time: the author may set up logging while the bot runs.
        if logging.lastResort is not None and not is_set_up():
            logging.lastResort.handle(record)


def is_set_up() -> bool:
    """Tell whether somebody else shows the records, or wants nobody to."""
    logger: logging.Logger | None = logging.getLogger("actorbot")
    while logger is not None:
        if any(not isinstance(each, _Shown | logging.NullHandler) for each in logger.handlers):
            return True
        if not logger.propagate:
            return True
        logger = logger.parent
    return False
