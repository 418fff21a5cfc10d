from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tandem.catalogue.models import MODELS
from tandem.catalogue.shrink import SmallShape, shrink
from tandem.errors import UsageError
from tandem.model.examination import examine
from tandem.model.folder import load
from tandem.model.fp8_folder import quantise
from tandem.model.random_folder import write_random_folder
from tandem.model.weights.block_scaled import dequantise

CPU = torch.device("cpu")
WHOLE = ("embedding.weight", "head.weight", "router.weight")


@pytest.mark.parametrize("shape", [(128, 128), (1, 1), (130, 300), (256, 127)])
def test_quantising_rounds_to_three_bits_of_the_block(shape: tuple[int, int]) -> None:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * torch.linspace(0.01, 5, shape[1])
    small, scales = quantise(weight, (128, 128))
    assert small.dtype == torch.float8_e4m3fn
    assert scales.shape == (-(-shape[0] // 128), -(-shape[1] // 128))
    back = dequantise(small, scales, 0, (128, 128))
    # Half of the last of three bits; what is tiny within its block has fewer.
    assert torch.all((back - weight).abs() <= weight.abs() / 16 + weight.abs().max() / 448 * 2**-9)


def test_a_block_of_zeros_stays_zero() -> None:
    small, scales = quantise(torch.zeros(3, 3), (128, 128))
    assert not small.float().any()
    assert torch.isfinite(scales).all()


def test_a_folder_in_fp8_loads_as_the_wide_one(tmp_path: Path) -> None:
    config = shrink(MODELS["deepseek-v3"].config, SmallShape(hidden=160))
    for name, fp8 in (("wide", False), ("fp8", True)):
        write_random_folder(config, "deepseek", tmp_path / name, dtype="bfloat16", seed=0, fp8=fp8)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fp8", "wide"]
    assert json.loads((tmp_path / "fp8" / "config.json").read_text())["quantization_config"]["quant_method"] == "fp8"
    stored = load_file(tmp_path / "fp8" / "model.safetensors")
    assert stored["model.layers.0.self_attn.o_proj.weight"].dtype == torch.float8_e4m3fn
    assert stored["model.layers.0.mlp.down_proj.weight_scale_inv"].shape == (2, 4)
    wide_names = {name for name, tensor in stored.items() if tensor.dtype == torch.bfloat16}
    assert {name.split(".")[-2] for name in wide_names if stored[name].dim() == 2} == {
        "embed_tokens",
        "lm_head",
        "gate",
    }
    assert examine(tmp_path / "fp8").faults == ()
    modes = {path.stat().st_mode for name in ("wide", "fp8") for path in (tmp_path / name).iterdir()}
    assert len(modes) == 1, "every file is readable to whom the umask lets it be"
    wide, fp8 = (load(tmp_path / name, CPU, torch.float32) for name in ("wide", "fp8"))
    for name, parameter in wide.named_parameters():
        other = fp8.get_parameter(name)
        assert torch.allclose(parameter, other, rtol=0.07, atol=0.01), name
        assert torch.equal(parameter, other) == (parameter.dim() == 1 or name.endswith(WHOLE)), name


def test_only_deepseek_is_published_so(tmp_path: Path) -> None:
    config = shrink(MODELS["llama2-7b"].config)
    with pytest.raises(UsageError, match="--fp8: llama models are not published so"):
        write_random_folder(config, "llama2", tmp_path / "out", dtype="bfloat16", seed=0, fp8=True)
