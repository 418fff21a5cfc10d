"""What must hold before a prefill or decode instance loads its model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tandem.errors import UsageError
from tandem.launch.options import Options
from tandem.launch.part import Part
from tandem.model.families import read_config
from tandem.topology.topology import Engine

CHUNKED_TOKENS = 512
"""vLLM 0.5.0's step where prompts are cut into chunks."""
WHOLE_TOKENS = 2048
"""The least of its steps where they are not."""
SERVED_QUANTIZATIONS = ("fp8",)


def require_ranks(options: Options, part: Part) -> None:
    """Refuse a tensor-parallel size other than the number of the part's devices.

    Raises:
        UsageError: With both numbers.
    """
    devices = part.server.device_ids
    if options.tensor_parallel_size != len(devices):
        raise UsageError(
            f"--tensor-parallel-size {options.tensor_parallel_size}: the local rank table has {len(devices)} devices "
            f"({', '.join(map(str, devices))}); give --tensor-parallel-size {len(devices)}, or generate the tables anew"
        )


def tokens_per_step(options: Options, max_model_len: int) -> int:
    """The most tokens of a step: as given, or vLLM 0.5.0's default.

    Raises:
        UsageError: A whole prompt, or one token of each sequence, would not fit.
    """
    default = CHUNKED_TOKENS if options.enable_chunked_prefill else max(max_model_len, WHOLE_TOKENS)
    tokens = default if options.max_num_batched_tokens is None else options.max_num_batched_tokens
    if tokens < max_model_len and not options.enable_chunked_prefill:
        raise UsageError(
            f"--max-num-batched-tokens {tokens}: is under --max-model-len {max_model_len}, so a whole prompt might not "
            "fit into a step; raise it, or give --enable-chunked-prefill"
        )
    if tokens < options.max_num_seqs:
        raise UsageError(
            f"--max-num-batched-tokens {tokens}: is under --max-num-seqs {options.max_num_seqs}, so not every sequence "
            "could get a token in a step; raise it"
        )
    return tokens


def longest(options: Options, folder: Path) -> int:
    """Most tokens of prompt plus answer: as given, or what the model was made for.

    Raises:
        UsageError: It was made for fewer than given; vLLM decides that for itself.
    """
    given = options.max_model_len
    if given is not None and options.engine == "vllm":
        return given
    model = read_config(folder)
    if given is not None and model.longest is not None and given > model.longest:
        raise UsageError(f"--max-model-len {given}: the model was made for {model.longest}; lower it")
    return given or model.max_position


def require_quantization(asked: str, config: Mapping[str, Any], engine: Engine = "native") -> None:
    """Refuse a quantisation that the folder does not have, or that cannot be served.

    Args:
        asked: The flag's value.
        config: The folder's config.json.
        engine: Who serves it; what vLLM can serve is vLLM's to say.

    Raises:
        UsageError: With both.
    """
    if asked.lower() == "none":
        return
    found = (config.get("quantization_config") or {}).get("quant_method", "none")
    if asked != found:
        raise UsageError(
            f"--quantization {asked}: the folder's config.json says {found}; "
            "give the folder that was quantised so, or leave the flag out"
        )
    if engine == "native" and asked not in SERVED_QUANTIZATIONS:
        raise UsageError(
            f"--quantization {asked}: such weights cannot be served yet; serve the folder they were made from, "
            "or give --engine vllm"
        )


def warning(options: Options, part: Part) -> str | None:
    """What to say about an instance that everybody can reach; None where there is nothing to say."""
    if options.host not in ("0.0.0.0", "::", ""):  # noqa: S104 - named to be recognised, not to be bound
        return None
    return (
        f"--host {options.host}: the HTTP and KV ports of {part.name} are open on every interface and ask nobody who "
        f"they are; leave --host out to listen on {part.host} alone"
    )
