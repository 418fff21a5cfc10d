"""Attention over paged blocks: chunks of several sequences side by side give what each whole sequence would."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tandem.catalogue.config import MLA, ModelConfig, SwiGLU
from tandem.catalogue.position import Rope
from tandem.kernels.attention import attend
from tandem.kv import paged
from tandem.kv.cache import CacheLayout, KVCache
from tandem.kv.paged import Chunk, PagedContext
from tandem.model.attention import LatentAttention

CPU = torch.device("cpu")
BLOCK = 4
HEADS, KV_HEADS, DIM = 6, 2, 5
MLA_SHAPE = MLA(heads=3, q_rank=None, kv_rank=6, nope_dim=4, rope_dim=2, value_dim=5)

Steps = list[list[tuple[int, int, int]]]
"""Each holds (sequence, first token, number of tokens) of those that take part, in any order."""


@st.composite
def schedules(draw: st.DrawFn) -> Steps:
    lengths = draw(st.lists(st.integers(1, 14), min_size=1, max_size=4))
    done, steps = [0] * len(lengths), []
    while any(have < need for have, need in zip(done, lengths, strict=True)):
        waiting = [n for n, need in enumerate(lengths) if done[n] < need]
        batch = draw(st.permutations(waiting))[: draw(st.integers(1, len(waiting)))]
        step = []
        for n in batch:
            count = draw(st.integers(1, lengths[n] - done[n]))
            step.append((n, done[n], count))
            done[n] += count
        steps.append(step)
    return steps


def lengths_of(steps: Steps) -> dict[int, int]:
    return {n: start + count for step in steps for n, start, count in step}


def memory(planes: int, heads: int, dim: int, lengths: dict[int, int]) -> tuple[KVCache, dict[int, list[int]]]:
    """A cache full of garbage, and blocks from anywhere in it."""
    layout = CacheLayout(layers=2, planes=planes, kv_heads=heads, head_dim=dim, dtype="float32", block_size=BLOCK)
    needed = {n: -(-length // BLOCK) for n, length in lengths.items()}
    cache = KVCache(layout, sum(needed.values()), CPU)
    cache.blocks.fill_(float("nan"))
    free = torch.randperm(sum(needed.values())).tolist()
    return cache, {n: [free.pop() for _ in range(count)] for n, count in needed.items()}


def in_steps(
    steps: Steps,
    cache: KVCache,
    tables: dict[int, list[int]],
    sequences: tuple[dict[int, Tensor], ...],
    attended: Callable[..., Tensor],
) -> dict[int, Tensor]:
    """What comes out for each sequence when its tensors go in as the steps say."""
    out: dict[int, list[Tensor]] = {n: [] for n in tables}
    lengths = lengths_of(steps)
    for step in steps:
        context = PagedContext(cache, [Chunk(tables[n], start, count, lengths[n]) for n, start, count in step])
        rows = (torch.cat([x[n][start : start + count] for n, start, count in step]) for x in sequences)
        found = attended(context, *rows).split([count for *_, count in step])
        for (n, *_), part in zip(step, found, strict=True):
            out[n].append(part)
    return {n: torch.cat(parts) for n, parts in out.items()}


@given(
    steps=schedules(),
    window=st.none() | st.integers(1, 8),
    biased=st.booleans(),
    layer=st.integers(0, 1),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=40, deadline=None)
def test_chunks_side_by_side_give_whole_sequences(
    steps: Steps, window: int | None, biased: bool, layer: int, seed: int
) -> None:
    torch.manual_seed(seed)
    lengths = lengths_of(steps)
    cache, tables = memory(2, KV_HEADS, DIM, lengths)
    slopes = torch.rand(HEADS) if biased else None
    q = {n: torch.randn(length, HEADS, DIM) for n, length in lengths.items()}
    k, v = ({n: torch.randn(length, KV_HEADS, DIM) for n, length in lengths.items()} for _ in range(2))

    def attended(context: PagedContext, *rows: Tensor) -> Tensor:
        return context.attend(layer, *rows, scale=0.5, window=window, slopes=slopes)

    out = in_steps(steps, cache, tables, (q, k, v), attended)
    for n in lengths:
        whole = attend(q[n][None], k[n][None], v[n][None], scale=0.5, window=window, slopes=slopes)[0]
        torch.testing.assert_close(out[n], whole, atol=1e-5, rtol=0)


def test_a_decode_step_reads_the_tokens_there_are_and_no_padding(monkeypatch: pytest.MonkeyPatch) -> None:
    lengths = {0: 8, 1: 5, 2: 61}
    cache, tables = memory(2, KV_HEADS, DIM, lengths)
    seen: list[tuple[int, int]] = []

    def counted(q: Tensor, k: Tensor, v: Tensor, **how: object) -> Tensor:
        seen.append((q.shape[0] * q.shape[1], k.shape[0] * k.shape[1]))
        return attend(q, k, v, **how)  # type: ignore[arg-type]

    monkeypatch.setattr(paged, "attend", counted)
    context = PagedContext(cache, [Chunk(tables[n], length - 1, 1, 1) for n, length in lengths.items()])
    rows = [torch.randn(3, heads, DIM) for heads in (HEADS, KV_HEADS, KV_HEADS)]
    context.attend(0, *rows, scale=1.0, window=None, slopes=None)
    assert sorted(seen) == [(1, 5), (1, 8), (1, 61)]


@pytest.mark.parametrize(("expanded_from", "longest"), [(1, 16384), (3, 16384), (128, 16384), (1, 5)])
@given(steps=schedules(), seed=st.integers(0, 2**31))
@settings(max_examples=20, deadline=None)
def test_latents_give_whole_sequences_expanded_or_not(
    expanded_from: int, longest: int, steps: Steps, seed: int
) -> None:
    torch.manual_seed(seed)
    lengths, layer = lengths_of(steps), latent_attention()
    cache, tables = memory(1, 1, MLA_SHAPE.kv_rank + MLA_SHAPE.rope_dim, lengths)
    q = {n: torch.randn(length, MLA_SHAPE.heads, 6) for n, length in lengths.items()}
    latents = {n: torch.randn(length, 8) for n, length in lengths.items()}

    def attended(context: PagedContext, *rows: Tensor) -> Tensor:
        return context.attend_latent(0, *rows, layer)

    with pytest.MonkeyPatch.context() as patch, torch.inference_mode():
        patch.setattr(paged, "EXPANDED_FROM", expanded_from)
        patch.setattr(paged, "LONGEST_EXPANDED", longest)
        out = in_steps(steps, cache, tables, (q, latents), attended)
        for n in lengths:
            whole = attend(q[n][None], *layer.expand(latents[n][None]), scale=layer.scale)[0]
            torch.testing.assert_close(out[n], whole, atol=1e-5, rtol=0)


def latent_attention() -> LatentAttention:
    config = ModelConfig(
        family="deepseek_v3",
        vocab_size=2,
        hidden_size=8,
        layers=1,
        attention=MLA_SHAPE,
        position=Rope(theta=1e4, dims=2, interleaved=True),
        feed_forward=SwiGLU(size=4),
        norm_eps=1e-6,
        max_position=64,
    )
    return LatentAttention(config, MLA_SHAPE, 0)


def test_tokens_know_their_place_and_their_prompt() -> None:
    cache, _ = memory(2, KV_HEADS, DIM, {0: 12})
    context = PagedContext(cache, [Chunk([0, 1], 2, 3, 7), Chunk([2], 0, 2, 2), Chunk([1], 3, 1, 1)])
    assert context.positions.tolist() == [2, 3, 4, 0, 1, 3]
    assert context.prompts.tolist() == [7, 7, 7, 2, 2, 1]
