"""Qwen1.5, Qwen2 and Qwen2.5: `Qwen2ForCausalLM` folders.

Source: Hugging Face transformers 5.23, `models/qwen2/configuration_qwen2.py`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tandem.catalogue.config import GQA, ModelConfig, Window
from tandem.errors import ModelFolderError
from tandem.model.families import llama_like
from tandem.model.families.family import Family
from tandem.model.families.fields import Fields

COMPUTED: dict[str, tuple[object, ...]] = {
    "hidden_act": ("silu", None),
    "quantization_config": (None,),
}
"""Fields that change the computation, with the values this decoder computes."""

SLIDING, FULL = "sliding_attention", "full_attention"


def read_config(fields: dict[str, Any], where: str) -> ModelConfig:
    """Translate `config.json`; refuses by name what the decoder cannot compute."""
    file = Fields(fields, where)
    file.only(COMPUTED)
    config = llama_like.read("qwen2", file, llama_like.Defaults(max_position=32768, kv_heads=32))
    assert isinstance(config.attention, GQA)
    window = _window(file, config.layers)
    return replace(config, attention=replace(config.attention, qkv_bias=True, window=window))


def _window(file: Fields, layers: int) -> Window | None:
    """Which layers slide: `layer_types` where it stands, else those from `max_window_layers` up."""
    if not file.flag("use_sliding_window", False) or file.null("sliding_window"):
        return None
    kinds = file.get("layer_types")
    if kinds is None:
        kinds = [SLIDING if layer >= file.size("max_window_layers", 28, 0) else FULL for layer in range(layers)]
    if not isinstance(kinds, list) or len(kinds) != layers or not set(map(str, kinds)) <= {SLIDING, FULL}:
        raise ModelFolderError(
            f"{file.where}: layer_types is wrong; name {SLIDING} or {FULL} for each of {layers} layers"
        )
    sliding = tuple(layer for layer, kind in enumerate(kinds) if kind == SLIDING)
    return Window(size=file.size("sliding_window", 4096), layers=sliding) if sliding else None


def write_config(config: ModelConfig) -> dict[str, Any]:
    """The `config.json` of an exported folder."""
    assert isinstance(config.attention, GQA)
    window = config.attention.window
    sliding = window.layers if window else ()
    return llama_like.write(config) | {
        "use_sliding_window": window is not None,
        "sliding_window": window.size if window else None,
        "max_window_layers": min(sliding, default=config.layers),
        "layer_types": [SLIDING if layer in sliding else FULL for layer in range(config.layers)],
    }


QWEN2 = Family(
    name="qwen2",
    model_type="qwen2",
    architectures=("Qwen2ForCausalLM",),
    read_config=read_config,
    write_config=write_config,
    tensors=llama_like.NAMES.tensors,
    ignored=llama_like.ignored,
)
