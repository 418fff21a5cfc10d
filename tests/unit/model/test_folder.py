"""Model folders: bit-identical round trips, and one clear line for each way a folder can be wrong."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from tandem.catalogue.arithmetic import kv_bytes_per_token, parameters
from tandem.catalogue.config import GQA, ModelConfig, SwiGLU
from tandem.catalogue.generation import GenerationDefaults, read_generation_defaults
from tandem.catalogue.position import Rope
from tandem.errors import ModelFolderError
from tandem.model.decoder import Decoder
from tandem.model.families import read_config
from tandem.model.folder import fingerprint, load, save

CPU = torch.device("cpu")


def config(**changes: object) -> ModelConfig:
    fields: dict[str, object] = {
        "family": "llama",
        "vocab_size": 31,
        "hidden_size": 16,
        "layers": 2,
        "attention": GQA(heads=4, kv_heads=2, head_dim=8),
        "position": Rope(theta=1e4, dims=8),
        "feed_forward": SwiGLU(size=24),
        "norm_eps": 1e-5,
        "tied_embeddings": False,
        "max_position": 64,
    }
    return ModelConfig(**(fields | changes))  # type: ignore[arg-type]


def decoder(of: ModelConfig, seed: int = 0) -> Decoder:
    model = Decoder(of)
    model.initialise(seed)
    return model


@st.composite
def configs(draw: st.DrawFn) -> ModelConfig:
    kv_heads, group, head_dim = draw(st.integers(1, 3)), draw(st.integers(1, 3)), 2 * draw(st.integers(1, 6))
    return config(
        vocab_size=draw(st.integers(2, 50)),
        hidden_size=draw(st.integers(1, 24)),
        layers=draw(st.integers(1, 3)),
        attention=GQA(heads=kv_heads * group, kv_heads=kv_heads, head_dim=head_dim),
        position=Rope(theta=draw(st.floats(1, 1e7)), dims=head_dim),
        feed_forward=SwiGLU(size=draw(st.integers(1, 30))),
        norm_eps=draw(st.floats(1e-8, 1e-2)),
        tied_embeddings=draw(st.booleans()),
        max_position=draw(st.integers(1, 10**6)),
    )


@given(of=configs(), seed=st.integers(0, 2**31))
@settings(max_examples=25, deadline=None)
def test_export_then_import_is_bit_identical(
    of: ModelConfig, seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("folder") / "model"
    model = decoder(of, seed)
    save(model, folder, GenerationDefaults(), {})
    again = load(folder, CPU)
    assert again.config == of
    for (name, one), (_, other) in zip(model.named_parameters(), again.named_parameters(), strict=True):
        assert torch.equal(one, other), name
    assert sum(p.numel() for p in again.parameters()) == parameters(of)


def test_arithmetic_of_a_known_model() -> None:
    llama2_7b = config(
        vocab_size=32000,
        hidden_size=4096,
        layers=32,
        attention=GQA(heads=32, kv_heads=32, head_dim=128),
        feed_forward=SwiGLU(size=11008),
    )
    assert parameters(llama2_7b) == 6_738_415_616
    assert kv_bytes_per_token(llama2_7b, 2) == 524_288


def test_generation_defaults_survive(tmp_path: Path) -> None:
    defaults = GenerationDefaults(eos_token_ids=(3, 5), bos_token_id=1, temperature=0.6, top_p=0.9, top_k=40)
    save(decoder(config()), tmp_path / "m", defaults, {"tokenizer.json": b"{}"})
    assert read_generation_defaults(tmp_path / "m") == defaults
    assert (tmp_path / "m" / "tokenizer.json").read_bytes() == b"{}"


def test_fingerprint_tells_weights_apart(tmp_path: Path) -> None:
    save(decoder(config(), seed=0), tmp_path / "a", GenerationDefaults(), {})
    save(decoder(config(), seed=1), tmp_path / "b", GenerationDefaults(), {})
    shutil.copytree(tmp_path / "a", tmp_path / "copy")
    assert fingerprint(tmp_path / "a") == fingerprint(tmp_path / "copy") != fingerprint(tmp_path / "b")


def test_fingerprint_sees_every_tensor(tmp_path: Path) -> None:
    save(decoder(config()), tmp_path / "m", GenerationDefaults(), {})
    names = list(load_file(tmp_path / "m" / "model.safetensors"))
    seen = {fingerprint(tmp_path / "m")}
    for name in names:
        edit_weights(tmp_path / "m", lambda tensors, name=name: tensors[name].add_(1))
        seen.add(fingerprint(tmp_path / "m"))
    assert len(seen) == len(names) + 1


def test_a_loaded_model_does_not_follow_its_file(tmp_path: Path) -> None:
    save(decoder(config()), tmp_path / "m", GenerationDefaults(), {})
    model = load(tmp_path / "m", CPU)
    before = model.embedding.weight.clone()
    path = tmp_path / "m" / "model.safetensors"
    with path.open("r+b") as file:
        file.write(bytes(path.stat().st_size))
    assert torch.equal(model.embedding.weight, before)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", "0.7"),
        ("temperature", -1),
        ("top_p", 2),
        ("top_k", -3),
        ("eos_token_id", ["x"]),
        ("bos_token_id", 1.5),
    ],
)
def test_broken_generation_defaults_are_named(field: str, value: object, tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text(json.dumps({field: value}))
    with pytest.raises(ModelFolderError, match=f"{field} is "):
        read_generation_defaults(tmp_path)


def test_existing_folder_is_not_overwritten(tmp_path: Path) -> None:
    save(decoder(config()), tmp_path / "m", GenerationDefaults(), {})
    with pytest.raises(ModelFolderError, match="exists already"):
        save(decoder(config()), tmp_path / "m", GenerationDefaults(), {})


def edit_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_weights(folder: Path, edit: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    edit(tensors)
    save_file(tensors, folder / "model.safetensors")


def write_index(folder: Path, shard: str) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {HEAD: shard}}))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


HEAD = "lm_head.weight"
WRONG: dict[str, tuple[Callable[[Path], object], str]] = {
    "no folder": (shutil.rmtree, "no such model folder"),
    "no config": (lambda f: (f / "config.json").unlink(), "has no config.json"),
    "half a config": (lambda f: truncate(f / "config.json"), "config.json: cannot be read as JSON"),
    "config is a list": (lambda f: (f / "config.json").write_text("[]"), "holds no JSON object"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), r"has no \*.safetensors"),
    "half the weights": (lambda f: truncate(f / "model.safetensors"), "model.safetensors: is damaged or half-written"),
    "missing tensor": (lambda f: edit_weights(f, lambda t: t.pop(HEAD)), "lm_head.weight is missing"),
    "surplus tensor": (
        lambda f: edit_weights(f, lambda t: t.update(extra=torch.zeros(1))),
        "extra is not part of the model",
    ),
    "misshapen tensor": (lambda f: edit_config(f, vocab_size=30), r"lm_head.weight has shape \[31, 16\]"),
    "unknown architecture": (
        lambda f: edit_config(f, architectures=["MambaForCausalLM"]),
        "MambaForCausalLM is not supported; known: LlamaForCausalLM",
    ),
    "unknown rope": (lambda f: edit_config(f, rope_scaling={"rope_type": "spiral"}), "rope type 'spiral'"),
    "unsupported bias": (lambda f: edit_config(f, attention_bias=True), "attention_bias = True is not supported"),
    "sliding window": (lambda f: edit_config(f, sliding_window=4096), "sliding_window = 4096 is not supported"),
    "quantised": (lambda f: edit_config(f, quantization_config={"quant_method": "fp8"}), "quantization_config = "),
    "unknown dtype": (lambda f: edit_config(f, torch_dtype="float8_e4m3fn"), "dtype 'float8_e4m3fn' is not supported"),
    "eps is text": (lambda f: edit_config(f, rms_norm_eps="1e-5"), "rms_norm_eps is '?1e-5'?; expected a number"),
    "no heads": (lambda f: edit_config(f, num_attention_heads=0), "num_attention_heads is 0"),
    "rope is text": (lambda f: edit_config(f, rope_scaling="yarn"), "rope_scaling is 'yarn'; expected an object or null"),
    "size is text": (lambda f: edit_config(f, hidden_size="16"), "hidden_size is '16'"),
    "heads do not divide": (lambda f: edit_config(f, num_key_value_heads=3), "not divisible by 3 kv heads"),
    "shard is gone": (
        lambda f: (f / "model.safetensors.index.json").write_text(
            json.dumps({"weight_map": {HEAD: "x-1.safetensors"}})
        ),
        "names x-1.safetensors, which is not in this folder",
    ),
    "shard outside": (
        lambda f: (f / "model.safetensors.index.json").write_text(
            json.dumps({"weight_map": {HEAD: "../m.safetensors"}})
        ),
        "names ../m.safetensors, which is not in this folder",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_each_fault_gives_one_clear_line(case: str, tmp_path: Path) -> None:
    folder = tmp_path / "m"
    save(decoder(config()), folder, GenerationDefaults(), {})
    spoil, message = WRONG[case]
    spoil(folder)
    with pytest.raises(ModelFolderError, match=message) as caught:
        load(folder, CPU)
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value) or "model configuration" in str(caught.value)


def test_nothing_in_a_folder_is_executed(tmp_path: Path) -> None:
    folder, marker = tmp_path / "m", tmp_path / "ran"
    save(decoder(config()), folder, GenerationDefaults(), {})
    (folder / "modeling_evil.py").write_text(f"open({str(marker)!r}, 'w')")
    edit_config(folder, auto_map={"AutoModelForCausalLM": "modeling_evil.Evil"})
    load(folder, CPU)
    assert read_config(folder) == config()
    assert not marker.exists()
