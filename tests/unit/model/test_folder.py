"""Model folders: bit-identical round trips, and one clear line for each way a folder can be wrong."""

from __future__ import annotations

import errno
import json
import os
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
from tandem.catalogue.models import MODELS
from tandem.catalogue.position import DynamicNTK, Rope
from tandem.catalogue.shrink import SmallShape, shrink
from tandem.errors import ModelFolderError
from tandem.model.decoder import Decoder
from tandem.model.families import read_config
from tandem.model.folder import DTYPES, fingerprint, load, save
from tandem.model.random_weights import random_decoder
from tandem.model.weights.dtypes import TORCH_DTYPES

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
        position=Rope(theta=draw(st.floats(1, 1e7, exclude_min=True)), dims=head_dim),
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
    assert_same(again, model)
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


ONE_PER_FAMILY = [
    "llama3.2-1b", "qwen-7b", "qwen2-0.5b", "glm3-6b", "baichuan2-13b", "mistral-7b", "mixtral-8x7b", "deepseek-v3",
]  # fmt: skip
FORMS: dict[str, Callable[[Path], object]] = {
    "single": lambda folder: None,
    "no name": lambda folder: (folder / "model.safetensors").rename(folder / "weights.safetensors"),
    "bin": lambda folder: into_bins(folder, 1),
    "sharded bin": lambda folder: into_bins(folder, 3),
}


