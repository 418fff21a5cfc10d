"""How a vLLM instance hands keys and values over: its `--kv-transfer-config`, and the variables that go with it.

NIXL carries them on CUDA and on a CPU, vllm-ascend's Mooncake connector on Ascend. Both are pulled by the decode
instance with a ticket, which is what the gateway speaks.

Source: vLLM 0.32, `vllm/config/kv_transfer.py` and `kv_connector/v1/nixl`; vllm-ascend, the guide "Prefill-Decode
Disaggregation Mooncake Verification". The Mooncake part has not been run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from tandem.errors import UsageError
from tandem.protocol.identity import Role

Device = Literal["cpu", "cuda", "npu"]

KV_ROLES: Final[Mapping[Role, str]] = {"prefill": "kv_producer", "decode": "kv_consumer"}

NIXL_PORTS: Final = range(5600, 2**16)
"""vLLM's own first side-channel port; every instance of a service has the next one."""
MOONCAKE_PORTS: Final = range(36000, 2**16, 100)
"""Of Mooncake every rank takes a port from the instance's first one on, so instances lie apart. Ports from 20000 on, a
thousand for each NPU of a host, belong to its transport: with 16 NPUs up to 35999."""


@dataclass(frozen=True, kw_only=True)
class Connector:
    """One instance's side of the hand-off."""

    port: int
    """Its side-channel port."""
    config: Mapping[str, Any]
    environment: Mapping[str, str] = field(default_factory=dict)


def connector_of(
    role: Role, device: Device, host: str, *, port: int | None, position: int, ranks: Mapping[Role, int]
) -> Connector | None:
    """The connector of one instance; None for role both, which hands nothing over.

    Args:
        role: The instance's.
        device: What it computes on.
        host: Address at which the other side reaches it.
        port: Its side-channel port; None takes the one that its position gives.
        position: Place among all instances of the service, prefill first, so that no two ports are the same.
        ranks: Tensor-parallel size of each role's instances.

    Raises:
        UsageError: There is no such port.
    """
    if role == "both":
        return None
    chosen = port_at(position, MOONCAKE_PORTS if device == "npu" else NIXL_PORTS) if port is None else port
    if not 0 < chosen < 2**16:
        raise UsageError(f"--kv-port {chosen}: is no port; choose one from 1 to 65535")
    return mooncake(role, host, chosen, ranks) if device == "npu" else nixl(role, device, host, chosen)


def port_at(position: int, ports: range) -> int:
    """The port of an instance at a position.

    Raises:
        UsageError: There are not so many.
    """
    if not 0 <= position < len(ports):
        raise UsageError(f"--position {position}: is outside 0..{len(ports) - 1}; give --kv-port")
    return ports[position]


def nixl(role: Role, device: Device, host: str, port: int) -> Connector:
    """NIXL: one side-channel port for each instance; the blocks find their own way."""
    buffer = {"kv_buffer_device": "cpu"} if device == "cpu" else {}
    return Connector(
        port=port,
        config={"kv_connector": "NixlConnector", "kv_role": KV_ROLES[role], **buffer},
        environment={"VLLM_NIXL_SIDE_CHANNEL_HOST": host, "VLLM_NIXL_SIDE_CHANNEL_PORT": str(port)},
    )


def mooncake(role: Role, host: str, port: int, ranks: Mapping[Role, int]) -> Connector:
    """Mooncake: each side is told the sizes of both."""
    sizes = {side: {"dp_size": 1, "tp_size": size} for side, size in ranks.items()}
    return Connector(
        port=port,
        config={
            "kv_connector": "MooncakeConnectorV1",
            "kv_role": KV_ROLES[role],
            "kv_port": str(port),
            "engine_id": f"{host}:{port}",
            "kv_connector_extra_config": sizes,
        },
        environment={"HCCL_IF_IP": host},
    )
