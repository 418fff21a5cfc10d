"""One instance as a process: bind, load, serve, stop.

Ports are bound before the model is loaded, so a port in use is known at once; nobody is listened to before the model
can answer.
"""

from __future__ import annotations

import asyncio
import secrets
import signal
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import uvloop
from aiohttp import web

import tandem
from tandem.catalogue.config import ModelConfig
from tandem.catalogue.generation import read_generation_defaults
from tandem.engine.driver import Driver
from tandem.engine.engine import Engine, EngineIdentity
from tandem.engine.intake import Intake
from tandem.engine.runner import Runner
from tandem.engine.scheduler import SchedulerLimits
from tandem.engine.server import InstanceServer
from tandem.errors import ModelFolderError, ProcessError, UsageError
from tandem.kv.blocks import BlockPool
from tandem.kv.cache import CacheLayout, KVCache, compatibility_digest
from tandem.kv.transfer import TransferServer
from tandem.model.decoder import Decoder
from tandem.model.folder import DTYPES, fingerprint, load
from tandem.parallel.device import DeviceName, choose_device
from tandem.protocol.identity import Identity, Role
from tandem.text.tokenizer import Tokenizer

WILDCARDS = ("0.0.0.0", "::", "")  # noqa: S104 - named to be recognised, not to be bound
GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class InstanceConfig:
    """How one instance runs."""

    model: Path
    """Hugging Face model folder."""
    role: Role = "both"
    """prefill, decode or both."""
    host: str = "127.0.0.1"
    """Address the HTTP port binds to."""
    port: int = 8000
    """HTTP port."""
    served_model_names: tuple[str, ...] = ()
    """Names clients may ask for; the folder's name if none is given."""
    device: DeviceName = "auto"
    """cpu, cuda, npu, or the best there is."""
    dtype: str = "auto"
    """float32, bfloat16, float16, or the folder's own."""
    max_model_len: int | None = None
    """Most tokens of prompt plus answer; the model's own limit if not given."""
    max_num_seqs: int = 64
    """Most requests computed at a time."""
    max_num_batched_tokens: int = 2048
    """Most tokens in one step; longer prompts are prefilled in pieces."""
    block_size: int = 16
    """Tokens in a KV block."""
    kv_cache_gib: float = 1.0
    """Memory for keys and values, in GiB."""
    kv_host: str | None = None
    """Address at which other instances reach this one's KV port; `host` if not given."""
    kv_port: int = 0
    """KV transfer port; 0 takes a free one."""
    kv_lease_seconds: float = 30.0
    """How long prefilled blocks wait for a decode instance."""
    transfer_timeout: float = 60.0
    """Most seconds for one KV transfer."""

    def __post_init__(self) -> None:
        """Refuse what cannot run, by option name."""
        positive = ("max_num_seqs", "max_num_batched_tokens", "block_size", "kv_cache_gib", "kv_lease_seconds")
        for name in (*positive, "transfer_timeout"):
            if getattr(self, name) <= 0:
                raise UsageError(f"--{name.replace('_', '-')} {getattr(self, name)}: must be over 0")
        if self.dtype != "auto" and self.dtype not in DTYPES:
            raise UsageError(f"--dtype {self.dtype}: unknown; choose auto, {', '.join(DTYPES)}")
        for name in ("port", "kv_port"):
            if not 0 <= getattr(self, name) < 65536:
                raise UsageError(f"--{name.replace('_', '-')} {getattr(self, name)}: must be 0 to 65535")
        if self.kv_host is None and self.host in WILDCARDS and self.role != "decode":
            raise UsageError(f"--host {self.host}: name the address decode instances should use with --kv-host")


def run_instance(config: InstanceConfig, say: Callable[[str], None]) -> None:
    """Serve until SIGTERM or Ctrl-C.

    Args:
        config: What to serve and how.
        say: Told about every phase of the start, one line each.

    Raises:
        UsageError: A port is taken or an option cannot be honoured.
        ModelFolderError: The model cannot be loaded.
        ProcessError: A step failed, so nothing can be served any more.
    """
    http, kv = _bind(config.host, config.port, "--port"), _bind(config.host, config.kv_port, "--kv-port")
    say(f"loading {config.model}")
    driver, server, sizes = _assemble(config, kv)
    say(sizes)
    uvloop.run(_serve(config, http, kv, driver, server, say))


