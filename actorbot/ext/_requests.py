"""Strict readers of a request that anybody may have sent: headers, timestamps, JSON."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Sequence
from http import HTTPStatus
from typing import Any, Final

from actorbot.errors import ActorbotError

__all__ = [
    "Headers",
    "RefusedError",
    "at",
    "check_fresh",
    "joined",
    "media_type",
    "only",
    "read_json",
    "unique",
]

Headers = Sequence[tuple[bytes, bytes]]
"""Names in lower case, as ASGI has them."""

MAX_AGE: Final = 300.0  # seconds between a request's timestamp and now, as Slack has it
MAX_DEPTH: Final = 64  # as deep as a session may be


class RefusedError(ActorbotError):
    """A request was refused before any of its events was handled.

    `status` is the HTTP answer; `reason` is for the log.
    """

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(f"{status} {HTTPStatus(status).phrase}: {reason}")
        self.status = status
        self.reason = reason


def only(headers: Headers, name: bytes) -> bytes:
    """Return the value of a header that must come exactly once. Raises: RefusedError."""
    values = [value for each, value in headers if each == name]
    if len(values) != 1:
        raise RefusedError(401, f"{len(values)} headers {name.decode(errors='replace')} instead of one")
    return values[0]


def media_type(headers: Headers) -> bytes:
    """Return the content type without its parameters; empty if there is none or more than one."""
    values = [value for name, value in headers if name == b"content-type"]
    return values[0].split(b";")[0].strip().lower() if len(values) == 1 else b""


def check_fresh(timestamp: bytes, now: float) -> None:
    """Raises: RefusedError if *timestamp* is not within `MAX_AGE` seconds of *now*."""
    if re.fullmatch(rb"[0-9]{1,12}", timestamp) is None:
        raise RefusedError(401, "no timestamp")
    if abs(now - int(timestamp)) > MAX_AGE:
        raise RefusedError(401, f"{now - int(timestamp):.0f} s old; if that is wrong, check this machine's clock")


def read_json(body: bytes) -> Any:
    """Read JSON that has only one meaning, and that a session could keep.

    Raises: RefusedError if it is no JSON in UTF-8, has a key twice, is nested too deeply, or has an
    infinite number or a lone surrogate.
    """
    try:
        payload = json.loads(body.decode(), object_pairs_hook=unique)
        _check(payload)
    except (ValueError, RecursionError) as error:
        raise RefusedError(400, f"invalid JSON ({type(error).__name__})") from error
    return payload


def unique(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """Make a dict. Raises: ValueError if a key comes twice."""
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError("a key comes twice")
        found[key] = value
    return found


def _check(payload: Any) -> None:
    """Check all values of *payload*, level by level, without recursion. Raises: ValueError."""
    level: list[Any] = [payload]
    for _ in range(MAX_DEPTH + 1):
        inner: list[Any] = []
        for value in level:
            if isinstance(value, dict):
                inner += value.keys()
                inner += value.values()
            elif isinstance(value, list):
                inner += value
            elif isinstance(value, str):
                value.encode()  # fails for a lone surrogate
            elif isinstance(value, float) and not math.isfinite(value):
                raise ValueError("a number that is not finite")
        if not inner:
            return
        level = inner
    raise ValueError("nested too deeply")


def at(value: Any, *path: str) -> Any:
    """Return what is at *path* inside *value*; `None` if a part of the path is missing."""
    for name in path:
        value = value.get(name) if isinstance(value, dict) else None
    return value


def joined(*parts: Any) -> str | None:
    """Join the parts of an id; `None` if one is missing, or is no text and no number."""
    if not all(isinstance(part, int | str) and not isinstance(part, bool) and part != "" for part in parts):
        return None
    return ":".join(map(str, parts))
