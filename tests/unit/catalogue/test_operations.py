"""Operations of training, held against counted parameters, PyTorch's own counter, and pairs counted one by one."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tiny import TINY
from torch.utils.flop_counter import FlopCounterMode

from tandem.catalogue.config import GQA, ModelConfig, MoE, Window
from tandem.catalogue.models import MODELS
from tandem.catalogue.operations import Operations, attended_pairs, causal_pairs
from tandem.model.context import CausalContext
from tandem.model.decoder import Decoder
from tandem.model.skeleton import Undrawn

LLAMA3 = MODELS["llama3-8b"].config


def counted(config: ModelConfig) -> int:
    """Weights a token passes, counted over the modules themselves."""
    with Undrawn(), torch.device("meta"):
        decoder = Decoder(config)
    total = 0
    for name, weight in decoder.named_parameters():
        share = 1.0
        if ".experts." in name:
            assert isinstance(config.feed_forward, MoE)
            share = config.feed_forward.top_k / config.feed_forward.experts
        total += 0 if name == "embedding.weight" and decoder.head is not None else round(weight.numel() * share)
    return total


@pytest.mark.parametrize("name", MODELS)
def test_active_weights_are_those_of_the_modules(name: str) -> None:
    assert Operations.of(MODELS[name].config).active == counted(MODELS[name].config)


def test_published_sizes() -> None:
    # 8.03 B with both tables; Mixtral's own announcement says 12.9 B of 46.7 B, its embedding among them.
    assert Operations.of(LLAMA3).active / 1e9 == pytest.approx(8.03 - 128256 * 4096 / 1e9, abs=0.005)
    assert Operations.of(MODELS["mixtral-8x7b"].config).active / 1e9 == pytest.approx(12.9 - 0.13, abs=0.05)
    assert Operations.of(MODELS["deepseek-v3"].config).active / 1e9 == pytest.approx(37, rel=0.02)


@pytest.mark.parametrize("tied", [False, True])
def test_pytorch_counts_the_same_products(*, tied: bool) -> None:
    config, tokens = replace(TINY, tied_embeddings=tied), 32
    with torch.device("meta"):
        model = Decoder(config)
        ids = torch.zeros(1, tokens, dtype=torch.int64)
    with FlopCounterMode(display=False) as counter:
        model(ids, CausalContext(1, tokens, ids.device)).sum().backward()
    products = {str(kind): count for kind, count in counter.get_flop_counts()["Global"].items()}
    matrices = sum(count for kind, count in products.items() if kind in ("aten.mm", "aten.addmm"))
    norms = (2 * config.layers + 1) * config.hidden_size
    operations = Operations.of(config)
    # A norm's own backward sums its weight's gradient as a product.
    assert matrices == (6 * (operations.active - norms) + 2 * norms) * tokens
    # The counter takes every pair for seen, and the meta device's attention for two plain products: three times T x T.
    whole = config.layers * tokens * tokens * operations.per_pair
    assert sum(count for kind, count in products.items() if "bmm" in kind or "attention" in kind) == whole


def test_lora_saves_the_weights_own_gradients() -> None:
    full, lora = Operations.of(LLAMA3), Operations.of(LLAMA3, adapters=20_971_520)
    assert full.per_token == 6 * full.active
    assert lora.per_token == 4 * full.active + 6 * 20_971_520
    assert lora.per_pair == full.per_pair == 6 * 32 * 2 * 128
    # Published: 402 TFLOP/s at 12,473 tokens/s for this run, which counts the input embedding and no attention.
    assert 402e12 / 12473 / lora.per_token == pytest.approx(1.06, abs=0.02)


def test_torchtitans_figure_for_attention() -> None:
    # It counts 6 · layers · heads · head_dim · T per token, for causal attention.
    tokens = 8192
    operations = Operations.of(LLAMA3)
    per_token = operations.total(tokens, attended_pairs(LLAMA3, [tokens])) / tokens - operations.per_token
    assert per_token == pytest.approx(6 * 32 * 32 * 128 * tokens, rel=2e-4)


def test_latent_attention_counts_its_expanded_heads() -> None:
    assert Operations.of(MODELS["deepseek-v3"].config).per_pair == 6 * 128 * (128 + 64 + 128)


@pytest.mark.parametrize("window", [None, 1, 3, 50])
def test_pairs_are_those_under_the_mask(window: int | None) -> None:
    for length in (0, 1, 2, 7):
        mask = [(i, j) for i in range(length) for j in range(i + 1) if window is None or i - j < window]
        assert causal_pairs(length, window) == len(mask)


def test_only_layers_with_a_window_see_less() -> None:
    config = replace(TINY, attention=GQA(heads=4, kv_heads=2, head_dim=16, window=Window(size=3, layers=(1, 2))))
    assert attended_pairs(config, [7, 2]) == (28 + 3) + 2 * (18 + 3)
    assert "2 layers see at most 3 tokens" in Operations.of(config).formula()


def test_the_formula_says_what_is_counted() -> None:
    formula = Operations.of(LLAMA3).formula()
    assert "6·N·T" in formula
    assert f"N = {Operations.of(LLAMA3).active:,}" in formula
    assert "adapters" not in formula
    lora = Operations.of(LLAMA3, adapters=12).formula()
    assert lora.startswith("MFU = (4·N·T + 6·n·T + 6·heads·2·head_dim·P) / (")
    assert "\n  n = 12 weights of the adapters\n  T = tokens" in lora
    assert max(map(len, lora.splitlines())) < 120
