"""Which chat or user of Telegram an update belongs to: webhooks, python-telegram-bot and aiogram
agree, whatever kind of update it is. Their session ids differ, as their pages say.
"""

from __future__ import annotations

from typing import Any

import aiogram.types
import pytest
import telegram
from aiogram.dispatcher.middlewares.user_context import UserContextMiddleware

from actorbot.ext.webhooks import Telegram

ANN = {"id": 7, "is_bot": False, "first_name": "Ann"}
BOT = {"id": 42, "is_bot": True, "first_name": "Bot", "username": "bot"}
PRIVATE = {"id": 7, "type": "private", "first_name": "Ann"}
GROUP = {"id": -5, "type": "supergroup", "title": "group"}
CHANNEL = {"id": -6, "type": "channel", "title": "channel"}


def said(chat: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {"message_id": 1, "date": 1, "chat": chat, "text": "hi"} | fields


FROM = {"from": ANN}
PRESSED = {"id": "1", "from": ANN, "chat_instance": "c"}
MEMBER = {"status": "member", "user": BOT}
CHANGED = {"from": ANN, "date": 1, "old_chat_member": MEMBER, "new_chat_member": MEMBER}
BUSINESS = {"id": "b", "user": ANN, "user_chat_id": 7, "date": 1, "is_enabled": True, "can_reply": True}
REACTION = {"message_id": 1, "date": 1, "old_reaction": [], "new_reaction": []}
PAID = {"currency": "XTR", "total_amount": 1, "invoice_payload": "p"}
BOOST = {"source": "premium", "user": ANN}

UPDATES: dict[str, tuple[dict[str, Any], int | None]] = {
    "message": ({"message": said(PRIVATE, **FROM)}, 7),
    "message in a group": ({"message": said(GROUP, **FROM)}, -5),
    "message of an anonymous admin": ({"message": said(GROUP, sender_chat=GROUP, **{"from": BOT})}, -5),
    "message in a topic": ({"message": said(GROUP, message_thread_id=3, is_topic_message=True, **FROM)}, -5),
    "edited_message": ({"edited_message": said(GROUP, edit_date=2, **FROM)}, -5),
    "channel_post": ({"channel_post": said(CHANNEL)}, -6),
    "edited_channel_post": ({"edited_channel_post": said(CHANNEL, edit_date=2)}, -6),
    "business_connection": ({"business_connection": BUSINESS}, 7),
    "business_message": ({"business_message": said(PRIVATE, business_connection_id="b", **FROM)}, 7),
    "edited_business_message": ({"edited_business_message": said(PRIVATE, business_connection_id="b", edit_date=2, **FROM)}, 7),
    "deleted_business_messages": ({"deleted_business_messages": {"business_connection_id": "b", "chat": PRIVATE, "message_ids": [1]}}, 7),
    "message_reaction": ({"message_reaction": REACTION | {"chat": GROUP, "user": ANN}}, -5),
    "message_reaction_count": ({"message_reaction_count": {"chat": CHANNEL, "message_id": 1, "date": 1, "reactions": []}}, -6),
    "inline_query": ({"inline_query": {"id": "1", "from": ANN, "query": "q", "offset": ""}}, 7),
    "chosen_inline_result": ({"chosen_inline_result": {"result_id": "1", "from": ANN, "query": "q"}}, 7),
    "callback_query": ({"callback_query": PRESSED | {"message": said(GROUP, **{"from": BOT})}}, -5),
    "callback_query of an inline message": ({"callback_query": PRESSED | {"inline_message_id": "i"}}, 7),
    "callback_query of an old message": ({"callback_query": PRESSED | {"message": {"chat": GROUP, "message_id": 1, "date": 0}}}, -5),
    "shipping_query": ({"shipping_query": {"id": "1", "from": ANN, "invoice_payload": "p", "shipping_address": {
        "country_code": "XX", "state": "", "city": "c", "street_line1": "s", "street_line2": "", "post_code": "1"}}}, 7),
    "pre_checkout_query": ({"pre_checkout_query": {"id": "1", "from": ANN, **PAID}}, 7),
    "purchased_paid_media": ({"purchased_paid_media": {"from": ANN, "paid_media_payload": "p"}}, 7),
    "poll": ({"poll": {"id": "9", "question": "q", "options": [], "total_voter_count": 0, "is_closed": False, "is_anonymous": True,
                       "type": "regular", "allows_multiple_answers": False, "allows_revoting": False, "members_only": False}}, None),
    "poll_answer": ({"poll_answer": {"poll_id": "9", "user": ANN, "option_ids": [0], "option_persistent_ids": ["a"]}}, 7),
    "my_chat_member": ({"my_chat_member": CHANGED | {"chat": GROUP}}, -5),
    "chat_member": ({"chat_member": CHANGED | {"chat": GROUP}}, -5),
    "chat_join_request": ({"chat_join_request": {"chat": GROUP, "from": ANN, "user_chat_id": 7, "date": 1}}, -5),
    "chat_boost": ({"chat_boost": {"chat": CHANNEL, "boost": {"boost_id": "b", "add_date": 1, "expiration_date": 2, "source": BOOST}}}, -6),
    "removed_chat_boost": ({"removed_chat_boost": {"chat": CHANNEL, "boost_id": "b", "remove_date": 1, "source": BOOST}}, -6),
}  # fmt: skip


@pytest.mark.parametrize(("update", "number"), UPDATES.values(), ids=UPDATES)
def test_an_update_belongs_to_the_same_chat_or_user_by_each_way(update: dict[str, Any], number: int | None) -> None:
    update = {"update_id": 1} | update
    by_ptb = telegram.Update.de_json(update, None)
    context = UserContextMiddleware.resolve_event_context(aiogram.types.Update.model_validate(update))
    whose = by_ptb.effective_chat or by_ptb.effective_user  # as PTBSessions.held does
    by_aiogram = context.user_id if context.chat_id is None else context.chat_id

    found = Telegram("secret").incoming(update)

    assert [each.session_id for each in found] == ([] if number is None else [f"telegram:{number}"])
    assert [each.event_id for each in found] == ([] if number is None else ["1"])
    assert (None if whose is None else whose.id, by_aiogram) == (number, number)


def test_a_channel_that_votes_has_a_session_of_its_own() -> None:
    update = {"update_id": 1, "poll_answer": {"poll_id": "9", "voter_chat": CHANNEL, "option_ids": [0]}}

    assert [each.session_id for each in Telegram("secret").incoming(update)] == ["telegram:-6"]


def test_an_update_of_a_kind_to_come_finds_its_chat_or_user() -> None:
    for value, expected in ((said(GROUP), "telegram:-5"), ({"user": ANN}, "telegram:7"), ({"from": ANN}, "telegram:7")):
        found = Telegram("secret").incoming({"update_id": 1, "of_tomorrow": value})
        assert [each.session_id for each in found] == [expected]
