"""Whether an answer is the undisturbed one, whole, exactly once, and nothing but it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from chaos.router.client import Exchange
from chaos.router.leaks import leaks
from chaos.router.load import Ask
from chaos.router.mock.generation import Whole
from chaos.router.mock.language import cached
from chaos.router.mock.wire import completion_logprobs
from chaos.router.told import Choice, Told, WrongError, logprob_entries, read

Outcome = Literal["ok", "refused", "failed", "wrong", "leaked", "hung"]


@dataclass(frozen=True)
class Verdict:
    """How one request fared."""

    outcome: Outcome
    reason: str = ""


def judge(ask: Ask, got: Exchange, secrets: Iterable[str] = (), *, may_refuse: bool = False) -> Verdict:
    """Judge one answer.

    What came of an answer that failed or did not end is compared, too: a client has seen it.

    Args:
        ask: What was asked.
        got: What came.
        secrets: Texts that must not be in any byte of it.
        may_refuse: Whether `n` may be refused by name, as where one ticket carries one choice.
    """
    if got.status is not None and got.status != 200 and got.end == "whole":
        return refusal(ask, got, secrets, may_refuse=may_refuse)
    try:
        told = _read(ask, got)
        wrong = next(_deviations(ask, told), None)
    except WrongError as error:
        return Verdict("wrong", str(error))
    leaked = leaks(ask, got, told.parts, secrets)
    if wrong is not None:
        return Verdict("wrong", wrong)
    if (failed := failure(got, told)) is not None:
        also = f"; it shows {', '.join(leaked)}" if leaked else ""
        return Verdict(failed.outcome, failed.reason + also)
    if (lacking := next(_lacking(ask, told), None)) is not None:
        return Verdict("wrong", lacking)
    return Verdict("leaked", ", ".join(leaked)) if leaked else Verdict("ok")


def refusal(ask: Ask, got: Exchange, secrets: Iterable[str], *, may_refuse: bool) -> Verdict:
    """Judge an answer with another status than 200."""
    try:
        error = msgspec.json.decode(got.body)["error"]
        param = error.get("param") if isinstance(error, dict) else None
    except (msgspec.DecodeError, KeyError, TypeError, UnicodeDecodeError):
        return Verdict("failed", f"status {got.status}, not in OpenAI's shape")
    if may_refuse and got.status == 400 and param == "n" and ask.wish.n > 1:
        return Verdict("refused", "n")
    leaked = leaks(ask, got, [error], secrets)
    return Verdict("failed", f"status {got.status}" + (f"; it shows {', '.join(leaked)}" if leaked else ""))


def _read(ask: Ask, got: Exchange) -> Told:
    """What came; of an answer that is not streamed, nothing unless it is whole."""
    if got.end == "whole" and not got.body:
        raise WrongError("status 200 and an empty body")
    if not ask.wish.stream and got.end != "whole":
        return Told()
    return read(ask, got.body)


def failure(got: Exchange, told: Told) -> Verdict | None:
    """Why it is not whole, where that is told to the client or plain to see for it."""
    if got.end == "late":
        return Verdict("hung", got.error if not got.body else f"{got.error}, after a part of the answer")
    if got.end == "broken":
        return Verdict("failed", f"the connection broke ({got.error})" + (" in the answer" if got.body else ""))
    return Verdict("failed", "an error event") if told.errors else None


def _deviations(ask: Ask, told: Told) -> Iterator[str]:
    """What cannot become right any more, however it goes on."""
    if len(told.heads) > 1:
        names = ("id", "object", "model", "created")
        columns = zip(names, zip(*told.heads, strict=True), strict=True)
        differing = [name for name, values in columns if len(set(values)) > 1]
        yield f"another {' and '.join(differing)} within one answer"
    if len(told.usages) > 1:
        yield "more than one usage record"
    if told.usages and ask.wish.stream and not ask.wish.usage:
        yield "a usage record that was not asked for"
    if told.usages and told.usages[0] | _usage(ask) != told.usages[0]:
        yield "another usage"
    if told.usages and _cached(told.usages[0]) not in (None, cached(ask.wish.prompt)):
        yield "cached tokens that are not those of the prefill"
    for index, choice in told.choices.items():
        if (expected := ask.expected.get(index)) is None:
            yield "a choice that was not asked for"
        else:
            yield from _deviation(ask, choice, expected)
    if ask.wish.token_ids and any(ids != list(ask.wish.prompt) for ids in told.prompt):
        yield "another prompt_token_ids"


def _deviation(ask: Ask, choice: Choice, expected: Whole) -> Iterator[str]:
    if not expected.text.startswith(choice.text):
        yield _where(expected.text, choice.text)
    if ask.wish.token_ids and list(expected.tokens[: len(choice.tokens)]) != choice.tokens:
        yield "other token ids"
    if choice.logprobs != _logprobs(ask, expected)[: len(choice.logprobs)]:
        yield "other log-probabilities"
    if choice.reasons and choice.reasons != [expected.reason]:
        yield "another finish_reason"
    if choice.roles > 1:
        yield "a role twice"
    if ask.wish.token_ids and any(ids != list(ask.wish.prompt) for ids in choice.prompt):
        yield "another prompt_token_ids"


def _where(expected: str, text: str) -> str:
    same = next((at for at, (one, other) in enumerate(zip(expected, text, strict=False)) if one != other), None)
    if same is None:
        return "text after the answer's end"
    # Two words may have their first characters in common.
    return "another text from the beginning" if same < 3 else "another text from somewhere on"


def _lacking(ask: Ask, told: Told) -> Iterator[str]:
    """What an answer that claims to be whole does not have."""
    if not told.done:
        yield "no [DONE]: cut off without a word"
    if told.rest.strip():
        yield "it ends within a line"
    for index, expected in ask.expected.items():
        yield from _lacking_choice(ask, told.choices.get(index, Choice()), expected)
    if (not ask.wish.stream or ask.wish.usage) and not told.usages:
        yield "no usage record"
    if ask.wish.token_ids and ask.chat and len(told.prompt) != 1:
        yield f"prompt_token_ids {len(told.prompt)} times"


def _lacking_choice(ask: Ask, choice: Choice, expected: Whole) -> Iterator[str]:
    if choice.text != expected.text:
        yield "a part of the text is missing"
    if not choice.reasons:
        yield "no finish_reason"
    if ask.wish.token_ids and choice.tokens != list(expected.tokens):
        yield "token ids are missing"
    if choice.logprobs != _logprobs(ask, expected):
        yield "log-probabilities are missing"
    if ask.chat and choice.roles != 1:
        yield "no role"
    if ask.wish.token_ids and not ask.chat and len(choice.prompt) != 1:
        yield f"prompt_token_ids {len(choice.prompt)} times"


def _logprobs(ask: Ask, expected: Whole) -> list[Any]:
    if not expected.logprobs:
        return []
    told = [one.told() for one in expected.logprobs]
    return told if ask.chat else logprob_entries(completion_logprobs(expected.logprobs))


def _cached(usage: dict[str, Any]) -> Any:
    return (usage.get("prompt_tokens_details") or {}).get("cached_tokens")


def _usage(ask: Ask) -> dict[str, int]:
    prompt, answer = len(ask.wish.prompt), sum(len(one.tokens) for one in ask.expected.values())
    return {"prompt_tokens": prompt, "completion_tokens": answer, "total_tokens": prompt + answer}
