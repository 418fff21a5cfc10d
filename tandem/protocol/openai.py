"""The OpenAI requests an instance understands, as types; whatever they do not name is refused with status 400.

A field of OpenAI's API that is not supported yet is still accepted when it says what leaving it out would say
(`"echo": false`), because common clients send such fields; any other value is refused by name.

Source: OpenAI API reference, `/v1/completions` and `/v1/chat/completions`; the fields `top_k`, `min_p`,
`repetition_penalty`, `min_tokens`, `ignore_eos`, `stop_token_ids`, `priority`, `cache_salt`, `return_token_ids` and
`kv_transfer_params` are vLLM's extensions; `deadline_seconds`, `reservation` and `resume` are ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal, TypeVar

import msgspec
from msgspec import Meta

from tandem.errors import RequestError
from tandem.protocol.json_body import decode_body, decode_object, refusal
from tandem.protocol.kv import KVTransferParams, Resume

MAX_STOPS: Final = 16
MAX_CHOICES: Final = 128

Penalty = Annotated[float, Meta(ge=-2, le=2)]
TopLogprobs = Annotated[int, Meta(ge=0, le=20)]
SALT: Final = r"\A[A-Za-z0-9_\-+/=.]{1,256}\Z"
SALT_IN_WORDS: Final = "of 1 to 256 letters, digits and _-+/=."
Salt = Annotated[str, Meta(pattern=SALT)]
"""Of what base64 and ids are made of: it becomes part of keys, and others may write those into paths or lines."""


class StreamOptions(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """Options of a streamed answer."""

    include_usage: bool = False
    """End with a chunk that has no choices and the token counts."""


class GenerationRequest(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """The fields that completions and chat completions share."""

    model: str | None = None
    max_tokens: Annotated[int, Meta(ge=1)] | None = None
    temperature: Annotated[float, Meta(ge=0)] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    top_k: Annotated[int, Meta(ge=-1)] | None = None
    min_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    repetition_penalty: Annotated[float, Meta(gt=0, le=1e4)] | None = None
    n: Annotated[int, Meta(ge=1, le=MAX_CHOICES)] | None = None
    seed: Annotated[int, Meta(ge=0, le=2**63 - 1)] | None = None
    stop: str | Annotated[list[Annotated[str, Meta(min_length=1)]], Meta(max_length=MAX_STOPS)] | None = None
    stop_token_ids: Annotated[list[int], Meta(max_length=MAX_STOPS)] | None = None
    min_tokens: Annotated[int, Meta(ge=0)] = 0
    ignore_eos: bool = False
    stream: bool = False
    stream_options: StreamOptions | None = None
    return_token_ids: bool | None = None
    """Tell the ids of the prompt's and the answer's tokens."""
    priority: Annotated[int, Meta(ge=-(2**31), le=2**31 - 1)] = 0
    """Lower ones go first."""
    deadline_seconds: Annotated[float, Meta(gt=0)] | None = None
    """So long after its arrival the request fails if it has not ended."""
    cache_salt: Salt | None = None
    """Blocks are shared only with requests of the same salt."""
    reservation: Annotated[str, Meta(min_length=1, max_length=256)] | None = None
    """Name of blocks that were reserved for this request."""
    kv_transfer_params: KVTransferParams | None = None
    resume: Resume | None = None
    """What another instance generated of the answer."""
    user: str | None = None
    metadata: dict[str, str] | None = None
    """Whom and what it is for, in the client's own books: like the user it asks for nothing, and has no effect."""

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop strings, however they were spelled."""
        if isinstance(self.stop, str):
            return (self.stop,) if self.stop else ()
        return tuple(self.stop or ())

    @property
    def include_usage(self) -> bool:
        """Whether a streamed answer ends with the token counts."""
        return self.stream_options is not None and self.stream_options.include_usage

    @property
    def logprob_count(self) -> int | None:
        """How many of the most likely tokens to tell beside the one drawn; None where no log-probabilities are asked.

        Raises:
            RequestError: The fields that say it contradict each other.
        """
        return None


class CompletionRequest(GenerationRequest, frozen=True, kw_only=True):
    """Body of `POST /v1/completions`."""

    prompt: str | list[Any]
    logprobs: TopLogprobs | None = None

    @property
    def logprob_count(self) -> int | None:
        """See `GenerationRequest`."""
        return self.logprobs

    def single_prompt(self) -> str | list[int]:
        """The one prompt, as text or as token ids.

        Raises:
            RequestError: The list is empty, mixed, or holds several prompts.
        """
        prompt = self.prompt
        if isinstance(prompt, list) and prompt and isinstance(prompt[0], str | list):
            if len(prompt) > 1:
                raise RequestError(
                    f"prompt: {len(prompt)} prompts in one request; send one request each", param="prompt"
                )
            prompt = prompt[0]
        if isinstance(prompt, list) and not all(type(token) is int for token in prompt):
            raise RequestError("prompt: expected text or a list of token ids", param="prompt")
        if not prompt:
            raise RequestError("prompt: is empty; send at least one token", param="prompt")
        return prompt


class TextPart(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """One part of a message's content."""

    type: Literal["text"]
    text: str


