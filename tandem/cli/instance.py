"""`tandem instance`: one inference instance in the foreground."""

from __future__ import annotations

from typing import Annotated, Literal

from cyclopts import Parameter

from tandem.cli.tls_options import ServerTls


def instance(
    model: str,
    *,
    role: Literal["prefill", "decode", "both"] = "both",
    port: int = 8000,
    host: str = "127.0.0.1",
    served_model_name: Annotated[list[str] | None, Parameter(negative=())] = None,
    device: Literal["auto", "cpu", "cuda", "npu"] = "auto",
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto",
    max_model_len: int | None = None,
    max_num_seqs: int = 64,
    max_num_batched_tokens: int = 2048,
    block_size: int = 16,
    tensor_parallel_size: int = 1,
    kv_cache_gib: float | None = None,
    gpu_memory_utilization: float = 0.9,
    enable_prefix_caching: bool = True,
    kv_host: str | None = None,
    kv_port: int = 0,
    kv_lease_seconds: float = 30.0,
    transfer_timeout: float = 30.0,
    kv_transport: Literal["auto", "shm", "tcp", "nixl"] = "auto",
    kv_load_failure_policy: Literal["fail", "recompute"] = "fail",
    tls: Annotated[ServerTls | None, Parameter(name="*")] = None,
) -> None:
    """Run one inference instance in the foreground.

    Args:
        model: Hugging Face model folder; or a name or organisation/model that is in the Hugging Face cache.
        role: Prefill only, decode only, or both.
        port: HTTP port.
        host: Address the ports bind to; with 0.0.0.0, name this host's own with --kv-host.
        served_model_name: Name clients may ask for; repeatable. Default: the folder's name.
        device: Where to compute; auto takes the best there is.
        dtype: Type of weights and cache; auto takes the folder's own.
        max_model_len: Most tokens of prompt plus answer. Default: the model's own limit.
        max_num_seqs: Most requests computed at a time.
        max_num_batched_tokens: Most tokens in one step, at least --max-num-seqs; longer prompts are prefilled in
            pieces.
        block_size: Tokens in a KV block.
        tensor_parallel_size: Devices, or on a CPU processes, that share the model.
        kv_cache_gib: Memory for keys and values, in GiB. Default: 1 on a CPU, elsewhere what
            --gpu-memory-utilization leaves.
        gpu_memory_utilization: Part of a device's memory that may be used in all.
        enable_prefix_caching: Use KV blocks again whose tokens are known.
        kv_host: Address at which other instances reach this one's KV port. Default: --host.
        kv_port: KV transfer port; 0 takes a free one.
        kv_lease_seconds: How long prefilled blocks wait for a decode instance.
        transfer_timeout: Longest silence of the other instance during a KV transfer, in seconds.
        kv_transport: How KV blocks travel; auto takes shared memory on one host and TCP between hosts. Give both
            sides the same.
        kv_load_failure_policy: What becomes of a request whose KV transfer failed: fail, or prefill it here.
        tls: What the HTTP port shows its clients, and asks of them.
    """
    from tandem.catalogue.source import model_folder, served_name
    from tandem.cli.log_lines import log_lines
    from tandem.engine.config import InstanceConfig
    from tandem.engine.instance import run_instance
    from tandem.protocol.lifeline import hold_lifeline

    hold_lifeline()
    log_lines()
    config = InstanceConfig(
        model=model_folder(model),
        role=role,
        host=host,
        port=port,
        served_model_names=tuple(served_model_name or (served_name(model),)),
        device=device,
        dtype=dtype,
        max_model_len=max_model_len,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_batched_tokens,
        block_size=block_size,
        tensor_parallel_size=tensor_parallel_size,
        kv_cache_gib=kv_cache_gib,
        gpu_memory_utilization=gpu_memory_utilization,
        enable_prefix_caching=enable_prefix_caching,
        kv_host=kv_host,
        kv_port=kv_port,
        kv_lease_seconds=kv_lease_seconds,
        transfer_timeout=transfer_timeout,
        kv_transport=kv_transport,
        kv_load_failure_policy=kv_load_failure_policy,
        tls=(tls or ServerTls()).files,
    )
    run_instance(config, lambda line: print(line, flush=True))
