"""What a step needs beside weights and cache: never less than what its largest tensors take."""

from __future__ import annotations

import pytest

from tandem.catalogue.arithmetic import LOGIT_BYTES, step_bytes
from tandem.catalogue.config import GQA, SwiGLU
from tandem.catalogue.models import MODELS


def test_a_dense_models_step_is_its_activations_and_logits() -> None:
    config = MODELS["llama3-8b"].config
    assert isinstance(config.attention, GQA)
    assert isinstance(config.feed_forward, SwiGLU)
    per_token = 4 * 4096 + 4 * 32 * 128 + 3 * 14336
    assert step_bytes(config, 100, 7, 2) == 100 * per_token * 2 + 7 * config.vocab_size * LOGIT_BYTES


@pytest.mark.parametrize("name", ["llama3-8b", "mixtral-8x7b", "deepseek-v3"])
def test_tokens_rows_and_bytes_each_count_for_themselves(name: str) -> None:
    config = MODELS[name].config
    assert step_bytes(config, 0, 0, 2) == 0
    assert step_bytes(config, 0, 3, 2) == step_bytes(config, 0, 3, 4) == 3 * step_bytes(config, 0, 1, 2)
    assert step_bytes(config, 6, 0, 4) == 4 * step_bytes(config, 3, 0, 2)
    assert step_bytes(config, 5, 3, 2) == step_bytes(config, 5, 0, 2) + step_bytes(config, 0, 3, 2)


def test_a_mixture_counts_the_experts_a_token_goes_to() -> None:
    config = MODELS["mixtral-8x7b"].config
    assert step_bytes(config, 1, 0, 1) == 4 * 4096 + 4 * 32 * 128 + 3 * 2 * 14336


def test_latent_attention_counts_its_heads_as_expanded() -> None:
    config = MODELS["deepseek-v3"].config
    assert step_bytes(config, 1, 0, 1) == 4 * 7168 + 4 * 128 * (128 + 64) + 3 * (8 * 2048 + 2048)
