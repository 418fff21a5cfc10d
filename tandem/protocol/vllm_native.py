"""The request and the answer of vLLM 0.5.0's own server, `POST /generate`, as a completion says them.

Its defaults are its own: they do not come from the model folder. What it has and a completion has not is accepted with
the value that asks for nothing, and else refused by name.

Source: vLLM 0.5.0, `entrypoints/api_server.py` and `sampling_params.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta

from tandem.errors import RequestError
from tandem.protocol.answers import Answer
from tandem.protocol.openai import MAX_CHOICES, MAX_STOPS, Neutral, Penalty, parse


class NativeRequest(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """Body of `POST /generate`; every field has the same name and meaning in a completion."""

    prompt: str
    stream: bool = False
    n: Annotated[int, Meta(ge=1, le=MAX_CHOICES)] = 1
    max_tokens: Annotated[int, Meta(ge=1)] = 16
    min_tokens: Annotated[int, Meta(ge=0)] = 0
    temperature: Annotated[float, Meta(ge=0)] = 1.0
    top_p: Annotated[float, Meta(gt=0, le=1)] = 1.0
    top_k: Annotated[int, Meta(ge=-1)] = -1
    min_p: Annotated[float, Meta(ge=0, le=1)] = 0.0
    presence_penalty: Penalty = 0.0
    frequency_penalty: Penalty = 0.0
    repetition_penalty: Annotated[float, Meta(gt=0, le=2)] = 1.0
    seed: int | None = None
    stop: str | Annotated[list[str], Meta(max_length=MAX_STOPS)] | None = None
    stop_token_ids: Annotated[list[int], Meta(max_length=MAX_STOPS)] | None = None
    ignore_eos: bool = False


NEUTRAL: Final[Neutral] = {
    "best_of": (None, 1),
    "use_beam_search": (None, False),
    "length_penalty": (None, 1.0),
    "early_stopping": (None, False),
    "include_stop_str_in_output": (None, False),
    "logprobs": (None,),
    "prompt_logprobs": (None,),
    "detokenize": (None, True),
    "skip_special_tokens": (None, True),
    "spaces_between_special_tokens": (None, True),
    "logits_processors": (None, []),
    "truncate_prompt_tokens": (None,),
}
"""Fields of `SamplingParams` that a completion here does not have, with the values that ask for nothing."""

END: Final = b"\0"
"""Ends each object of a stream."""


def as_completion(body: bytes) -> bytes:
    """The body of `POST /v1/completions` that asks for the same.

    Raises:
        RequestError: 400, naming the field that is missing, wrong or not supported.
    """
    asked = parse(body, NativeRequest, NEUTRAL)
    if asked.top_k == 0:
        raise RequestError("top_k: 0 keeps no token; give -1 for all of them, or 1 and more", param="top_k")
    if asked.stop == "" or "" in (asked.stop or ()):
        raise RequestError("stop: holds an empty text; leave it out", param="stop")
    fields: dict[str, Any] = msgspec.to_builtins(asked)
    return msgspec.json.encode({name: value for name, value in fields.items() if value is not None})


def native_answer(prompt: str, texts: Sequence[str]) -> Answer:
    """The answer, or an object of a stream: every choice so far, behind the prompt."""
    return {"text": [prompt + text for text in texts]}
