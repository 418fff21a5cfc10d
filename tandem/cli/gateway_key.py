"""`tandem gateway-key`: a new API key for the gateway."""

from __future__ import annotations

from pathlib import Path


def gateway_key(
    name: str, *, file: Path, requests_per_minute: float | None = None, in_flight: int | None = None
) -> None:
    """Make a new API key, add its hash to a key file, and print the key, once.

    Args:
        name: Of whoever gets it; it stands in the gateway's metrics.
        file: Key file, made if it is missing; `tandem gateway` reads it again within a second of a change.
        requests_per_minute: Most requests in a minute. Default: as many as it likes.
        in_flight: Most requests at a time. Default: as many as it likes.
    """
    from tandem.gateway.door.keys import add_key

    print(add_key(file, name, requests_per_minute, in_flight))
