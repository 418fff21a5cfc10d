"""The API that clients are spoken to in: OpenAI's, or that of vLLM 0.5.0's own server. Instances only know OpenAI's."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from aiohttp import web

from tandem.gateway.delivery.native_relay import NativeRelay
from tandem.gateway.delivery.relay import Answer, Relay
from tandem.gateway.observability.metrics import GatewayMetrics
from tandem.gateway.request.client_request import ClientRequest
from tandem.gateway.request.record import Record
from tandem.protocol.vllm_native import as_completion

Api = Literal["openai", "vllm"]

Begin = Callable[[Record, str, bytes, Mapping[str, str]], ClientRequest]
HandOn = Callable[[web.Request, ClientRequest, Answer, Mapping[str, str]], Awaitable[web.StreamResponse]]


@dataclass(frozen=True, kw_only=True)
class Front:
    """How a request comes in and its answer goes out."""

    generating: tuple[str, ...]
    """The endpoints that answer with generated text."""
    lists_models: bool
    wants_json_type: bool
    """Whether a body must say that it is JSON; clients of vLLM 0.5.0's own server need not."""
    begin: Begin
    """From a new record, path, body and the headers that are passed on."""
    hand_on: HandOn

    @classmethod
    def of(cls, api: Api, metrics: GatewayMetrics) -> Front:
        """The front for one API."""
        if api == "vllm":
            hand_on = NativeRelay(metrics).hand_on
            return cls(
                generating=("/generate",),
                lists_models=False,
                wants_json_type=False,
                begin=begin_native,
                hand_on=hand_on,
            )
        return cls(
            generating=("/v1/completions", "/v1/chat/completions"),
            lists_models=True,
            wants_json_type=True,
            begin=ClientRequest.begin,
            hand_on=Relay(metrics).hand_on,
        )


def begin_native(record: Record, _: str, raw: bytes, headers: Mapping[str, str]) -> ClientRequest:
    """Set out with the body of a `POST /generate`: the instances are asked for a completion.

    Raises:
        RequestError: 400, naming the field at fault.
    """
    return ClientRequest.begin(record, "/v1/completions", as_completion(raw), headers)
