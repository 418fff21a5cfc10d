"""Log-probabilities in OpenAI's shapes, read back with the official client's own types."""

from __future__ import annotations

from pathlib import Path

import pytest
from openai.types.chat.chat_completion import ChoiceLogprobs
from openai.types.completion_choice import Logprobs

from tandem.engine.spelling import Spelling
from tandem.protocol.logprobs import TokenLogprobs
from tandem.text.detokenizer import Start
from tandem.text.tokenizer import Tokenizer
from tandem.text.trainer import EOS, SPECIAL_TOKENS

END = SPECIAL_TOKENS.index(EOS)


@pytest.fixture(scope="module")
def tokenizer(tiny_model: Path) -> Tokenizer:
    return Tokenizer.from_folder(tiny_model)


def told(tokens: list[int], top: tuple[tuple[int, float], ...] = ()) -> list[TokenLogprobs]:
    return [TokenLogprobs(token, -1.5, top) for token in tokens]


def test_a_completion(tokenizer: Tokenizer) -> None:
    text = "def main(é):"
    tokens = tokenizer.encode(text, special=False)
    best, other = tokens[0], tokens[1]
    spelled = Spelling(tokenizer, "completion", Start.CONTINUES).tell(told(tokens, ((best, -0.5), (other, -0.75))))
    logprobs = Logprobs.model_validate(spelled)
    assert logprobs.tokens is not None
    assert logprobs.text_offset is not None
    assert logprobs.top_logprobs is not None
    assert logprobs.token_logprobs == [-1.5] * len(tokens)
    assert logprobs.top_logprobs[-1] == {logprobs.tokens[0]: -0.5, logprobs.tokens[1]: -0.75, logprobs.tokens[-1]: -1.5}
    for token, place in zip(logprobs.tokens, logprobs.text_offset, strict=True):
        assert token.startswith("bytes:") or text[place:].startswith(token)


def test_half_characters_are_spelled_by_their_bytes(tokenizer: Tokenizer) -> None:
    tokens = tokenizer.encode("🙂", special=False)
    spelled = Spelling(tokenizer, "completion", Start.CONTINUES).tell(told(tokens))
    assert "".join(token.removeprefix("bytes:") for token in spelled["tokens"]) == r"\xf0\x9f\x99\x82"
    assert spelled["text_offset"] == [0] * len(tokens)
    chat = Spelling(tokenizer, "chat", Start.ALONE).tell(told(tokens))
    assert bytes(byte for entry in chat["content"] for byte in entry["bytes"]).decode() == "🙂"


def test_a_chat(tokenizer: Tokenizer) -> None:
    tokens = [*tokenizer.encode("hi", special=False), END]
    spelled = Spelling(tokenizer, "chat", Start.ALONE).tell(told(tokens, ((END, -0.25),)))
    content = ChoiceLogprobs.model_validate(spelled).content
    assert content is not None
    assert "".join(entry.token for entry in content) == "hi" + EOS
    assert [entry.top_logprobs[0].token for entry in content] == [EOS] * len(tokens)
    assert content[-1].bytes == list(EOS.encode())


def test_places_go_on_from_piece_to_piece_and_from_elsewhere(tokenizer: Tokenizer) -> None:
    tokens = tokenizer.encode("import argparse, typing", special=False)
    whole = Spelling(tokenizer, "completion", Start.CONTINUES).tell(told(tokens))["text_offset"]
    pieces = Spelling(tokenizer, "completion", Start.CONTINUES)
    assert [place for token in tokens for place in pieces.tell(told([token]))["text_offset"]] == whole
    later = Spelling(tokenizer, "completion", Start.CONTINUES, tokens[:3])
    assert later.tell(told(tokens[3:]))["text_offset"] == whole[3:]


def test_of_tokens_that_read_alike_the_likeliest_stands(tokenizer: Tokenizer) -> None:
    beyond = tokenizer.vocab_size
    spelled = Spelling(tokenizer, "completion", Start.CONTINUES).tell(told([beyond], ((beyond + 1, -0.1),)))
    assert spelled["top_logprobs"] == [{"": -0.1}]
