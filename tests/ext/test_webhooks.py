"""Whose delivery is it, and whose events? Nothing but a true, fresh and readable one ever reaches a
handler.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any
from urllib.parse import urlencode

import pytest

from actorbot import errors
from actorbot.ext.webhooks import Line, Meta, RefusedError, Signed, Slack, Telegram
from tests.ext.deliveries import NOW, PLATFORMS, SECRET, SESSION, encode, line_event, message, raw, sign

SIGNING = [name for name in PLATFORMS if name != "telegram"]


def take(platform: str, body: bytes, headers: dict[str, str], now: float = NOW, **options: Any) -> list[Any]:
    """Take a delivery apart, as the route does; a list of (session id, event id, text)."""
    taken = PLATFORMS[platform](**options)
    taken.admit(raw(headers), now)
    return [
        (each.session_id, each.event_id, each.event.message.text)
        for each in taken.incoming(taken.open(raw(headers), body))
    ]


def refused(platform: str, body: bytes, headers: dict[str, str], now: float = NOW, **options: Any) -> int:
    with pytest.raises(RefusedError) as caught:
        take(platform, body, headers, now, **options)
    assert SECRET not in str(caught.value)
    return caught.value.status


@pytest.mark.parametrize("platform", PLATFORMS)
def test_a_true_delivery_is_taken(platform: str) -> None:
    body = encode(message(platform, 7, 41, "hällo"))

    (found,) = take(platform, body, sign(platform, body))

    assert found[0] == SESSION[platform]
    assert found[1] is not None
    assert found[1].endswith("41")
    assert found[2] == "hällo"


@pytest.mark.parametrize("platform", PLATFORMS)
def test_a_forged_delivery_is_refused(platform: str) -> None:
    body = encode(message(platform, 7, 1))
    true = sign(platform, body)
    name = next(name for name in true if name.endswith(("Signature", "256", "Token")))

    assert refused(platform, body, sign(platform, body, secret="a-guess")) == 401
    assert refused(platform, body, {each: value for each, value in true.items() if each != name}) == 401
    for wrong in (
        "",
        " ",
        "é" * 10,
        "\xff",
        true[name][:-1],
        true[name] + "0",
        true[name] + " ",
        "sha256=",
        "v0=",
        "=" * 44,
    ):
        assert refused(platform, body, true | {name: wrong}) == 401, wrong
    twice = [*raw(true), (name.lower().encode(), true[name].encode())]
    with pytest.raises(RefusedError, match="401"):
        PLATFORMS[platform]().admit(twice, NOW)


@pytest.mark.parametrize("platform", SIGNING)
def test_the_same_json_in_other_bytes_is_refused(platform: str) -> None:
    payload = message(platform, 7, 1)
    body = encode(payload)
    headers = sign(platform, body)

    for other in (
        json.dumps(payload, indent=1).encode(),
        body + b" ",
        b" " + body,
        body.replace(b"hi", b"h\\u0069"),
        body[:-1],
    ):
        assert refused(platform, other, headers) == 401


@pytest.mark.parametrize("platform", ["slack", "signed"])
def test_a_stale_delivery_is_refused_though_its_signature_is_true(platform: str) -> None:
    body = encode(message(platform, 7, 1))
    headers = sign(platform, body)

    for now in (NOW + 300, NOW - 300):
        assert len(take(platform, body, headers, now)) == 1
    for now in (NOW + 301, NOW - 301, 0.0):
        assert refused(platform, body, headers, now) == 401


@pytest.mark.parametrize("platform", ["slack", "signed"])
def test_a_timestamp_that_is_none_or_was_not_signed_is_refused(platform: str) -> None:
    body = encode(message(platform, 7, 1))
    headers = sign(platform, body)
    name = "X-Slack-Request-Timestamp" if platform == "slack" else "X-Time"

    for wrong in (
        "",
        "now",
        "-1",
        f"+{NOW}",
        f" {NOW}",
        f"{NOW}.0",
        "1_700_000_000",
        "9" * 5000,
        "inf",
        "\xb9",
        str(NOW + 1),
    ):
        assert refused(platform, body, headers | {name: wrong}) == 401, wrong


BAD_JSON = {
    "empty": b"", "cut": b'{"a": 1', "a key twice": b'{"a": 1, "a": 2}', "deep inside": b'{"a": [{"b": 1, "b": 1}]}',
    "not UTF-8": b'{"a": "\xff"}', "UTF-16": '{"a": 1}'.encode("utf-16"), "a byte order mark": b"\xef\xbb\xbf{}",
    "a bomb": b"[" * 500_000, "a bomb of objects": b'{"a":' * 100_000, "deep": b'{"a": ' + b"[" * 65 + b"]" * 65 + b"}",
    "NaN": b'{"a": NaN}', "infinite": b'{"a": 1e999}', "half a character": b'{"a": "\\ud800"}', "in a key": b'{"\\udfff": 1}',
    "a huge number": b'{"a": ' + b"9" * 5000 + b"}", "a list": b"[]", "a text": b'"a"', "null": b"null", "two": b"{}{}",
}  # fmt: skip


@pytest.mark.parametrize("platform", PLATFORMS)
@pytest.mark.parametrize("body", BAD_JSON.values(), ids=BAD_JSON.keys())
def test_a_true_delivery_that_cannot_be_read_one_way_only_is_refused(platform: str, body: bytes) -> None:
    assert refused(platform, body, sign(platform, body)) == 400


@pytest.mark.parametrize("platform", PLATFORMS)
def test_a_delivery_is_verified_before_it_is_parsed(platform: str) -> None:
    assert refused(platform, b"[" * 500_000, sign(platform, b"", secret="a-guess")) == 401


@pytest.mark.parametrize("platform", PLATFORMS)
def test_another_content_type_and_a_compressed_body_are_refused(platform: str) -> None:
    body = encode(message(platform, 7, 1))
    headers = sign(platform, body)

    for wrong in ("text/plain", "multipart/form-data", "", "application/jsonp", "application/json, text/plain"):
        assert refused(platform, body, headers | {"Content-Type": wrong}) == 415
    for wrong in ("gzip", "deflate", "br", "identity, gzip"):
        assert refused(platform, body, headers | {"Content-Encoding": wrong}) == 415
    for right in ("application/json; charset=utf-8", "Application/JSON"):
        assert take(platform, body, headers | {"Content-Type": right, "Content-Encoding": "identity"})


JUNK: list[Any] = [None, 1, "x", [], [1, [2]], {}, {"id": []}, {"id": {"id": 1}}, {"id": True}, True, ""]
SHAPES: list[Callable[[Any], dict[str, Any]]] = [
    *(lambda junk, name=name: {name: junk} for name in ("message", "events", "type", "object", "team", "payload", "actions")),
    lambda junk: {"update_id": junk, "message": {"chat": junk}},
    lambda junk: {"update_id": 1, "message": {"chat": {"id": junk}, "text": junk}},
    lambda junk: {"type": "event_callback", "team_id": junk, "event": {"user": "U", "channel": junk}},
    lambda junk: {"type": "event_callback", "event": junk},
    lambda junk: {"type": "event_callback", "team_id": "T", "event": {"message": junk, "item": junk, "user": junk}},
    lambda junk: {"events": [{"source": junk, "message": junk}, junk]},
    lambda junk: {"object": junk, "entry": [{"messaging": [{}], "changes": [{}]}]},
    lambda junk: {"object": "page", "entry": junk},
    lambda junk: {"object": "page", "entry": [{"messaging": [{"sender": junk, "recipient": {"id": junk}, "message": junk}, junk]}]},
    lambda junk: {"object": "whatsapp_business_account", "entry": [{"changes": [{"value": junk}, junk]}]},
    lambda junk: {"object": "whatsapp_business_account", "entry": [{"changes": [{"value": {"messages": [junk], "statuses": junk}}]}]},
]  # fmt: skip


@pytest.mark.parametrize("platform", PLATFORMS)
@pytest.mark.parametrize("shape", SHAPES)
def test_what_has_another_shape_is_nobodys(platform: str, shape: Callable[[Any], dict[str, Any]]) -> None:
    for junk in JUNK:
        body = encode(shape(junk) | ({"user": 1, "id": "1", "text": ""} if platform == "signed" else {}))
        for session_id, event_id, text in take(platform, body, sign(platform, body)):
            assert isinstance(session_id, str)
            assert "True" not in session_id
            assert event_id is None or "True" not in event_id
            assert isinstance(text, str)


def test_json_may_be_as_deep_as_a_session() -> None:
    for depth, taken in ((64, True), (65, False)):
        body = b'{"user": 1, "id": "1", "text": ' + b"[" * (depth - 1) + b'"x"' + b"]" * (depth - 1) + b"}"
        if taken:
            assert take("signed", body, sign("signed", body)) == [("shop:1", "1", "")]
        else:
            assert refused("signed", body, sign("signed", body)) == 400


def test_no_secret_is_no_secret_to_anybody() -> None:
    for nothing in ("", " ", None):
        for make in (Telegram, Slack, Line, lambda each: Meta(each, "t"), lambda each: Meta("s", each)):
            with pytest.raises(errors.ConfigError, match="not empty"):
                make(nothing)  # type: ignore[operator]
        with pytest.raises(errors.ConfigError, match="not empty"):
            Signed(nothing, session_id=str)  # type: ignore[arg-type]
    assert SECRET not in repr([make() for make in PLATFORMS.values()])


def test_a_secret_that_was_read_with_the_end_of_its_line_is_told_at_once_and_not_shown() -> None:
    for make in (Telegram, Slack, Line, lambda each: Meta(each, "t"), lambda each: Meta("s", each)):
        for secret in (SECRET + "\n", " " + SECRET):
            with pytest.raises(errors.ConfigError, match="without spaces or line ends around it") as raised:
                make(secret)  # type: ignore[operator]
            assert SECRET not in str(raised.value)


def test_options_out_of_range_are_told_at_once() -> None:
    for wrong in ({"answer": "later"}, {"max_body": 0}, {"session_id": "telegram"}):
        with pytest.raises(errors.ConfigError, match=next(iter(wrong))):
            Telegram(SECRET, **wrong)  # type: ignore[arg-type]
    with pytest.raises(errors.ConfigError, match="encoding"):
        Signed(SECRET, session_id=str, encoding="hex64")  # type: ignore[arg-type]


# --- whose events -------------------------------------------------------------------------------

CASES: list[tuple[str, dict[str, Any], list[Any]]] = [
    ("telegram", {"update_id": 1, "message": {"chat": {"id": -5}, "from": {"id": 7}, "text": "a"}}, [("telegram:-5", "1", "a")]),
    ("telegram", {"update_id": 2, "edited_message": {"chat": {"id": 7}, "caption": "c"}}, [("telegram:7", "2", "c")]),
    ("telegram", {"update_id": 3, "callback_query": {"from": {"id": 7}, "message": {"chat": {"id": -5}, "text": "x"}, "data": "yes"}},
     [("telegram:-5", "3", "yes")]),
    ("telegram", {"update_id": 4, "inline_query": {"from": {"id": 7}, "query": "q"}}, [("telegram:7", "4", "q")]),
    ("telegram", {"update_id": 5, "poll_answer": {"user": {"id": 7}}}, [("telegram:7", "5", "")]),
    ("telegram", {"update_id": 6, "poll": {"id": "9"}}, []),
    ("slack", {"type": "event_callback", "team_id": "T", "event_id": "E", "event": {"type": "app_mention", "channel": "C", "user": "U",
     "text": "<@B> hi"}}, [("slack:T:C:U", "E", "<@B> hi")]),
    ("slack", {"type": "event_callback", "team_id": "T", "event_id": "E", "event": {"type": "message", "channel": "C", "bot_id": "B",
     "text": "mine"}}, []),
    ("slack", {"type": "event_callback", "team_id": "T", "event_id": "E", "event": {"type": "message", "subtype": "message_changed",
     "channel": "C", "message": {"user": "U", "text": "new"}}}, [("slack:T:C:U", "E", "")]),
    ("slack", {"type": "event_callback", "team_id": "T", "event_id": "E", "event": {"type": "message", "subtype": "message_changed",
     "channel": "C", "message": {"user": "U", "bot_id": "B"}}}, []),
    ("slack", {"type": "event_callback", "team_id": "T", "event_id": "E", "event": {"type": "reaction_added", "user": "U",
     "item": {"channel": "C"}}}, [("slack:T:C:U", "E", "")]),
    ("slack", {"type": "event_callback", "team_id": "T", "event_id": "E", "event": {"type": "team_join", "user": {"id": "U"}}},
     [("slack:T:U", "E", "")]),
    ("slack", {"type": "event_callback", "team_id": "T", "event_id": "E", "event": {"type": "emoji_changed"}}, [("slack:T", "E", "")]),
    ("slack", {"type": "of a kind to come"}, []),
    ("line", {"events": []}, []),
    ("line", {"events": [{"webhookEventId": "1", "source": {"type": "group", "groupId": "G", "userId": "U"}, "message": {"text": "a"}},
     {"webhookEventId": "2", "source": {"type": "room", "roomId": "R"}, "postback": {"data": "d"}},
     {"webhookEventId": "3", "source": {"type": "user", "userId": "U"}, "type": "follow"}, {"webhookEventId": "4", "type": "module"}]},
     [("line:G", "1", "a"), ("line:R", "2", "d"), ("line:U", "3", "")]),
    ("meta", {"object": "page", "entry": [{"messaging": [
        {"sender": {"id": "1"}, "recipient": {"id": "P"}, "message": {"mid": "m1", "text": "a"}},
        {"sender": {"id": "P"}, "recipient": {"id": "1"}, "message": {"mid": "m2", "text": "mine", "is_echo": True}},
        {"sender": {"id": "1"}, "recipient": {"id": "P"}, "delivery": {"mids": ["m2"]}},
        {"sender": {"id": "1"}, "recipient": {"id": "P"}, "read": {"watermark": 5}}]},
        {"messaging": [{"sender": {"id": "2"}, "recipient": {"id": "P"}, "postback": {"mid": "m3", "payload": "START"}}]}]},
     [("messenger:P:1", "m1", "a"), ("messenger:P:2", "m3", "START")]),
    ("meta", {"object": "page", "entry": [{"standby": [
        {"sender": {"id": "1"}, "recipient": {"id": "P"}, "message": {"mid": "m4", "text": "b"}}],
     "changes": [{"field": "feed", "value": {"item": "comment"}}]}]}, [("messenger:P:1", "m4", "b")]),
    ("meta", {"object": "instagram", "entry": [{"messaging": [{"sender": {"id": "1"}, "recipient": {"id": "I"},
     "message": {"mid": "m", "text": "a"}}]}]}, [("instagram:I:1", "m", "a")]),
    ("meta", {"object": "whatsapp_business_account", "entry": [{"changes": [{"field": "messages", "value": {
        "metadata": {"phone_number_id": "9"}, "messages": [{"from": "49", "id": "wamid.1", "type": "text", "text": {"body": "a"}},
        {"from": "50", "id": "wamid.2", "type": "interactive", "interactive": {"button_reply": {"id": "b"}}}],
        "statuses": [{"id": "wamid.0", "status": "read", "recipient_id": "49"}]}}]}]},
     [("whatsapp:9:49", "wamid.1", "a"), ("whatsapp:9:50", "wamid.2", "b")]),
    ("meta", {"object": "whatsapp_business_account", "entry": [{"changes": [{"field": "messages", "value": {
        "metadata": {"phone_number_id": "9"}, "messages": [
        {"from": "49", "from_user_id": "DE.1", "id": "wamid.1", "type": "text", "text": {"body": "a"}},
        {"from_user_id": "DE.1", "id": "wamid.2", "type": "text", "text": {"body": "b"}}]}}]}]},  # with a user name, maybe no number
     [("whatsapp:9:DE.1", "wamid.1", "a"), ("whatsapp:9:DE.1", "wamid.2", "b")]),
    ("meta", {"object": "whatsapp_business_account", "entry": [{"changes": [{"field": "account_update", "value": {"event": "e"}}]}]}, []),
    ("meta", {"object": "permissions", "entry": [{}]}, []),
]  # fmt: skip


@pytest.mark.parametrize(("platform", "payload", "expected"), CASES)
def test_every_event_finds_its_session(platform: str, payload: dict[str, Any], expected: list[Any]) -> None:
    body = encode(payload)

    assert take(platform, body, sign(platform, body)) == expected


@pytest.mark.parametrize(("form", "expected"), [
    ({"command": "/order", "text": "two teas", "team_id": "T", "channel_id": "C", "user_id": "U", "trigger_id": "1.2"},
     ("slack:T:C:U", "1.2", "/order two teas")),
    ({"payload": json.dumps({"type": "block_actions", "team": {"id": "T"}, "channel": {"id": "C"}, "user": {"id": "U"},
     "trigger_id": "1.3", "actions": [{"value": "buy"}]})}, ("slack:T:C:U", "1.3", "buy")),
    ({"payload": json.dumps({"type": "view_submission", "team": None, "enterprise": {"id": "E"}, "user": {"id": "U"}})},
     ("slack:E:U", None, "")),
])  # fmt: skip
def test_slash_commands_and_buttons_of_slack_are_events_too(form: dict[str, str], expected: Any) -> None:
    body = urlencode(form).encode()

    assert take("slack", body, sign("slack", body) | {"Content-Type": "application/x-www-form-urlencoded"}) == [
        expected
    ]


@pytest.mark.parametrize(
    "body",
    [
        b"a",
        b"a=%ff",
        b"a=1&a=2",
        b"a=\xff",
        b"payload=[",
        b"payload=1",
        "&".join(f"x{n}=1" for n in range(101)).encode(),
    ],
)
def test_a_form_that_cannot_be_read_one_way_only_is_refused(body: bytes) -> None:
    assert refused("slack", body, sign("slack", body) | {"Content-Type": "application/x-www-form-urlencoded"}) == 400


def test_the_handler_sees_its_part_of_a_delivery_of_many() -> None:
    value = {"metadata": {"phone_number_id": "9"}, "messages": [{"from": "1", "id": "a"}, {"from": "2", "id": "b"}]}
    whatsapp = {"object": "whatsapp_business_account", "entry": [{"changes": [{"value": value}]}]}

    first, second = Meta(SECRET, "t").incoming(whatsapp)

    assert first.event.raw == {"metadata": {"phone_number_id": "9"}, "messages": [{"from": "1", "id": "a"}]}
    assert second.event.raw["messages"] == [{"from": "2", "id": "b"}]


LEFT_OUT: list[tuple[str, dict[str, Any], str]] = [
    ("telegram", {"update_id": 6, "poll": {"id": "9"}}, "INFO Telegram: no session for 'update_id, poll'"),
    ("slack", {"type": "of a kind to come"}, "INFO Slack: no session for 'of a kind to come'"),
    ("slack", {"type": "event_callback", "event": {"type": "message", "bot_id": "B"}}, "DEBUG Slack: no session for 'message'"),
    ("line", {"events": [{"type": "module", "module": {"type": "attached"}}]}, "INFO Line: no session for 'module'"),
    ("meta", {"object": "page", "entry": [{"changes": [{"field": "feed", "value": {}}]}]}, "INFO Meta: no session for 'field, value'"),
    ("meta", {"object": "page", "entry": [{"messaging": [{"sender": {"id": "1"}, "recipient": {"id": "P"}, "read": {}}]}]},
     "DEBUG Meta: no session for 'sender, recipient, read'"),
    ("meta", {"object": "whatsapp_business_account", "entry": [{"changes": [{"field": "account_update", "value": {"event": "e"}}]}]},
     "INFO Meta: no session for 'field, value'"),
    ("meta", {"object": "permissions", "entry": [{"changed_fields": ["a"]}]}, "INFO Meta: no session for 'changed_fields'"),
]  # fmt: skip


@pytest.mark.parametrize(("platform", "payload", "line"), LEFT_OUT)
def test_what_no_handler_sees_is_logged(
    platform: str, payload: dict[str, Any], line: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG", "actorbot")
    body = encode(payload)

    assert take(platform, body, sign(platform, body)) == []
    assert [f"{each.levelname} {each.getMessage()}" for each in caplog.records] == [f"{line}; no handler sees it"]


@pytest.mark.parametrize("mode", ["active", "standby"])
def test_a_handler_is_told_when_another_bot_answers(mode: str) -> None:
    item = {"sender": {"id": "1"}, "recipient": {"id": "P"}, "message": {"mid": "m", "text": "hi"}}
    said = {"active": "messaging", "standby": "standby"}

    for found in (
        Line(SECRET).incoming({"events": [line_event("U", 1) | {"mode": mode}]}),
        Meta(SECRET, "t").incoming({"object": "page", "entry": [{said[mode]: [item]}]}),
        Meta(SECRET, "t").incoming({"object": "instagram", "entry": [{said[mode]: [item]}]}),
        Line(SECRET, session_id=lambda _: "mine:1").incoming({"events": [line_event("U", 1) | {"mode": mode}]}),
    ):
        assert [each.event.mode for each in found] == [mode]
    assert Telegram(SECRET).incoming(message("telegram", 7, 1))[0].event.mode == "active"


def test_a_reaction_on_messenger_which_has_no_id_is_the_same_only_when_it_is_the_same() -> None:
    def reaction(emoji: str) -> str | None:
        item = {
            "sender": {"id": "1"},
            "recipient": {"id": "P"},
            "timestamp": 5,
            "reaction": {"mid": "m1", "emoji": emoji},
        }
        (found,) = Meta(SECRET, "t").incoming({"object": "page", "entry": [{"messaging": [item]}]})
        return found.event_id

    assert reaction("a") == reaction("a") != reaction("b")


def test_a_message_that_is_taken_back_on_instagram_is_an_event_of_its_own() -> None:
    def event_id(message: dict[str, Any]) -> str | None:
        item = {"sender": {"id": "1"}, "recipient": {"id": "I"}, "timestamp": 5, "message": message}
        (found,) = Meta(SECRET, "t").incoming({"object": "instagram", "entry": [{"messaging": [item]}]})
        return found.event_id

    sent, taken_back = {"mid": "m", "text": "a"}, {"mid": "m", "is_deleted": True}
    assert event_id(sent) == "m" != event_id(taken_back) == event_id(taken_back)


def test_an_author_names_sessions_his_own_way_and_takes_what_is_left_out() -> None:
    update = {"update_id": 6, "poll": {"id": "9"}}
    status = {
        "object": "whatsapp_business_account",
        "entry": [{"changes": [{"value": {"statuses": [{"id": "w", "status": "read"}]}}]}],
    }

    (poll,) = Telegram(SECRET, session_id=lambda update: f"polls:{update['poll']['id']}").incoming(update)
    (read,) = Meta(SECRET, "t", session_id=lambda value: f"status:{value['statuses'][0]['id']}").incoming(status)

    assert (poll.session_id, poll.event_id) == ("polls:9", "6")
    assert (read.session_id, read.event_id) == ("status:w", "w:read")
    assert Telegram(SECRET, session_id=lambda update: None).incoming(update) == []


def test_a_signature_of_anybody_may_be_base64_without_a_prefix() -> None:
    platform = Signed(SECRET, session_id=lambda _: "a:1", header="X-Hmac", prefix="", encoding="base64")
    body = encode({"a": 1})
    mac = hmac.digest(SECRET.encode(), body, hashlib.sha256)
    headers = {"Content-Type": "application/json", "X-Hmac": base64.b64encode(mac).decode()}

    platform.admit(raw(headers), NOW)
    assert len(platform.incoming(platform.open(raw(headers), body))) == 1
    with pytest.raises(RefusedError, match="401"):
        platform.open(raw(headers | {"X-Hmac": mac.hex()}), body)


def test_the_platforms_need_no_web_framework() -> None:
    code = "import sys, actorbot.ext.webhooks; print({'starlette', 'linebot', 'slack_bolt'} & set(sys.modules))"

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True)

    assert done.stdout == "set()\n"


@pytest.mark.parametrize(("module", "library", "extra"), [("asgi", "starlette", "web"), ("line", "linebot", "line")])
def test_a_missing_library_is_one_clear_sentence(module: str, library: str, extra: str) -> None:
    code = f"import sys; sys.modules['{library}'] = None; import actorbot.ext.{module}"

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=False)

    assert done.stderr.splitlines()[-1].endswith(f": pip install '.[{extra}]' in a clone of actorbot")
