"""The decoder against transformers, on random tiny configurations with every tensor randomised."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from tandem.catalogue.generation import GenerationDefaults
from tandem.model.context import CausalContext
from tandem.model.decoder import Decoder
from tandem.model.folder import load, save

SHAPES = [
    {"num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 8, "tie_word_embeddings": False},
    {"num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 16, "tie_word_embeddings": True},
    {"num_attention_heads": 3, "num_key_value_heads": 1, "head_dim": 12, "tie_word_embeddings": False},
]


def reference_model(**changes: object) -> LlamaForCausalLM:
    """A small Llama whose norms are not ones and whose logits are of order 1 to 10."""
    fields = {
        "vocab_size": 97,
        "hidden_size": 48,
        "intermediate_size": 80,
        "num_hidden_layers": 3,
        "rope_theta": 5000.0,
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 64,
    }
    model = LlamaForCausalLM(LlamaConfig(**(fields | changes))).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(1.0 if "norm" in name else 0.0, 0.2, generator=generator)
    return model


def logits_of(decoder: Decoder, tokens: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return decoder(tokens, CausalContext(*tokens.shape, tokens.device))


@pytest.mark.parametrize("shape", SHAPES)
def test_logits_equal_those_of_transformers(shape: dict[str, object], tmp_path: Path) -> None:
    reference = reference_model(**shape)
    reference.save_pretrained(tmp_path)
    decoder = load(tmp_path, torch.device("cpu"))
    tokens = torch.randint(0, 97, (2, 80), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        expected = reference(tokens).logits
    assert expected.std() > 1
    torch.testing.assert_close(logits_of(decoder, tokens), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("shape", SHAPES)
def test_exported_folder_is_read_by_transformers(shape: dict[str, object], tmp_path: Path) -> None:
    reference_model(**shape).save_pretrained(tmp_path / "theirs")
    decoder = load(tmp_path / "theirs", torch.device("cpu"))
    save(decoder, tmp_path / "ours", GenerationDefaults(eos_token_ids=(1,), bos_token_id=0), {})
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "ours", dtype=torch.float32).eval()
    tokens = torch.randint(0, 97, (1, 40), generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        expected = again(tokens).logits
    torch.testing.assert_close(logits_of(decoder, tokens), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    "change",
    [{"rope_theta": 6000.0}, {"rms_norm_eps": 3e-3}, {"num_hidden_layers": 2}, {"intermediate_size": 64}],
    ids=lambda change: next(iter(change)),
)
def test_every_field_of_the_config_matters(change: dict[str, object], tmp_path: Path) -> None:
    """A field that could be dropped unnoticed would make the parity above worth little."""
    tokens = torch.randint(0, 97, (1, 60), generator=torch.Generator().manual_seed(3))
    seen = []
    for name, changes in (("as is", {}), ("changed", change)):
        reference_model(num_attention_heads=6, num_key_value_heads=2, head_dim=16, **changes).save_pretrained(
            tmp_path / name
        )
        seen.append(logits_of(load(tmp_path / name, torch.device("cpu")), tokens))
    assert (seen[0] - seen[1]).abs().max() > 1e-3
