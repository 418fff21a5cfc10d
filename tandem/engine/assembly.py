"""Puts one instance together: model, cache, engine, driver and HTTP side, sized by its configuration."""

from __future__ import annotations

import logging
import secrets
from dataclasses import replace
from pathlib import Path

import tandem
from tandem.catalogue.config import ModelConfig
from tandem.catalogue.generation import GenerationDefaults, read_generation_defaults
from tandem.catalogue.position import Rope
from tandem.catalogue.source import served_name
from tandem.engine.config import TRANSPORTS, InstanceConfig
from tandem.engine.driver import Driver
from tandem.engine.engine import Engine, EngineOptions
from tandem.engine.fetcher import Fetcher
from tandem.engine.intake import Intake
from tandem.engine.placement import Placed, place
from tandem.engine.request import Request
from tandem.engine.runner import Runner
from tandem.engine.scheduler import SchedulerLimits
from tandem.engine.server import InstanceServer
from tandem.engine.tickets import EngineIdentity
from tandem.errors import ModelFolderError
from tandem.kv.blocks import BlockPool
from tandem.kv.cache import compatibility_digest
from tandem.kv.prefix import root_key
from tandem.kv.puller import Puller
from tandem.model.folder import fingerprint
from tandem.model.weights.stored import printable
from tandem.protocol.identity import CAPABILITIES, Identity
from tandem.text.tokenizer import Tokenizer

log = logging.getLogger(__name__)


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
    placed = place(config)
    try:
        return _around(config, placed, kv_port)
    except BaseException:
        placed.model.close()
        raise


def _around(config: InstanceConfig, placed: Placed, kv_port: int) -> tuple[Driver, InstanceServer, str]:
    model, layout = placed.config, placed.shards.layout
    tokenizer = Tokenizer.from_folder(config.model)
    tokenizer.require_room(config.model, model.vocab_size)
    identity = EngineIdentity(
        engine_id=secrets.token_hex(8),
        digest=compatibility_digest(layout, repr(model), fingerprint(config.model), tandem.__version__),
        host=config.kv_host or config.host,
        port=kv_port,
        ranks=config.tensor_parallel_size,
    )
    pool = BlockPool(placed.blocks, config.block_size)
    engine = Engine(Runner(placed.model, config.max_num_seqs), pool, tokenizer, _options(config, placed), identity)
    puller = Puller(placed.shards, TRANSPORTS[config.kv_transport], config.transfer_timeout)
    driver = Driver(engine, placed.shards, Fetcher(puller))
    names = config.served_model_names or (served_name(config.model),)
    intake = Intake(
        tokenizer=tokenizer,
        defaults=_generation_defaults(config.model, tokenizer, model),
        names=names,
        role=config.role,
        vocab_size=model.vocab_size,
        max_model_len=placed.max_model_len,
    )
    who = Identity(
        role=config.role,
        engine_id=identity.engine_id,
        model=names[0],
        digest=identity.digest,
        max_model_len=placed.max_model_len,
        version=tandem.__version__,
        capabilities=list(CAPABILITIES),
        tensor_parallel_size=config.tensor_parallel_size,
        seat=config.seat,
    )
    return driver, InstanceServer(driver, intake, who), placed.sizes


def _options(config: InstanceConfig, placed: Placed) -> EngineOptions:
    rope = placed.config.position
    dtype = placed.shards.layout.dtype

    def root(request: Request) -> bytes:
        stretch = rope.stretch(len(request.prompt)) if isinstance(rope, Rope) else 0
        return root_key(adapter=None, rotation=stretch, dtype=dtype, salt=request.salt)

    return EngineOptions(
        limits=SchedulerLimits(max_num_seqs=config.max_num_seqs, max_num_batched_tokens=config.max_num_batched_tokens),
        root=root,
        lease_seconds=config.kv_lease_seconds,
        sharing=config.enable_prefix_caching,
        recompute=config.kv_load_failure_policy == "recompute",
        block_bytes=placed.shards.layout.bytes_per_block,
    )


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
