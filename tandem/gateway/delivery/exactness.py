"""Which answers of a vLLM can go on elsewhere as they were, and which can only be written again: by their fields.

A vLLM that is given a prompt and an answer's first tokens as its prompt goes on with that answer exactly, if the next
token depends on the tokens alone. What depends on where the answer began (random numbers of a seed, penalties, stop
strings, parsers, places in the text) would begin anew. But an answer that is a function of its request comes out the
same whoever writes it, so it can be written again from its first token.

What goes on identically was measured on vLLM 0.32.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any, Final

from tandem.errors import RequestError
from tandem.gateway.request.body import ClientBody

GOES_ON: Final = frozenset(
    (
        *("model", "prompt", "messages", "stream", "stream_options", "n", "best_of", "deadline_seconds"),
        *("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "logit_bias", "allowed_token_ids"),
        *("max_tokens", "max_completion_tokens", "min_tokens", "ignore_eos", "stop_token_ids"),
        *("skip_special_tokens", "spaces_between_special_tokens", "stream_interval"),
        *("add_special_tokens", "add_generation_prompt", "continue_final_message", "chat_template", "documents"),
        *("user", "metadata", "store", "service_tier", "priority", "session_id", "cache_salt"),
    )
)
"""Fields that mean the same to a vLLM that goes on; all others it might not keep."""
GOES_ON_GREEDY: Final = frozenset(("seed", "return_token_ids"))
"""The same where the next token is the likeliest: tokens that a client knows, but not their text, then come again."""
GOES_ON_GREEDY_CHAT: Final = GOES_ON_GREEDY | {"logprobs", "top_logprobs"}
"""Of a completion, log-probabilities tell places in its text."""
NEUTRAL: Final[dict[str, tuple[Any, ...]]] = {
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "length_penalty": (1,),
    "stop": ("", []),
    "bad_words": ([],),
    "echo": (False,),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "parallel_tool_calls": (True, False),
    "response_format": ({"type": "text"},),
    "return_token_ids": (False,),
    "include_reasoning": (True,),
    "include_stop_str_in_output": (False,),
    "use_beam_search": (False,),
    "top_logprobs": (0,),
}
"""Values that ask for nothing, besides null; `tool_choice` and `parallel_tool_calls` without `tools` are such."""


class Exactness:
    """Of the answer to one request.

    Args:
        body: What the client asked for.
        reasons: Whether instances make reasoning of a chat's text, without being asked to.
    """

    def __init__(self, body: ClientBody, *, reasons: bool = False) -> None:
        self._body = body
        self._may_be_parsed = reasons and "messages" in body.fields

    @cached_property
    def obstacle(self) -> str | None:
        """The first field that a vLLM which goes on would not keep as it was; None where all are kept."""
        odd = self._body.fields.keys() - GOES_ON
        if odd and self.is_greedy:
            odd -= GOES_ON_GREEDY_CHAT if "messages" in self._body.fields else GOES_ON_GREEDY
        found = next((name for name in sorted(odd) if not self._is_neutral(name)), None)
        return "messages" if found is None and self._has_media else found

    @property
    def needs_seed(self) -> bool:
        """Whether it could go on in no way at all unless it had a seed."""
        return (self.obstacle is not None or self._may_be_parsed) and not self.is_repeatable

    @property
    def is_repeatable(self) -> bool:
        """Whether it is a function of the request."""
        return self.is_greedy or type(self._body.value("seed")) is int

    @cached_property
    def is_greedy(self) -> bool:
        """Whether each token is the likeliest one; without a temperature a vLLM samples."""
        temperature = self._body.value("temperature")
        return type(temperature) in (int, float) and temperature == 0

    def _is_neutral(self, name: str) -> bool:
        value = self._body.value(name)
        if name == "logprobs":  # 0 asks for something
            return value is None or value is False
        return value is None or value in NEUTRAL.get(name, ())

    @property
    def _has_media(self) -> bool:
        """Whether a conversation holds more than text: of that a vLLM reads no ready tokens."""
        raw = bytes(self._body.fields.get("messages", b""))
        if b'"type"' not in raw or raw[:1] != b"[":
            return False
        messages = self._body.value("messages")
        contents = [one.get("content") for one in messages if isinstance(one, dict)]
        parts = [part for content in contents if isinstance(content, list) for part in content]
        return any(not isinstance(part, dict) or part.keys() - {"type", "text"} for part in parts)


def cannot(why: str) -> RequestError:
    """The error for an answer that breaks off for good."""
    message = f"the instance that wrote this answer is gone, and no other can go on with it: {why}; ask again"
    return RequestError(message, status=502, code="cannot_continue")
