"""What every HTTP server of ours does alike: request ids, and everything but success in OpenAI's error shape."""

from __future__ import annotations

import asyncio
import logging
import math
import re
import uuid
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

import msgspec
from aiohttp import web
from aiohttp.http import HttpProcessingError

from tandem.errors import RequestError
from tandem.protocol.answers import error_answer

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

BODY_LIMIT: Final = 32 * 2**20
"""Longest request body, in bytes."""

SANE_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,128}")

log = logging.getLogger(__name__)


class VerbatimError(RequestError):
    """A refusal that another process made: the client gets that answer as it is.

    Args:
        message: For our own log.
        status: Its HTTP status.
        body: Its answer, byte for byte.
        headers: The headers of its answer that the client should see.
    """

    def __init__(self, message: str, *, status: int, body: bytes, headers: dict[str, str]) -> None:
        super().__init__(message, status=status)
        self.body = body
        self.headers = headers


def app_runner(application: web.Application, grace: float) -> web.AppRunner:
    """What serves an application.

    Args:
        application: Its routes.
        grace: Seconds that answers under way have when it stops.
    """
    # Without handler_cancellation aiohttp would let a handler finish an answer that nobody waits for.
    return web.AppRunner(application, handler_cancellation=True, shutdown_timeout=grace, **serving_options())


def serving_options() -> dict[str, Any]:
    """What aiohttp is told for each connection."""
    return {"access_log": None, "logger": _without_bytes()}


def _without_bytes() -> logging.Logger:
    """A log of requests that are no HTTP: that there was one, and not the bytes, which may be somebody's prompt."""

    def without_trace(record: logging.LogRecord) -> bool:
        record.exc_info = None
        return True

    logger = logging.getLogger(f"{__name__}.server")
    logger.addFilter(without_trace)
    return logger


def request_id(headers: Mapping[str, str]) -> str:
    """The client's `X-Request-Id` if it is sane, else a new one: it ends up in log lines and engine ids."""
    wanted = headers.get("X-Request-Id", "")
    return wanted if SANE_ID.fullmatch(wanted) else uuid.uuid4().hex


async def read_body(request: web.Request) -> bytes:
    """The request's body.

    Raises:
        RequestError: 413, when it is longer than the application allows.
    """
    try:
        return await request.read()
    except web.HTTPRequestEntityTooLarge:
        limit = _size(request.client_max_size)
        raise RequestError(
            f"the body is larger than {limit}; send a shorter prompt", status=413, code="body_too_large"
        ) from None
    except (web.RequestPayloadError, HttpProcessingError) as error:
        reason = " ".join(str(error).split())
        raise RequestError(f"the body cannot be read: {reason}; send it plain", code="invalid_body") from None


def _size(count: int) -> str:
    """So many bytes, in the largest unit of which they are whole ones."""
    unit, name = next(one for one in ((2**20, "MiB"), (2**10, "KiB"), (1, "bytes")) if count % one[0] == 0)
    return f"{count // unit} {name}"


def json_response(payload: Any, status: int = 200) -> web.Response:
    """A JSON answer."""
    return web.Response(status=status, body=msgspec.json.encode(payload), content_type="application/json")


def refusal_response(error: RequestError) -> web.Response:
    """The HTTP answer for a refusal."""
    if isinstance(error, VerbatimError):
        return web.Response(status=error.status, body=error.body, headers=error.headers)
    response = json_response(error_answer(error), error.status)
    if error.status == 503 or error.retry_after is not None:
        response.headers["Retry-After"] = str(max(1, math.ceil(error.retry_after or 1)))
    if error.status == 401:
        response.headers["WWW-Authenticate"] = "Bearer"
    return response


def as_refusal(error: BaseException, request: web.Request) -> RequestError:
    """What a client is told of an error; one that nobody foresaw is a bug of ours, for our log."""
    if isinstance(error, RequestError):
        return error
    log.error("%s %s failed", request.method, request.path, exc_info=error)
    return RequestError("the server failed on this request; its log says why", status=500, code="internal_error")


@web.middleware
async def openai_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turn refusals, the router's own errors and our bugs into OpenAI's error shape."""
    try:
        return await handler(request)
    except RequestError as error:
        return refusal_response(error)
    except web.HTTPException as error:
        return _routing_refusal(request, error)
    except ConnectionError:
        return web.Response(status=499)  # the client is gone: nobody will read this, and it is no bug to log
    except (asyncio.CancelledError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:  # noqa: BLE001 - what foreign code raises when it panics is no Exception, and a bug
        return refusal_response(as_refusal(error, request))


def _routing_refusal(request: web.Request, error: web.HTTPException) -> web.Response:
    there = sorted({resource.canonical for resource in request.app.router.resources()})
    reasons = {
        404: f"{request.path}: no such endpoint; there are {', '.join(there)}",
        405: f"{request.method} is not allowed on {request.path}; use {error.headers.get('Allow', 'another method')}",
    }
    message = reasons.get(error.status, error.reason)
    response = refusal_response(RequestError(message, status=error.status))
    if "Allow" in error.headers:
        response.headers["Allow"] = error.headers["Allow"]
    return response
