"""A decoder around parameters that are there already."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from tandem.catalogue.config import ModelConfig
from tandem.model.decoder import Decoder


def assembled(
    config: ModelConfig, parameters: Mapping[str, Tensor], make: Callable[[ModelConfig], Decoder] = Decoder
) -> Decoder:
    """A decoder with these parameters, ready to compute and not to train.

    Args:
        config: What to compute.
        parameters: One for each name of `parameter_shapes(config)`.
        make: Makes the decoder around them.
    """
    decoder = bare(config, make)
    for name, tensor in parameters.items():
        module, _, attribute = name.rpartition(".")
        setattr(decoder.get_submodule(module), attribute, nn.Parameter(tensor, requires_grad=False))
    return decoder.eval()


def bare(config: ModelConfig, make: Callable[[ModelConfig], Decoder] = Decoder) -> Decoder:
    """A decoder on the meta device, without numbers; all that learns has gradients."""
    with Undrawn(), torch.device("meta"):
        return make(config)


class Undrawn(TorchFunctionMode):
    """Modules that are made in this context do not draw their parameters.

    To draw a number without memory, torch imports most of its compiler first: seconds, and 70 MB.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        """Skip what fills a tensor, run everything else; called by torch."""
        if getattr(func, "__module__", None) == nn.init.__name__:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **(kwargs or {}))
