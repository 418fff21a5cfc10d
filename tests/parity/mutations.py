"""What happens when one field of a `config.json` changes and the weights stay: a refusal, or other logits.

A dictionary that notes what is asked of it finds every field that a family reads, so that none is forgotten: each needs
another value in `CHANGED`, and where that moves nothing the base says why.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from parity.cases import CASES, Case
from parity.measure import CPU, tokens_of, whole
from parity.references import write
from tandem.errors import ModelFolderError
from tandem.model.families import family_of, read_config
from tandem.model.folder import load

LEAST = 1e-3
"""Ten times the tolerance of the parity."""
TOKENS = 110
REFUSED = float("inf")
"""A refusal counts as an endless movement."""


@dataclass(frozen=True)
class Base:
    """A configuration whose fields are changed one by one."""

    name: str
    """Of the case."""
    saved: bool = False
    """Whether `config.json` is what transformers wrote, or the case's own fields."""
    changed: dict[str, Any] = field(default_factory=dict)
    """Where `CHANGED` does not fit."""
    inert: dict[str, str] = field(default_factory=dict)
    """Fields whose change moves nothing, and why."""
    refused_by: dict[str, str] = field(default_factory=dict)
    """Fields that are refused by another's name, which they contradict or ask for, or by what the two make up."""

    @property
    def case(self) -> Case:
        return next(case for case in CASES if case.name == self.name)


@dataclass(frozen=True)
class Row:
    """One field changed."""

    field: str
    movement: float
    """Most that a logit moved; REFUSED where the folder was."""
    message: str = ""
    """Of the refusal."""
    inert: str = ""
    """Why nothing moves, where that is known."""


CHANGED: dict[str, Any] = {
    "vocab_size": 90,
    "hidden_size": 60,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 3,
    "head_dim": 8,
    "rms_norm_eps": 3e-3,
    "max_position_embeddings": 50,
    "rope_theta": 9000.0,
    "partial_rotary_factor": 0.75,
    "tie_word_embeddings": True,
    "hidden_act": "gelu",
    "attention_bias": True,
    "mlp_bias": True,
    "sliding_window": 17,
    "use_sliding_window": True,
    "max_window_layers": 2,
    "layer_types": ["full_attention", "sliding_attention", "full_attention"],
    "quantization_config": {"quant_method": "gptq", "bits": 4},
    "rope_parameters": {"rope_type": "linear", "factor": 1.5},
    "rope_scaling": {"type": "linear", "factor": 1.5},
    # of a scaling
    "rope_type": "linear",
    "type": "linear",
    "factor": 2.5,
    "low_freq_factor": 2.0,
    "high_freq_factor": 8.0,
    "original_max_position_embeddings": 48,
    "beta_fast": 1.2,
    "beta_slow": 0.1,
    "mscale": 2.0,
    "mscale_all_dim": 0.5,
    "attention_factor": 1.5,
    "truncate": False,
    # Mixtral and DeepSeek-V3
    "num_local_experts": 4,
    "num_experts_per_tok": 4,
    "moe_intermediate_size": 8,
    "n_shared_experts": 1,
    "n_routed_experts": 8,
    "n_group": 2,
    "topk_group": 3,
    "routed_scaling_factor": 2.0,
    "norm_topk_prob": False,
    "router_aux_loss_coef": 0.5,
    "aux_loss_alpha": 0.5,
    "seq_aux": False,
    "first_k_dense_replace": 1,
    "kv_lora_rank": 16,
    "q_lora_rank": 20,
    "qk_nope_head_dim": 10,
    "qk_rope_head_dim": 6,
    "v_head_dim": 12,
    "rope_interleave": False,
    "ep_size": 2,
    "moe_layer_freq": 2,
    "scoring_func": "softmax",
    "topk_method": "greedy",
    "num_nextn_predict_layers": 1,
    # Qwen v1
    "kv_channels": 8,
    "layer_norm_epsilon": 3e-3,
    "no_bias": False,
    "rotary_emb_base": 20000,
    "rotary_pct": 0.5,
    "scale_attn_weights": False,
    "seq_length": 24,
    "use_cache_quantization": True,
    "use_dynamic_ntk": False,
    "use_logn_attn": False,
    # ChatGLM
    "add_bias_linear": True,
    "add_qkv_bias": False,
    "apply_residual_connection_post_layernorm": True,
    "ffn_hidden_size": 100,
    "fp32_residual_connection": True,
    "layernorm_epsilon": 3e-3,
    "multi_query_attention": False,
    "multi_query_group_num": 1,
    "num_layers": 2,
    "padded_vocab_size": 90,
    "post_layer_norm": False,
    "pre_seq_len": 8,
    "quantization_bit": 4,
    "rmsnorm": False,
    "rope_ratio": 3,
    "_name_or_path": "THUDM/chatglm2-6b-32k",
    # Baichuan 2
    "model_max_length": 50,
}
"""Field -> another value; one of a scaling goes by its own name."""

LENGTH = "a length that nothing goes by"
ALONE = {"mscale": "counts only beside mscale_all_dim", "mscale_all_dim": "counts only beside mscale"}
UNSCALED = {"rope_type": "factor"}
"""What a scaling asks for where there was none."""
TRAINING = "counts in training alone"
DEEPSEEK = {
    "max_position_embeddings": LENGTH,
    "num_nextn_predict_layers": "only says which layers may be left out",
    "aux_loss_alpha": TRAINING,
    "seq_aux": "training judges every sequence by itself",
}
MIXTRAL = {"max_position_embeddings": LENGTH, "router_aux_loss_coef": TRAINING}
ONE_KEY_EACH = {"num_attention_heads": "num_key_value_heads"}
NULL = {"max_position_embeddings": LENGTH, "use_sliding_window": "sliding_window is null"}

