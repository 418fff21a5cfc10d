"""Compute in bfloat16 with parameters, gradients and optimizer in float32, on one rank without FSDP.

FSDP's `MixedPrecisionPolicy(param_dtype=bfloat16, reduce_dtype=float32)` does the same over ranks: a micro-batch
computes with rounded copies, and its gradients are added up in float32.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from tandem.model.folder import ALWAYS_FLOAT32


@contextmanager
def computing_in(model: nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """Let forward and backward of one micro-batch see rounded copies of the parameters.

    Gradients go through the rounding to the parameters themselves. What is fp32 in every model stays so, and what has
    the dtype already, such as frozen weights loaded in it, is not copied.
    """
    # Both passes and not the forward alone: what is recomputed in the backward looks at the parameters again.
    places = [
        (module._parameters, name, parameter)
        for path, module in model.named_modules()
        for name, parameter in module._parameters.items()
        if parameter is not None and parameter.dtype != dtype and not f"{path}.{name}".endswith(ALWAYS_FLOAT32)
    ]
    try:
        for parameters, name, parameter in places:
            parameters[name] = parameter.to(dtype)
        yield
    finally:
        for parameters, name, parameter in places:
            parameters[name] = parameter
