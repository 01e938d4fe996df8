"""`Platform`: what the webhooks of all chat platforms have in common.

Also `Signed`: webhooks of no special platform, signed with a shared secret.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypedDict, Unpack, get_args

from actorbot._checks import check_count, check_plain
from actorbot._event import Message, WebhookEvent
from actorbot.errors import ConfigError
from actorbot.ext._requests import Headers, RefusedError, at, check_fresh, joined, media_type, only, read_json

__all__ = ["HmacPlatform", "Incoming", "Options", "Platform", "Signed", "WebhookEvent", "compare", "incoming", "key"]

logger = logging.getLogger("actorbot")

Answer = Literal["acknowledged", "handled", "accepted"]
SessionOf = Callable[[Any], str | None]


class Options(TypedDict, total=False):
    """The options of every `Platform`."""

    session_id: SessionOf | None
    answer: Answer
    max_body: int


@dataclass(frozen=True, slots=True)
class Incoming:
    """One event of a delivery, and where it belongs."""

    session_id: str | None
    """`None`: the event belongs to no session. It is acknowledged, logged, and not handled."""
    event_id: str | None
    event: WebhookEvent
    left_out: bool = False
    """Whether it has no session on purpose, as an echo of the bot's own words: logged at DEBUG."""


class Platform(ABC):
    """What is known of a platform's webhooks. For another platform, override `verify` and `events`.

    `session_id(raw)` gives the session of each event instead of the platform's own rule, or `None`
    to leave the event out. `max_body` is how many bytes a delivery may have. `answer` says when the
    platform gets its 200. Raises: ConfigError.

    - `"acknowledged"`: when every event is acknowledged. After a failure, the platform is asked to
      deliver again.
    - `"handled"`: when every handler has ended, well or not. What failed is not delivered again.
    - `"accepted"`: at once. What fails is a dead letter. If the process is killed, accepted events
      that were not handled yet are lost. With a `Cluster`: as soon as its log has all events. They
      are handled, also if this process is killed, and what fails is a dead letter of its shard.
    """

    def __init__(
        self, *, session_id: SessionOf | None = None, answer: Answer = "acknowledged", max_body: int = 1_048_576
    ) -> None:
        if session_id is not None:
            check_plain("session_id", session_id, "a function of the event as the platform sent it")
        for name in ("admit", "verify", "parse", "open", "reply", "subscribe"):
            # A `verify` that does not run would let everybody in.
            check_plain(f"{type(self).__name__}.{name}", getattr(type(self), name), "a method")
        if answer not in get_args(Answer):
            raise ConfigError("answer", answer, f"one of {', '.join(get_args(Answer))}")
        self.answer: Answer = answer
        self.max_body = check_count("max_body", max_body)
        self._session_id = session_id

    def admit(self, headers: Headers, now: float) -> None:
        """Check the headers before the body is read; *now* is wall-clock seconds.

        Raises: RefusedError.
        """
        if any(
            value.strip().lower() not in {b"", b"identity"} for name, value in headers if name == b"content-encoding"
        ):
            raise RefusedError(415, "a compressed body")

    @abstractmethod
    def verify(self, headers: Headers, body: bytes) -> None:
        """Check that the platform has sent *body*, byte for byte. Raises: RefusedError."""

    def parse(self, headers: Headers, body: bytes) -> Any:
        """Parse a verified body. Raises: RefusedError."""
        if media_type(headers) != b"application/json":
            raise RefusedError(415, "not application/json")
        return read_json(body)

    def open(self, headers: Headers, body: bytes) -> Any:
        """Verify *body*, then parse it. Raises: RefusedError."""
        self.verify(headers, body)
        payload = self.parse(headers, body)
        if not isinstance(payload, dict):
            raise RefusedError(400, "not an object")
        return payload

    @abstractmethod
    def events(self, payload: Any) -> Iterator[Incoming]:
        """Find the events in a delivery, with the platform's own session ids."""

    def incoming(self, payload: Any) -> list[Incoming]:
        """List the events of a delivery that have a session, and log the others."""
        found = self.events(payload)
        if self._session_id is not None:
            name = self._session_id
            found = (Incoming(name(each.event.raw), each.event_id, each.event, left_out=True) for each in found)
        kept: list[Incoming] = []
        for each in found:
            if each.session_id is not None:
                kept.append(each)
            else:
                level = logging.DEBUG if each.left_out else logging.INFO
                logger.log(
                    level, "%s: no session for %s; no handler sees it", type(self).__name__, _kind(each.event.raw)
                )
        return kept

    def reply(self, payload: Any) -> str:
        """Return the text of the answer to a delivery. Most platforms want none."""
        return ""

    def subscribe(self, query: Sequence[tuple[str, str]]) -> str:
        """Return the text of the answer to a GET. Some platforms check an address with one.

        Raises: RefusedError.
        """
        raise RefusedError(405, "nothing but POST")


