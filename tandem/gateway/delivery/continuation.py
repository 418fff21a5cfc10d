"""The ways in which an answer that broke off goes on with other workers: what they are asked for, and what is news.

    resume    our own instances are given the tokens so far and the characters the client has, and everything goes on as
              if nothing had happened: random numbers, penalties, stop strings, limits
    continue  a vLLM is given the prompt and the tokens so far as the prompt of another request
    replay    a vLLM is given the same request once more, and what the client has is left out

All three compare what comes with what the client has, so that nobody gets another answer than it would have had.

Source: `kv_transfer_params.prompt_token_ids`, vLLM's guide on disaggregated prefilling.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from tandem.gateway.delivery.exactness import Exactness, cannot
from tandem.gateway.delivery.overlap import Overlap
from tandem.gateway.observability.metrics import Way
from tandem.gateway.request.body import ClientBody
from tandem.gateway.request.internal import KV_FIELD
from tandem.gateway.request.progress import Event, Progress
from tandem.protocol.kv import Resume

COMPLETION_TOKENS: Final = 16
"""OpenAI's `max_tokens` of a completion, where none is given."""


class Continuation:
    """One way, at one break.

    Args:
        name: Which.
        body: What the worker is asked for.
        overlap: What of its answer is left out.
        usage: Whose tokens are counted, where the worker counts only its own; None where it counts them all.
    """

    def __init__(self, name: Way, body: ClientBody, overlap: Overlap, usage: Usage | None = None) -> None:
        self.name = name
        self.body = body
        self._overlap = overlap
        self._usage = usage

    def news(self, event: Event) -> Event | None:
        """What an event says that the client does not have yet; noted as told. None where that is nothing.

        Raises:
            RequestError: 502, it is not the answer that the client has a part of.
        """
        news = self._overlap.news(event)
        if news is not None and news.get("usage") and self._usage is not None:
            news["usage"] = self._usage.counted(news["usage"])
        return news

    def end(self) -> None:
        """The worker's stream is over; raises like `news`, when it is not as far as the client."""
        self._overlap.end()


class Usage:
    """The counts of tokens of an answer with several authors.

    Args:
        body: What the client asked for, which may have been the rest of an answer.
        progress: How far it is.
    """

    def __init__(self, body: ClientBody, progress: Progress) -> None:
        self._before = len(begun(body).output_token_ids)
        self._progress = progress

    def counted(self, told: Event) -> Event:
        """What a worker told, with the counts of the whole."""
        prompt, answer = len(self._progress.prompt or ()), self._before + len(self._progress.tokens)
        return told | {"prompt_tokens": prompt, "completion_tokens": answer, "total_tokens": prompt + answer}


def begun(body: ClientBody, choice: int = 0) -> Resume:
    """What there was of an answer before its first worker here: a client may itself have asked for the rest of one."""
    asked = body.value("resume")
    return Resume(output_token_ids=[], choice=choice) if asked is None else msgspec.convert(asked, Resume)


def resume(body: ClientBody, progress: Progress, choice: int) -> Continuation:
    """Go on with an instance of ours.

    Args:
        body: What the first worker was asked for.
        progress: What the client has.
        choice: Which of several answers it is.
    """
    before = begun(body, choice)
    ids, sent = before.output_token_ids + progress.tokens, before.sent + progress.characters
    resumed = body.with_fields(resume=Resume(output_token_ids=ids, sent=sent, choice=before.choice))
    return Continuation("resume", resumed, _behind(progress), Usage(body, progress))


def go_on(body: ClientBody, progress: Progress, exactness: Exactness) -> Continuation:
    """Go on with a vLLM, in the cheapest way that is exact.

    Args:
        body: What the first worker was asked for.
        progress: What the client has.
        exactness: Of the client's request.

    Raises:
        RequestError: 502, there is none; the message says why.
    """
    why = _no_extension(progress, exactness)
    if why is None:
        return extend(body, progress, is_greedy=exactness.is_greedy)
    if Exactness(body).is_repeatable:
        return replay(body, progress)
    raise cannot(why)


def extend(body: ClientBody, progress: Progress, *, is_greedy: bool) -> Continuation:
    """Have the rest of an answer written; tokens whose text is still to come are written again.

    Greedy, they come out the same. Sampled, they were never seen, and others may stand in their place.
    """
    if not is_greedy:
        progress.forget_silent_tokens()
    place = progress.settled if is_greedy else (len(progress.tokens), progress.characters)
    given = progress.tokens[: place[0]]
    ids = [*(progress.prompt or ()), *given]
    names = ("max_tokens", "max_completion_tokens")
    fields: dict[str, Any] = {name: limit - len(given) for name in names if type(limit := body.value(name)) is int}
    if type(least := body.value("min_tokens")) is int:
        fields["min_tokens"] = max(0, least - len(given))
    if "messages" in body.fields:
        fields[KV_FIELD] = {"prompt_token_ids": ids}
    else:
        fields = {"max_tokens": COMPLETION_TOKENS - len(given)} | fields | {"prompt": ids}
    overlap = Overlap(progress, tokens=place[0], characters=place[1], prompt=ids)
    return Continuation("continue", body.with_fields(**fields), overlap, Usage(body, progress))


def replay(body: ClientBody, progress: Progress) -> Continuation:
    """Have the whole answer written once more."""
    return Continuation("replay", body, Overlap(progress, prompt=progress.prompt))


def _no_extension(progress: Progress, exactness: Exactness) -> str | None:
    """Why a vLLM cannot go on from the tokens; None where it can."""
    if exactness.obstacle is not None:
        return f"{exactness.obstacle} would not go on as it was"
    if progress.prompt is None or (progress.characters and not progress.tokens):
        return "its worker told no token ids"
    if progress.parsed is not None:
        return f"what a parser has put into {progress.parsed} would begin anew"
    return None


def _behind(progress: Progress) -> Overlap:
    """Nothing comes again."""
    return Overlap(progress, tokens=len(progress.tokens), characters=progress.characters)
