"""Puts a model and its cache on one device, or on several that share it."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from tandem.catalogue.config import ModelConfig
from tandem.engine.config import InstanceConfig
from tandem.engine.runner import Model
from tandem.engine.sizing import GIB, block_count
from tandem.engine.ranks import LocalModel
from tandem.errors import UsageError
from tandem.kv.cache import CacheLayout, KVCache
from tandem.kv.shards import Shards
from tandem.model.folder import DTYPES, load
from tandem.parallel.device import choose_device


@dataclass(frozen=True, kw_only=True)
class Placed:
    """A model that can compute."""

    config: ModelConfig
    model: Model
    shards: Shards
    blocks: int
    max_model_len: int
    sizes: str
    """What came out, as one line for people."""


def place(config: InstanceConfig) -> Placed:
    """Load a model and make its cache.

    Raises:
        ModelFolderError: The model cannot be loaded.
        UsageError: The device is not there, or the KV memory holds not even one request.
    """
    device = choose_device(config.device)
    decoder = load(config.model, device, DTYPES.get(config.dtype))
    dtype = str(next(decoder.parameters()).dtype).removeprefix("torch.")
    layout = CacheLayout.of(decoder.config, dtype, config.block_size)
    length = _max_model_len(config, decoder.config)
    blocks = block_count(config, decoder.config, layout, device, length)
    cache = _allocate(layout, blocks, device)
    return Placed(
        config=decoder.config,
        model=LocalModel(decoder, cache),
        shards=Shards(layout, [cache]),
        blocks=blocks,
        max_model_len=length,
        sizes=f"{device} {layout.dtype}, {blocks} KV blocks of {config.block_size} tokens, max_model_len {length}",
    )


def _allocate(layout: CacheLayout, blocks: int, device: torch.device) -> KVCache:
    try:
        return KVCache(layout, blocks, device)
    except RuntimeError as error:
        reason, size = str(error).splitlines()[0], blocks * layout.bytes_per_block / GIB
        raise UsageError(
            f"{device} has no {size:.3g} GiB for keys and values ({reason}); lower --kv-cache-gib"
        ) from None


def _max_model_len(config: InstanceConfig, model: ModelConfig) -> int:
    longest = model.longest
    if config.max_model_len is not None and longest is not None and config.max_model_len > longest:
        raise UsageError(f"--max-model-len {config.max_model_len}: the model was made for {longest}; lower it")
    return config.max_model_len or model.max_position
