"""The gateway as a process: start, run and stop."""

from __future__ import annotations

import asyncio
import os
from functools import partial
from typing import Any, Final

from tandem.errors import TopologyError
from tandem.gateway.admission.admission import Admission
from tandem.gateway.admission.capacity_watch import CapacityWatch
from tandem.gateway.admission.reservation import Reservations
from tandem.gateway.config import GatewayConfig
from tandem.gateway.delivery.delivery import Courier
from tandem.gateway.delivery.legs import Legs
from tandem.gateway.delivery.ticket import Releases
from tandem.gateway.delivery.worker_client import WorkerClient, open_peers
from tandem.gateway.door.door import Door
from tandem.gateway.door.keys import Keys
from tandem.gateway.door.listener import listen
from tandem.gateway.fleet.admin import Admin
from tandem.gateway.fleet.fleet import Fleet
from tandem.gateway.fleet.probation import Probation
from tandem.gateway.fleet.readiness import Readiness
from tandem.gateway.fleet.roster import Roster
from tandem.gateway.fleet.topology_watch import TopologyWatch, read_roster
from tandem.gateway.front import Front
from tandem.gateway.observability.access_log import AccessLog
from tandem.gateway.observability.metrics import GatewayMetrics
from tandem.gateway.observability.tracing import Tracing
from tandem.gateway.processes.commons import Commons
from tandem.gateway.service import Service
from tandem.gateway.watch import kept_up
from tandem.gateway.wire.worker import named
from tandem.gateway.workers.budget import RetryBudget
from tandem.gateway.workers.health import HealthWatch
from tandem.gateway.workers.pool import Pool
from tandem.gateway.workers.stalls import StallWatch
from tandem.protocol.http import app_runner
from tandem.protocol.renewal import Renewal
from tandem.protocol.stop_signals import on_stop, refuse_restart

LOOK_S: Final = 0.1
"""Between two looks of a process at whether the first one has found everybody ready."""
SHOW_S: Final = 1.0
"""Between two times that a process says how things stand in it."""

LAST_WORDS_S: Final = 1.0
"""For telling clients that their time is over."""


