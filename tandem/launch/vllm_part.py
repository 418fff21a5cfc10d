"""A prefill or decode entry of a rank table as a vLLM server: the start command's flags in vLLM's words of today."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from tandem.errors import UsageError
from tandem.launch.connector import Device, connector_of
from tandem.launch.options import Options
from tandem.launch.part import Part
from tandem.launch.vllm_server import CACHE, VllmServer
from tandem.protocol.identity import Role as ProtocolRole
from tandem.protocol.seat_name import seat_name
from tandem.topology.rank_table import Server
from tandem.topology.topology import Role

GIB: Final = 2**30
STILL: Final = ("--enforce-eager", "--disable-custom-all-reduce", "--disable-log-stats")
"""Needless with our own engine, and not with vLLM's."""


def vllm_part(options: Options, part: Part, folder: Path, tokens: int, device: Device) -> VllmServer:
    """The server of one part.

    Args:
        options: The start command's.
        part: Whose place it takes.
        folder: The model's.
        tokens: Most tokens of a step.
        device: What it computes on.
    """
    role: ProtocolRole = "prefill" if part.role is Role.PREFILL else "decode"
    prefill, decode = part.table.servers(Role.PREFILL), part.table.servers(Role.DECODE)
    return VllmServer(
        model=folder,
        host=options.host or part.host,
        own_host=part.host,
        port=options.port,
        names=(*options.names, seat_name(role, part.seat)),
        ranks=options.tensor_parallel_size,
        device=device,
        connector=connector_of(
            role,
            device,
            part.host,
            port=options.kv_port or None,
            position=[*prefill, *decode].index(part.server),
            ranks={"prefill": ranks_of(prefill, device), "decode": ranks_of(decode, device)},
        ),
        flags=(*flags(options, tokens), *options.vllm_flags),
    )


def ranks_of(servers: Sequence[Server], device: Device) -> int:
    """Devices of each instance of one role.

    Raises:
        UsageError: They differ, and the hand-off of this device wants one size for all.
    """
    sizes = {len(server.device_ids) for server in servers}
    if len(sizes) > 1 and device == "npu":
        raise UsageError(
            f"--engine vllm: instances of one role have {' and '.join(map(str, sorted(sizes)))} devices, and "
            "vllm-ascend's Mooncake connector knows one size for a role; generate tables with equal ones"
        )
    return max(sizes)


def flags(options: Options, tokens: int) -> Iterator[str]:
    """What the start command says, for `vllm serve`."""
    yield from ("--dtype", options.dtype)
    yield from ("--max-num-seqs", str(options.max_num_seqs))
    yield from ("--max-num-batched-tokens", str(tokens))
    yield from ("--gpu-memory-utilization", str(options.gpu_memory_utilization))
    yield "--enable-prefix-caching" if options.enable_prefix_caching else "--no-enable-prefix-caching"
    yield from ("--uvicorn-log-level", options.uvicorn_log_level)
    yield from (name for name in options.needless if name in STILL)
    if options.max_model_len is not None:
        yield from ("--max-model-len", str(options.max_model_len))
    if options.block_size is not None:
        yield from ("--block-size", str(options.block_size))
    if options.quantization.lower() != "none":
        yield from ("--quantization", options.quantization)
    if options.kv_cache_gib is not None:
        yield from (CACHE, str(round(options.kv_cache_gib * GIB)))
