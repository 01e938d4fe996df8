"""Whose is what Slack has sent? One rule, for webhooks and for Bolt, so that the ids are the same.

The ids of team, channel and user are looked for where Bolt looks for them, and in the same order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from actorbot.ext._requests import at

__all__ = ["asked_user", "session_id_of_body", "session_id_of_ids", "thread_user"]


def session_id_of_ids(
    *, team: Any, organisation: Any, has_organisation_installed: Any, channel: Any, user: Any
) -> str | None:
    """Return `slack:{team}:{channel}:{user}` without what is missing; `None` if nothing is there.

    If a whole organisation has installed the app, its id stands for the team. For Slack names the
    team in some of its requests only: not in messages, and in some views the user's own.
    """
    installed_by = organisation if has_organisation_installed and organisation else team or organisation
    parts = [part for part in (installed_by, channel, user) if isinstance(part, str) and part]
    return ":".join(["slack", *parts]) if parts else None


def session_id_of_body(body: dict[str, Any]) -> str | None:
    """Return the same for the body of a request."""
    return session_id_of_ids(
        team=_team(body),
        organisation=_organisation(body),
        has_organisation_installed=_is_organisations(body),
        channel=_channel(body),
        user=_user(body) or asked_user(_inputs(body)),
    )


def thread_user(part: Any) -> Any:
    """Return the user of an assistant's thread, whom Bolt does not look for; `None` if none is."""
    return at(part, "assistant_thread", "user_id")


def asked_user(inputs: Any) -> Any:
    """Return whom a workflow runs a step for: its input `user_id`, or who has pressed a button.

    The event names nobody else.
    """
    if not isinstance(inputs, dict):
        return None
    pressed = (at(value, "interactor", "id") for value in inputs.values())
    return inputs.get("user_id") or next(filter(None, pressed), None)


def _user(part: dict[str, Any]) -> Any:
    return _find(part, "user", ("event", "message", "previous_message"), _user) or thread_user(part)


def _channel(part: dict[str, Any]) -> Any:
    return _find(part, "channel", ("event", "item", "assistant_thread"), _channel)


def _find(part: dict[str, Any], name: str, inside: Sequence[str], find: Callable[[dict[str, Any]], Any]) -> Any:
    """Return an id: *name*, a text or an object, or else *name*_id, or what is *inside* a part."""
    found = part.get(name)
    if isinstance(found, str):
        return found
    if isinstance(found, dict) and "id" in found:
        return found["id"]
    if f"{name}_id" in part:
        return part[f"{name}_id"]
    return next((find(part[each]) for each in inside if isinstance(part.get(each), dict)), None)


def _team(body: dict[str, Any]) -> Any:
    installed_in = at(body, "view", "app_installed_team_id")  # of a view that somebody has shared a channel to see
    if installed_in is not None:
        return installed_in
    team = body.get("team")
    if isinstance(team, str):
        return team
    if isinstance(team, dict) and "id" in team:
        return team["id"]
    authorization = _first_authorization(body)
    if authorization is not None:  # in a shared channel `team_id` may be the team of who wrote
        return _team(authorization)
    if "team_id" in body:
        return body["team_id"]
    event, user = body.get("event"), body.get("user")
    if isinstance(event, dict):
        return _team(event)
    return at(user, "team_id") if isinstance(user, dict) else at(body, "view", "team_id")


def _organisation(body: dict[str, Any]) -> Any:
    found = body.get("enterprise")
    if isinstance(found, str):
        return found
    if isinstance(found, dict) and "id" in found:
        return found["id"]
    authorization, event = _first_authorization(body), body.get("event")
    if authorization is not None:
        return _organisation(authorization)
    if "enterprise_id" in body:
        return body["enterprise_id"]
    team = body.get("team")
    if isinstance(team, dict) and "enterprise_id" in team:
        return team["enterprise_id"]
    return _organisation(event) if isinstance(event, dict) else None


def _inputs(body: dict[str, Any]) -> Any:
    """Return the inputs of a workflow's step, if there is one."""
    if isinstance(body.get("event"), dict):
        is_step = body.get("function_execution_id") or at(body, "event", "function_execution_id")
        return at(body, "event", "inputs") if is_step else None
    is_step = body.get("function_execution_id") or at(body, "function_data", "execution_id")
    return at(body, "function_data", "inputs") if is_step else None


def _is_organisations(body: dict[str, Any]) -> bool:
    authorization = _first_authorization(body)
    return (body if authorization is None else authorization).get("is_enterprise_install") in (True, "true")


def _first_authorization(body: dict[str, Any]) -> dict[str, Any] | None:
    """Return for which installation an event was sent."""
    found = body.get("authorizations")
    return found[0] if isinstance(found, list) and found and isinstance(found[0], dict) else None
