"""Everything but success, as the client sees it: OpenAI's error shape, whoever refused."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
from aiohttp import web

from tandem.errors import RequestError
from tandem.gateway.pool import Worker
from tandem.protocol.answers import error_answer

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

log = logging.getLogger(__name__)


class WorkerRefusalError(RequestError):
    """A worker answered 4xx: the client gets that answer as it is.

    Args:
        worker: Who refused.
        status: Its HTTP status.
        body: Its answer, byte for byte.
        headers: The headers of its answer that the client should see.
    """

    def __init__(self, worker: Worker, status: int, body: bytes, headers: dict[str, str]) -> None:
        super().__init__(f"{worker.name} refused the request with status {status}", status=status)
        self.body = body
        self.headers = headers


def worker_failed(worker: Worker, how: str, *, status: int = 502) -> RequestError:
    """The refusal for a worker that did not do its part; it names the worker and never its address."""
    return RequestError(
        f"{worker.name} {how}; try again, and look at its log if this stays", status=status, code="worker_failed"
    )


def json_response(payload: Any, status: int = 200) -> web.Response:
    """A JSON answer."""
    return web.Response(status=status, body=msgspec.json.encode(payload), content_type="application/json")


def refusal_response(error: RequestError) -> web.Response:
    """The HTTP answer for a refusal."""
    if isinstance(error, WorkerRefusalError):
        return web.Response(status=error.status, body=error.body, headers=error.headers)
    response = json_response(error_answer(error), error.status)
    if error.status == 503:
        response.headers["Retry-After"] = "1"
    return response


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
    except Exception:
        log.exception("%s %s failed", request.method, request.path)
        bug = RequestError("the gateway failed on this request; its log says why", status=500, code="internal_error")
        return refusal_response(bug)


def _routing_refusal(request: web.Request, error: web.HTTPException) -> web.Response:
    reasons = {
        404: f"{request.path}: no such endpoint; there are /v1/completions, /v1/chat/completions and /v1/models",
        405: f"{request.method} is not allowed on {request.path}; use {error.headers.get('Allow', 'another method')}",
    }
    message = reasons.get(error.status, error.reason)
    response = refusal_response(RequestError(message, status=error.status))
    if "Allow" in error.headers:
        response.headers["Allow"] = error.headers["Allow"]
    return response
