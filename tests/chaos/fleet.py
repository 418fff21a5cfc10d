"""All instances of a trial: they start together, are chosen from, watched, audited, and stopped."""

from __future__ import annotations

import asyncio
import random
from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import aiohttp

from chaos.instance import GoneError, Instance

Side = Literal["prefill", "decode"]

BROKEN = ("leaked", "torn", "doubly_owned")
BUSY = ("sequences", "leases", "reservations", "pulls")
WATCH = 0.5
"""Seconds between two looks at every instance."""

TIGHT: dict[str, Any] = {
    "max-model-len": 256,
    "block-size": 8,
    "kv-cache-gib": 64 * 8 * 768 / 2**30,
    "max-num-seqs": 12,
    "max-num-batched-tokens": 40,
    "kv-lease-seconds": 3,
    "transfer-timeout": 3,
}
"""64 blocks of 8 tokens: two of the longest requests, so that others wait, are evicted and preempted."""


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What a fleet consists of."""

    prefill: int = 2
    decode: int = 2
    prefill_ranks: int = 1
    decode_ranks: int = 1
    transports: tuple[str, ...] = ("shm", "tcp")
    """Of the decode instances, in turn."""
    prefill_transports: tuple[str, ...] = ("auto",)
    """Of the prefill instances, in turn; auto can do both shm and tcp."""
    policies: tuple[str, ...] = ("fail", "recompute")
    """What the decode instances do when a pull fails, in turn."""
    options: dict[str, Any] = field(default_factory=dict)
    """Besides those of `TIGHT`."""

    @property
    def lease(self) -> float:
        return float((TIGHT | self.options)["kv-lease-seconds"])

    def instances(self, folder: Path, logs: Path) -> list[Instance]:
        common, made = TIGHT | self.options, []
        for one in range(self.prefill):
            own = {
                "tensor-parallel-size": self.prefill_ranks,
                "kv-transport": self.prefill_transports[one % len(self.prefill_transports)],
            }
            made.append(Instance(f"prefill-{one}", "prefill", folder, logs, common | own))
        for one in range(self.decode):
            own = {
                "tensor-parallel-size": self.decode_ranks,
                "kv-transport": self.transports[one % len(self.transports)],
                "kv-load-failure-policy": self.policies[one % len(self.policies)],
            }
            made.append(Instance(f"decode-{one}", "decode", folder, logs, common | own))
        return made


class Fleet:
    """Running instances; use as an asynchronous context.

    Args:
        shape: How many, and with what options.
        folder: The model's.
        logs: Where each process's output goes.
    """

    def __init__(self, shape: Shape, folder: Path, logs: Path) -> None:
        self.shape = shape
        self.instances = shape.instances(folder, logs)
        self.metrics: dict[tuple[str, int], dict[str, float]] = {}
        """The last that was seen of every process."""
        self.faults: list[str] = []
        """What no process may do."""
        self.exits: dict[str, int] = {}

    async def __aenter__(self) -> Fleet:
        connector = aiohttp.TCPConnector(limit=0, force_close=True)
        self.http = aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(None))
        try:
            for instance in self.instances:
                instance.start()
            await asyncio.gather(*(instance.serving(self.http) for instance in self.instances))
        except BaseException:
            await self._end()
            raise
        self._watching = asyncio.create_task(self._watch())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._watching.cancel()
        await asyncio.gather(self._watching, return_exceptions=True)
        await self._end()

    async def _end(self) -> None:
        for instance in self.instances:
            instance.ask_to_stop()
        statuses = await asyncio.gather(*(instance.stopped() for instance in self.instances))
        self.exits = {instance.name: status for instance, status in zip(self.instances, statuses, strict=True)}
        await self.http.close()

    def of(self, side: Side) -> list[Instance]:
        return [instance for instance in self.instances if instance.role == side]

    async def pick(self, side: Side, rng: random.Random, avoid: Sequence[Instance] = ()) -> Instance:
        """One that serves, if possible another than those; waits until there is one."""
        while not (up := [instance for instance in self.of(side) if instance.up]):  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        return rng.choice([one for one in up if one not in avoid] or up)

    async def revive(self, instance: Instance) -> None:
        """Start one again that was killed."""
        instance.start()
        await instance.serving(self.http)

    async def audits(self) -> dict[str, dict[str, int]]:
        """Of everything that serves."""
        up = [instance for instance in self.instances if instance.up]
        counts = await asyncio.gather(*(instance.audit(self.http) for instance in up))
        return {instance.name: count for instance, count in zip(up, counts, strict=True)}

    async def quiet(self, seconds: float) -> float | None:
        """Wait until no block is held anywhere; how long that took, None if it did not happen in time."""
        loop = asyncio.get_running_loop()
        begun = loop.time()
        while True:
            counts = await self.audits()
            if len(counts) == len(self.instances) and all(idle(count) for count in counts.values()):
                return loop.time() - begun
            if loop.time() - begun > seconds:
                return None
            await asyncio.sleep(0.02)

    def totals(self) -> dict[str, float]:
        """Counters of all processes there were, as far as they were seen."""
        sums: defaultdict[str, float] = defaultdict(float)
        for metrics in self.metrics.values():
            for name, value in metrics.items():
                sums[name] += value
        return dict(sums)

    async def look(self) -> None:
        """Take every instance's counts, and see that they can be true."""
        await asyncio.gather(*(self._look(instance) for instance in self.instances if instance.up))

    async def _watch(self) -> None:
        while True:
            await self.look()
            await asyncio.sleep(WATCH)

    async def _look(self, instance: Instance) -> None:
        incarnation = instance.incarnation
        if instance.ended is not None and not instance.condemned:
            instance.up, instance.condemned = False, True
            self.faults.append(
                f"{instance.name} ended by itself with {instance.ended}: {instance.log.read_text()[-500:]}"
            )
            return
        with suppress(aiohttp.ClientError, TimeoutError, GoneError):
            audit, metrics = await asyncio.gather(instance.audit(self.http), instance.metrics(self.http))
            if any(audit[name] for name in BROKEN):
                self.faults.append(f"{instance.name}: {audit}")
            self.metrics[instance.name, incarnation] = metrics


def idle(audit: dict[str, int]) -> bool:
    """Whether an instance holds no block, and none is lost."""
    return not any(audit[name] for name in (*BROKEN, *BUSY)) and audit["free"] == audit["blocks"]
