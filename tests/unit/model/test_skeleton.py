"""A decoder around given parameters is the decoder that has them; and making it is cheap."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from tandem.catalogue.models import MODELS
from tandem.catalogue.shrink import shrink
from tandem.model.context import CausalContext
from tandem.model.random_weights import random_decoder
from tandem.model.skeleton import assembled

ONE_PER_FAMILY = [
    "llama3.2-1b", "qwen-7b", "qwen2-0.5b", "glm3-6b", "baichuan2-13b", "mistral-7b", "mixtral-8x7b", "deepseek-v3",
]  # fmt: skip


@pytest.mark.parametrize("name", ONE_PER_FAMILY)
@torch.no_grad()
def test_it_computes_what_the_original_computes(name: str) -> None:
    original = random_decoder(shrink(MODELS[name].config), torch.float32, 0)
    made = assembled(original.config, dict(original.named_parameters()))
    assert not any(parameter.is_meta or parameter.requires_grad for parameter in made.parameters())
    assert not any(buffer.is_meta for buffer in made.buffers())
    tokens = torch.arange(10)[None]
    context = CausalContext(1, 10, torch.device("cpu"))
    assert torch.equal(made(tokens, context), original(tokens, context))


def test_torch_does_not_import_its_compiler() -> None:
    code = (
        "import sys, torch\n"
        "from tandem.catalogue.models import MODELS\n"
        "from tandem.catalogue.shrink import shrink\n"
        "from tandem.model.skeleton import assembled\n"
        "for model in MODELS.values(): assembled(shrink(model.config), {})\n"
        "print('sympy' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
