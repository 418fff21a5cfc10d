"""`tandem instance`: one inference instance in the foreground."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from tandem.cli.tls_options import ServerTls

if TYPE_CHECKING:
    from tandem.engine.config import InstanceConfig


@dataclass(frozen=True, kw_only=True)
class Options:
    """How the instance runs; most are fields of `tandem.engine.config.InstanceConfig`, which is imported late."""

    role: Literal["prefill", "decode", "both"] = "both"
    """Prefill only, decode only, or both."""
    port: int = 8000
    """HTTP port."""
    host: str = "127.0.0.1"
    """Address the ports bind to; with 0.0.0.0, name this host's own with --kv-host."""
    served_model_name: Annotated[list[str] | None, Parameter(negative=())] = None
    """Name clients may ask for; repeatable. Default: the folder's name."""
    device: Literal["auto", "cpu", "cuda", "npu"] = "auto"
    """Where to compute; auto takes the best there is."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Type of weights and cache; auto takes the folder's own."""
    max_model_len: int | None = None
    """Most tokens of prompt plus answer. Default: the model's own limit."""
    max_num_seqs: int = 64
    """Most requests computed at a time."""
    max_num_batched_tokens: int = 2048
    """Most tokens in one step, at least --max-num-seqs; longer prompts are prefilled in pieces."""
    block_size: int = 16
    """Tokens in a KV block."""
    tensor_parallel_size: int = 1
    """Devices, or on a CPU processes, that share the model."""
    kv_cache_gib: float | None = None
    """Memory for keys and values, in GiB. Default: 1 on a CPU, elsewhere what --gpu-memory-utilization leaves."""
    gpu_memory_utilization: float = 0.9
    """Part of a device's memory that may be used in all."""
    enable_prefix_caching: bool = True
    """Use KV blocks again whose tokens are known."""
    kv_host: str | None = None
    """Address at which other instances reach this one's KV port. Default: --host."""
    kv_port: int = 0
    """KV transfer port; 0 takes a free one."""
    kv_lease_seconds: float = 30.0
    """How long prefilled blocks wait for a decode instance."""
    transfer_timeout: float = 30.0
    """Longest silence of the other instance during a KV transfer, in seconds."""
    kv_transport: Literal["auto", "shm", "tcp", "nixl"] = "auto"
    """How KV blocks travel; auto takes shared memory on one host and TCP between hosts. Give both sides the same."""
    kv_load_failure_policy: Literal["fail", "recompute"] = "fail"
    """What becomes of a request whose KV transfer failed: fail, or prefill it here."""

    def config(self, model: str, tls: ServerTls) -> InstanceConfig:
        """Of an instance with this model."""
        from tandem.catalogue.source import model_folder, served_name
        from tandem.engine.config import InstanceConfig

        fields = dict(vars(self))
        names = fields.pop("served_model_name") or (served_name(model),)
        return InstanceConfig(model=model_folder(model), served_model_names=tuple(names), tls=tls.files, **fields)


def instance(
    model: str,
    *,
    options: Annotated[Options, Parameter(name="*")] = Options(),
    tls: Annotated[ServerTls | None, Parameter(name="*")] = None,
) -> None:
    """Run one inference instance in the foreground.

    Args:
        model: Hugging Face model folder; or a name or organisation/model that is in the Hugging Face cache.
        options: How it runs.
        tls: What the HTTP port shows its clients, and asks of them.
    """
    from tandem.cli.log_lines import log_lines
    from tandem.engine.instance import run_instance
    from tandem.protocol.lifeline import hold_lifeline

    hold_lifeline()
    log_lines()
    run_instance(options.config(model, tls or ServerTls()), lambda line: print(line, flush=True))
