"""How one instance runs: its options, checked once, when they are given."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from tandem.errors import UsageError
from tandem.kv.transport import DEFAULT_TRANSPORTS
from tandem.model.folder import DTYPES
from tandem.parallel.device import DeviceName
from tandem.protocol.identity import Role, Seat
from tandem.protocol.tls import TlsFiles

Transport = Literal["auto", "shm", "tcp", "nixl"]
FailurePolicy = Literal["fail", "recompute"]

TRANSPORTS: Final[dict[Transport, tuple[str, ...]]] = {
    "auto": DEFAULT_TRANSPORTS,
    "shm": ("shm",),
    "tcp": ("tcp",),
    "nixl": ("nixl",),
}
POSITIVE: Final = (
    "max_num_seqs",
    "max_num_batched_tokens",
    "block_size",
    "tensor_parallel_size",
    "kv_cache_gib",
    "gpu_memory_utilization",
    "kv_lease_seconds",
    "transfer_timeout",
)
WILDCARDS = ("0.0.0.0", "::", "")  # noqa: S104 - named to be recognised, not to be bound


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
    tensor_parallel_size: int = 1
    """Devices, or on a CPU processes, that share the model."""
    kv_cache_gib: float | None = None
    """Memory for keys and values, in GiB; 1 on a CPU, elsewhere what --gpu-memory-utilization leaves."""
    gpu_memory_utilization: float = 0.9
    """Part of a device's memory that may be used in all, if --kv-cache-gib does not say."""
    enable_prefix_caching: bool = True
    """Use blocks again whose tokens are known."""
    kv_host: str | None = None
    """Address at which other instances reach this one's KV port; `host` if not given."""
    kv_port: int = 0
    """KV transfer port; 0 takes a free one."""
    kv_lease_seconds: float = 30.0
    """How long prefilled blocks wait for a decode instance."""
    transfer_timeout: float = 30.0
    """Longest silence of the other instance during a KV transfer, in seconds."""
    kv_transport: Transport = "auto"
    """How blocks travel: shm (one host), tcp or nixl; auto takes shm where it can and tcp elsewhere."""
    kv_load_failure_policy: FailurePolicy = "fail"
    """What becomes of a request whose KV transfer failed: fail, or recompute its prompt here."""
    tls: TlsFiles | None = None
    """What the HTTP port shows its clients, and asks of them; None speaks in the clear."""
    seat: Seat | None = None
    """Its place in a rank table, which `/identity` tells."""

    def __post_init__(self) -> None:
        """Refuse what cannot run, by option name."""
        for name in POSITIVE:
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise UsageError(f"--{name.replace('_', '-')} {value}: must be a number over 0")
        if self.gpu_memory_utilization > 1:
            raise UsageError(f"--gpu-memory-utilization {self.gpu_memory_utilization}: must be at most 1")
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise UsageError(
                f"--max-num-batched-tokens {self.max_num_batched_tokens}: is under --max-num-seqs {self.max_num_seqs}, "
                "so not every sequence could get a token in a step; raise it"
            )
        if self.dtype != "auto" and self.dtype not in DTYPES:
            raise UsageError(f"--dtype {self.dtype}: unknown; choose auto, {', '.join(DTYPES)}")
        for name in ("port", "kv_port"):
            if not 0 <= getattr(self, name) < 65536:
                raise UsageError(f"--{name.replace('_', '-')} {getattr(self, name)}: must be 0 to 65535")
        if self.max_model_len is not None and self.max_model_len < 2:
            raise UsageError(f"--max-model-len {self.max_model_len}: must be at least 2, one token in and one out")
        if self.kv_host is None and self.host in WILDCARDS and self.role != "decode":
            raise UsageError(f"--host {self.host}: name the address decode instances should use with --kv-host")