def into_bins(folder: Path, count: int) -> None:
    """The same weights as torch's own files."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    if count == 1:
        torch.save(tensors, folder / "pytorch_model.bin")
        return
    files = {name: f"pytorch_model-{number % count + 1}.bin" for number, name in enumerate(tensors)}
    for file in set(files.values()):
        torch.save({name: tensors[name] for name in tensors if files[name] == file}, folder / file)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": files}))


def assert_same(one: Decoder, other: Decoder) -> None:
    assert one.config == other.config
    for (name, mine), (_, yours) in zip(one.named_parameters(), other.named_parameters(), strict=True):
        assert mine.dtype == yours.dtype, name
        assert torch.equal(mine, yours), name


@pytest.mark.parametrize("name", ONE_PER_FAMILY)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_form_of_a_folder_is_the_same_model(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    original = random_decoder(shrink(MODELS[name].config), dtype, 0)
    save(original, tmp_path / "shards", GenerationDefaults(), {}, max_shard_bytes=100_000)
    assert (tmp_path / "shards" / "model.safetensors.index.json").exists()
    assert_same(load(tmp_path / "shards", CPU), original)
    prints = {fingerprint(tmp_path / "shards")}
    for form, change in FORMS.items():
        save(original, tmp_path / form, GenerationDefaults(), {})
        change(tmp_path / form)
        assert_same(load(tmp_path / form, CPU), original)
        prints.add(fingerprint(tmp_path / form))
    assert len(prints) == 1


@pytest.mark.parametrize("name", ONE_PER_FAMILY)
def test_weights_become_the_dtype_asked_for(name: str, tmp_path: Path) -> None:
    original = random_decoder(shrink(MODELS[name].config), torch.float32, 0)
    save(original, tmp_path / "m", GenerationDefaults(), {})
    for (name, parameter), (_, own) in zip(
        load(tmp_path / "m", CPU, torch.bfloat16).named_parameters(), original.named_parameters(), strict=True
    ):
        # The router's correction decides which experts compute: rounded, it would choose others.
        assert parameter.dtype == (torch.float32 if name.endswith("router.bias") else torch.bfloat16)
        assert torch.equal(parameter, own.to(parameter.dtype)), name


@pytest.mark.parametrize(("dtype", "field"), [("BF16", "bfloat16"), ("F32", "float32"), ("F16", "float16")])
def test_without_a_word_in_the_configuration_the_weights_decide(dtype: str, field: str, tmp_path: Path) -> None:
    save(decoder(config()).to(DTYPES[field]), tmp_path / "m", GenerationDefaults(), {})
    edit_config(tmp_path / "m", torch_dtype=None)
    assert {parameter.dtype for parameter in load(tmp_path / "m", CPU).parameters()} == {TORCH_DTYPES[dtype]}


def quantise(folder: Path) -> dict[str, torch.Tensor]:
    """Turn a DeepSeek folder's matrices into fp8 and scales of 128 x 128, as published; returns what they mean."""
    tensors = load_file(folder / "model.safetensors")
    meant = dict(tensors)
    for name in [name for name in tensors if name.endswith("_proj.weight") or "_proj_" in name]:
        weight = tensors[name].float()
        rows, columns = weight.shape
        scales = torch.rand(-(-rows // 128), -(-columns // 128)) / 100
        spread = scales[torch.arange(rows) // 128][:, torch.arange(columns) // 128]
        small = (weight / spread).clamp(-448, 448).to(torch.float8_e4m3fn)
        tensors |= {name: small, f"{name}_scale_inv": scales}
        meant[name] = (small.float() * spread).to(meant[name].dtype)
    save_file(tensors, folder / "model.safetensors")
    block = {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128], "activation_scheme": "dynamic"}
    edit_config(folder, quantization_config=block)
    return meant


def test_fp8_weights_are_dequantised(tmp_path: Path) -> None:
    of = shrink(MODELS["deepseek-v3"].config, SmallShape(hidden=160, inner=144, layers=2))
    save(random_decoder(of, torch.bfloat16, 0), tmp_path / "m", GenerationDefaults(), {})
    meant = quantise(tmp_path / "m")
    assert any(tensor.dtype == torch.float8_e4m3fn for tensor in load_file(tmp_path / "m/model.safetensors").values())
    save(load(tmp_path / "m", CPU), tmp_path / "again", GenerationDefaults(), {})
    again = load_file(tmp_path / "again" / "model.safetensors")
    assert again.keys() == meant.keys()
    for name, tensor in meant.items():
        assert torch.equal(again[name], tensor), name


def test_weights_nobody_needs_are_passed_over(tmp_path: Path) -> None:
    save(decoder(config(tied_embeddings=True)), tmp_path / "m", GenerationDefaults(), {})
    copy = {"x.rotary_emb.inv_freq": torch.ones(4)}
    edit_weights(tmp_path / "m", lambda t: t.update(copy | {HEAD: t["model.embed_tokens.weight"].clone()}))
    assert load(tmp_path / "m", CPU).head is None


@pytest.mark.parametrize("head", [torch.ones(31, 16), torch.ones(30, 16), None], ids=["other", "smaller", "one number"])
def test_a_tied_head_that_is_no_copy_is_refused(head: torch.Tensor | None, tmp_path: Path) -> None:
    """Whoever wrote it meant it, or did not mean the tie; either way one of the two is wrong."""
    save(decoder(config(tied_embeddings=True)), tmp_path / "m", GenerationDefaults(), {})

    def add(tensors: dict[str, torch.Tensor]) -> None:
        tensors[HEAD] = tensors["model.embed_tokens.weight"].clone() if head is None else head
        tensors[HEAD][-1, -1] += 1

    edit_weights(tmp_path / "m", add)
    with pytest.raises(ModelFolderError, match=r"lm_head.weight is not model.embed_tokens.weight, although tie_word"):
        load(tmp_path / "m", CPU)


def test_an_exported_folder_says_what_it_is(tmp_path: Path) -> None:
    defaults = GenerationDefaults(eos_token_ids=(3, 5), bos_token_id=1)
    save(decoder(config()).to(torch.bfloat16), tmp_path / "m", defaults, {})
    fields = json.loads((tmp_path / "m" / "config.json").read_text())
    said = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "torch_dtype": "bfloat16"}
    assert fields.items() >= (said | {"bos_token_id": 1, "eos_token_id": [3, 5]}).items()


def test_a_model_without_room_is_refused_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> torch.Tensor:
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:124] can't allocate memory\nbacktrace")

    save(decoder(config()), tmp_path / "m", GenerationDefaults(), {})
    monkeypatch.setattr("tandem.model.folder.fresh", full)
    with pytest.raises(ModelFolderError, match=r"does not fit into the memory of cpu \(.+allocate memory\); free some"):
        load(tmp_path / "m", CPU)


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("tandem.model.folder.write_shards", full)
    with pytest.raises(ModelFolderError, match=r"m: cannot be written \(No space left on device\); free disk space"):
        save(decoder(config()), tmp_path / "m", GenerationDefaults(), {})
    assert list(tmp_path.iterdir()) == []


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


