"""actorbot behind webhooks: a Starlette application, or routes for yours.

A delivery of a chat platform is read up to a bound, verified on its raw bytes, and parsed strictly.
Each of its events is dispatched with the platform's own id for it, so that an event that is
delivered twice counts once. Then the platform gets its answer:

- 200 when all events are acknowledged
- 400, 401, 408, 413, 415 for what no handler has seen
- 429 at a bound, with `Retry-After`
- 500 when a handler failed
- 503 while the store or the manager cannot take it, with `Retry-After`

Wherever a `manager` is asked for, a `Cluster` will do: then the handlers are in its shards, any
number of workers of a server can answer, and what a platform sends twice counts once all the same.
A delivery whose answer did not come within the `timeout` of the cluster is answered 503, so that it
is sent again, and counts once.

A server begins to serve while its manager still waits for another process to give up the store, so
that a supervisor sees the new one before it ends the old one.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from http import HTTPStatus
from typing import Any, Final

from actorbot._manager.embedding import Front, confirm, is_open, wall
from actorbot.errors import (
    ConfigError,
    CorruptSessionError,
    ForkedError,
    InvalidSessionIdError,
    ManagerClosedError,
    OverloadedError,
    RemoteHandlerError,
    StoreError,
    TurnTimeoutError,
    WrongLoopError,
)
from actorbot.ext._owning import watch
from actorbot.ext._serving import serving
from actorbot.ext.webhooks import Incoming, Platform, RefusedError

try:
    from starlette.applications import Starlette
    from starlette.requests import ClientDisconnect, Request
    from starlette.responses import JSONResponse, PlainTextResponse, Response
    from starlette.routing import BaseRoute, Route
except ImportError as error:
    raise ImportError("actorbot.ext.asgi needs Starlette: pip install '.[web]' in a clone of actorbot") from error

__all__ = ["lifespan", "probe_routes", "webhook_app", "webhook_routes"]

logger = logging.getLogger("actorbot")

BODY_SECONDS: Final = 10.0  # for a client to send its body
RETRY_AFTER: Final = 5.0  # seconds, where nobody knows better
HANDED_OVER: Final = 1.0  # seconds until another process, or this one, has the store

# The event may be sent again, with the same id. TurnTimeoutError: no shard has answered in time.
_NOT_NOW: Final = (
    StoreError, CorruptSessionError, ManagerClosedError, ForkedError, WrongLoopError, TurnTimeoutError,
)  # fmt: skip


def webhook_app(manager: Front, platforms: Mapping[str, Platform]) -> Starlette:
    """Make an application of `webhook_routes` and `probe_routes`.

    It starts and closes *manager*, which must be new.
    """
    return Starlette(routes=[*webhook_routes(manager, platforms), *probe_routes(manager)], lifespan=lifespan(manager))


def webhook_routes(manager: Front, platforms: Mapping[str, Platform]) -> list[BaseRoute]:
    """Make a route for each platform, for an application of your own.

    *platforms* has them by path: `{"/telegram": Telegram(token)}`. *manager* is started on the loop
    that serves; until it is open, requests are answered 503. If it loses its store, the process is
    told to end, as by `lifespan`. Raises: ConfigError.
    """
    for path, platform in platforms.items():
        if not path.startswith("/") or not isinstance(platform, Platform):
            raise ConfigError("platforms", path, "paths that begin with '/', each with a Platform")
    watch(manager)
    return [_route(manager, path, platform) for path, platform in platforms.items()]


def probe_routes(manager: Front) -> list[BaseRoute]:
    """Make `/healthz` and `/readyz`.

    `/healthz` is 200 while the event loop answers. `/readyz` is 503 while the manager is not open,
    or fails. A degraded manager is ready, since it answers from memory. A cluster fails when its
    log has not answered for some seconds. Strangers are not told the reason; `manager.health()` has
    it.
    """

    async def healthz(_: Request) -> Response:
        return PlainTextResponse("ok")

    async def readyz(_: Request) -> Response:
        status = manager.health().status
        if status != "failing":
            return JSONResponse({"status": status})
        return JSONResponse({"status": status}, 503, _retry_after(RETRY_AFTER))

    return [Route("/healthz", healthz), Route("/readyz", readyz)]


def lifespan(manager: Front) -> Callable[[Any], AbstractAsyncContextManager[None]]:
    """Make the `lifespan=` of a Starlette or FastAPI application.

    It starts *manager* on the loop that serves, and closes it at the end. In a lifespan of your
    own: `async with lifespan(manager)(app):`.

    While another process owns the store, the application serves already: `/readyz` and webhooks are
    503, and `/healthz` is 200. If the owner does not give the store up within `takeover_timeout`,
    or if this process loses it later, it raises SIGTERM in itself, so that the server ends and its
    supervisor starts it again. Where nobody handles SIGTERM, it stays at 503. The same goes for a
    cluster that waits for its first shard, up to its `timeout`.

    Raises, when it is entered: what `SessionManager.start` raises before it waits for anybody.
    """

    @asynccontextmanager
    async def run(_: Any) -> AsyncIterator[None]:
        async with serving(manager):
            yield

    return run


def _route(manager: Front, path: str, platform: Platform) -> Route:
    async def deliver(request: Request) -> Response:
        if request.method == "POST":
            return await _guarded(path, request, _take(manager, path, platform, request))
        return await _guarded(path, request, _subscribe(platform, request))

    takes_get = type(platform).subscribe is not Platform.subscribe
    return Route(path, deliver, methods=["POST", "GET"] if takes_get else ["POST"])


async def _guarded(path: str, request: Request, answer: Awaitable[Response]) -> Response:
    try:
        return await answer
    except RefusedError as refusal:
        # The author's path: that of the request could have line breaks that fake other log lines.
        logger.info("refused a request to %s: %s", path, refusal)
        # Do not wait for the rest of the body, and do not tell a stranger what was wrong.
        headers = {"Connection": "close"} if request.scope["http_version"].startswith("1") else {}
        if refusal.status == 405:
            headers["Allow"] = "POST"
        elif refusal.status == 503:
            headers |= _retry_after(HANDED_OVER)
        return PlainTextResponse(HTTPStatus(refusal.status).phrase, refusal.status, headers)


async def _subscribe(platform: Platform, request: Request) -> Response:
    challenge = platform.subscribe(request.query_params.multi_items())
    return PlainTextResponse(challenge, headers={"X-Content-Type-Options": "nosniff"})


async def _take(manager: Front, path: str, platform: Platform, request: Request) -> Response:
    headers = request.headers.raw
    platform.admit(headers, wall(manager))
    if not is_open(manager):
        raise RefusedError(503, manager.health().reason)
    payload = platform.open(headers, await _read(request, platform.max_body))
    try:
        events = platform.incoming(payload)
    except RefusedError:
        raise
    except Exception:  # of the author's functions; nothing was handled, whatever `answer` is
        logger.exception("the events of a delivery to %s cannot be found", path)
        return PlainTextResponse(HTTPStatus(500).phrase, 500)
    failures = await (_submit if platform.answer == "accepted" else _dispatch)(manager, events)
    try:
        await confirm(manager)  # last: the process may have been frozen since
    except StoreError as error:
        failures.append(error)
    return _failed(platform, failures) if failures else PlainTextResponse(platform.reply(payload))


async def _read(request: Request, limit: int) -> bytes:
    """Read the body, and hold no more of it than *limit*."""
    declared = request.headers.getlist("content-length")
    if len(declared) > 1 or not all(each.isascii() and each.isdigit() for each in declared):
        raise RefusedError(400, "a wrong Content-Length")
    if declared and (len(declared[0]) > 15 or int(declared[0]) > limit):
        raise RefusedError(413, f"more than {limit} bytes")
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for chunk in request.stream():
                if len(body) + len(chunk) > limit:
                    raise RefusedError(413, f"more than {limit} bytes")
                body += chunk
    except TimeoutError:
        raise RefusedError(408, f"the body did not arrive within {BODY_SECONDS:g} s") from None
    except ClientDisconnect:
        raise RefusedError(400, "the client disconnected before the end of the body") from None
    if declared and int(declared[0]) != len(body):
        raise RefusedError(400, "the body is not as long as its Content-Length")
    return bytes(body)


async def _dispatch(manager: Front, events: list[Incoming]) -> list[BaseException]:
    """Dispatch all events at once. They are accepted in the order given.

    No event waits for one of another session, or fails because of it.
    """
    ends = await asyncio.gather(
        *(manager.dispatch(each.session_id or "", each.event, event_id=each.event_id) for each in events),
        return_exceptions=True,
    )
    for each, end in zip(events, ends, strict=True):
        if isinstance(end, BaseException):
            _log(each, end)
    return [end for end in ends if isinstance(end, BaseException)]


async def _submit(manager: Front, events: list[Incoming]) -> list[BaseException]:
    failures: list[BaseException] = []
    for each in events:
        try:
            await manager.submit(each.session_id or "", each.event, event_id=each.event_id)
        except Exception as error:
            _log(each, error)
            failures.append(error)
    return failures


def _log(failed: Incoming, error: BaseException) -> None:
    extra = {"session_id": failed.session_id}
    # A trace only of errors in the author's code, if it ran here: ours say enough.
    trace = error if _status(error) == 500 and not isinstance(error, RemoteHandlerError) else None
    logger.error("an event of session %r failed: %r", failed.session_id, error, exc_info=trace, extra=extra)


def _failed(platform: Platform, failures: list[BaseException]) -> Response:
    """Answer a delivery that failed in part, so that the platform delivers it again.

    The events that did not fail are duplicates then.
    """
    statuses = {_status(error) for error in failures}
    if platform.answer == "handled":
        statuses.discard(500)
    status = max(statuses, default=200)
    if status not in {429, 503}:
        return PlainTextResponse("" if status == 200 else HTTPStatus(status).phrase, status)
    waits = [error.retry_after for error in failures if isinstance(error, OverloadedError)]
    return PlainTextResponse(HTTPStatus(status).phrase, status, _retry_after(max(waits, default=RETRY_AFTER)))


def _retry_after(seconds: float) -> dict[str, str]:
    return {"Retry-After": str(max(1, math.ceil(seconds)))}


def _status(error: BaseException) -> int:
    if isinstance(error, OverloadedError):
        return 429
    if isinstance(error, _NOT_NOW):
        return 503
    return 400 if isinstance(error, InvalidSessionIdError) else 500
