"""A first hand-off: whether requests can really go a way before any client's does."""

from __future__ import annotations

import asyncio
from typing import Final

import msgspec

from tandem.errors import RequestError
from tandem.gateway.delivery.legs import Legs
from tandem.gateway.request.client_request import ClientRequest
from tandem.gateway.request.record import Record
from tandem.gateway.workers.route import Route

TRIAL_S: Final = 60.0
"""Longest trial: an instance may have much to prepare for its first request."""
TRIAL: Final = msgspec.json.encode(
    {"prompt": "tandem", "max_tokens": 2, "min_tokens": 2, "ignore_eos": True, "temperature": 0}
)
"""Of its two tokens the first comes from prefill, the second needs the keys and values that were handed over."""


def trial_request(name: str) -> ClientRequest:
    """A request for a trial."""
    record = Record(id=name, path="/v1/completions")
    return ClientRequest.begin(record, record.path, TRIAL, {})


async def why_not(legs: Legs, route: Route) -> str | None:
    """What goes wrong with a request that goes this way; None when it is answered."""
    asked = trial_request(f"trial-{route.prefill.name}-{route.decode.name}")
    try:
        async with asyncio.timeout(TRIAL_S), legs.answer(route, asked) as exchange:
            await exchange.whole()
    except TimeoutError:
        return f"no answer in {TRIAL_S:g} s; it is asked again"
    except RequestError as error:
        return str(error)
    return None
