"""Puts a model and its cache on one device, or on several that share it."""

from __future__ import annotations

from dataclasses import dataclass

from tandem.catalogue.config import ModelConfig
from tandem.engine.config import TRANSPORTS, InstanceConfig
from tandem.engine.local_model import LocalModel
from tandem.engine.rank_memory import rank_caches
from tandem.engine.ranks import RankedModel, start_model
from tandem.engine.sizing import GIB, block_count
from tandem.errors import UsageError
from tandem.kv.cache import CacheLayout
from tandem.kv.shards import Shards
from tandem.kv.transport import usable
from tandem.model.families import read_config
from tandem.model.folder import DTYPES, own_dtype
from tandem.parallel.device import choose_device


@dataclass(frozen=True, kw_only=True)
class Placed:
    """A model that can compute."""

    config: ModelConfig
    model: LocalModel | RankedModel
    shards: Shards
    blocks: int
    max_model_len: int
    sizes: str
    """What came out, as one line for people."""


def place(config: InstanceConfig) -> Placed:
    """Load a model and make its cache.

    Raises:
        ModelFolderError: The model cannot be loaded.
        UsageError: The devices are not there, their blocks cannot travel as --kv-transport says, the model cannot be
            shared out over them, or the KV memory holds not even one request.
        ProcessError: A rank died meanwhile.
    """
    device, model = choose_device(config.device), read_config(config.model)
    usable(TRANSPORTS[config.kv_transport], device)
    dtype = str(DTYPES.get(config.dtype) or own_dtype(config.model)).removeprefix("torch.")
    layout, ranks = CacheLayout.of(model, dtype, config.block_size), config.tensor_parallel_size
    length = _max_model_len(config, model)
    blocks = block_count(config, model, layout.of_rank(0, ranks), device, length)
    try:
        caches = rank_caches(layout, blocks, device, ranks)
    except RuntimeError as error:
        reason, size = str(error).splitlines()[0], blocks * layout.bytes_per_block / GIB
        raise UsageError(
            f"{device} has no {size:.3g} GiB for keys and values ({reason}); lower --kv-cache-gib"
        ) from None
    on = str(device) if ranks == 1 else f"{ranks} x {device.type}"
    return Placed(
        config=model,
        model=start_model(config.model, caches),
        shards=Shards(layout, caches),
        blocks=blocks,
        max_model_len=length,
        sizes=f"{on} {dtype}, {blocks} KV blocks of {config.block_size} tokens, max_model_len {length}",
    )


def _max_model_len(config: InstanceConfig, model: ModelConfig) -> int:
    longest = model.longest
    if config.max_model_len is not None and longest is not None and config.max_model_len > longest:
        raise UsageError(f"--max-model-len {config.max_model_len}: the model was made for {longest}; lower it")
    return config.max_model_len or model.max_position
