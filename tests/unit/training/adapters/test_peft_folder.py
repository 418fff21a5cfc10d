"""Adapter folders without PEFT: fused matrices, against the formulas; and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from adapters import TOKENS, adapted, base_of, case_of, lora_parameters, randomise, save_adapter
from parity.measure import CPU, whole
from parity.references import FROM_FORMULAS
from safetensors.torch import load_file, save_file
from torch import Tensor

from tandem.errors import ModelFolderError, RecipeError, TandemError
from tandem.model.folder import load
from tandem.training.adapters.peft_config import short_names
from tandem.training.adapters.peft_folder import load_adapter

FUSED = {
    "qwen": ("transformer.h.{}.attn.c_attn", "transformer.h.{}.mlp.c_proj"),
    "chatglm3": ("transformer.encoder.layers.{}.self_attention.query_key_value",
                 "transformer.encoder.layers.{}.mlp.dense_h_to_4h"),
    "baichuan2-13b": ("model.layers.{}.self_attn.W_pack", "model.layers.{}.mlp.gate_proj"),
}  # fmt: skip


def write_adapter(folder: Path, tensors: dict[str, Tensor], **fields: object) -> None:
    folder.mkdir()
    said = {"peft_type": "LORA", "r": 3, "lora_alpha": 6, "bias": "none", "target_modules": ["x"], **fields}
    (folder / "adapter_config.json").write_text(json.dumps(said))
    save_file(tensors, folder / "adapter_model.safetensors")


def stored(name: str, folder: Path) -> dict[str, Tensor]:
    """The checkpoint's own tensors, whatever its files are."""
    decoder_free = case_of(name)
    return {key: torch.from_numpy(np.array(value)) for key, value in _written(decoder_free, folder).items()}


def _written(case: Any, folder: Path) -> dict[str, Any]:
    from reference.random_folder import write_folder

    formulas = FROM_FORMULAS[case.fields["model_type"]]
    return write_folder(folder, case.fields, formulas.shapes(case.fields), 0, form=case.form)  # type: ignore[no-any-return]


@pytest.mark.parametrize("family", FUSED)
def test_a_fused_matrix_gets_what_peft_would_add(family: str, tmp_path: Path) -> None:
    """PEFT on a linear layer computes W + alpha / r B A; the formulas compute with that W."""
    tensors = stored(family, tmp_path / "base")
    adapter: dict[str, Tensor] = {}
    for layer in range(case_of(family).fields.get("num_layers") or case_of(family).fields["num_hidden_layers"]):
        for module in (name.format(layer) for name in FUSED[family]):
            rows, columns = tensors[f"{module}.weight"].shape
            a, b = torch.empty(3, columns), torch.empty(rows, 3)
            randomise([a], 0.2)
            randomise([b], 0.3)
            adapter |= {f"base_model.model.{module}.lora_A.weight": a, f"base_model.model.{module}.lora_B.weight": b}
            tensors[f"{module}.weight"] = tensors[f"{module}.weight"] + 2 * b @ a
    write_adapter(tmp_path / "adapter", adapter)
    decoder = load(tmp_path / "base", CPU)
    before = whole(decoder, TOKENS)
    load_adapter(decoder, tmp_path / "adapter")
    fields = case_of(family).fields
    arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
    expected = torch.from_numpy(FROM_FORMULAS[fields["model_type"]].logits(fields, arrays, TOKENS)).float()
    assert (expected - before).abs().max() > 0.1
    torch.testing.assert_close(whole(decoder, TOKENS), expected, rtol=0, atol=1e-4)
    save_adapter(decoder, tmp_path / "again")  # parts with one A stay one pair of the same rank
    saved = load_file(tmp_path / "again" / "adapter_model.safetensors")
    assert saved.keys() == adapter.keys()
    assert all(torch.equal(tensor, adapter[name]) for name, tensor in saved.items())


@pytest.mark.parametrize("family", ["glm", *FUSED])
def test_parts_with_their_own_factors_are_blocks_of_a_fused_matrix(family: str, tmp_path: Path) -> None:
    decoder = adapted(family, tmp_path / "base")
    save_adapter(decoder, tmp_path / "adapter", base="a model")
    fields = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert (fields["r"], fields["lora_alpha"], fields["base_model_name_or_path"]) == (4, 6, "a model")
    assert set(fields["rank_pattern"].values()) <= {8, 12}
    again = load(tmp_path / "base", CPU)
    load_adapter(again, tmp_path / "adapter")
    ours, read = lora_parameters(decoder), lora_parameters(again)
    assert ours.keys() == read.keys()
    assert all(torch.equal(factor, read[name]) for name, factor in ours.items())
    assert torch.equal(whole(again, TOKENS), whole(decoder, TOKENS))


def test_the_fused_pair_adds_exactly_what_its_parts_add(tmp_path: Path) -> None:
    decoder = adapted("chatglm3", tmp_path / "base", targets=("attention.q", "attention.v"))
    save_adapter(decoder, tmp_path / "adapter")
    saved = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    stem = "base_model.model.transformer.encoder.layers.0.self_attention.query_key_value"
    a, b = saved[f"{stem}.lora_A.weight"], saved[f"{stem}.lora_B.weight"]
    own = {name: factor.detach() for name, factor in lora_parameters(decoder).items()}
    parts = {part: own[f"layers.0.attention.{part}.lora_b"] @ own[f"layers.0.attention.{part}.lora_a"] for part in "qv"}
    key = torch.zeros(len(decoder.get_parameter("layers.0.attention.k.weight")), a.shape[1])
    torch.testing.assert_close(b @ a, torch.cat([parts["q"], key, parts["v"]]), rtol=1e-6, atol=1e-7)


