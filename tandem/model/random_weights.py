"""A decoder whose every parameter is random, and whose answers depend on all of them.

Fresh parameters hide faults: biases of zero and norms of one can be dropped unnoticed, and with small matrices the
answer hardly depends on the position. These are drawn so that activations keep their size through the layers, scores
spread, and logits are of order 1 to 10.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tandem.catalogue.config import ModelConfig
from tandem.catalogue.shapes import Shape, parameter_shapes
from tandem.model.decoder import RESIDUAL, Decoder
from tandem.model.folder import ALWAYS_FLOAT32
from tandem.model.skeleton import assembled

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
    """A decoder on the CPU; the same arguments give the same parameters, and another dtype the same ones rounded.

    Memory holds the model and, in float32, the parameter that is being drawn.
    """
    generator = torch.Generator().manual_seed(seed)
    drawn = {}
    for name, shape in parameter_shapes(config).items():
        tensor = _draw(name, shape, config, generator)
        drawn[name] = tensor if name.endswith(ALWAYS_FLOAT32) else tensor.to(dtype)
    return assembled(config, drawn)


def _draw(name: str, shape: Shape, config: ModelConfig, generator: torch.Generator) -> Tensor:
    values = torch.randn(shape, generator=generator)
    if name.endswith("norm.weight"):
        return values.mul_(NORM_STD).add_(1)
    return values.mul_(_std(name, shape, config))


def _std(name: str, shape: Shape, config: ModelConfig) -> float:
    if name.endswith(".bias"):
        return BIAS_STD
    if name == "embedding.weight" and not config.tied_embeddings:
        return 1.0
    if name in ("embedding.weight", "head.weight"):
        return LOGIT_STD / math.sqrt(config.hidden_size)
    loudness = LOUDNESS if config.tied_embeddings and name.endswith(RESIDUAL) else 1.0
    return (SHARPNESS if name.endswith(SHARP) else loudness) / math.sqrt(shape[-1])
