"""`tandem gateway`: the gateway in front of running instances."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from tandem.cli.tls_options import ServerTls, WorkerTls
from tandem.gateway.admission.queue_limits import QueueLimits
from tandem.gateway.observability.visibility import Visibility
from tandem.gateway.request.limits import Limits
from tandem.gateway.workers.patience import Patience

if TYPE_CHECKING:
    from tandem.gateway.fleet.fleet import ChangeConfig
    from tandem.gateway.server import Gateway

Policy = Literal["round_robin", "least_loaded", "power_of_two", "prefix_aware"]
"""Of `tandem.gateway.workers.policy`, which is imported late."""
Urls = Annotated[list[str] | None, Parameter(negative=())]


@dataclass(frozen=True, kw_only=True)
class Options:
    """Who is where; most are fields of `tandem.gateway.config.GatewayConfig`, which is imported late."""

    prefill: Urls = None
    """URL of a prefill instance; repeatable. Default: none, so that the --decode instances do both."""
    decode: Urls = None
    """URL of a decode instance; repeatable, at least one."""
    port: int = 9000
    """Port to listen on."""
    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 for every interface."""
    api_keys: Path | None = None
    """File with the keys that clients must have, as `tandem gateway-key` writes them. Default: none is asked for."""
    workers: int = 1
    """Processes that share the work; one that dies is started again."""
    policy: Policy = "least_loaded"
    """Which instance gets a request. least_loaded: the one with the fewest tokens in flight; round_robin: the next one;
    power_of_two: the less loaded of two drawn by chance; prefix_aware: the one that would be done first, counting what
    it was sent of the same prompt before."""
    short_prompt_tokens: int = 0
    """Leave prompts with fewer tokens to compute to a decode instance alone. Default: none."""

    def fields(self) -> dict[str, Any]:
        """Of the gateway's configuration."""
        from tandem.gateway.door.keys import Keys

        return {
            "prefill": tuple(self.prefill or ()),
            "decode": tuple(self.decode or ()),
            "port": self.port,
            "host": self.host,
            "keys": None if self.api_keys is None else Keys.from_file(self.api_keys),
            "workers": self.workers,
            "policy": self.policy,
            "short_tokens": self.short_prompt_tokens,
        }


@dataclass(frozen=True, kw_only=True)
class Change:
    """How the instances may change."""

    topology: Path | None = None
    """Topology file that says who the instances are, in place of --prefill and --decode. It is looked at once a second:
    whoever is new in it joins, whoever is gone is drained and removed."""
    admin_key_file: Path | None = None
    """File with the keys that may see and change the instances at /admin, as `tandem gateway-key` writes them. Default:
    nobody may, and there is no /admin."""
    drain_seconds: float = 300.0
    """Longest wait for what an instance has when it is removed; what is left goes on elsewhere."""

    def config(self) -> ChangeConfig:
        """The same, with the keys read."""
        from tandem.gateway.door.keys import Keys
        from tandem.gateway.fleet.fleet import ChangeConfig

        keys = None if self.admin_key_file is None else Keys.from_file(self.admin_key_file)
        return ChangeConfig(admin_keys=keys, topology=self.topology, drain_s=self.drain_seconds)


def gateway(
    *,
    options: Annotated[Options, Parameter(name="*")] = Options(),
    tls: Annotated[ServerTls | None, Parameter(name="*")] = None,
    worker_tls: Annotated[WorkerTls | None, Parameter(name="*")] = None,
    limits: Annotated[Limits | None, Parameter(name="*")] = None,
    change: Annotated[Change, Parameter(name="*")] = Change(),
    visibility: Annotated[Visibility | None, Parameter(name="*", allow_leading_hyphen=True)] = None,
    queue: Annotated[QueueLimits | None, Parameter(name="*")] = None,
    patience: Annotated[Patience | None, Parameter(name="*")] = None,
) -> None:
    """Run the gateway in front of running instances.

    Clients talk to it as to OpenAI's API. Give each instance's base URL, such as http://127.0.0.1:8101.

    Args:
        options: Who is where.
        tls: What clients are shown, and asked for.
        worker_tls: What instances are shown, and asked for.
        limits: How much a client may send, ask for and keep the gateway waiting for.
        change: How the instances may change.
        visibility: What it shows of each request.
        queue: Who waits for room, and for how long.
        patience: How long an instance may be silent.
    """
    from tandem.cli.log_lines import log_lines
    from tandem.gateway.config import GatewayConfig
    from tandem.gateway.run import run_gateway
    from tandem.protocol.lifeline import hold_lifeline

    config = GatewayConfig(
        **options.fields(),
        limits=limits or Limits(),
        visibility=visibility or Visibility(),
        queue=queue or QueueLimits(),
        patience=patience or Patience(),
        tls=(tls or ServerTls()).files,
        access=(worker_tls or WorkerTls()).access,
        change=change.config(),
    )
    hold_lifeline()
    log_lines()
    run_gateway(config, announce)


def announce(started: Gateway) -> None:
    """A line that says where it is, and in front of whom."""
    names = ", ".join(worker.name for worker in started.pool.workers)
    print(f"gateway: {started.url}/v1 in front of {names}", flush=True)
