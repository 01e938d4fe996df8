"""Webhooks of chat platforms, without HTTP: is a request the platform's, and whose are its events?

`actorbot.ext.asgi` serves them with Starlette. With another framework, call the same three methods
of a platform: `admit` with the headers, `open` with the raw body, and `incoming` for the events,
each for one `manager.dispatch(session_id, event, event_id=event_id)`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from typing import Any, Unpack
from urllib.parse import parse_qsl

from actorbot.ext._platform import (
    HmacPlatform,
    Incoming,
    Options,
    Platform,
    Signed,
    WebhookEvent,
    compare,
    incoming,
    key,
)
from actorbot.ext._requests import Headers, RefusedError, at, check_fresh, joined, media_type, only, read_json, unique
from actorbot.ext._slack_ids import session_id_of_body

__all__ = ["Incoming", "Line", "Meta", "Platform", "RefusedError", "Signed", "Slack", "Telegram", "WebhookEvent"]


class Telegram(Platform):
    """Telegram's updates, with the secret token of `setWebhook`.

    Sessions are `telegram:<chat>`, or `telegram:<user>` if there is no chat. A private chat has the
    id of its user.
    """

    def __init__(self, secret_token: str, **options: Unpack[Options]) -> None:
        super().__init__(**options)
        self._token = key("secret_token", secret_token)

    def admit(self, headers: Headers, now: float) -> None:
        super().admit(headers, now)
        compare(only(headers, b"x-telegram-bot-api-secret-token"), self._token)

    def verify(self, headers: Headers, body: bytes) -> None:
        """Do nothing: Telegram signs no body, and `admit` has checked the token."""

    def events(self, payload: Any) -> Iterator[Incoming]:
        update = next((value for value in payload.values() if isinstance(value, dict)), {})
        places = (("chat", "id"), ("message", "chat", "id"), ("from", "id"), ("user", "id"), ("voter_chat", "id"))
        whose = next((found for path in places if (found := at(update, *path)) is not None), None)
        texts = (update.get(name) for name in ("text", "caption", "data", "query"))
        yield incoming(joined("telegram", whose), at(payload, "update_id"), texts, payload)


class Slack(HmacPlatform):
    """Slack's events, slash commands and interactions (v0 signatures).

    Sessions are `slack:<team>:<channel>:<user>`, without the parts that an event does not have; the
    same as with Bolt. An event of no user is its team's. Messages of bots, also of this one, have
    no session.
    """

    _header = b"x-slack-signature"
    _prefix = b"v0="

    def __init__(self, signing_secret: str, **options: Unpack[Options]) -> None:
        super().__init__("signing_secret", signing_secret, **options)

    def admit(self, headers: Headers, now: float) -> None:
        super().admit(headers, now)
        check_fresh(only(headers, b"x-slack-request-timestamp"), now)

    def _before(self, headers: Headers) -> bytes:
        return b"v0:" + only(headers, b"x-slack-request-timestamp") + b":"

    def parse(self, headers: Headers, body: bytes) -> Any:
        if media_type(headers) != b"application/x-www-form-urlencoded":
            return super().parse(headers, body)
        try:
            pairs = parse_qsl(
                body.decode(), keep_blank_values=True, strict_parsing=True, errors="strict", max_num_fields=100
            )
            form = unique(pairs)
        except ValueError as error:
            raise RefusedError(400, "not a form") from error
        return read_json(form["payload"].encode()) if "payload" in form else form

    def events(self, payload: Any) -> Iterator[Incoming]:
        kind = payload.get("type")
        if kind == "url_verification":
            return
        bot = False
        if kind == "event_callback":
            inner = at(payload, "event")
            message = at(inner, "message") or at(inner, "previous_message")
            if at(inner, "type") in ("message", "app_mention"):
                bot = bool(at(inner, "bot_id") or at(message, "bot_id"))
            event_id, text = at(payload, "event_id"), at(inner, "text")
        else:
            event_id, text = at(payload, "trigger_id"), _command(payload)
        yield incoming(None if bot else session_id_of_body(payload), event_id, [text], payload, left_out=bot)

    def reply(self, payload: Any) -> str:
        """Return the challenge that Slack checks an address with."""
        challenge = payload.get("challenge") if payload.get("type") == "url_verification" else None
        return challenge if isinstance(challenge, str) else ""


class Line(HmacPlatform):
    """LINE's events, several in a delivery. Sessions `line:<group, room or user>`.

    `event.mode` is "standby" while another bot of the channel has the word.
    """

    _header = b"x-line-signature"
    _base64 = True

    def __init__(self, channel_secret: str, **options: Unpack[Options]) -> None:
        super().__init__("channel_secret", channel_secret, **options)

    def events(self, payload: Any) -> Iterator[Incoming]:
        for event in _objects(payload.get("events")):
            whose = at(event, "source", "groupId") or at(event, "source", "roomId") or at(event, "source", "userId")
            texts = (at(event, "message", "text"), at(event, "postback", "data"))
            mode = at(event, "mode")
            yield incoming(joined("line", whose), at(event, "webhookEventId"), texts, event, mode=mode)


class Meta(HmacPlatform):
    """Messenger, Instagram and WhatsApp.

    Sessions are `messenger:<page>:<sender>`, `instagram:<account>:<sender>` and
    `whatsapp:<phone id>:<user>`. WhatsApp's user is a business-scoped id, which stays the same when
    the user hides the phone number; if a message has no such id, it is the number. Echoes of the
    page's own messages, receipts of delivery and reading, and WhatsApp's statuses have no session.
    `event.mode` is "standby" while another app answers the user.
    """

    _header = b"x-hub-signature-256"
    _prefix = b"sha256="

    def __init__(self, app_secret: str, verify_token: str, **options: Unpack[Options]) -> None:
        options.setdefault("max_body", 3_145_728)  # WhatsApp may send so much
        super().__init__("app_secret", app_secret, **options)
        self._verify_token = key("verify_token", verify_token)

    def subscribe(self, query: Sequence[tuple[str, str]]) -> str:
        """Answer the GET that Meta checks an address with. Raises: RefusedError."""
        raw = [(name.encode(), value.encode()) for name, value in query]
        if only(raw, b"hub.mode") != b"subscribe":
            raise RefusedError(400, "hub.mode is not subscribe")
        compare(only(raw, b"hub.verify_token"), self._verify_token)
        return only(raw, b"hub.challenge").decode()

    def events(self, payload: Any) -> Iterator[Incoming]:
        kind = payload.get("object")
        for entry in _objects(payload.get("entry")):
            if kind == "whatsapp_business_account":
                for change in _objects(entry.get("changes")):
                    yield from self._whatsapp(change)
            elif kind in ("page", "instagram"):  # not a set: it may be unhashable
                prefix = "messenger" if kind == "page" else "instagram"
                for part, mode in (("messaging", "active"), ("standby", "standby")):
                    for item in _objects(entry.get(part)):
                        yield self._messenger(prefix, item, mode)
                for change in _objects(entry.get("changes")):  # a comment, for example
                    yield incoming(None, None, (), change)
            else:
                yield incoming(None, None, (), entry)

    def _messenger(self, prefix: str, item: dict[str, Any], mode: str) -> Incoming:
        silent = "delivery" in item or "read" in item or at(item, "message", "is_echo")
        session_id = joined(prefix, at(item, "recipient", "id"), at(item, "sender", "id"))
        event_id = at(item, "message", "mid") or at(item, "postback", "mid")
        if not isinstance(event_id, str) or at(item, "message", "is_deleted"):
            # A reaction or a referral has no id; a message that was taken back has the id it had.
            # Here the content is the id: the same content is the same event, delivered again.
            event_id = hashlib.sha256(json.dumps(item, sort_keys=True).encode()).hexdigest()
        texts = (at(item, "message", "text"), at(item, "postback", "payload"))
        return incoming(None if silent else session_id, event_id, texts, item, mode=mode, left_out=bool(silent))

    def _whatsapp(self, change: dict[str, Any]) -> Iterator[Incoming]:
        value = change.get("value")
        if not isinstance(value, dict) or value.keys().isdisjoint(("messages", "statuses")):
            yield incoming(None, None, (), change)  # about the account, or a template, for example
            return
        rest = {name: part for name, part in value.items() if name not in {"messages", "statuses"}}
        for message in _objects(value.get("messages")):
            whose = at(message, "from_user_id") or at(message, "from")
            session_id = joined("whatsapp", at(value, "metadata", "phone_number_id"), whose)
            chosen = [at(message, "interactive", kind, "id") for kind in ("button_reply", "list_reply")]
            texts = (at(message, "text", "body"), at(message, "button", "payload"), *chosen)
            yield incoming(session_id, at(message, "id"), texts, rest | {"messages": [message]})
        for status in _objects(value.get("statuses")):
            event_id = joined(at(status, "id"), at(status, "status"))
            yield incoming(None, event_id, (), rest | {"statuses": [status]}, left_out=True)


def _objects(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, list):
        yield from (each for each in value if isinstance(each, dict))


def _command(payload: dict[str, Any]) -> str:
    """Return what was typed as a slash command, or the value of the button pressed."""
    action = next(_objects(payload.get("actions")), {})
    found = [payload.get("command"), payload.get("text"), action.get("value")]
    return " ".join(part for part in found if isinstance(part, str) and part)
