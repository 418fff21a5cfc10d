"""Puts one instance together: model, cache, engine, driver and HTTP side, sized by its configuration."""

from __future__ import annotations

import logging
import secrets
from dataclasses import replace
from pathlib import Path

import torch

import tandem
from tandem.catalogue.config import ModelConfig
from tandem.catalogue.generation import GenerationDefaults, read_generation_defaults
from tandem.catalogue.source import served_name
from tandem.engine.config import InstanceConfig
from tandem.engine.driver import Driver
from tandem.engine.engine import Engine, EngineIdentity
from tandem.engine.intake import Intake
from tandem.engine.runner import Runner
from tandem.engine.scheduler import SchedulerLimits
from tandem.engine.server import InstanceServer
from tandem.errors import ModelFolderError, UsageError
from tandem.kv.blocks import BlockPool
from tandem.kv.cache import CacheLayout, KVCache, compatibility_digest
from tandem.model.folder import DTYPES, fingerprint, load
from tandem.model.weights.stored import printable
from tandem.parallel.device import choose_device
from tandem.protocol.identity import Identity
from tandem.text.tokenizer import Tokenizer

log = logging.getLogger(__name__)

GIB = 2**30
MOST_GIB = 2**20
"""More memory than any device has."""


def assemble(config: InstanceConfig, kv_port: int) -> tuple[Driver, InstanceServer, str]:
    """Load the model and build everything around it.

    Args:
        config: What to serve and how.
        kv_port: Where other instances fetch blocks; tickets name it.

    Returns:
        The driver, the HTTP side, and the sizes that came out, as one line for people.

    Raises:
        ModelFolderError: The model cannot be loaded, or its tokenizer is another model's.
        UsageError: The device is not there, or the KV memory holds not even one request.
    """
    device = choose_device(config.device)
    decoder = load(config.model, device, DTYPES.get(config.dtype))
    tokenizer = Tokenizer.from_folder(config.model)
    tokenizer.require_room(config.model, decoder.config.vocab_size)
    dtype = str(next(decoder.parameters()).dtype).removeprefix("torch.")
    layout = CacheLayout.of(decoder.config, dtype, config.block_size)
    length = _max_model_len(config, decoder.config)
    defaults = _generation_defaults(config.model, tokenizer, decoder.config)
    blocks = _block_count(config, layout, length)
    identity = EngineIdentity(
        engine_id=secrets.token_hex(8),
        digest=compatibility_digest(layout, repr(decoder.config), fingerprint(config.model), tandem.__version__),
        host=config.kv_host or config.host,
        port=kv_port,
    )
    cache, pool = _allocate(config, layout, blocks, device), BlockPool(blocks, config.block_size)
    limits = SchedulerLimits(max_num_seqs=config.max_num_seqs, max_num_batched_tokens=config.max_num_batched_tokens)
    engine = Engine(Runner(decoder, cache), cache, pool, tokenizer, limits, identity, config.kv_lease_seconds)
    driver = Driver(engine, config.transfer_timeout)
    names = config.served_model_names or (served_name(config.model),)
    intake = Intake(
        tokenizer=tokenizer,
        defaults=defaults,
        names=names,
        role=config.role,
        vocab_size=decoder.config.vocab_size,
        max_model_len=length,
    )
    who = Identity(
        role=config.role,
        engine_id=identity.engine_id,
        model=names[0],
        digest=identity.digest,
        max_model_len=length,
        version=tandem.__version__,
    )
    sizes = f"{device} {layout.dtype}, {blocks} KV blocks of {config.block_size} tokens, max_model_len {length}"
    return driver, InstanceServer(driver, intake, who), sizes


def _block_count(config: InstanceConfig, layout: CacheLayout, length: int) -> int:
    """As many blocks as the memory asked for holds, but no more than all sequences at full length can use."""
    per_sequence = -(-length // config.block_size)
    fitting = int(min(config.kv_cache_gib, MOST_GIB) * GIB) // layout.bytes_per_block
    if fitting < per_sequence:
        needed = per_sequence * layout.bytes_per_block / GIB
        raise UsageError(
            f"--kv-cache-gib {config.kv_cache_gib:g}: one request of {length} tokens needs {needed:.3g} GiB; "
            "raise it, or lower --max-model-len"
        )
    return min(fitting, per_sequence * config.max_num_seqs)


def _allocate(config: InstanceConfig, layout: CacheLayout, blocks: int, device: torch.device) -> KVCache:
    try:
        return KVCache(layout, blocks, device)
    except RuntimeError as error:
        reason, size = str(error).splitlines()[0], blocks * layout.bytes_per_block / GIB
        raise UsageError(
            f"--kv-cache-gib {config.kv_cache_gib:g}: {device} has no {size:.3g} GiB for keys and values ({reason}); "
            "lower it"
        ) from None


def _max_model_len(config: InstanceConfig, model: ModelConfig) -> int:
    longest = model.longest
    if config.max_model_len is not None and longest is not None and config.max_model_len > longest:
        raise UsageError(f"--max-model-len {config.max_model_len}: the model was made for {longest}; lower it")
    return config.max_model_len or model.max_position


def _generation_defaults(folder: Path, tokenizer: Tokenizer, config: ModelConfig) -> GenerationDefaults:
    """The folder's own, with the tokens at which its chat format ends a turn."""
    defaults = read_generation_defaults(folder)
    for name, value in defaults.unapplied.items():
        log.warning("%s: %s %s in generation_config.json is not applied", folder, name, printable(str(value)))
    ends = tokenizer.chat.end_token_ids if tokenizer.chat is not None else ()
    defaults = replace(defaults, eos_token_ids=tuple(dict.fromkeys((*defaults.eos_token_ids, *ends))))
    _check_ends(folder, defaults, config)
    return defaults


def _check_ends(folder: Path, defaults: GenerationDefaults, config: ModelConfig) -> None:
    for token in defaults.eos_token_ids:
        if not 0 <= token < config.vocab_size:
            raise ModelFolderError(
                f"{folder}: eos_token_id {token} is outside the model's 0..{config.vocab_size - 1}; "
                "correct it in generation_config.json or config.json"
            )