async def _serve(
    config: InstanceConfig,
    http: socket.socket,
    kv: socket.socket,
    driver: Driver,
    server: InstanceServer,
    say: Callable[[str], None],
) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    driver.start()
    transfers = TransferServer(driver, kv, config.transfer_timeout)
    await transfers.start()
    runner = web.AppRunner(server.application(), handler_cancellation=True, access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    await web.SockSite(runner, http).start()
    say(f"{config.role} instance ready at {_url(http)}")
    failure = await _first(stop, driver)
    await driver.stop()
    await transfers.stop()
    await runner.cleanup()
    if failure is not None:
        raise ProcessError(f"{config.role} instance at {_url(http)}: a step failed: {failure}") from failure


async def _first(stop: asyncio.Event, driver: Driver) -> BaseException | None:
    """Wait for the signal to stop, or for the engine's failure, which is returned."""
    assert driver.failure is not None
    driver.failure.add_done_callback(lambda _: stop.set())
    await stop.wait()
    return driver.failure.result() if driver.failure.done() else None


def _assemble(config: InstanceConfig, kv: socket.socket) -> tuple[Driver, InstanceServer, str]:
    """Load the model and build everything around it; the text says what sizes came out."""
    device = choose_device(config.device)
    decoder = load(config.model, device, DTYPES.get(config.dtype))
    tokenizer = Tokenizer.from_folder(config.model)
    _check_vocabulary(config.model, tokenizer, decoder.config)
    layout = _layout(decoder, config.block_size)
    length = config.max_model_len or decoder.config.max_position
    blocks = _block_count(config, layout, length)
    identity = EngineIdentity(
        engine_id=secrets.token_hex(8),
        digest=compatibility_digest(layout, repr(decoder.config), fingerprint(config.model), tandem.__version__),
        host=config.kv_host or config.host,
        port=kv.getsockname()[1],
    )
    cache, pool = KVCache(layout, blocks, device), BlockPool(blocks, config.block_size)
    limits = SchedulerLimits(max_num_seqs=config.max_num_seqs, max_num_batched_tokens=config.max_num_batched_tokens)
    engine = Engine(Runner(decoder, cache), cache, pool, tokenizer, limits, identity, config.kv_lease_seconds)
    driver = Driver(engine, config.transfer_timeout)
    names = config.served_model_names or (config.model.resolve().name,)
    intake = Intake(
        tokenizer=tokenizer,
        defaults=read_generation_defaults(config.model),
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


def _layout(decoder: Decoder, block_size: int) -> CacheLayout:
    attention = decoder.config.attention
    return CacheLayout(
        layers=decoder.config.layers,
        kv_heads=attention.kv_heads,
        head_dim=attention.head_dim,
        dtype=str(next(decoder.parameters()).dtype).removeprefix("torch."),
        block_size=block_size,
    )


def _block_count(config: InstanceConfig, layout: CacheLayout, length: int) -> int:
    """As many blocks as the memory asked for holds, but no more than all sequences at full length can use."""
    per_sequence = -(-length // config.block_size)
    fitting = int(config.kv_cache_gib * GIB) // layout.bytes_per_block
    if fitting < per_sequence:
        needed = per_sequence * layout.bytes_per_block / GIB
        raise UsageError(
            f"--kv-cache-gib {config.kv_cache_gib:g}: one request of {length} tokens needs {needed:.3g} GiB; "
            "raise it, or lower --max-model-len"
        )
    return min(fitting, per_sequence * config.max_num_seqs)


def _check_vocabulary(folder: Path, tokenizer: Tokenizer, config: ModelConfig) -> None:
    if tokenizer.vocab_size > config.vocab_size:
        raise ModelFolderError(
            f"{folder}: the tokenizer has {tokenizer.vocab_size} tokens and the model {config.vocab_size}; "
            "copy the tokenizer that belongs to the weights"
        )


def _bind(host: str, port: int, option: str) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((host, port))
    except OSError as error:
        sock.close()
        raise UsageError(f"{option} {port} on {host} cannot be bound ({error.strerror}); choose another") from None
    return sock


def _url(sock: socket.socket) -> str:
    host, port = sock.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"
