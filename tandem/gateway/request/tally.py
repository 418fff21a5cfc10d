"""The token counts of one answer, as its client is told them.

With prefill and decode apart, an engine that decodes counts what it has pulled as found in its cache: vLLM's tell all
of the prompt but one token. Right is what the prefill instance found, which says so in its own answer. Of several tries
the first one's number counts: what a later one finds may be what the first has left there.

Source: vllm-project/vllm, issues 43370 and 47136.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from tandem.gateway.request.internal import Fields
from tandem.gateway.wire.prefilled import Prefilled, counted
from tandem.protocol.json_body import UNREADABLE

Counts = dict[str, Any]

TOLD: Final = b'"prompt_tokens"'
"""In every event with counts; no text can hold these bytes, because quotes in it are escaped."""
DETAILS: Final = "prompt_tokens_details"


class Tally:
    """Of one answer for one choice.

    Args:
        prefills: Of all tries; it grows with them.
    """

    def __init__(self, prefills: Sequence[Prefilled]) -> None:
        self._prefills = prefills
        self._told: Mapping[str, Any] = {}

    @property
    def cached_tokens(self) -> int | None:
        """Those of the prompt that were in a prefix cache, as far as anybody has told."""
        return cached_in(self._told) if self._by_prefill is None else self._by_prefill

    @property
    def _by_prefill(self) -> int | None:
        # Also where it told no such number: vLLM tells no zero, and a try that goes on has a longer prompt.
        first = next((one for one in self._prefills if one.usage is not None), None)
        return None if first is None else first.cached_tokens

    @property
    def prompt_tokens(self) -> int | None:
        """Tokens of the prompt, as far as anybody has told."""
        told = counted(self._told.get("prompt_tokens"))
        return next((one.prompt_tokens for one in self._prefills if one.prompt_tokens is not None), told)

    @property
    def answer_tokens(self) -> int | None:
        """Tokens of the answer, where its client is told."""
        return counted(self._told.get("completion_tokens"))

    def corrected(self, counts: Counts, *, alone: bool) -> Counts:
        """The counts of an answer as its client gets them.

        Args:
            counts: As the worker tells them.
            alone: Whether it has computed the whole prompt, and nothing but the prompt, itself.
        """
        cached = self._by_prefill
        self._told = counts if alone and cached is None else with_cached(counts, cached)
        return dict(self._told)

    def whole(self, answer: bytes, *, alone: bool) -> bytes:
        """A whole answer as its client gets it.

        Raises:
            msgspec.DecodeError: It is not a JSON object.
        """
        fields = msgspec.json.decode(answer, type=Fields)
        counts = msgspec.json.decode(fields.get("usage", b"null"))
        if not isinstance(counts, dict) or (corrected := self.corrected(counts, alone=alone)) == counts:
            return answer
        return msgspec.json.encode(fields | {"usage": msgspec.Raw(msgspec.json.encode(corrected))})

    def lines(self, lines: bytes, *, alone: bool) -> bytes:
        """Lines of a stream as its client gets them; all that have no counts in them stay as they are."""
        if TOLD not in lines:
            return lines
        return b"\n".join(self._line(line, alone=alone) for line in lines.split(b"\n"))

    def _line(self, line: bytes, *, alone: bool) -> bytes:
        if TOLD not in line or not line.startswith(b"data:"):
            return line
        try:
            event = msgspec.json.decode(line.removeprefix(b"data:"), type=dict[str, Any])
        except UNREADABLE:
            return line
        counts = event.get("usage")
        # vLLM's `continuous_usage_stats` counts in every event, and tells details in the last one.
        if not isinstance(counts, dict) or (event.get("choices") and not counts.get(DETAILS)):
            return line
        return b"data: " + msgspec.json.encode(event | {"usage": self.corrected(counts, alone=alone)})


def with_cached(counts: Mapping[str, Any], cached: int | None) -> Counts:
    """Counts with this number of cached tokens, or with none where it is not known."""
    told = counts.get(DETAILS)
    details = dict(told) if isinstance(told, dict) else {}
    details.pop("cached_tokens", None)
    if cached is not None:
        details["cached_tokens"] = cached
    others = {name: value for name, value in counts.items() if name != DETAILS}
    return others | ({DETAILS: details} if details else {})


def cached_in(counts: Mapping[str, Any]) -> int | None:
    """The cached tokens that these counts tell."""
    details = counts.get(DETAILS)
    return counted(details.get("cached_tokens")) if isinstance(details, dict) else None
