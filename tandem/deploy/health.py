"""Asks an instance whether it is ready."""

from __future__ import annotations

import http.client

from tandem.topology.topology import Instance

ASK_TIMEOUT = 2.0
"""Seconds for one answer; a process that loads a model may be slow to answer, and is asked again."""

ANY_ADDRESS = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - compared with, not listened on
"""An instance that listens on all addresses is asked on this one."""


def is_ready(instance: Instance) -> bool:
    """Whether GET /health answers 200; no proxy setting is heeded."""
    host = ANY_ADDRESS.get(instance.host, instance.host)
    connection = http.client.HTTPConnection(host, instance.port, timeout=ASK_TIMEOUT)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == http.HTTPStatus.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
