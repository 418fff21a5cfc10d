"""The gateway as a process: its configuration, and start, run and stop."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

import uvloop

from tandem.errors import TandemError, TopologyError, UsageError
from tandem.gateway.access_log import AccessLog
from tandem.gateway.admin import Admin
from tandem.gateway.admission import Admission
from tandem.gateway.budget import RetryBudget
from tandem.gateway.capacity_watch import CapacityWatch
from tandem.gateway.commons import Commons
from tandem.gateway.delivery import Courier
from tandem.gateway.door import Door
from tandem.gateway.expected import Expected
from tandem.gateway.fleet import ChangeConfig, Fleet
from tandem.gateway.front import Api, Front
from tandem.gateway.health import HealthWatch
from tandem.gateway.keys import Keys
from tandem.gateway.legs import Legs
from tandem.gateway.length_limit import LengthLimit
from tandem.gateway.limits import Limits
from tandem.gateway.listener import listen
from tandem.gateway.metrics import GatewayMetrics
from tandem.gateway.policy import PolicyName
from tandem.gateway.pool import Pool
from tandem.gateway.probation import Probation
from tandem.gateway.queue_limits import QueueLimits
from tandem.gateway.readiness import Readiness
from tandem.gateway.reservation import Reservations
from tandem.gateway.roster import Roster
from tandem.gateway.service import Service
from tandem.gateway.stalls import Patience, StallWatch
from tandem.gateway.supervisor import supervise
from tandem.gateway.ticket import Releases
from tandem.gateway.topology_watch import TopologyWatch, read_roster
from tandem.gateway.tracing import Tracing
from tandem.gateway.visibility import Visibility
from tandem.gateway.worker import base_url, named
from tandem.gateway.worker_access import WorkerAccess
from tandem.gateway.worker_client import WorkerClient, open_peers
from tandem.protocol.http import app_runner
from tandem.protocol.renewal import Renewal
from tandem.protocol.tls import TlsFiles

MOST_WORKERS: Final = 256
LOOK_S: Final = 0.1
"""Between two looks of a process at whether the first one has found everybody ready."""
SHOW_S: Final = 1.0
"""Between two times that a process says how things stand in it."""


@dataclass(frozen=True, kw_only=True)
class GatewayConfig:
    """Everything a gateway is told at its start.

    Raises:
        UsageError: No decode URL and no topology file, a URL that is none, one URL given twice, or a port that is none.
    """

    decode: tuple[str, ...] = ()
    """Base URLs of the decode instances; without `prefill`, of instances that do both."""
    prefill: tuple[str, ...] = ()
    """Base URLs of the prefill instances."""
    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 only where asked for."""
    port: int = 9000
    """Port to listen on; 0 for any free one."""
    grace_s: float = 3.0
    """How long open requests may still take after a stop was asked for."""
    health_period_s: float = 1.0
    """Seconds between two health checks of one worker."""
    expected: tuple[Expected, ...] = ()
    """Who must answer at each URL, prefill then decode; then no request is taken before all have handed over."""
    ready_timeout_s: float | None = None
    """Longest wait for those expected; None waits for ever."""
    api: Api = "openai"
    """What clients speak: OpenAI's API, or that of vLLM 0.5.0's own server."""
    policy: PolicyName = "least_loaded"
    """Whose turn it is, among those who are up."""
    short_tokens: int = 0
    """With fewer tokens to compute, a prompt is left to a decode instance."""
    patience: Patience = field(default_factory=Patience)
    """How long a worker may be silent."""
    queue: QueueLimits = field(default_factory=QueueLimits)
    """Who waits, and for how long, when there is no room."""
    keys: Keys | None = None
    """Who may ask; None lets everybody."""
    limits: Limits = field(default_factory=Limits)
    """What a client may send, ask for and keep us waiting for."""
    tls: TlsFiles | None = None
    """What it shows clients, and asks of them; None speaks in the clear."""
    access: WorkerAccess = field(default_factory=WorkerAccess)
    """What it shows workers, and asks of them."""
    limit: LengthLimit | None = None
    """The longest request that is let through; None leaves that to the instances."""
    visibility: Visibility = field(default_factory=Visibility)
    """What it shows of each request."""
    workers: int = 1
    """Processes that share the work; more than one have a supervisor."""
    change: ChangeConfig = field(default_factory=ChangeConfig)
    """How the instances may change; a topology file takes the place of `prefill` and `decode`."""

    def __post_init__(self) -> None:
        if self.change.topology is not None and (self.prefill or self.decode):
            raise UsageError(f"{self.change.topology}: says who the instances are; leave out --prefill and --decode")
        if self.change.topology is None and not self.decode:
            raise UsageError("decode: no instance given; pass at least one with --decode http://HOST:PORT")
        if not 1 <= self.workers <= MOST_WORKERS:
            raise UsageError(f"workers: {self.workers} processes cannot be; choose 1 to {MOST_WORKERS} with --workers")
        if not 0 <= self.port < 2**16:
            raise UsageError(f"port: {self.port} is not a port; choose one from 1 to 65535, or 0 for any free one")
        for role in ("prefill", "decode"):
            object.__setattr__(self, role, tuple(base_url(role, url) for url in getattr(self, role)))
        urls = self.prefill + self.decode
        self.access.check_urls(urls)
        for url in urls:
            if urls.count(url) > 1:
                raise UsageError(f"{url}: given {urls.count(url)} times; give each instance once, in one role")


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
            UsageError: The address cannot be listened on, or the access log not be written.
        """
        renewal = Renewal()
        self._access_log = AccessLog(self.config.visibility)
        self._tracing = Tracing.open(self.config.visibility.otlp_endpoint, os.environ)
        self._peers = open_peers(self.config.access, renewal)
        client = WorkerClient(self._peers, self.pool)
        budget = RetryBudget(self.commons.board)
        keys = self.config.keys and self.config.keys.on(self.commons.board)
        admin_keys = self.config.change.admin_keys
        self._legs = Legs(self.pool, client, Releases(self._peers, self.pool, client), self.metrics)
        expected = dict(zip(self.pool.workers, self.config.expected, strict=bool(self.config.expected)))
        watch = HealthWatch(self.pool, self._peers, self.config.health_period_s, expected)
        probation = Probation(self.pool, self._legs)
        fleet = Fleet(
            self.pool,
            self._roster,
            probation,
            access=self.config.access,
            drain_s=self.config.change.drain_s,
            commons=self.commons,
        )
        self._reservations = Reservations(self._peers)
        admission = Admission(self.config.queue, pool=self.pool, reservations=self._reservations, metrics=self.metrics)
        service = Service(
            front=Front.of(self.config.api, self.metrics),
            pool=self.pool,
            client=client,
            courier=Courier(
                pool=self.pool,
                admission=admission,
                legs=self._legs,
                client=client,
                budget=budget,
                metrics=self.metrics,
            ),
            budget=budget,
            metrics=self.metrics,
            limit=self.config.limit,
            limits=self.config.limits,
            keys=keys,
            passes_key_on=keys is None and self.config.access.api_key is None,
            access_log=self._access_log,
            tracing=self._tracing,
        )
        application = service.application()
        if admin_keys is not None:
            admin = Admin(keys=admin_keys, fleet=fleet, pool=self.pool, watch=watch, probation=probation)
            admin.add_to(application)
        self._runner = app_runner(application, self.config.grace_s)
        await self._runner.setup()
        self._door = Door(self.config.limits, self.config.tls.kept_new(renewal) if self.config.tls else None)
        for known in (keys, admin_keys):
            if known is not None and known.path is not None:
                renewal.watch((known.path,), known.renew)
        try:
            sockets = self.commons.sockets or listen(self.config.host, self.config.port)
        except UsageError:
            await self._close()
            raise
        await fleet.start()
        await watch.check()  # a process that takes the place of another one refuses nobody meanwhile
        capacity = CapacityWatch(self.pool, self._peers, self.config.health_period_s)
        await capacity.look()
        assert self._runner.server is not None
        await self._door.open(self._runner.server, sockets, self.commons)
        readiness = Readiness(pool=self.pool, watch=watch, legs=self._legs, period_s=self.config.health_period_s)
        stalls = StallWatch(self.pool, self._peers, self.config.patience)
        for_ever = (
            *(self._become_ready(readiness), watch.run(), capacity.run(), stalls.run(), self._door.watch()),
            *(renewal.run(), fleet.run(), self._follow(fleet)),
            self._keep_showing(service),
        )
        self._tasks = [asyncio.create_task(one) for one in for_ever]

    @property
    def url(self) -> str:
        """Where a started gateway listens."""
        return self._door.url

    async def run(self) -> None:
        """Serve until SIGTERM or SIGINT.

        Raises:
            UsageError: Somebody else than expected answers at an instance's address.
            ProcessError: Those expected have not come in time.
        """
        loop = asyncio.get_running_loop()
        asked = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, asked.set)
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

    async def _follow(self, fleet: Fleet) -> None:
        if (file := self.config.change.topology) is not None and self.commons.row == 0:
            await TopologyWatch(file, fleet).run()

    async def _become_ready(self, readiness: Readiness) -> None:
        """One process finds out for all of them; one that is started later finds the service open."""
        if not self.config.expected:
            return
        if self.commons.row == 0 and not self._is_ready.value:
            await readiness.reach(self.config.ready_timeout_s)
            self._is_ready.value = 1
        while True:
            if self._is_ready.value:
                self.pool.is_open = True
                return
            await asyncio.sleep(LOOK_S)

    async def _keep_showing(self, service: Service) -> None:
        """Whichever process is asked for metrics shows how things stand in all of them."""
        while self.commons.has_siblings:
            service.refresh()
            await asyncio.sleep(SHOW_S)

    async def _close(self) -> None:
        self._door.close()
        await self._runner.cleanup()
        await self._legs.finish()
        await self._reservations.finish()
        self._peers.close()
        self._access_log.close()
        if self._tracing is not None:
            await self._tracing.close()


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
        uvloop.run(_process(Gateway(config, commons), announce))


async def _process(gateway: Gateway, announce: Callable[[Gateway], None]) -> None:
    """One process from start to end; what it cannot go on for is its supervisor's to say, if it has one."""
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
