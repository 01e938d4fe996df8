"""The checks of numbers and words that users give. The error names option, value and range."""

from __future__ import annotations

from typing import Any

from actorbot.errors import ConfigError

__all__ = ["DAY", "check_count", "check_seconds", "check_timeout", "check_word"]

DAY = 86_400.0  # seconds


def check_seconds(field: str, value: Any, *, least: float | None = None, most: float = 1e9) -> float:
    """Return *value* as float: above 0 or at least *least*, at most *most*. Raises: ConfigError."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not (value > 0 if least is None else value >= least) or value > most:
        bound = "above 0" if least is None else f"at least {least:g}"
        raise ConfigError(field, value, f"seconds, {bound}, up to {most:,.15g}")
    return float(value)


def check_timeout(value: Any) -> float:
    """Return the `timeout=` of a verb, which is not `None`. Raises: ConfigError.

    With 0 seconds a call asks without waiting. Infinity is refused: no call waits for ever.
    """
    return check_seconds("timeout", value, least=0.0)


def check_count(field: str, value: Any, least: int = 1, most: int = 1 << 40) -> int:
    """Return *value*. Raises: ConfigError if it is no whole number from *least* to *most*."""
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise ConfigError(field, value, f"a whole number from {least:,} to {most:,}")
    return value


def check_word(field: str, value: object, words: tuple[str, ...]) -> None:
    """Raises: ConfigError if *value* is none of *words*."""
    if value not in words:
        raise ConfigError(field, value, " or ".join(words))
