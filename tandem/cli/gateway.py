"""`tandem gateway`: the gateway in front of running instances."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from tandem.cli.tls_options import ServerTls, WorkerTls
from tandem.gateway.admission.queue_limits import QueueLimits
from tandem.gateway.observability.visibility import Visibility
from tandem.gateway.request.limits import Limits
from tandem.gateway.workers.patience import Patience

Policy = Literal["round_robin", "least_loaded", "power_of_two", "prefix_aware"]
"""Of `tandem.gateway.workers.policy`, which is imported late."""
Urls = Annotated[list[str] | None, Parameter(negative=())]


def gateway(
    *,
    prefill: Urls = None,
    decode: Urls = None,
    port: int = 9000,
    host: str = "127.0.0.1",
    api_keys: Path | None = None,
    workers: int = 1,
    policy: Policy = "least_loaded",
    short_prompt_tokens: int = 0,
    tls: Annotated[ServerTls | None, Parameter(name="*")] = None,
    worker_tls: Annotated[WorkerTls | None, Parameter(name="*")] = None,
    limits: Annotated[Limits | None, Parameter(name="*")] = None,
    topology: Path | None = None,
    admin_key_file: Path | None = None,
    drain_seconds: float = 300.0,
    visibility: Annotated[Visibility | None, Parameter(name="*", allow_leading_hyphen=True)] = None,
    queue: Annotated[QueueLimits | None, Parameter(name="*")] = None,
    patience: Annotated[Patience | None, Parameter(name="*")] = None,
) -> None:
    """Run the gateway in front of running instances.

    Clients talk to it as to OpenAI's API. Give each instance's base URL, such as http://127.0.0.1:8101.

    Args:
        prefill: URL of a prefill instance; repeatable. Default: none, so that the --decode instances do both.
        decode: URL of a decode instance; repeatable, at least one.
        port: Port to listen on.
        host: Address to listen on; 0.0.0.0 for every interface.
        workers: Processes that share the work; one that dies is started again.
        api_keys: File with the keys that clients must have, as `tandem gateway-key` writes them. Default: none is asked
            for.
        policy: Which instance gets a request. least_loaded: the one with the fewest tokens in flight; round_robin: the
            next one; power_of_two: the less loaded of two drawn by chance; prefix_aware: the one that would be done
            first, counting what it was sent of the same prompt before.
        short_prompt_tokens: Leave prompts with fewer tokens to compute to a decode instance alone. Default: none.
        tls: What clients are shown, and asked for.
        worker_tls: What instances are shown, and asked for.
        limits: How much a client may send, ask for and keep the gateway waiting for.
        topology: Topology file that says who the instances are, in place of --prefill and --decode. It is looked at
            once a second: whoever is new in it joins, whoever is gone is drained and removed.
        admin_key_file: File with the keys that may see and change the instances at /admin, as `tandem gateway-key`
            writes them. Default: nobody may, and there is no /admin.
        drain_seconds: Longest wait for what an instance has when it is removed; what is left goes on elsewhere.
        visibility: What it shows of each request.
        queue: Who waits for room, and for how long.
        patience: How long an instance may be silent.
    """
    from tandem.cli.log_lines import log_lines
    from tandem.gateway.config import GatewayConfig
    from tandem.gateway.door.keys import Keys
    from tandem.gateway.fleet.fleet import ChangeConfig
    from tandem.gateway.run import run_gateway
    from tandem.gateway.server import Gateway
    from tandem.protocol.lifeline import hold_lifeline

    def announce(started: Gateway) -> None:
        names = ", ".join(worker.name for worker in started.pool.workers)
        print(f"gateway: {started.url}/v1 in front of {names}", flush=True)

    keys = None if api_keys is None else Keys.from_file(api_keys)
    config = GatewayConfig(
        prefill=tuple(prefill or ()),
        decode=tuple(decode or ()),
        port=port,
        host=host,
        keys=keys,
        workers=workers,
        policy=policy,
        short_tokens=short_prompt_tokens,
        limits=limits or Limits(),
        visibility=visibility or Visibility(),
        queue=queue or QueueLimits(),
        patience=patience or Patience(),
        tls=(tls or ServerTls()).files,
        access=(worker_tls or WorkerTls()).access,
        change=ChangeConfig(
            admin_keys=None if admin_key_file is None else Keys.from_file(admin_key_file),
            topology=topology,
            drain_s=drain_seconds,
        ),
    )
    hold_lifeline()
    log_lines()
    run_gateway(config, announce)
