"""Whether the text of an answer's last tokens was told, which an event of several tokens does not show.

An engine holds back a token that ends within a character, until the next one completes it. Who goes on behind such a
token would lose that character, so the token has to be written again; a vLLM is asked how it spells the last ones.

Source: `POST /detokenize` of vLLM's server.
"""

from __future__ import annotations

from typing import Final

import msgspec

from tandem.gateway.delivery.exactness import cannot
from tandem.gateway.delivery.worker_client import WorkerClient
from tandem.gateway.request.client_request import ClientRequest
from tandem.gateway.request.progress import Progress
from tandem.gateway.wire.exchange import Exchange
from tandem.gateway.wire.worker import Worker
from tandem.protocol.http import VerbatimError
from tandem.protocol.json_body import UNREADABLE

ENOUGH: Final = 16
"""Tokens that are spelled; how a text ends depends on no more."""
HALF: Final = "\ufffd"
"""How a character is spelled that is not whole."""


class Spelled(msgspec.Struct, frozen=True):
    """An answer of `/detokenize`."""

    prompt: str


async def find_silent_tokens(progress: Progress, worker: Worker, asked: ClientRequest, client: WorkerClient) -> None:
    """Note how many of the last tokens have brought no text, where that is not sure.

    Raises:
        WorkerError: The worker does not answer.
        RequestError: 502, it does not spell tokens.
    """
    end = len(progress.tokens) - progress.silent_tokens
    while progress.unsure_tokens and (await _spelled(progress.tokens[:end], worker, asked, client)).endswith(HALF):
        progress.silent_tokens += 1
        progress.unsure_tokens -= 1
        end -= 1
    progress.unsure_tokens = 0


async def _spelled(tokens: list[int], worker: Worker, asked: ClientRequest, client: WorkerClient) -> str:
    body = msgspec.json.encode({"tokens": tokens[-ENOUGH:]})
    try:
        async with client.post(Exchange(worker, "other"), "/detokenize", body, asked.headers) as exchange:
            return msgspec.json.decode(await exchange.whole(), type=Spelled).prompt
    except (VerbatimError, *UNREADABLE):
        raise cannot("nobody tells whether its last character is whole") from None