class ChatMessage(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """One turn of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]

    @property
    def text(self) -> str:
        """The content as one string."""
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class ChatRequest(GenerationRequest, frozen=True, kw_only=True):
    """Body of `POST /v1/chat/completions`."""

    messages: Annotated[list[ChatMessage], Meta(min_length=1)]
    max_completion_tokens: Annotated[int, Meta(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: TopLogprobs | None = None

    @property
    def logprob_count(self) -> int | None:
        """See `GenerationRequest`."""
        if self.logprobs:
            return self.top_logprobs or 0
        if self.top_logprobs:
            raise RequestError("top_logprobs: needs logprobs: true; set it or leave this out", param="top_logprobs")
        return None

    @property
    def token_limit(self) -> int | None:
        """The limit under its new name or its old one."""
        return self.max_completion_tokens if self.max_completion_tokens is not None else self.max_tokens


Neutral = Mapping[str, tuple[object, ...]]

NEUTRAL: Final[Neutral] = {
    "best_of": (None, 1),
    "echo": (None, False),
    "suffix": (None, ""),
    "prompt_logprobs": (None,),
    "logit_bias": (None, {}),
    "tools": (None, []),
    "tool_choice": (None, "none", "auto"),
    "parallel_tool_calls": (None, True, False),
    "response_format": (None, {"type": "text"}),
    "store": (None, False),
    "service_tier": (None, "auto", "default"),
    "skip_special_tokens": (None, True),
    "no_stop_trim": (None, False),
    "continue_final_message": (None, False),
    "return_hidden_states": (None, False),
    "include_reasoning": (None, True),
    "separate_reasoning": (None, True),
    "stream_reasoning": (None, True),
}
"""Fields of OpenAI, vLLM and SGLang that are not supported yet, with the values that ask for nothing; vllm-router adds
the latter two's, with those values, to everything it passes on."""

R = TypeVar("R", bound=msgspec.Struct)


def parse(body: bytes, kind: type[R], neutral: Neutral = NEUTRAL) -> R:
    """Decode and validate one request body.

    Args:
        body: As it came.
        kind: What it should be.
        neutral: Fields that `kind` does not have, with the values that ask for nothing.

    Raises:
        RequestError: The body is not JSON, misses a field, has one of the wrong type or range, or has one that is not
            supported; the message names it.
    """
    try:
        return decode_body(body, kind)
    except msgspec.ValidationError:
        fields = _without_neutral(decode_object(body), neutral)
    try:
        return msgspec.convert(fields, kind)
    except msgspec.ValidationError as error:
        raise refusal(str(error).replace(f"matching regex {SALT!r}", SALT_IN_WORDS)) from None


def _without_neutral(fields: dict[str, Any], neutral: Neutral) -> dict[str, Any]:
    # As many candidates as answers: there is nothing to choose from.
    as_many = {"best_of": (*neutral["best_of"], fields.get("n"))}
    for name, values in {**neutral, **as_many}.items():
        if name in fields and not _asks_nothing(fields[name], values):
            raise RequestError(
                f"{name}: {str(fields[name])[:80]} is not supported by this instance; leave the field out",
                param=name,
                code="unsupported_parameter",
            )
    return {name: value for name, value in fields.items() if name not in neutral}


def _asks_nothing(value: object, neutral: tuple[object, ...]) -> bool:
    """Whether a value is one of the neutral ones; 0 is not False here, but 0.0 is 0."""
    return any(value == one and isinstance(value, bool) == isinstance(one, bool) for one in neutral)
