"""Asks an instance whether it is ready."""

from __future__ import annotations

import http.client
import json

from tandem.topology.topology import Instance, Role

ASK_TIMEOUT = 2.0
"""Seconds for one answer; a process that loads a model may be slow to answer, and is asked again."""

ANY_ADDRESS = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - compared with, not listened on
"""An instance that listens on all addresses is asked on this one."""


def is_ready(instance: Instance) -> bool:
    """Whether GET /health answers 200, and for a gateway also says that every instance is up; no proxy is heeded."""
    host = ANY_ADDRESS.get(instance.host, instance.host)
    connection = http.client.HTTPConnection(host, instance.port, timeout=ASK_TIMEOUT)
    try:
        connection.request("GET", "/health")
        answer = connection.getresponse()
        if answer.status != http.HTTPStatus.OK or instance.role is not Role.GATEWAY:
            return answer.status == http.HTTPStatus.OK
        return _all_up(answer.read())
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _all_up(report: bytes) -> bool:
    """Whether no instance is reported as down; a gateway that reports none is believed by its status."""
    try:
        states = json.loads(report)["workers"].values()
    except (ValueError, KeyError, TypeError, AttributeError):
        return True
    return all(state == "up" for state in states)
