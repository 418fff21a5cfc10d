"""The mocks' answers: a function of what is asked, and how they go on when they were cut."""

from __future__ import annotations

from dataclasses import replace

import pytest
from chaos.router.load import KINDS, ask
from chaos.router.mock.generation import Generation, undisturbed
from chaos.router.mock.language import KINDS as TOKEN_KINDS
from chaos.router.mock.language import Detokenizer, Stops, spelled, tokenized
from chaos.router.mock.wish import Wish

GREEDY = Wish(chat=False, prompt=tuple(tokenized("the grey ship")), max_tokens=40, ignore_eos=True)
SAMPLED = replace(GREEDY, temperature=0.8, seed=3)
PENALISED = replace(GREEDY, presence=0.5)
REPEATED = replace(GREEDY, repetition=1.2)


def continued(wish: Wish, after: int) -> tuple[int, ...]:
    """What comes when an answer's first tokens are sent as a part of the prompt."""
    given = undisturbed(wish, 0).tokens[:after]
    rest = replace(wish, prompt=wish.prompt + given, max_tokens=wish.max_tokens - after)
    return given + undisturbed(rest, 0).tokens


@pytest.mark.parametrize("wish", [GREEDY, REPEATED], ids=["greedy", "repetition"])
@pytest.mark.parametrize("after", range(1, 40, 6))
def test_a_greedy_answer_goes_on_from_its_tokens(wish: Wish, after: int) -> None:
    assert continued(wish, after) == undisturbed(wish, 0).tokens


@pytest.mark.parametrize("wish", [SAMPLED, PENALISED], ids=["seed", "presence"])
def test_what_depends_on_the_output_begins_anew(wish: Wish) -> None:
    assert continued(wish, 10) != undisturbed(wish, 0).tokens


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_resume_goes_on_with_everything(kind: object) -> None:
    one = ask(5, 7, kind)
    for choice, whole in one.expected.items():
        for after in range(1, len(whole.tokens) + 1):
            sent = _text_after(one.wish, choice, after)
            wish = replace(one.wish, output=whole.tokens[:after], sent=len(sent), choice=choice, resumed=True)
            steps = list(Generation(wish, choice).all())
            assert sent + "".join(step.text for step in steps) == whole.text
            assert whole.tokens[:after] + tuple(t for step in steps for t in step.tokens) == whole.tokens
            assert steps[-1].reason == whole.reason


def _text_after(wish: Wish, choice: int, tokens: int) -> str:
    generation = Generation(wish, choice)
    return "".join(generation.step().text for _ in range(tokens))


def test_every_answer_is_another() -> None:
    variants = [GREEDY, SAMPLED, PENALISED, REPEATED, replace(SAMPLED, seed=9), replace(GREEDY, prompt=(17, 18))]
    answers = {undisturbed(wish, choice).tokens for wish in variants for choice in (0, 1)}
    assert len(answers) == len(variants) + 2, "what is sampled differs between choices, too"
    assert list(Generation(GREEDY, 0, b"used").all()) != list(Generation(GREEDY, 0).all())


def test_a_router_that_writes_numbers_in_single_precision_changes_nothing() -> None:
    body = {"prompt": "the grey ship", "temperature": 0.8, "seed": 3, "repetition_penalty": 1.2}
    single = body | {"temperature": 0.800000011920929, "repetition_penalty": 1.2000000476837158}
    one, other = (Wish.read(given, chat=False, dialect="vllm") for given in (body, single))
    assert undisturbed(one, 0) == undisturbed(other, 0)


def test_text_lags_behind_tokens_and_is_never_broken() -> None:
    tokens = undisturbed(replace(GREEDY, max_tokens=400), 0).tokens
    detokenizer = Detokenizer()
    texts = [detokenizer.push(token) for token in tokens]
    silent = [token % TOKEN_KINDS for token, text in zip(tokens, texts, strict=True) if not text]
    assert {12, 14} == set(silent)
    assert "\ufffd" not in "".join(texts)
    assert b"".join(map(spelled, tokens)).decode(errors="ignore") == "".join(texts)


def test_going_on_within_a_character_breaks_it_as_with_vllm() -> None:
    whole = undisturbed(replace(GREEDY, max_tokens=400), 0)
    after = next(at for at, token in enumerate(whole.tokens) if token % TOKEN_KINDS == 12) + 1
    rest = undisturbed(replace(GREEDY, prompt=GREEDY.prompt + whole.tokens[:after], max_tokens=400 - after), 0)
    assert rest.tokens == whole.tokens[after:]
    assert rest.text.startswith("\ufffd")


def test_stop_strings_are_held_back_and_cut() -> None:
    stops = Stops(["abc"])
    assert [stops.push("xa"), stops.push("b"), stops.push("cd"), stops.hit] == ["", "x", "", True]
    assert stops.rest() == ""
    early = Stops(["abc"])
    assert early.push("abc", check=False) == "a"
    assert (early.hit, early.rest()) == (False, "bc")
