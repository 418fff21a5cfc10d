"""The topology file behind a gateway: who its workers are, read at the start and again whenever it changes."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Final

from tandem.errors import RequestError, TopologyError
from tandem.gateway.fleet.fleet import Fleet
from tandem.gateway.fleet.roster import Roster
from tandem.gateway.wire.worker import Worker
from tandem.protocol.identity import Role
from tandem.protocol.renewal import Stamp, stamp_of
from tandem.topology import topology as written
from tandem.topology.file import read_topology

PERIOD_S: Final = 1.0
"""Between two looks at the file."""
ROLES: Final[dict[written.Role, Role]] = {
    written.Role.PREFILL: "prefill",
    written.Role.DECODE: "decode",
    written.Role.BOTH: "both",
}

log = logging.getLogger(__name__)


def read_roster(path: Path) -> Roster:
    """The instances of a topology file; a gateway in it is left out.

    Raises:
        TopologyError: Naming the file and what is wrong in it.
    """
    topology = read_topology(path)
    workers = []
    for place, one in enumerate(topology.instances):
        if one.role is written.Role.GATEWAY:
            continue
        if one.port is None:
            raise TopologyError(f"{path}: $.instances[{place}].port: is missing; say where {one.name} listens")
        workers.append(Worker(name=one.name, url=one.url, role=ROLES[one.role]))
    return Roster(workers=tuple(workers), epoch=topology.epoch, file_epoch=topology.epoch)


class TopologyWatch:
    """Has a fleet follow a topology file. One that is broken or not newer is logged once, and changes nothing.

    Args:
        path: The file, which is written whole, by renaming.
        fleet: What follows it.
    """

    def __init__(self, path: Path, fleet: Fleet) -> None:
        self._path = path
        self._fleet = fleet
        self._seen: Stamp = None

    async def run(self) -> None:
        """Look for ever, once a second; cancel the task to end it."""
        while True:
            await self.look()
            await asyncio.sleep(PERIOD_S)

    async def look(self) -> None:
        """Read the file if it is another one than before."""
        stamp = await asyncio.to_thread(stamp_of, self._path)
        if stamp == self._seen:
            return
        if (wrong := await self._follow()) is not None:
            log.warning("%s; the workers stay as they are", wrong)
        self._seen = stamp

    async def _follow(self) -> str | None:
        """Do as the file says, or tell why not."""
        try:
            said = await asyncio.to_thread(read_roster, self._path)
            await self._fleet.change(lambda roster: roster.as_a_file_says(said.workers, said.epoch))
        except TopologyError as error:
            return str(error)
        except RequestError as error:
            return f"{self._path}: {error}"
        return None