BASES = (
    Base("llama", saved=True, inert={"max_position_embeddings": LENGTH}, refused_by=UNSCALED),
    Base(
        "llama, tied, one kv head",
        changed={"tie_word_embeddings": False},
        inert={"max_position_embeddings": LENGTH},
    ),
    Base("llama, linear", saved=True, changed={"rope_type": "default"}, inert={"max_position_embeddings": LENGTH}),
    Base("llama, dynamic"),
    Base("llama, dynamic", saved=True),
    Base("llama, llama3", inert={"max_position_embeddings": LENGTH}),
    Base("llama, llama3", saved=True, inert={"max_position_embeddings": LENGTH}),
    Base("llama, yarn", saved=True, inert={"max_position_embeddings": LENGTH} | ALONE),
    Base("llama, yarn, mscale", inert={"max_position_embeddings": LENGTH}),
    Base(
        "llama, yarn, odd",
        changed={"truncate": True},
        inert={"max_position_embeddings": LENGTH}
        | dict.fromkeys(("mscale", "mscale_all_dim"), "attention_factor stands above it"),
    ),
    Base("mistral, window", saved=True, inert={"max_position_embeddings": LENGTH}, refused_by=UNSCALED),
    Base("mixtral", saved=True, inert=MIXTRAL, refused_by=UNSCALED),
    Base("mixtral, window", inert=MIXTRAL),
    Base(
        "qwen2",
        changed={"head_dim": 12},
        inert={
            "max_position_embeddings": LENGTH,
            "use_sliding_window": "sliding_window is missing, which is 4096 tokens",
        },
    ),
    Base(
        "qwen2, window",
        changed={"head_dim": 12, "use_sliding_window": False},
        inert={"max_position_embeddings": LENGTH},
    ),
    Base(
        "qwen2, window",
        saved=True,
        changed={"head_dim": 12, "use_sliding_window": False},
        inert={"max_position_embeddings": LENGTH},
        refused_by={"num_hidden_layers": "layer_types"} | UNSCALED,
    ),
    Base(
        "qwen2, yarn",
        saved=True,
        changed={"head_dim": 12},
        inert=NULL | ALONE,
    ),
    Base(
        "glm",
        saved=True,
        changed={"attention_bias": False},
        inert={"max_position_embeddings": LENGTH},
        refused_by=UNSCALED,
    ),
    Base("deepseek_v3, yarn", inert=DEEPSEEK, refused_by=ONE_KEY_EACH),
    Base("deepseek_v3, yarn", saved=True, inert=DEEPSEEK, refused_by=ONE_KEY_EACH),
    Base("qwen", changed={"num_attention_heads": 2}, inert={"max_position_embeddings": LENGTH}),
    Base(
        "chatglm3",
        changed={"num_attention_heads": 2},
        inert={"seq_length": LENGTH, "_name_or_path": "there is no rope_ratio"},
    ),
    Base("glm4", inert={"seq_length": LENGTH}),
    Base("baichuan2-13b", inert={"model_max_length": LENGTH}),
    Base("baichuan2-7b", changed={"hidden_size": 56, "num_attention_heads": 2, "max_position_embeddings": None}),
)


class Noting(dict[str, Any]):
    """A `config.json` that notes which fields are asked for; those within others with a dot between."""

    def __init__(self, fields: dict[str, Any], asked: list[str], prefix: str = "") -> None:
        super().__init__(
            {
                name: Noting(value, asked, f"{prefix}{name}.") if isinstance(value, dict) else value
                for name, value in fields.items()
            }
        )
        self._asked, self._prefix = asked, prefix

    def get(self, name: str, default: Any = None) -> Any:
        self._note(name)
        return super().get(name, default)

    def __getitem__(self, name: str) -> Any:
        self._note(name)
        return super().__getitem__(name)

    def __contains__(self, name: object) -> bool:
        self._note(str(name))
        return super().__contains__(name)

    def _note(self, name: str) -> None:
        if self._prefix + name not in self._asked:
            self._asked.append(self._prefix + name)


def fields_read(fields: dict[str, Any]) -> list[str]:
    """Every field that the family of a `config.json` reads, whether it is there or not."""
    asked: list[str] = []
    family_of(fields, "config.json").read_config(Noting(fields, asked), "config.json")
    return asked


def rows(base: Base, folder: Path) -> Iterator[Row]:
    """Change each field that is read, and see."""
    write(base.case, folder)
    path = folder / "config.json"
    fields = json.loads(path.read_text()) if base.saved else base.case.fields
    path.write_text(json.dumps(fields))
    before = _logits(folder)
    for name in fields_read(fields):
        own = name.rpartition(".")[2]
        value = base.changed[own] if own in base.changed else CHANGED[own]
        path.write_text(json.dumps(with_field(fields, name, value)))
        yield replace(_row(name, folder, before), inert=base.inert.get(own, ""))


def with_field(fields: dict[str, Any], name: str, value: Any) -> dict[str, Any]:
    """The same with one field, perhaps within another, set."""
    fields = deepcopy(fields)
    part = fields
    *outer, last = name.split(".")
    for step in outer:
        part = part[step]
    part[last] = value
    return fields


def _row(name: str, folder: Path, before: Tensor) -> Row:
    try:
        after = _logits(folder)
    except ModelFolderError as error:
        return Row(name, REFUSED, str(error))
    return Row(name, float((after - before).abs().max()))


def _logits(folder: Path) -> Tensor:
    return whole(load(folder, CPU), tokens_of(TOKENS, read_config(folder).vocab_size))
