"""Rows of conversations from files: whole, silent where nothing is learnt, and blind to each other."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tandem.catalogue.config import GQA, ModelConfig, SwiGLU
from tandem.catalogue.position import Rope
from tandem.errors import DataError
from tandem.model.context import CausalContext
from tandem.model.decoder import Decoder
from tandem.training.data.conversation_batches import ConversationBatches
from tandem.training.data.indexed import IndexedWriter
from tandem.training.data.labels import IGNORED
from tandem.training.data.open import open_conversations, open_texts
from tandem.training.data.output import packed_prefix, text_prefix
from tandem.training.data.packing import best_fit


def write(prefix: Path, lengths: list[int]) -> None:
    """Conversation of length n: tokens from 10 up, the second half learnt."""
    ids = [np.arange(10, 10 + n) for n in lengths]
    labels = [np.where(np.arange(n) >= n // 2, tokens, -100) for n, tokens in zip(lengths, ids, strict=True)]
    for field, values in (("input_ids", ids), ("labels", labels)):
        with IndexedWriter(packed_prefix(prefix, field), np.int32) as writer:
            writer.add(np.concatenate(values), lengths)


def opened(prefix: Path, lengths: list[int], seq_length: int, *, pack: bool = True) -> ConversationBatches:
    write(prefix, lengths)
    return open_conversations(prefix, seq_length=seq_length, seed=1, pad=0, pack=pack)


def test_packing_keeps_conversations_whole_and_prompts_silent(tmp_path: Path) -> None:
    lengths = [5, 9, 3, 7, 6, 2, 8]
    batches = opened(tmp_path / "c", lengths, 12)
    everything = batches.at(0, batches.samples)
    assert everything.tokens.shape == (4, 12)  # 40 tokens
    assert everything.valid() == sum(n - max(n // 2, 1) for n in lengths)
    segments = everything.segments
    assert segments is not None
    found = sorted(int((row == number).sum()) for row in segments for number in row.unique() if number != 0)
    assert found == sorted(lengths)
    learnt = everything.targets != IGNORED
    assert torch.equal(everything.targets[learnt], everything.tokens[learnt] + 1)


def test_unpacked_rows_are_as_wide_as_the_longest_of_their_micro_batch(tmp_path: Path) -> None:
    lengths = [5, 9, 3, 7]
    batch = opened(tmp_path / "c", lengths, 12, pack=False).at(0, 4)
    assert batch.segments is None
    assert batch.widths is not None
    assert sorted(batch.widths) == sorted(lengths)
    for part, widths in zip(batch.split(2), (batch.widths[:2], batch.widths[2:]), strict=True):
        assert part.tokens.shape == part.targets.shape == (2, max(widths))
    assert sum(part.valid() for part in batch.split(1)) == batch.valid()


def test_position_alone_decides(tmp_path: Path) -> None:
    batches = opened(tmp_path / "c", list(range(2, 12)) * 3, 13)
    several = batches.at(3, 5)
    single = [batches.at(3 + row, 1).tokens for row in reversed(range(5))]
    assert torch.equal(several.tokens, torch.cat(single).flip(0))


def test_packed_conversations_do_not_see_each_other(tmp_path: Path) -> None:
    config = ModelConfig(
        family="llama", vocab_size=30, hidden_size=16, layers=2, attention=GQA(heads=2, kv_heads=1, head_dim=8),
        position=Rope(theta=10000.0, dims=8), feed_forward=SwiGLU(size=24), norm_eps=1e-5,
        tied_embeddings=True, max_position=64,
    )  # fmt: skip
    model = Decoder(config)
    model.initialise(0, std=0.3)
    batch = opened(tmp_path / "c", [5, 6], 16).at(0, 1)
    assert batch.segments is not None
    with torch.no_grad():
        packed = model(batch.tokens, batch.context())[0]
        for number in (1, 2):
            here = batch.segments[0] == number
            alone = batch.tokens[:, here]
            expected = model(alone, CausalContext(1, alone.shape[1], alone.device))[0]
            torch.testing.assert_close(packed[here], expected)


def test_what_does_not_fit_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="2 of 3 conversations are longer than seq_length 4, the longest has 9"):
        opened(tmp_path / "c", [3, 9, 8], 4)
    with pytest.raises(DataError, match=r"nothing_packed_input_ids_document\.idx: is missing, so there are no conv"):
        open_conversations(tmp_path / "nothing", seq_length=4, seed=0, pad=0)
    with pytest.raises(DataError, match=r"c_text_document\.idx: is missing, so there are no texts to pretrain on"):
        open_texts(tmp_path / "c", seq_length=4, seed=0)
    with IndexedWriter(packed_prefix(tmp_path / "c", "labels"), np.int32) as writer:
        writer.add(np.array([1]), [1])
    with pytest.raises(DataError, match="not of one run"):
        open_conversations(tmp_path / "c", seq_length=16, seed=0, pad=0)


def test_texts_can_be_kept_apart(tmp_path: Path) -> None:
    with IndexedWriter(text_prefix(tmp_path / "t"), np.uint16) as writer:
        writer.add(np.arange(1, 10), [3, 0, 2, 4])
    joined = open_texts(tmp_path / "t", seq_length=8, seed=0).at(0, 1)
    assert joined.targets.tolist() == [[2, 3, 4, 5, 6, 7, 8, 9]]
    batch = open_texts(tmp_path / "t", seq_length=8, seed=0, apart=True).at(0, 1)
    assert batch.tokens.tolist() == [[1, 2, 3, 4, 5, 6, 7, 8]]
    assert batch.targets.tolist() == [[2, 3, IGNORED, 5, IGNORED, 7, 8, 9]]
    assert batch.context().positions.tolist() == [[0, 1, 2, 0, 1, 0, 1, 2]]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 20), max_size=40), st.randoms(use_true_random=False))
def test_every_conversation_is_in_one_row_that_holds_it(lengths: list[int], random: object) -> None:
    sizes = np.array(lengths, np.int32)
    order = np.random.default_rng(len(lengths)).permutation(len(lengths))
    packing = best_fit(sizes, order, 20)
    rows = [packing.row(number) for number in range(len(packing))]
    assert sorted(member for row in rows for member in row.tolist()) == list(range(len(lengths)))
    assert all(len(row) > 0 and sizes[row].sum() <= 20 for row in rows)
    # No two rows could be one: otherwise the later one's first conversation would have gone into the earlier.
    totals = sorted(int(sizes[row].sum()) for row in rows)
    assert len(totals) < 2 or totals[0] + totals[1] > 20


def test_packed_rows_are_nearly_full() -> None:
    lengths = np.random.default_rng(0).lognormal(5.5, 0.9, 20000).clip(2, 4096).astype(np.int32)
    packing = best_fit(lengths, np.random.default_rng(1).permutation(len(lengths)), 4096)
    assert lengths.sum() / (len(packing) * 4096) > 0.99