class Gateway:
    """A gateway, or one of its processes: `start`, then `run` or whatever the caller does meanwhile, then `stop`.

    Args:
        config: What to run.
        commons: What it shares with its other processes; None where it is alone.
    """

    def __init__(self, config: GatewayConfig, commons: Commons | None = None) -> None:
        self.config = config
        self.commons = commons or Commons()
        self._is_ready = self.commons.board.common("ready")
        self._roster = first_roster(config, self.commons)
        self.pool = Pool(
            self._roster.workers,
            policy=config.policy,
            short_tokens=config.short_tokens,
            is_open=not config.expected or bool(self._is_ready.value),
            max_in_flight=config.queue.max_in_flight,
            board=self.commons.board,
        )
        self.metrics = GatewayMetrics()

    async def start(self) -> None:
        """Listen, and find out who is up.

        Raises:
            UsageError: The address cannot be listened on, the access log not be written, or spans not be sent as asked.
        """
        self._assemble()
        try:
            await self._open()
        except BaseException:
            await self._close()
            raise
        readiness = Readiness(pool=self.pool, watch=self._health, legs=self._legs, period_s=self.config.health_period_s)
        stalls = StallWatch(self.pool, self._peers, self.config.patience)
        for_ever = (
            *(partial(self._become_ready, readiness), self._health.run, self._capacity.run, stalls.run),
            *(self._door.watch, self._renewal.run, self._fleet.run, self._follow, self._keep_showing),
        )
        self._tasks = [asyncio.create_task(kept_up(one)) for one in for_ever]

    def _assemble(self) -> None:
        """Make the parts, each of those before it."""
        config, commons = self.config, self.commons
        self._access_log = AccessLog(config.visibility)
        self._tracing = Tracing.open(config.visibility.otlp_endpoint, os.environ)
        self._renewal = Renewal()
        self._peers = open_peers(config.access, self._renewal)
        client = WorkerClient(self._peers, self.pool)
        self._budget = RetryBudget(commons.board)
        self._legs = Legs(
            pool=self.pool,
            client=client,
            releases=Releases(self._peers, self.pool, client),
            budget=self._budget,
            patience=config.patience,
            metrics=self.metrics,
        )
        self._reservations = Reservations(self._peers)
        expected = dict(zip(self.pool.workers, config.expected, strict=bool(config.expected)))
        self._health = HealthWatch(self.pool, self._peers, config.health_period_s, expected)
        self._capacity = CapacityWatch(self.pool, self._peers, config.health_period_s)
        probation = Probation(self.pool, self._legs)
        access, drain_s = config.access, config.change.drain_s
        self._fleet = Fleet(self.pool, self._roster, probation, access=access, drain_s=drain_s, commons=commons)
        self._service = self._new_service(client)
        application = self._service.application()
        if (admin_keys := config.change.admin_keys) is not None:
            self._keep_new(admin_keys)
            admin = Admin(keys=admin_keys, fleet=self._fleet, pool=self.pool, watch=self._health, probation=probation)
            admin.add_to(application)
        self._runner = app_runner(application, config.grace_s + LAST_WORDS_S)
        self._door = Door(config.limits, config.tls.kept_new(self._renewal) if config.tls else None)

    def _new_service(self, client: WorkerClient) -> Service:
        config = self.config
        keys = config.keys and config.keys.on(self.commons.board)
        if keys is not None:
            self._keep_new(keys)
        admission = Admission(config.queue, pool=self.pool, reservations=self._reservations, metrics=self.metrics)
        courier = Courier(
            pool=self.pool,
            admission=admission,
            legs=self._legs,
            client=client,
            budget=self._budget,
            metrics=self.metrics,
        )
        return Service(
            front=Front.of(config.api, self.metrics),
            pool=self.pool,
            client=client,
            courier=courier,
            budget=self._budget,
            metrics=self.metrics,
            length_limit=config.length_limit,
            limits=config.limits,
            keys=keys,
            passes_key_on=keys is None and config.access.api_key is None,
            access_log=self._access_log,
            tracing=self._tracing,
        )

    def _keep_new(self, keys: Keys) -> None:
        """Have keys that stand in a file read again when it changes."""
        if keys.path is not None:
            self._renewal.watch((keys.path,), keys.renew)

    async def _open(self) -> None:
        await self._runner.setup()
        assert self._runner.server is not None
        sockets = self.commons.sockets or listen(self.config.host, self.config.port)
        await self._fleet.start()
        await self._health.check()  # a process that takes the place of another one refuses nobody meanwhile
        await self._capacity.look()
        await self._door.open(self._runner.server, sockets, self.commons)

    @property
    def url(self) -> str:
        """Where a started gateway listens."""
        return self._door.url

    async def run(self) -> None:
        """Serve until SIGTERM, SIGINT or SIGHUP.

        Raises:
            UsageError: Somebody else than expected answers at an instance's address.
            ProcessError: Those expected have not come in time.
        """
        asked = asyncio.Event()
        on_stop(asked.set)
        refuse_restart()
        stop = asyncio.create_task(asked.wait())
        running: set[asyncio.Task[Any]] = {stop, *self._tasks}
        while stop in running:
            ended, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
            for task in ended:
                task.result()

    async def stop(self) -> None:
        """Take no more requests, give the open ones `grace_s`, abort the rest and close everything."""
        for task in self._tasks:
            task.cancel()
            await asyncio.wait([task])
        await self._close()

    async def _follow(self) -> None:
        if (file := self.config.change.topology) is not None and self.commons.row == 0:
            await TopologyWatch(file, self._fleet).run()

    async def _become_ready(self, readiness: Readiness) -> None:
        """One process finds out for all of them; one that is started later finds the service open."""
        if not self.config.expected:
            return
        if self.commons.row == 0 and not self._is_ready.value:
            await readiness.reach(self.config.ready_timeout_s)
            with self.commons.board.changing():
                self._is_ready.value = 1
        while True:
            if self._is_ready.value:
                self.pool.is_open = True
                return
            await asyncio.sleep(LOOK_S)

    async def _keep_showing(self) -> None:
        """Whichever process is asked for metrics shows how things stand in all of them."""
        while self.commons.has_siblings:
            self._service.refresh()
            await asyncio.sleep(SHOW_S)

    async def _close(self) -> None:
        self._door.close()
        ending = asyncio.get_running_loop().call_later(self.config.grace_s, self._service.stop)
        await self._runner.cleanup()
        ending.cancel()
        await self._legs.finish()
        await self._reservations.finish()
        self._peers.close()
        self._access_log.close()
        if self._tracing is not None:
            await self._tracing.close()


def first_roster(config: GatewayConfig, commons: Commons) -> Roster:
    """Who serves from the start, as far as this process knows.

    Raises:
        UsageError: The topology file cannot be used, and nobody else has read it before.
    """
    if config.change.topology is None:
        return Roster(workers=named(config.prefill, config.decode))
    try:
        roster = read_roster(config.change.topology)
    except TopologyError:
        if commons.speaks:
            raise
        return Roster(workers=())  # the other processes tell it whom they have
    config.access.check_urls(tuple(worker.url for worker in roster.workers))
    return roster
