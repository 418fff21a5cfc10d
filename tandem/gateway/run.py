"""A gateway as a process, or as several, from its start to its end."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final

import uvloop

from tandem.errors import TandemError
from tandem.gateway.config import GatewayConfig
from tandem.gateway.door.listener import listen
from tandem.gateway.observability.metrics import count_as
from tandem.gateway.processes.commons import Commons
from tandem.gateway.server import Gateway, first_roster
from tandem.gateway.supervisor import supervise

ALIKE: Final = ("tandem.gateway.workers.health", "tandem.gateway.fleet")
"""What all processes find out alike, the first one says."""


def run_gateway(config: GatewayConfig, announce: Callable[[Gateway], None]) -> None:
    """Run a gateway in the foreground until it is told to stop.

    Args:
        config: What to run.
        announce: Called once the gateway listens.

    Raises:
        UsageError: The address cannot be listened on, or somebody else than expected answers at an instance's.
        ProcessError: Those expected have not come in time, or the gateway's processes die again and again.
    """
    commons = Commons.inherited()
    if commons is None and config.workers > 1:
        first_roster(config, Commons())  # so that what is wrong with it is told once
        supervise(config.workers, listen(config.host, config.port), config.grace_s)
    else:
        if commons is not None:
            count_as(commons.row)
        uvloop.run(_process(Gateway(config, commons), announce))


async def _process(gateway: Gateway, announce: Callable[[Gateway], None]) -> None:
    """One process from start to end; what it cannot go on for is its supervisor's to say, if it has one."""
    if gateway.commons.row:
        for name in ALIKE:
            logging.getLogger(name).setLevel(logging.ERROR)
    bus = gateway.commons.bus
    await bus.start()
    try:
        await _serve(gateway, announce)
    except TandemError as error:
        if not await bus.fail(error):
            raise
    finally:
        await bus.stop()


async def _serve(gateway: Gateway, announce: Callable[[Gateway], None]) -> None:
    await gateway.start()
    try:
        if gateway.commons.speaks:
            announce(gateway)
        await gateway.run()
    finally:
        await gateway.stop()
