"""The references, each of which first writes the folder that the decoder then loads."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from reference import baichuan, chatglm, qwen
from reference.random_folder import write_folder
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from parity.cases import Case

Reference = Callable[[list[int], int], Tensor]
"""Tokens and how many of them are the prompt -> logits after each of them, [T, V]."""

FROM_FORMULAS: dict[str, ModuleType] = {"qwen": qwen, "chatglm": chatglm, "baichuan": baichuan}
"""`model_type` -> what computes it where transformers does not."""


def write(case: Case, folder: Path) -> Reference:
    """Fill `folder` with random weights in the original layout, and return what computes with them."""
    formulas = FROM_FORMULAS.get(case.fields["model_type"])
    return native(case.fields, folder) if formulas is None else _formulas(formulas, case, folder)


def native(fields: dict[str, Any], folder: Path) -> Reference:
    """transformers' own model, saved by its own `save_pretrained`."""
    model = randomised(fields)
    model.save_pretrained(folder)
    dynamic = (fields.get("rope_scaling") or {}).get("rope_type") == "dynamic"

    def reference(tokens: list[int], prompt: int) -> Tensor:
        with torch.inference_mode():
            return _generated(model, tokens, prompt) if dynamic else model(torch.tensor([tokens])).logits[0]

    return reference


def randomised(fields: dict[str, Any]) -> PreTrainedModel:
    """A model in which no tensor is what it began as: norms around 1, the others, biases too, around 0."""
    config = AutoConfig.for_model(**deepcopy(fields))  # it writes into what it is given
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            tensor.normal_(1.0 if "norm" in name else 0.0, 0.2, generator=generator)
    return model


def _generated(model: PreTrainedModel, tokens: list[int], prompt: int) -> Tensor:
    """As `generate` computes: the prompt at once, then token by token; some scalings go by what a call holds."""
    model(torch.tensor([tokens[:1]]))  # after a short call the model has forgotten how long the last one was
    out = model(torch.tensor([tokens[:prompt]]), use_cache=True)
    logits = [out.logits[0]]
    for token in tokens[prompt:]:
        out = model(torch.tensor([[token]]), past_key_values=out.past_key_values, use_cache=True)
        logits.append(out.logits[0])
    return torch.cat(logits)


def _formulas(formulas: ModuleType, case: Case, folder: Path) -> Reference:
    tensors = write_folder(folder, case.fields, formulas.shapes(case.fields), 0, form=case.form)

    def reference(tokens: list[int], prompt: int) -> Tensor:
        return torch.from_numpy(formulas.logits(case.fields, tensors, tokens, prompt)).float()

    return reference