class HmacPlatform(Platform):
    """A platform that signs the raw body with HMAC-SHA256 and a shared secret."""

    _header: bytes
    _prefix = b""
    _base64 = False

    def __init__(self, field: str, secret: str, **options: Unpack[Options]) -> None:
        super().__init__(**options)
        self._secret = key(field, secret)

    def admit(self, headers: Headers, now: float) -> None:
        super().admit(headers, now)
        only(headers, self._header)

    def verify(self, headers: Headers, body: bytes) -> None:
        mac = hmac.new(self._secret, self._before(headers) + body, hashlib.sha256)
        expected = base64.b64encode(mac.digest()) if self._base64 else mac.hexdigest().encode()
        compare(only(headers, self._header), self._prefix + expected)

    def _before(self, headers: Headers) -> bytes:
        """Return the bytes that are signed before those of the body."""
        return b""


class Signed(HmacPlatform):
    """Webhooks of any sender: JSON, one event in a delivery, with an HMAC-SHA256 in a header.

    The header is `<prefix><digest>`. `session_id(payload)`, `event_id(payload)` and `text(payload)`
    find these in the payload. With a `timestamp_header` (Unix seconds), `<timestamp>.<body>` is
    signed, and a delivery more than 300 s away from now is refused. Without one, a delivery that
    somebody has recorded can be sent again for ever.
    """

    def __init__(
        self,
        secret: str,
        *,
        session_id: SessionOf,
        event_id: Callable[[Any], str | None] | None = None,
        text: Callable[[Any], str] | None = None,
        header: str = "X-Signature-256",
        prefix: str = "sha256=",
        encoding: Literal["hex", "base64"] = "hex",
        timestamp_header: str | None = None,
        answer: Answer = "acknowledged",
        max_body: int = 1_048_576,
    ) -> None:
        super().__init__("secret", secret, session_id=session_id, answer=answer, max_body=max_body)
        for name, function in (("event_id", event_id), ("text", text)):
            if function is not None:
                check_plain(name, function, "a function of the payload")
        if encoding not in {"hex", "base64"}:
            raise ConfigError("encoding", encoding, "hex or base64")
        self._event_id, self._text = event_id, text
        self._header, self._prefix, self._base64 = header.lower().encode(), prefix.encode(), encoding == "base64"
        self._timestamp = None if timestamp_header is None else timestamp_header.lower().encode()

    def admit(self, headers: Headers, now: float) -> None:
        super().admit(headers, now)
        if self._timestamp is not None:
            check_fresh(only(headers, self._timestamp), now)

    def _before(self, headers: Headers) -> bytes:
        return b"" if self._timestamp is None else only(headers, self._timestamp) + b"."

    def events(self, payload: Any) -> Iterator[Incoming]:
        event_id = None if self._event_id is None else self._event_id(payload)
        yield incoming(None, event_id, [None if self._text is None else self._text(payload)], payload)


def key(field: str, secret: Any) -> bytes:
    """Return a secret as bytes. Raises: ConfigError if it is empty or has spaces around it."""
    if not isinstance(secret, str) or not secret or secret != secret.strip():
        # The value is not shown: it may be a secret.
        raise ConfigError(field, None, "a text that is not empty, without spaces or line ends around it")
    return secret.encode()


def compare(given: bytes, expected: bytes) -> None:
    """Compare in a time that does not depend on the values. Raises: RefusedError if they differ."""
    if not hmac.compare_digest(given, expected):
        raise RefusedError(401, "a wrong signature or token")


def incoming(
    session_id: str | None,
    event_id: Any,
    texts: Iterable[Any],
    raw: Any,
    *,
    mode: Any = "active",
    left_out: bool = False,
) -> Incoming:
    """Make an event. Its text is the first of *texts* that is a text.

    It has no event id if *event_id* is no text and no number.
    """
    text = next((text for text in texts if isinstance(text, str)), "")
    event = WebhookEvent(Message(text), raw, mode if isinstance(mode, str) else "active")
    return Incoming(session_id, joined(event_id), event, left_out)


def _kind(raw: Any) -> str:
    """Return what is logged of an event: its type, or the names of its parts; no content."""
    kind = next((found for path in (("event", "type"), ("type",)) if isinstance(found := at(raw, *path), str)), None)
    return repr((kind or ", ".join(raw) if isinstance(raw, dict) else "an event")[:100])
