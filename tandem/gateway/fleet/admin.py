"""What an operator may see and change while the gateway runs, over HTTP and behind a key of its own.

Every change is answered with the whole topology as it is then. What takes its time, draining and first hand-offs, goes
on after the answer, and is seen by asking again.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from aiohttp import web

from tandem.gateway.door.keys import Keys
from tandem.gateway.fleet.fleet import Fleet
from tandem.gateway.fleet.probation import Probation
from tandem.gateway.fleet.roster import Entry, Roster, Wanted
from tandem.gateway.observability.access_log import RECORD
from tandem.gateway.request.record import Record
from tandem.gateway.wire.worker import Worker
from tandem.gateway.workers.health import HealthWatch
from tandem.gateway.workers.introduction import Introduction
from tandem.gateway.workers.pool import Pool
from tandem.protocol.admin import State, TopologyState, WorkerState
from tandem.protocol.http import json_response, read_body, request_id
from tandem.protocol.json_body import decode_struct

Verb = Callable[[Roster], Roster]
Asked = Callable[[web.Request], Awaitable[Verb | None]]


class Admin:
    """The endpoints under `/admin`."""

    def __init__(self, *, keys: Keys, fleet: Fleet, pool: Pool, watch: HealthWatch, probation: Probation) -> None:
        self._keys = keys
        self._fleet = fleet
        self._pool = pool
        self._watch = watch
        self._probation = probation

    def add_to(self, app: web.Application) -> None:
        """Add them to an application."""
        app.router.add_get("/admin/topology", self._route(self._nothing))
        app.router.add_put("/admin/topology", self._route(self._replace))
        app.router.add_post("/admin/workers", self._route(self._add))
        app.router.add_delete("/admin/workers/{name}", self._route(self._remove))
        app.router.add_post("/admin/workers/{name}/drain", self._route(self._drain))
        app.router.add_post("/admin/workers/{name}/undrain", self._route(self._undrain))

    def _route(self, asked: Asked) -> Callable[[web.Request], Awaitable[web.Response]]:
        """Do what is asked for, for who has a key, and tell how things are then."""

        async def answer(request: web.Request) -> web.Response:
            request[RECORD] = record = Record(id=request_id(request.headers), path=request.path)
            with self._keys.admitted(request.headers) as record.key:
                verb = await asked(request)
                if verb is not None:
                    await self._fleet.change(verb)
                return json_response(self.topology())

        return answer

    async def _nothing(self, _: web.Request) -> None:
        return None

    async def _replace(self, request: web.Request) -> Verb:
        wanted = decode_struct(await read_body(request), Wanted)
        return lambda roster: roster.replaced(wanted, self._fleet.leaving_names)

    async def _add(self, request: web.Request) -> Verb:
        entry = decode_struct(await read_body(request), Entry)
        return lambda roster: roster.added(entry, self._fleet.leaving_names)

    async def _remove(self, request: web.Request) -> Verb:
        name, now = request.match_info["name"], request.query.get("now", "false") in ("", "true", "1")
        return lambda roster: roster.removed(name, now=now, leaving=self._fleet.leaving_names)

    async def _drain(self, request: web.Request) -> Verb:
        return lambda roster: roster.drained(request.match_info["name"])

    async def _undrain(self, request: web.Request) -> Verb:
        return lambda roster: roster.undrained(request.match_info["name"])

    def topology(self) -> TopologyState:
        """How things are."""
        workers = (*self._fleet.roster.workers, *self._fleet.leaving)
        return TopologyState(epoch=self._fleet.roster.epoch, workers=tuple(map(self._told, workers)))

    def _told(self, worker: Worker) -> WorkerState:
        known = self._watch.known(worker)
        said = known.said or Introduction()
        return WorkerState(
            name=worker.name,
            role=worker.role,
            url=worker.url,
            state=self._state(worker),
            in_flight=self._fleet.in_flight(worker),
            breaker=self._pool.breaker_state(worker),
            leaving=worker in self._fleet.leaving,
            model=said.model,
            digest=said.digest,
            version=said.version,
            engine_id=said.engine_id,
            remark="; ".join(filter(None, (self._probation.remark(worker), known.remark or self._absence(worker)))),
        )

    def _absence(self, worker: Worker) -> str:
        return "" if self._pool.is_up(worker) else "its address answers no health check with status 200; is it started?"

    def _state(self, worker: Worker) -> State:
        vitals = self._pool.vitals(worker)
        if vitals.is_draining:
            return "drained" if self._fleet.is_drained(worker) else "draining"
        return "starting" if vitals.is_on_trial else "up" if vitals.is_up else "down"