def test_embeddings_saved_beside_must_be_the_bases_own(tmp_path: Path) -> None:
    decoder = adapted("llama", tmp_path / "base", targets=("embed_tokens",))
    save_adapter(decoder, tmp_path / "adapter")
    path = tmp_path / "adapter" / "adapter_model.safetensors"
    own = decoder.embedding.weight.detach()
    for table, refused in ((own, False), (own + 1, True)):
        tensors = load_file(path) | {"base_model.model.model.embed_tokens.base_layer.weight": table.contiguous()}
        save_file(tensors, path)
        again = load(tmp_path / "base", CPU)
        if refused:
            with pytest.raises(ModelFolderError, match=r"another embedding\.weight than the base model"):
                load_adapter(again, tmp_path / "adapter")
        else:
            load_adapter(again, tmp_path / "adapter")


Q = "base_model.model.model.layers.0.self_attn.q_proj"
PAIR = {f"{Q}.lora_A.weight": torch.ones(3, 48), f"{Q}.lora_B.weight": torch.ones(96, 3)}


@pytest.mark.parametrize(
    ("tensors", "fields", "message"),
    [
        (PAIR, {"peft_type": "LOHA"}, "peft_type 'LOHA' is not supported"),
        (PAIR, {"use_dora": True}, "use_dora True is not supported"),
        (PAIR, {"modules_to_save": ["lm_head"]}, "modules_to_save"),
        (PAIR, {"init_lora_weights": "pissa"}, "init_lora_weights 'pissa'"),
        (PAIR, {"new_trick": 3}, "new_trick is not known here"),
        (PAIR, {"r": None}, "r, lora_alpha or a pattern"),
        (PAIR, {"r": 0}, "rank 0 is not positive"),
        (PAIR, {"lora_alpha": 10**400}, "r, lora_alpha or a pattern"),
        (PAIR, {"lora_alpha": float("nan")}, "alpha nan is no number"),
        (PAIR, {"rank_pattern": {"q_proj": -3}}, "rank -3 is not positive"),
        (PAIR, {"rank_pattern": {"(": 3}}, r"pattern '\(' is no regular expression"),
        (PAIR, {"r": 4}, r"q_proj has A and B of \[3, 48\] and \[96, 3\]; rank 4"),
        ({}, {}, r"adapter_model\.safetensors: holds no adapter"),
        ({name: tensor * float("nan") for name, tensor in PAIR.items()}, {}, "holds NaN, infinity or whole numbers"),
        ({name: tensor.int() for name, tensor in PAIR.items()}, {}, "holds NaN, infinity or whole numbers"),
        ({f"{Q}.lora_A.weight": torch.ones(3, 48)}, {}, "has not two matrices"),
        ({f"{Q}x.lora_A.weight": torch.ones(3, 48)}, {}, "q_projx has no matrix in this model"),
        (PAIR | {f"{Q}.lora_magnitude_vector": torch.ones(96)}, {}, "is no tensor of a plain LoRA"),
    ],
)
def test_what_is_no_plain_lora_of_this_model_is_refused(
    tensors: dict[str, Tensor], fields: dict[str, object], message: str, tmp_path: Path
) -> None:
    decoder = base_of("llama", tmp_path / "base")
    write_adapter(tmp_path / "adapter", tensors, **fields)
    with pytest.raises(ModelFolderError, match=message):
        load_adapter(decoder, tmp_path / "adapter")


@pytest.mark.parametrize("missing", ["adapter_config.json", "adapter_model.safetensors"])
def test_a_missing_file_is_named(missing: str, tmp_path: Path) -> None:
    write_adapter(tmp_path / "adapter", PAIR)
    (tmp_path / "adapter" / missing).unlink()
    with pytest.raises(ModelFolderError, match=f"has no {missing}"):
        load_adapter(base_of("llama", tmp_path / "base"), tmp_path / "adapter")


def test_broken_files_raise_nothing_of_others(tmp_path: Path) -> None:
    decoder = base_of("llama", tmp_path / "base")
    write_adapter(tmp_path / "adapter", PAIR)
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        path = tmp_path / "adapter" / name
        path.write_bytes(path.read_bytes()[:-7])
        with pytest.raises(TandemError, match=name):
            load_adapter(decoder, tmp_path / "adapter")


def test_a_tied_embedding_is_refused_in_a_folder_too(tmp_path: Path) -> None:
    decoder = base_of("llama, tied, one kv head", tmp_path / "base")
    stem = "base_model.model.model.embed_tokens.lora_embedding"
    write_adapter(tmp_path / "adapter", {f"{stem}_A": torch.ones(3, 97), f"{stem}_B": torch.ones(48, 3)})
    with pytest.raises(RecipeError, match="head too"):
        load_adapter(decoder, tmp_path / "adapter")


def test_short_names_mean_those_modules_and_no_others() -> None:
    modules = ["h.0.attn.c_proj", "h.0.mlp.c_proj", "h.1.attn.c_proj", "h.1.mlp.c_proj"]
    assert short_names(modules, modules) == ["c_proj"]
    assert short_names(modules[::2], modules) == ["attn.c_proj"]
    assert short_names(modules[:1], modules) == ["0.attn.c_proj"]
    assert short_names([], modules) == []
