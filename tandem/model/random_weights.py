"""A decoder whose every parameter is random, and whose answers depend on all of them.

Fresh parameters hide faults: biases of zero and norms of one can be dropped unnoticed, and with small matrices the
answer hardly depends on the position. These are drawn so that activations keep their size through the layers, scores
spread, and logits are of order 1 to 10.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from tandem.catalogue.config import ModelConfig
from tandem.model.decoder import RESIDUAL, Decoder
from tandem.model.folder import WIDE

LOGIT_STD = 2.0
BIAS_STD = 0.2
NORM_STD = 0.1
SHARPNESS = 1.5
"""Factor on query and key matrices, so that attention is not close to an average."""
LOUDNESS = 4.0
"""Factor on what the layers of a model with a tied head add: such a head finds the token just read in the residual
stream, and would repeat it for ever."""
SHARP = ("attention.q.weight", "attention.k.weight", "attention.q_up.weight", "attention.kv_down.weight")


def random_decoder(config: ModelConfig, dtype: torch.dtype, seed: int) -> Decoder:
    """A decoder on the CPU; the same arguments give the same parameters, and another dtype the same ones rounded."""
    with torch.device("meta"):
        decoder = Decoder(config)
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in list(decoder.named_parameters()):
        tensor = _draw(name, parameter.shape, config, generator)
        # What the decoder keeps in fp32 whatever the model's dtype stays so.
        keeps = name.endswith(WIDE)
        _assign(decoder, name, tensor if keeps else tensor.to(dtype))
    return decoder.eval()


def _draw(name: str, shape: torch.Size, config: ModelConfig, generator: torch.Generator) -> Tensor:
    values = torch.randn(shape, generator=generator)
    if name.endswith("norm.weight"):
        return 1 + NORM_STD * values
    return values * _std(name, shape, config)


def _std(name: str, shape: torch.Size, config: ModelConfig) -> float:
    if name.endswith(".bias"):
        return BIAS_STD
    if name == "embedding.weight" and not config.tied_embeddings:
        return 1.0
    if name in ("embedding.weight", "head.weight"):
        return LOGIT_STD / math.sqrt(config.hidden_size)
    loudness = LOUDNESS if config.tied_embeddings and name.endswith(RESIDUAL) else 1.0
    return (SHARPNESS if name.endswith(SHARP) else loudness) / math.sqrt(shape[-1])


def _assign(decoder: Decoder, name: str, tensor: Tensor) -> None:
    module, _, attribute = name.rpartition(".")
    setattr(decoder.get_submodule(module), attribute, nn.Parameter(tensor, requires_grad=False))
