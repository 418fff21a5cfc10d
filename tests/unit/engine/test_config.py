"""An instance's options: what cannot run is refused by the option's name, and only that."""

from __future__ import annotations

import math
from pathlib import Path
from typing import get_args

import pytest

from tandem.engine.config import POSITIVE, TRANSPORTS, InstanceConfig, Transport
from tandem.errors import UsageError


def config(**options) -> InstanceConfig:
    return InstanceConfig(model=Path("m"), **options)


@pytest.mark.parametrize("name", POSITIVE)
@pytest.mark.parametrize("value", [0, -1, math.nan, math.inf])
def test_sizes_and_times_are_numbers_over_0(name: str, value: float) -> None:
    with pytest.raises(UsageError, match=f"--{name.replace('_', '-')} {value}: must be a number over 0"):
        config(**{name: value})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gpu_memory_utilization": 1.01}, "--gpu-memory-utilization 1.01: must be at most 1"),
        ({"max_num_batched_tokens": 63}, "--max-num-batched-tokens 63: is under --max-num-seqs 64"),
        ({"max_num_seqs": 4096}, "--max-num-batched-tokens 2048: is under --max-num-seqs 4096"),
        ({"dtype": "int4"}, "--dtype int4: unknown; choose auto, "),
        ({"port": -1}, "--port -1: must be 0 to 65535"),
        ({"port": 65536}, "--port 65536: must be 0 to 65535"),
        ({"kv_port": 70000}, "--kv-port 70000: must be 0 to 65535"),
        ({"max_model_len": 1}, "--max-model-len 1: must be at least 2"),
        ({"host": "0.0.0.0"}, "--host 0.0.0.0: name the address .* --kv-host"),
        ({"host": "::", "role": "prefill"}, "--host ::: name the address .* --kv-host"),
    ],
    ids=str,
)
def test_what_cannot_run_is_refused_by_name(options: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        config(**options)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"gpu_memory_utilization": 1},
        {"max_num_seqs": 2048},
        {"max_num_batched_tokens": 64},
        {"port": 65535, "kv_port": 0},
        {"max_model_len": 2},
        {"kv_cache_gib": 0.001},
        {"host": "0.0.0.0", "role": "decode"},
        {"host": "0.0.0.0", "kv_host": "10.0.0.1"},
        {"dtype": "bfloat16"},
    ],
    ids=str,
)
def test_what_can_run_is_taken(options: dict) -> None:
    config(**options)


def test_every_transport_by_name_says_what_it_tries() -> None:
    assert set(TRANSPORTS) == set(get_args(Transport))
    assert TRANSPORTS["auto"] == ("shm", "tcp")
    assert all(TRANSPORTS[name] == (name,) for name in ("shm", "tcp", "nixl"))
