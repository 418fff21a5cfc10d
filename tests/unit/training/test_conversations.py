from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from tandem.catalogue.config import GQA, ModelConfig, SwiGLU
from tandem.catalogue.position import Rope
from tandem.model.context import CausalContext
from tandem.model.decoder import Decoder
from tandem.text.template import ChatTemplate, TemplateFormat
from tandem.text.tokenizer import Tokenizer
from tandem.text.trainer import train_tokenizer
from tandem.training.data.batch import IGNORED
from tandem.training.data.conversation_batches import ConversationBatches
from tandem.training.data.conversations import (
    Example,
    Skipped,
    encode_conversation,
    encode_rows,
    read_conversations,
    write_skipped,
)

TALK = [
    {"role": "system", "content": "Be short."},
    {"role": "user", "content": "hello naïve 東京"},
    {"role": "assistant", "content": " hello 東京"},
    {"role": "user", "content": "bye"},
    {"role": "assistant", "content": "bye"},
]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("talk") / "tokenizer"
    train_tokenizer(["hello bye naïve 東京 hello bye"] * 9, 280, folder, 128)
    return Tokenizer.from_folder(folder)


def test_only_answers_and_their_ends_are_learnt(tokenizer: Tokenizer) -> None:
    example = encode_conversation(tokenizer, TALK)
    loss_mask = tokenizer.decode(example.ids[example.loss_mask].tolist(), skip_special=False)
    rest = tokenizer.decode(example.ids[~example.loss_mask].tolist(), skip_special=False)
    assert loss_mask == " hello 東京<|end|>bye<|end|>"
    assert (
        rest
        == "<s><|system|>Be short.<|end|><|user|>hello naïve 東京<|end|><|assistant|><|user|>bye<|end|><|assistant|>"
    )


def test_a_token_that_reaches_from_prompt_into_answer_is_not_learnt(tokenizer: Tokenizer) -> None:
    glued = ChatTemplate("{% for m in messages %}{{ m.content }}{% endfor %}", {}, "test")
    plain = Tokenizer(tokenizer._backend, TemplateFormat(glued, tokenizer._backend))
    example = encode_conversation(
        plain, [{"role": "user", "content": "hel"}, {"role": "assistant", "content": "lo bye"}]
    )
    text = plain.decode(example.ids.tolist())
    assert text == "hello bye"
    assert plain.decode(example.ids[example.loss_mask].tolist()) == " bye"


def test_rows_that_cannot_be_trained_on_are_named(tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    good = json.dumps({"messages": TALK[3:]})
    rows = [good, "{broken", '{"text": "x"}', json.dumps({"messages": TALK[:2]}), json.dumps({"messages": TALK}),
            '{"messages": [{"role": "user"}]}', '{"messages": [{"role": "robot", "content": "x"}, '
            '{"role": "assistant", "content": "y"}]}', good]  # fmt: skip
    path.write_text("\n".join(rows) + "\n")
    examples, skipped = encode_rows(read_conversations(path), tokenizer, 20)
    assert len(examples) == 2
    assert [row.row for row in skipped] == [1, 2, 3, 4, 5, 6]
    for row, reason in zip(
        skipped, ["no list", "no list", "no turn", "more than seq_length 20", "turn 0", "robot"], strict=True
    ):
        assert reason in row.reason
    write_skipped(tmp_path / "skipped.jsonl", skipped)
    assert [json.loads(line)["row"] for line in (tmp_path / "skipped.jsonl").read_text().splitlines()] == [
        1,
        2,
        3,
        4,
        5,
        6,
    ]
    write_skipped(tmp_path / "skipped.jsonl", [])
    assert not (tmp_path / "skipped.jsonl").exists()
    assert skipped[0] == Skipped(row=1, reason="the row has no list `messages`")


def examples_of(lengths: list[int]) -> list[Example]:
    return [Example(ids=np.arange(10, 10 + n), loss_mask=np.arange(n) >= n // 2) for n in lengths]


def test_packing_keeps_conversations_whole_and_prompts_silent() -> None:
    lengths = [5, 9, 3, 7, 6, 2, 8]
    batch = (batches := ConversationBatches(examples_of(lengths), 12, 0, 1)).at(0, 0 + 4)
    everything = batches.at(0, batches.samples)
    assert batch.tokens.shape == (4, 12)
    assert everything.valid() == sum(n - max(n // 2, 1) for n in lengths)
    segments = everything.segments
    assert segments is not None
    found = sorted(int((row == number).sum()) for row in segments for number in row.unique() if number != 0)
    assert found == sorted(lengths)
    loss_mask = everything.targets != IGNORED
    assert torch.equal(everything.targets[loss_mask], everything.tokens[loss_mask] + 1)


def test_packed_conversations_do_not_see_each_other() -> None:
    config = ModelConfig(
        family="llama", vocab_size=30, hidden_size=16, layers=2, attention=GQA(heads=2, kv_heads=1, head_dim=8),
        position=Rope(theta=10000.0, dims=8), feed_forward=SwiGLU(size=24), norm_eps=1e-5,
        tied_embeddings=True, max_position=64,
    )  # fmt: skip
    model = Decoder(config)
    model.initialise(0, std=0.3)
    batch = ConversationBatches(examples_of([5, 6]), 16, 0, 0).at(0, 1)
    assert batch.segments is not None
    with torch.no_grad():
        packed = model(batch.tokens, batch.context())[0]
        for number in (1, 2):
            here = batch.segments[0] == number
            alone = batch.tokens[:, here]
            expected = model(alone, CausalContext(1, alone.shape[1], alone.device))[0]
            torch.testing.assert_close(packed[here], expected)
