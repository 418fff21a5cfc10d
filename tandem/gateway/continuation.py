"""How an answer that broke off goes on with another worker: the request for the rest of it, and its events.

Our own instances are given the tokens so far and the characters the client has (`resume`), and everything goes on as if
nothing had happened: random numbers, penalties, stop strings, limits. vLLM is given the prompt and the tokens so far as
the prompt of another request. What it would not continue exactly is refused, because a client must not get another
answer than it would have had.

Source: `kv_transfer_params.prompt_token_ids`, vLLM's guide on disaggregated prefilling; what continues identically was
measured on vLLM 0.32.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from tandem.errors import RequestError
from tandem.gateway.body import KV_FIELD, ClientBody
from tandem.gateway.journal import Progress
from tandem.protocol.kv import Resume

COMPLETION_TOKENS: Final = 16
"""OpenAI's `max_tokens` of a completion, where none is given."""
NEUTRAL: Final[dict[str, tuple[Any, ...]]] = {
    "presence_penalty": (None, 0),
    "frequency_penalty": (None, 0),
    "stop": (None, "", []),
    "bad_words": (None, []),
    "echo": (None, False),
    "prompt_logprobs": (None,),
    "truncate_prompt_tokens": (None,),
    "tools": (None, []),
    "response_format": (None, {"type": "text"}),
    "structured_outputs": (None,),
    "guided_json": (None,),
    "guided_regex": (None,),
    "guided_choice": (None,),
    "guided_grammar": (None,),
}
"""Fields that another vLLM would not continue exactly, with the values that ask for nothing."""


def begun(body: ClientBody, choice: int = 0) -> Resume:
    """What there was of an answer before its first worker here: a client may itself have asked for the rest of one."""
    asked = body.value("resume")
    return Resume(output_token_ids=[], choice=choice) if asked is None else msgspec.convert(asked, Resume)


def resumed(body: ClientBody, progress: Progress, choice: int) -> ClientBody:
    """The request for the rest, to an instance of ours."""
    before = begun(body, choice)
    ids, sent = before.output_token_ids + progress.tokens, before.sent + progress.characters
    return body.with_fields(resume=Resume(output_token_ids=ids, sent=sent, choice=before.choice))


def continued(body: ClientBody, progress: Progress) -> ClientBody:
    """The request for the rest, to a vLLM, which takes all tokens but the silent ones as given.

    Raises:
        RequestError: 502, when the answer would not go on exactly; the message names the field.
    """
    _require_exact(body)
    if progress.prompt is None:
        raise _cannot("its worker told no token ids")
    if progress.is_parsed:
        raise _cannot("what a parser has made of its text would begin anew")
    if progress.silent_tokens and body.wants_ids:
        raise _cannot("return_token_ids has told of tokens whose text is still to come")
    given = progress.tokens[: len(progress.tokens) - progress.silent_tokens]
    ids = progress.prompt + given
    limits = {name: body.value(name) for name in ("max_tokens", "max_completion_tokens")}
    least = body.value("min_tokens")
    fields: dict[str, Any] = {name: limit - len(given) for name, limit in limits.items() if type(limit) is int}
    if type(least) is int:
        fields["min_tokens"] = max(0, least - len(given))
    if "messages" in body.fields:
        return body.with_fields(**fields, **{KV_FIELD: {"prompt_token_ids": ids}})
    return body.with_fields(**({"max_tokens": COMPLETION_TOKENS - len(given)} | fields), prompt=ids)


def _require_exact(body: ClientBody) -> None:
    for name, neutral in NEUTRAL.items():
        if body.value(name) not in neutral:
            raise _cannot(f"{name} would not go on as it was")
    if body.value("seed") is not None and body.value("temperature") != 0:
        raise _cannot("seed would begin anew")
    if "messages" not in body.fields and type(body.value("logprobs")) is int:
        raise _cannot("the places that logprobs tells would begin anew")


def _cannot(why: str) -> RequestError:
    message = f"the instance that wrote this answer is gone, and no other can go on with it: {why}; ask again"
    return RequestError(message, status=502, code="cannot_continue")
