"""PEFT's `adapter_config.json`: read with a refusal of what is no plain LoRA, and written.

Source: PEFT 0.21, `tuners/lora/config.py` and `utils/other.py` (`get_pattern_key`). No torch.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tandem.errors import ModelFolderError
from tandem.files import read_json_object

FILE = "adapter_config.json"
EXPERT = re.compile(r"\.experts\.[0-9]+\.")

PLAIN: dict[str, tuple[object, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none",),
    # The others change the base model's own weights, which an adapter folder does not hold.
    "init_lora_weights": (True, False, None, "gaussian", "eva", "orthogonal"),
    "lora_bias": (False, None),
    "fan_in_fan_out": (False, None),
    "use_dora": (False, None),
    "use_qalora": (False, None),
    "ensure_weight_tying": (False, None),
    **dict.fromkeys(
        (
            "alora_invocation_tokens",
            "arrow_config",
            "kasa_config",
            "layer_replication",
            "modules_to_save",
            "monteclora_config",
            "trainable_token_indices",
            "use_bdlora",
            "velora_config",
        ),
        (None, [], {}, False),
    ),
}
"""Fields that change what an adapter computes, with the values of plain LoRA."""

IDLE = frozenset(
    (
        "alpha_pattern",
        "auto_mapping",
        "base_model_name_or_path",
        "corda_config",
        "eva_config",
        "exclude_modules",
        "inference_mode",
        "layers_pattern",
        "layers_to_transform",
        "loftq_config",
        "lora_alpha",
        "lora_dropout",
        "lora_ga_config",
        "megatron_config",
        "megatron_core",
        "peft_version",
        "qalora_group_size",
        "r",
        "rank_pattern",
        "revision",
        "runtime_config",
        "target_modules",
        "target_parameters",
        "task_type",
        "use_rslora",
    )
)
"""Fields that are read, or that say only how the adapter was made or is run."""


@dataclass(frozen=True, kw_only=True)
class PeftConfig:
    """What an adapter's tensors do not say themselves."""

    rank: int
    alpha: float
    dropout: float = 0.0
    rslora: bool = False
    ranks: Mapping[str, int] = field(default_factory=dict)
    """Pattern of module names -> another rank."""
    alphas: Mapping[str, float] = field(default_factory=dict)
    stacked: Collection[str] = ()
    """`target_parameters`: stacks of experts."""

    def rank_of(self, module: str) -> int:
        """Of a module, or of a stack by its full name."""
        return self.ranks.get(_pattern(self.ranks, module), self.rank)

    def alpha_of(self, module: str) -> float:
        """Likewise."""
        return self.alphas.get(_pattern(self.alphas, module), self.alpha)


def read_peft_config(folder: Path) -> PeftConfig:
    """Read an adapter folder's configuration.

    Raises:
        ModelFolderError: It is missing or broken, or asks for something other than plain LoRA, which is named.
    """
    path = folder / FILE
    if not path.is_file():
        raise ModelFolderError(f"{folder}: has no {FILE}; give a folder that PEFT or tandem saved an adapter in")
    fields = read_json_object(path, ModelFolderError)
    _refuse_more_than_lora(fields, path)
    try:
        said = PeftConfig(
            rank=int(fields["r"]),
            alpha=float(fields["lora_alpha"]),
            dropout=float(fields.get("lora_dropout") or 0.0),
            rslora=bool(fields.get("use_rslora")),
            ranks={str(key): int(rank) for key, rank in (fields.get("rank_pattern") or {}).items()},
            alphas={str(key): float(alpha) for key, alpha in (fields.get("alpha_pattern") or {}).items()},
            stacked=tuple(str(name) for name in fields.get("target_parameters") or ()),
        )
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise ModelFolderError(
            f"{path}: r, lora_alpha or a pattern is missing or no number ({error!r}); copy it again"
        ) from None
    for fault in _faults(said):
        raise ModelFolderError(f"{path}: {fault}; copy the file again")
    return said


def _faults(said: PeftConfig) -> Iterator[str]:
    """What no adapter can have; patterns are matched later, so they are looked at here."""
    yield from (f"rank {rank} is not positive" for rank in (said.rank, *said.ranks.values()) if rank < 1)
    alphas = (said.alpha, *said.alphas.values())
    yield from (f"alpha {alpha} is no number" for alpha in alphas if not math.isfinite(alpha))
    for pattern in (*said.ranks, *said.alphas):
        try:
            re.compile(pattern)
        except re.error as error:
            yield f"pattern {pattern!r} is no regular expression ({error})"


def peft_fields(
    config: PeftConfig, adapted: Collection[str], modules: Collection[str], base: str | None
) -> dict[str, Any]:
    """The content of `adapter_config.json`.

    Args:
        config: What to say.
        adapted: Full names of the modules that have an adapter.
        modules: Of all that PEFT might mean by a shorter name.
        base: `base_model_name_or_path`.

    Where experts have matrices called as those of plain layers (DeepSeek), PEFT on transformers 5 would take the names
    of both for stacks of experts, so those of plain layers are given as `target_parameters`.
    """
    experts = {name.rpartition(".")[2] for name in modules if EXPERT.search(name)}
    plain = [name for name in adapted if name.rpartition(".")[2] in experts and not EXPERT.search(name)]
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "inference_mode": True,
        "r": config.rank,
        "lora_alpha": _whole(config.alpha),
        "lora_dropout": config.dropout,
        "use_rslora": config.rslora,
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "modules_to_save": None,
        "target_modules": short_names([name for name in adapted if name not in plain], modules),
        "target_parameters": [f"{name}.weight" for name in short_names(plain, modules)] or None,
        "rank_pattern": dict(config.ranks),
        "alpha_pattern": {name: _whole(alpha) for name, alpha in config.alphas.items()},
    }


def short_names(wanted: Collection[str], modules: Collection[str]) -> list[str]:
    """Endings that mean these modules and no others, each as short as it can be: `q_proj`, `experts.0.w1`."""
    count: Counter[str] = Counter(ending for name in modules for ending in _endings(name))
    mine: Counter[str] = Counter(ending for name in wanted for ending in _endings(name))
    return sorted({next(end for end in _endings(name) if mine[end] == count[end]) for name in wanted})


def _endings(name: str) -> list[str]:
    words = name.split(".")
    return [".".join(words[-n:]) for n in range(1, len(words) + 1)]


def _pattern(patterns: Collection[str], module: str) -> str:
    """The pattern that PEFT goes by for a module; its name where there is none."""
    return next((key for key in patterns if re.match(rf"(.*\.)?({key})(\.weight)?$", module)), module)


def _refuse_more_than_lora(fields: Mapping[str, Any], path: Path) -> None:
    for name, value in fields.items():
        if name in PLAIN:
            if value not in PLAIN[name]:
                raise ModelFolderError(f"{path}: {name} {value!r:.60} is not supported, only plain LoRA is; train one")
        elif name not in IDLE and value not in (None, False, [], {}):
            raise ModelFolderError(f"{path}: {name} is not known here; is it plain LoRA? then remove the field")
    if "peft_type" not in fields:
        raise ModelFolderError(f"{path}: says no peft_type; copy the file again")


def _whole(number: float) -> float:
    """Written without a point where it can be, as PEFT types it."""
    return int(number) if number == int(number) else number
