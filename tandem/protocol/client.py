"""A small client of OpenAI's streaming API: enough to chat with a service and to time its tokens."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import aiohttp
import msgspec

from tandem.errors import ProcessError, RequestError, UsageError
from tandem.protocol import sse
from tandem.protocol.tls import TlsFiles

Event = dict[str, Any]


class Model(msgspec.Struct):
    """One entry of a model list."""

    id: str


class ModelListing(msgspec.Struct):
    """Answer of `GET /v1/models`."""

    data: list[Model]


TIMEOUT: Final = aiohttp.ClientTimeout(total=None, sock_connect=5)


@dataclass(frozen=True, kw_only=True)
class Access:
    """What a service is shown by who asks it."""

    key: str | None = field(default=None, repr=False)
    """An API key, where it wants one."""
    tls: TlsFiles | None = None
    """A certificate, where it wants one, and who must have signed its own."""


PLAIN: Final = Access()


class AnswerStream:
    """A streamed answer: iterate over it for `(text, event)`, the text of an event and the event itself.

    Raises, while iterated over:
        RequestError: The stream carried an error event.
        ProcessError: The stream broke off before `[DONE]`.
    """

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self._response = response

    @property
    def headers(self) -> Mapping[str, str]:
        """The answer's HTTP headers, by name in any case."""
        return self._response.headers

    async def __aiter__(self) -> AsyncIterator[tuple[str, Event]]:
        try:
            async for event in sse.events(self._response.content.iter_any()):
                if "error" in event:
                    raise _refusal(500, msgspec.json.encode(event))
                yield _text(event), event
        except aiohttp.ClientError as error:
            raise ProcessError(f"{self._response.url}: the answer broke off; look at the service's log") from error


@asynccontextmanager
async def stream_completion(url: str, body: Mapping[str, Any], access: Access = PLAIN) -> AsyncIterator[AnswerStream]:
    """Ask for a completion of `body["prompt"]`, streamed.

    Args:
        url: The service's base URL, without `/v1`.
        body: The request's fields; `stream` is set here.
        access: What it is shown.

    Raises:
        ProcessError: The service cannot be reached.
        RequestError: It refused; the message is the service's own.
    """
    async with _streamed(url, "/v1/completions", body, access) as stream:
        yield stream


@asynccontextmanager
async def stream_chat(url: str, body: Mapping[str, Any], access: Access = PLAIN) -> AsyncIterator[AnswerStream]:
    """Ask for the next turn of `body["messages"]`, streamed; arguments and errors as in `stream_completion`."""
    async with _streamed(url, "/v1/chat/completions", body, access) as stream:
        yield stream


async def list_models(url: str, access: Access = PLAIN) -> tuple[str, ...]:
    """The names a service serves; errors as in `stream_completion`."""
    async with _answer(url, "GET", "/v1/models", access) as response:
        try:
            listing = msgspec.json.decode(await response.read(), type=ModelListing)
        except (msgspec.DecodeError, aiohttp.ClientError) as error:
            raise ProcessError(f"{response.url}: is no OpenAI service: {error}; check the URL") from error
    return tuple(model.id for model in listing.data)


@asynccontextmanager
async def _streamed(url: str, path: str, body: Mapping[str, Any], access: Access) -> AsyncIterator[AnswerStream]:
    async with _answer(url, "POST", path, access, {**body, "stream": True}) as response:
        yield AnswerStream(response)


@asynccontextmanager
async def _answer(
    url: str, method: str, path: str, access: Access, body: Event | None = None
) -> AsyncIterator[aiohttp.ClientResponse]:
    base = url.rstrip("/").removesuffix("/v1")
    headers = {} if access.key is None else {"Authorization": f"Bearer {access.key}"}
    tls = True if access.tls is None else access.tls.context()
    async with aiohttp.ClientSession(timeout=TIMEOUT, headers=headers) as session:
        try:
            response = await session.request(method, base + path, json=body, ssl=tls)
        except (aiohttp.InvalidURL, aiohttp.NonHttpUrlClientError) as error:
            raise UsageError(f"{url!r} is not a URL; write http://HOST:PORT") from error
        except (aiohttp.ClientSSLError, ssl.SSLError) as error:
            reason = " ".join(str(getattr(error, "os_error", error)).split())
            raise ProcessError(
                f"{base}: TLS with it fails ({reason}); name its CA with --ca, and with --cert and --key what it wants "
                "to be shown"
            ) from error
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise ProcessError(f"{base}: no service answers there; start one with `tandem serve MODEL`") from error
        async with response:
            if response.status != 200:
                raise _refusal(response.status, await response.read())
            yield response


def _refusal(status: int, body: bytes) -> RequestError:
    """The service's own words, if it spoke OpenAI's error shape."""
    try:
        error = msgspec.json.decode(body)["error"]
        return RequestError(error["message"], status=status, code=error.get("code"), param=error.get("param"))
    except (msgspec.DecodeError, KeyError, TypeError):
        return RequestError(f"the service answered with status {status}: {body[:200]!r}", status=status)


def _text(event: Event) -> str:
    for choice in event.get("choices", ()):
        return choice.get("text") or (choice.get("delta") or {}).get("content") or ""
    return ""
