"""One user of Slack has one session, whether his events come by webhooks or by Bolt."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from slack_bolt import BoltRequest
from slack_bolt.async_app import AsyncApp, AsyncBoltRequest
from slack_sdk.web.async_client import AsyncWebClient

from actorbot import Context, MemorySessionStore, SessionManager
from actorbot.errors import InvalidSessionIdError
from actorbot.ext.asgi import webhook_app
from actorbot.ext.slack import in_turn, session_id_of
from actorbot.ext.webhooks import Slack
from actorbot.testing import ManualClock
from tests.ext.deliveries import SECRET, deliver, serving
from tests.ext.slack_api import slack_api

HERE = {"enterprise_id": None, "team_id": "T1", "user_id": "UBOT", "is_bot": True, "is_enterprise_install": False}
ORG = {"enterprise_id": "E1", "team_id": None, "user_id": "UBOT", "is_bot": True, "is_enterprise_install": True}


def event(kind: str, /, *, team_id: Any = "T1", authorization: Any = HERE, **fields: Any) -> dict[str, Any]:
    """What the Events API sends."""
    inner = {"type": kind, "event_ts": "17.1", **fields}
    body = {"type": "event_callback", "token": "t", "team_id": team_id, "api_app_id": "A1", "event_id": "Ev1"}
    return body | {"event": inner} | ({} if authorization is None else {"authorizations": [authorization]})


def pressed(kind: str, /, **fields: Any) -> dict[str, Any]:
    """What a button, a shortcut or a view sends."""
    body = {
        "type": kind,
        "team": {"id": "T1", "domain": "one"},
        "user": {"id": "U1", "team_id": "T1"},
        "enterprise": None,
    }
    return body | {"trigger_id": "7.7", "is_enterprise_install": False, **fields}


def typed(**fields: Any) -> dict[str, Any]:
    """A slash command."""
    names = {"team_id": "T1", "channel_id": "C1", "user_id": "U1", "is_enterprise_install": "false"}
    return {"command": "/order", "text": "tea", "trigger_id": "7.8"} | names | fields


THREAD = {"user_id": "U1", "channel_id": "D1", "thread_ts": "17.0", "context": {"channel_id": "C9", "team_id": "T1"}}
BUTTON = {
    "container": {"type": "message", "channel_id": "C1"},
    "channel": {"id": "C1", "name": "one"},
    "actions": [{"value": "a"}],
}
VIEW = {"id": "V1", "type": "modal", "team_id": "T1", "app_installed_team_id": "T1"}
STEP = {"function": {"id": "Fn1", "callback_id": "step"}, "function_execution_id": "Fx1", "bot_access_token": "xwfp-1"}
BY_ORG = {"enterprise": {"id": "E1"}, "is_enterprise_install": True}
FROM_AFAR = {"team_id": "T-FAR", "is_ext_shared_channel": True}
THERE = "slack:T1:C1:U1"  # where the user U1 of the channel C1 is at home

CASES: dict[str, tuple[dict[str, Any], str]] = {
    # --- what a user says, and what becomes of it
    "message": (event("message", channel="C1", user="U1", text="hi", team="T1", channel_type="channel"), THERE),
    "direct message": (event("message", channel="D1", user="U1", text="hi", channel_type="im"), "slack:T1:D1:U1"),
    "mention": (event("app_mention", channel="C1", user="U1", text="<@UBOT> hi"), THERE),
    "file": (event("message", subtype="file_share", channel="C1", user="U1", files=[{"id": "F1"}]), THERE),
    "reply sent to all": (event("message", subtype="thread_broadcast", channel="C1", user="U1", thread_ts="17.0"), THERE),
    "changed": (event("message", subtype="message_changed", channel="C1", message={"user": "U1", "text": "new"},
                      previous_message={"user": "U1", "text": "old"}), THERE),
    "deleted": (event("message", subtype="message_deleted", channel="C1", previous_message={"user": "U1"}), THERE),
    "without an authorization": (event("message", authorization=None, channel="C1", user="U1"), THERE),
    # --- in a shared channel: the team of who has written may stand outside
    "shared: message": (event("message", team="T-FAR", channel="C1", user="U1") | FROM_AFAR, THERE),
    "shared: changed": (event("message", subtype="message_changed", channel="C1", message={"user": "U1", "team": "T-FAR"})
                        | FROM_AFAR, THERE),
    "shared: deleted": (event("message", subtype="message_deleted", channel="C1", previous_message={"user": "U1"})
                        | FROM_AFAR, THERE),
    "shared: mention": (event("app_mention", channel="C1", user="U1", user_team="T-FAR") | {"is_ext_shared_channel": True}, THERE),
    "shared: reaction": (event("reaction_added", user="U1", item={"type": "message", "channel": "C1"}) | FROM_AFAR, THERE),
    "shared: view": (pressed("view_submission", team={"id": "T-FAR"}, user={"id": "U1", "team_id": "T-FAR"}, view=VIEW),
                     "slack:T1:U1"),
    # --- an assistant's thread
    "thread opened": (event("assistant_thread_started", assistant_thread=THREAD), "slack:T1:D1:U1"),
    "thread looked at elsewhere": (event("assistant_thread_context_changed", assistant_thread=THREAD), "slack:T1:D1:U1"),
    "message in it": (event("message", channel="D1", user="U1", thread_ts="17.0", channel_type="im",
                            assistant_thread={"action_token": "a"}), "slack:T1:D1:U1"),
    # --- the steps of workflows, which name no user, or as what they were asked
    "step for a user": (event("function_executed", **STEP, inputs={"user_id": "U1", "text": "hi"}), "slack:T1:U1"),
    "step of a button": (event("function_executed", **STEP, inputs={"interactivity": {"interactor": {"id": "U1", "secret": "s"}}}),
                         "slack:T1:U1"),
    "step for nobody": (event("function_executed", **STEP, inputs={"user_id": None, "text": "hi"}), "slack:T1"),
    "step without inputs": (event("function_executed", **STEP, inputs={}), "slack:T1"),
    "button of a step": (pressed("block_actions", **BUTTON, function_data={"execution_id": "Fx1", "inputs": {"user_id": "U2"}}), THERE),
    "older step": (event("workflow_step_execute", callback_id="c", workflow_step={"inputs": {}}), "slack:T1"),
    # --- other events
    "home": (event("app_home_opened", user="U1", channel="D1", tab="home", view={"team_id": "T9"}), "slack:T1:D1:U1"),
    "reaction": (event("reaction_added", user="U1", item={"type": "message", "channel": "C1", "ts": "1"}, item_user="U2"), THERE),
    "joined": (event("member_joined_channel", user="U1", channel="C1", team="T1", inviter="U2"), THERE),
    "new here": (event("team_join", user={"id": "U1", "team_id": "T1"}), "slack:T1:U1"),
    "file shared": (event("file_shared", file_id="F1", user_id="U1", channel_id="C1", file={"id": "F1"}), THERE),
    "file made": (event("file_created", file_id="F1", user_id="U1", file={"id": "F1"}), "slack:T1:U1"),
    "pin": (event("pin_added", user="U1", channel_id="C1", item={"type": "message", "channel": "C1"}), THERE),
    "link": (event("link_shared", user="U1", channel="C1", links=[{"url": "https://a.example"}]), THERE),
    "call": (event("call_rejected", call_id="R1", user_id="U1", channel_id="C1"), THERE),
    "channel renamed": (event("channel_rename", channel={"id": "C1", "name": "new"}), "slack:T1:C1"),
    "data in a message": (event("message_metadata_posted", bot_id="B2", user_id="U2", channel_id="C1"), "slack:T1:C1:U2"),
    "emoji": (event("emoji_changed", subtype="add", name="tea"), "slack:T1"),
    "tokens": (event("tokens_revoked", authorization=None, tokens={"oauth": ["U1"]}), "slack:T1"),
    "of a kind to come": (event("teleported", user="U1", channel="C1"), THERE),
    "too many": ({"type": "app_rate_limited", "team_id": "T1", "minute_rate_limited": 1}, "slack:T1"),
    # --- commands, buttons, views
    "command": (typed(), THERE),
    "command in a direct message": (typed(channel_id="D1", channel_name="directmessage"), "slack:T1:D1:U1"),
    "button": (pressed("block_actions", **BUTTON), THERE),
    "button on the home tab": (pressed("block_actions", container={"type": "view"}, view=VIEW), "slack:T1:U1"),
    "older button": (pressed("interactive_message", callback_id="c", channel={"id": "C1"}, actions=[{"name": "a"}]), THERE),
    "dialog": (pressed("dialog_submission", callback_id="c", channel={"id": "C1"}, submission={}), THERE),
    "choices": (pressed("block_suggestion", channel={"id": "C1"}, value="ab"), THERE),
    "shortcut": (pressed("shortcut", callback_id="c"), "slack:T1:U1"),
    "shortcut on a message": (pressed("message_action", callback_id="c", channel={"id": "C1"}, message={"user": "U2"}), THERE),
    "view": (pressed("view_submission", view=VIEW), "slack:T1:U1"),
    "view closed": (pressed("view_closed", view=VIEW, is_cleared=False), "slack:T1:U1"),
    "step edited": (pressed("workflow_step_edit", callback_id="c", workflow_step={}), "slack:T1:U1"),
    # --- a workspace of an organisation has the app
    "grid: message": (event("message", channel="C1", user="U1", authorization=HERE | {"enterprise_id": "E1"})
                      | {"enterprise_id": "E1"}, THERE),
    "grid: command": (typed(enterprise_id="E1"), THERE),
    "grid: button": (pressed("block_actions", **BUTTON) | {"enterprise": {"id": "E1", "name": "All"}}, THERE),
    # --- the whole organisation has the app: Slack names a team in some requests, and not in others
    "org: message": (event("message", channel="C1", user="U1", team="T1", authorization=ORG) | {"enterprise_id": "E1"}, "slack:E1:C1:U1"),
    "org: command": (typed(enterprise_id="E1", is_enterprise_install="true"), "slack:E1:C1:U1"),
    "org: button": (pressed("block_actions", **BUTTON) | BY_ORG, "slack:E1:C1:U1"),
    "org: button without a team": (pressed("block_actions", **BUTTON) | BY_ORG | {"team": None},
                                   "slack:E1:C1:U1"),
    "org: view": (pressed("view_submission", view=VIEW) | BY_ORG | {"team": None}, "slack:E1:U1"),
    "org: new workspace": (event("team_access_granted", authorization=None, team_ids=["T1"]) | {"team_id": None, "enterprise_id": "E1"},
                           "slack:E1"),
}  # fmt: skip


def by_webhooks(body: dict[str, Any]) -> list[str | None]:
    return [each.session_id for each in Slack(SECRET).incoming(body)]


def by_bolt(body: dict[str, Any]) -> list[str | None]:
    contexts = [
        BoltRequest(body=body, mode="socket_mode").context,
        AsyncBoltRequest(body=body, mode="socket_mode").context,
    ]
    try:
        found = {session_id_of(context) for context in contexts}
    except InvalidSessionIdError:
        return []
    return list(found)


@pytest.mark.parametrize(("body", "expected"), CASES.values(), ids=CASES)
def test_an_event_belongs_to_the_same_session_by_either_way(body: dict[str, Any], expected: str) -> None:
    assert by_webhooks(body) == [expected]
    assert by_bolt(body) == [expected]


ID = st.sampled_from(["T1", "U1", "C1", "E1", "", None])
NAMED = st.one_of(ID, st.fixed_dictionaries({}, optional={"id": ID, "team_id": ID, "enterprise_id": ID}))
FIELDS = {
    "team": NAMED, "team_id": ID, "user": NAMED, "user_id": ID, "channel": NAMED, "channel_id": ID, "enterprise": NAMED,
    "enterprise_id": ID,
    "view": st.fixed_dictionaries({}, optional={"app_installed_team_id": ID, "team_id": ID}),
    "is_enterprise_install": st.sampled_from([True, False, "true", "false", None]),
    "inputs": st.fixed_dictionaries({}, optional={"user_id": ID}),
    "function_execution_id": st.sampled_from(["Fx1", None]),
}  # fmt: skip
STEP_DATA = st.fixed_dictionaries({"execution_id": st.just("Fx1")}, optional={"inputs": st.just({"user_id": "U1"})})
PART = st.fixed_dictionaries({}, optional=FIELDS)
NESTED = ("message", "previous_message", "item", "assistant_thread")
EVENT = st.fixed_dictionaries({}, optional=FIELDS | dict.fromkeys(NESTED, PART))
AUTHORIZATIONS = st.lists(PART, max_size=2)
BODY = st.fixed_dictionaries(
    {}, optional=FIELDS | {"event": EVENT, "authorizations": AUTHORIZATIONS, "function_data": STEP_DATA}
)


@given(BODY, st.sampled_from(["event_callback", "block_actions", "of a kind to come"]))
def test_so_does_whatever_else_slack_may_send(body: dict[str, Any], kind: str) -> None:
    body = {"type": kind, **body}

    assert by_webhooks(body) == by_bolt(body)


def test_a_bots_own_words_are_left_out_and_what_is_left_out_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "actorbot")
    bots = [
        event("message", channel="C1", user="UBOT", bot_id="B1", text="mine"),
        event("message", subtype="bot_message", channel="C1", bot_id="B2"),
        event("message", subtype="message_changed", channel="C1", message={"user": "UBOT", "bot_id": "B1"}),
        event("app_mention", channel="C1", user="U9", bot_id="B2"),
    ]

    assert [by_webhooks(body) for body in bots] == [[], [], [], []]
    assert {record.levelname for record in caplog.records} == {"DEBUG"}
    caplog.clear()
    assert by_webhooks({"type": "of a kind to come", "text": "a secret"}) == []
    (record,) = caplog.records
    assert (record.levelname, record.getMessage()) == (
        "INFO",
        "Slack: no session for 'of a kind to come'; no handler sees it",
    )


STEPS = ("thread opened", "message in it", "step for a user")
KEPT = {"slack:T1:D1:U1": ["assistant_thread_started", "message"], "slack:T1:U1": ["function_executed"]}


async def test_by_webhooks_a_thread_that_opens_and_a_step_reach_the_handler() -> None:
    async def handle(context: Context) -> None:
        context.session.setdefault("kinds", []).append(context.event.raw["event"]["type"])

    manager = SessionManager(handler=handle, clock=ManualClock())
    async with serving(webhook_app(manager, {"/slack": Slack(SECRET)})) as client:
        for number, name in enumerate(STEPS):
            answer = await deliver(client, "slack", CASES[name][0] | {"event_id": f"Ev{number}"})
            assert answer.status_code == 200
        assert {each: (await manager.peek(each) or {})["kinds"] for each in KEPT} == KEPT


async def test_by_bolt_they_reach_the_listeners_in_the_same_sessions() -> None:
    users: list[Any] = []
    async with SessionManager(MemorySessionStore()) as manager:

        @in_turn(manager)
        async def listen(event: dict[str, Any], context: Any, session: Any) -> None:
            session.setdefault("kinds", []).append(event["type"])
            users.append(context.user_id)

        with slack_api() as api:
            client = AsyncWebClient("xoxb-1", base_url=api.url)
            app = AsyncApp(client=client, signing_secret=SECRET, process_before_response=True)
            for kind in ("assistant_thread_started", "message", "function_executed"):
                app.event(kind)(listen)
            for number, name in enumerate(STEPS):
                body = CASES[name][0] | {"event_id": f"Ev{number}"}
                answer = await app.async_dispatch(AsyncBoltRequest(body=body, mode="socket_mode"))
                assert answer.status == 200
        assert {each: (await manager.peek(each) or {})["kinds"] for each in KEPT} == KEPT
    assert users == ["U1", "U1", None]


def test_whichever_is_imported_first_bolt_finds_the_user_of_a_thread() -> None:
    body = json.dumps(CASES["thread opened"][0])
    look = f"print(AsyncBoltRequest(body={body!r}).context.user_id, BoltRequest(body={body!r}).context.user_id)"
    bolt, ours = (
        "from slack_bolt.async_app import AsyncBoltRequest; from slack_bolt import BoltRequest",
        "import actorbot.ext.slack",
    )

    for imports in ((bolt, ours), (ours, bolt)):
        done = subprocess.run(
            [sys.executable, "-c", "; ".join((*imports, look))], capture_output=True, text=True, timeout=30, check=True
        )
        assert done.stdout == "U1 U1\n"
