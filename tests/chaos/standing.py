"""A fleet that stands for a whole test module, for tests that are no coroutines."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import uvloop

from chaos.fleet import Fleet, Shape, idle
from chaos.instance import Instance

T = TypeVar("T")


class Standing:
    """A running fleet of one prefill and one decode instance, and the event loop it is asked from."""

    def __init__(self, fleet: Fleet, runner: asyncio.Runner) -> None:
        self.fleet = fleet
        self.prefill: Instance = fleet.of("prefill")[0]
        self.decode: Instance = fleet.of("decode")[0]
        self._runner = runner

    def do(self, work: Coroutine[Any, Any, T]) -> T:
        return self._runner.run(work)

    async def ask(
        self, instance: Instance, body: dict[str, Any], path: str = "/v1/completions", **headers: str
    ) -> tuple[int, dict[str, Any]]:
        """Status and answer."""
        async with self.fleet.http.post(instance.url + path, json=body, headers=headers) as answer:
            return answer.status, await answer.json()

    async def all_idle(self) -> bool:
        """Whether nobody holds a block on either side."""
        return all(idle(audit) for audit in (await self.fleet.audits()).values())


@contextmanager
def standing(shape: Shape, folder: Path, logs: Path) -> Iterator[Standing]:
    """Start and stop one; afterwards nothing may have gone wrong in it."""
    fleet = Fleet(shape, folder, logs)
    # The instances' own event loop. asyncio's (seen with 3.11) leaks a connection that arrives as its server closes.
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(fleet.__aenter__())
        try:
            yield Standing(fleet, runner)
            runner.run(fleet.look())
        finally:
            runner.run(fleet.__aexit__())
    assert fleet.faults == []
