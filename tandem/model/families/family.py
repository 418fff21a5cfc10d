"""What a family file provides."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from tandem.catalogue.config import ModelConfig


@dataclass(frozen=True)
class Rows:
    """One of our parameters as it lies in a checkpoint's tensor."""

    name: str
    """Our parameter's name (`catalogue/shapes.py`)."""
    expert: int | None = None
    """Of a stacked parameter `[experts, out, in]`, which one."""


TensorMap = dict[str, tuple[Rows, ...]]
"""A checkpoint's tensor name -> our parameters that it holds, one below the other along its first dimension."""


@dataclass(frozen=True, kw_only=True)
class Family:
    """A translation between a checkpoint layout and ours; never a second implementation."""

    name: str
    """Our name for it."""
    model_type: str
    """The `model_type` in its `config.json`."""
    architectures: tuple[str, ...]
    """What may stand under `architectures` in its `config.json`; the first is written."""
    read_config: Callable[[dict[str, Any], str], ModelConfig]
    """`config.json` and where it lies -> our configuration; refuses by name what the decoder cannot compute.

    Sizes that contradict each other raise ConfigurationError; `understand` beside this adds the place."""
    write_config: Callable[[ModelConfig], dict[str, Any]]
    """Our configuration -> `config.json`, without `architectures`, `model_type`, token ids and dtype.

    Raises ConfigurationError for what its fields cannot say."""
    tensors: Callable[[ModelConfig], TensorMap]
    """Every tensor of a checkpoint, in the order of our layers."""
    ignored: Callable[[str, ModelConfig, Mapping[str, Any]], bool]
    """Whether a checkpoint's tensor of this name is known to carry nothing that is needed.

    Beside the configuration it is given `config.json` as it stands, which may announce more than the decoder has."""