@pytest.mark.parametrize("part", range(4))
def test_fingerprint_sees_more_than_the_first_row(part: int, tmp_path: Path) -> None:
    """A matrix that changed in one of its quarters alone, where the sample of that quarter lies."""
    save(decoder(config(vocab_size=400)), tmp_path / "m", GenerationDefaults(), {})
    before = fingerprint(tmp_path / "m")
    edit_weights(tmp_path / "m", lambda tensors: tensors[HEAD][100 * part].add_(1))
    assert fingerprint(tmp_path / "m") != before


def test_a_loaded_model_does_not_follow_its_file(tmp_path: Path) -> None:
    save(decoder(config()), tmp_path / "m", GenerationDefaults(), {})
    model = load(tmp_path / "m", CPU)
    before = model.embedding.weight.clone()
    path = tmp_path / "m" / "model.safetensors"
    with path.open("r+b") as file:
        file.write(bytes(path.stat().st_size))
    assert torch.equal(model.embedding.weight, before)


def test_what_config_json_cannot_say_is_not_written(tmp_path: Path) -> None:
    stretched = config(position=Rope(theta=1e4, dims=8, scaling=DynamicNTK(factor=2.0, trained=32)))
    with pytest.raises(
        ModelFolderError, match=r"m: cannot be written as llama: a dynamic base trained on 32 tokens, of 64"
    ):
        save(decoder(stretched), tmp_path / "m", GenerationDefaults(), {})
    assert list(tmp_path.iterdir()) == []


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
    "tensor of whole numbers": (
        lambda f: edit_weights(f, lambda t: t.update({HEAD: t[HEAD].int()})),
        "lm_head.weight is of dtype I32",
    ),
    "half a shard": (lambda f: (into_bins(f, 3), truncate(f / "pytorch_model-2.bin")), "model-2.bin: is damaged"),
    "missing shard": (
        lambda f: (into_bins(f, 3), (f / "pytorch_model-2.bin").unlink()),
        "names pytorch_model-2.bin, which is not in this folder",
    ),
    "missing tensor in a bin": (
        lambda f: (edit_weights(f, lambda t: t.pop(HEAD)), into_bins(f, 1)),
        "lm_head.weight is missing",
    ),
    "absurd size": (lambda f: edit_config(f, num_hidden_layers=10**9), "1000000000 layers are more than any model has"),
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
    "dtype is a list": (lambda f: edit_config(f, torch_dtype=["float16"]), r"config.json: dtype \['float16'\] is not"),
    "dtype is long": (lambda f: edit_config(f, torch_dtype="x" * 2000), "config.json: dtype 'x+ is not supported"),
    "eps is text": (lambda f: edit_config(f, rms_norm_eps="1e-5"), "rms_norm_eps is '?1e-5'?; expected a number"),
    "no heads": (lambda f: edit_config(f, num_attention_heads=0), "num_attention_heads is 0"),
    "rope is text": (
        lambda f: edit_config(f, rope_scaling="yarn"),
        "rope_scaling is 'yarn'; expected an object or null",
    ),
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
    assert str(caught.value).startswith(str(folder))
    assert "; " in str(caught.value)
    assert len(str(caught.value)) < len(str(folder)) + 300


def test_nothing_in_a_folder_is_executed(tmp_path: Path) -> None:
    folder, marker = tmp_path / "m", tmp_path / "ran"
    save(decoder(config()), folder, GenerationDefaults(), {})
    (folder / "modeling_evil.py").write_text(f"open({str(marker)!r}, 'w')")
    edit_config(folder, auto_map={"AutoModelForCausalLM": "modeling_evil.Evil"})
    load(folder, CPU)
    assert read_config(folder) == config()
    assert not marker.exists()


def test_a_malicious_pickle_is_refused(tmp_path: Path) -> None:
    folder, marker = tmp_path / "m", tmp_path / "ran"
    save(decoder(config()), folder, GenerationDefaults(), {})
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(tensors | {"evil": Evil(str(marker))}, folder / "pytorch_model.bin")
    for look in (lambda: load(folder, CPU), lambda: fingerprint(folder)):
        with pytest.raises(
            ModelFolderError, match=r"pytorch_model\.bin: .*asks for code to be run \(.+\); get it anew$"
        ):
            look()
    assert not marker.exists()


class Evil:
    """Unpickling it makes a folder."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (self.path,)
