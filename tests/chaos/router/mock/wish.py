"""What a request asks for, read from its body."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import Any, Final, Literal

from chaos.router.mock.language import templated, tokenized

Dialect = Literal["vllm", "native"]

COMPLETION_TOKENS: Final = 16
"""OpenAI's default."""
CHAT_TOKENS: Final = 64


class BadRequestError(Exception):
    """The request cannot be understood; status 400."""

    def __init__(self, message: str, param: str) -> None:
        super().__init__(f"{param}: {message}")
        self.param = param


@dataclass(frozen=True, kw_only=True)
class Wish:
    """A request without its transport."""

    chat: bool
    prompt: tuple[int, ...]
    max_tokens: int
    n: int = 1
    min_tokens: int = 0
    ignore_eos: bool = False
    stops: tuple[str, ...] = ()
    temperature: float = 0.0
    seed: int | None = None
    presence: float = 0.0
    frequency: float = 0.0
    repetition: float = 1.0
    logprobs: int | None = None
    """How many alternatives to tell beside each token; None for no log-probabilities."""
    stream: bool = False
    usage: bool = False
    """Whether a stream ends with the token counts."""
    token_ids: bool = False
    output: tuple[int, ...] = ()
    """Tokens that another instance generated (`resume`)."""
    sent: int = 0
    choice: int = 0
    resumed: bool = False

    @classmethod
    def read(cls, body: Mapping[str, Any], *, chat: bool, dialect: Dialect) -> Wish:
        """Read a body.

        Raises:
            BadRequestError: It holds several prompts, or none.
        """
        prompt = _chat_prompt(body, dialect) if chat else _prompt(body.get("prompt"))
        longest = body.get("max_completion_tokens") if chat else None
        resume = body.get("resume") or {}
        return cls(
            chat=chat,
            prompt=tuple(prompt),
            max_tokens=longest or body.get("max_tokens") or (CHAT_TOKENS if chat else COMPLETION_TOKENS),
            n=body.get("n") or 1,
            min_tokens=body.get("min_tokens") or 0,
            ignore_eos=bool(body.get("ignore_eos")),
            stops=_stops(body.get("stop")),
            temperature=_real(body, "temperature", 0.0),
            seed=body.get("seed"),
            presence=_real(body, "presence_penalty", 0.0),
            frequency=_real(body, "frequency_penalty", 0.0),
            repetition=_real(body, "repetition_penalty", 1.0),
            logprobs=_logprobs(body, chat=chat),
            stream=bool(body.get("stream")),
            usage=bool((body.get("stream_options") or {}).get("include_usage")),
            token_ids=bool(body.get("return_token_ids")),
            output=tuple(resume.get("output_token_ids", ())),
            sent=resume.get("sent", 0),
            choice=resume.get("choice", 0),
            resumed=body.get("resume") is not None,
        )

    @property
    def choices(self) -> tuple[int, ...]:
        """Which answers are wanted: all, or the one that goes on."""
        return (self.choice,) if self.resumed else tuple(range(self.n))

    @property
    def content(self) -> str:
        """What a ticket for it is bound to."""
        ids = b"".join(token.to_bytes(4, "little") for token in (*self.prompt, *self.output))
        return blake2b(ids, digest_size=8).hexdigest()

    def one_more(self) -> Wish:
        """The prefill leg of it: whatever `max_tokens` says, one new token."""
        return replace(self, max_tokens=len(self.output) + 1)


def _real(body: Mapping[str, Any], name: str, default: float) -> float:
    """A number as single precision has it: routers that keep no more of it change no real answer either."""
    return round(body.get(name) or default, 4)


def _prompt(prompt: Any) -> list[int]:
    if isinstance(prompt, list) and prompt and isinstance(prompt[0], str | list):
        if len(prompt) > 1:
            raise BadRequestError("one prompt in a request", "prompt")
        prompt = prompt[0]
    ids = tokenized(prompt) if isinstance(prompt, str) else prompt
    if not ids or not all(type(token) is int for token in ids):
        raise BadRequestError("a text or a list of token ids is needed", "prompt")
    return list(ids)


def _chat_prompt(body: Mapping[str, Any], dialect: Dialect) -> list[int]:
    """Of a chat; vLLM takes ready ids from the hand-off's field, unless `echo` is asked for."""
    given = (body.get("kv_transfer_params") or {}).get("prompt_token_ids")
    if dialect == "vllm" and given and not body.get("echo"):
        return list(given)
    if not body.get("messages"):
        raise BadRequestError("a conversation is needed", "messages")
    return templated(body["messages"])


def _stops(stop: Any) -> tuple[str, ...]:
    return tuple(one for one in ([stop] if isinstance(stop, str) else stop or []) if one)


def _logprobs(body: Mapping[str, Any], *, chat: bool) -> int | None:
    asked = body.get("logprobs")
    if chat:
        return (body.get("top_logprobs") or 0) if asked else None
    return None if asked is None else int(asked)
