"""`tandem gateway`: the gateway in front of running instances."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

Urls = Annotated[list[str] | None, Parameter(negative=())]


def gateway(
    *,
    prefill: Urls = None,
    decode: Urls = None,
    port: int = 9000,
    host: str = "127.0.0.1",
    api_keys: Path | None = None,
) -> None:
    """Run the gateway in front of running instances.

    Clients talk to it as to OpenAI's API. Give each instance's base URL, such as http://127.0.0.1:9101.

    Args:
        prefill: URL of a prefill instance; repeatable. Default: none, so that the --decode instances do both.
        decode: URL of a decode instance; repeatable, at least one.
        port: Port to listen on.
        host: Address to listen on; 0.0.0.0 for every interface.
        api_keys: File with the keys that clients must have, as `tandem gateway-key` writes them. Default: none is asked
            for.
    """
    from tandem.gateway.keys import Keys
    from tandem.gateway.server import Gateway, GatewayConfig, run_gateway
    from tandem.protocol.lifeline import hold_lifeline

    def announce(started: Gateway) -> None:
        names = ", ".join(worker.name for worker in started.pool.workers)
        print(f"gateway: {started.url}/v1 in front of {names}", flush=True)

    keys = None if api_keys is None else Keys.from_file(api_keys)
    config = GatewayConfig(prefill=tuple(prefill or ()), decode=tuple(decode or ()), port=port, host=host, keys=keys)
    hold_lifeline()
    run_gateway(config, announce)
