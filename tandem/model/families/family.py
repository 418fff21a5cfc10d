"""What a family file provides."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tandem.catalogue.config import ModelConfig


@dataclass(frozen=True, kw_only=True)
class Family:
    """A translation between a checkpoint layout and ours; never a second implementation."""

    name: str
    """Our name for it, and the `model_type` in its `config.json`."""
    architecture: str
    """The entry of `architectures` in its `config.json`."""
    read_config: Callable[[dict[str, Any], str], ModelConfig]
    """`config.json` and where it lies -> our configuration; refuses by name what the decoder cannot compute."""
    write_config: Callable[[ModelConfig], dict[str, Any]]
    """Our configuration -> `config.json`."""
    their_name: Callable[[str], str]
    """One of our parameter names -> the tensor's name in a checkpoint."""
    ignored: Callable[[str, ModelConfig], bool]
    """Whether a checkpoint's tensor of this name is known to carry nothing."""
