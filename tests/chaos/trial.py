"""One trial: a workload on a fleet in a storm, and what came of it."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from chaos.client import Client
from chaos.expectation import BOUND, Expectation, Expected
from chaos.fleet import Fleet, Shape, idle
from chaos.ledger import Ending, Ledger
from chaos.storm import Storm, kills
from chaos.workload import Workload

AT_ONCE = 24
"""Requests under way at a time."""

LAST = 80
"""Percent of the requests that have begun at the last strike: it needs somebody to be struck, and load."""

GRACE = 1.0
"""Seconds after a lease's time until the last block must be free."""


@dataclass(kw_only=True)
class Report:
    """What came of a trial."""

    shape: Shape
    requests: int
    margin: float
    expected_tokens: int
    ledger: Ledger
    moments: int
    """Strikes that were asked for."""
    strikes: Counter[str]
    audits: dict[str, dict[str, int]]
    incarnations: dict[str, int]
    quiet: float | None
    totals: dict[str, float]
    faults: list[str]
    exits: dict[str, int]
    seconds: dict[str, float]
    errors: list[str]

    def check(self) -> None:
        """All that must hold.

        Raises:
            AssertionError: Something did not.
        """
        assert self.margin > BOUND
        assert not self.ledger.wrong, "\n".join(self.ledger.wrong[:5])
        assert not self.ledger.unexplained, "\n".join(map(str, self.ledger.unexplained))
        assert len(self.ledger.endings) == self.requests
        assert not self.faults, "\n".join(self.faults)
        assert not self.errors, "\n".join(self.errors)
        assert self.quiet is not None, f"blocks are still held: {self.audits}"
        assert all(idle(audit) for audit in self.audits.values()), self.audits
        assert set(self.exits.values()) == {0}, self.exits
        kinds = kills(self.shape)
        if self.moments >= len(kinds):
            assert all(self.strikes[str(kind)] for kind in kinds), self.strikes
        totals = self.totals
        assert totals["prefix_cache_hits_total"] <= totals["prefix_cache_queries_total"]
        if not sum(count for name, count in self.strikes.items() if "killed" in name):
            # What a killed process had counted last is not known.
            assert totals["kv_transfers_sent_total"] >= totals["kv_transfers_received_total"]
            assert totals["kv_bytes_sent_total"] >= totals["kv_bytes_received_total"] > 0

    @property
    def _slowest(self) -> list[Ending]:
        return sorted(self.ledger.endings, key=lambda ending: -ending.seconds)[:3]

    def __str__(self) -> str:
        """For people."""
        shape, ledger, totals = self.shape, self.ledger, self.totals
        finished = [ending for ending in ledger.endings if ending.how == "finished"]
        unfinished = sum(ending.tokens for ending in ledger.endings if ending.how != "finished")
        lines = [
            f"{self.requests} requests, {shape.prefill} prefill x {shape.prefill_ranks} rank(s), "
            f"{shape.decode} decode x {shape.decode_ranks} rank(s), transports {', '.join(shape.transports)}, "
            f"on the prefill side {', '.join(shape.prefill_transports)}",
            f"  finished {ledger.count('finished')}, all as expected token for token ({self.expected_tokens} tokens "
            f"were expected in all, least margin {self.margin:.1e}); "
            f"{sum(ending.retries > 0 for ending in finished)} of them went on elsewhere",
            f"  failed with a reason {ledger.count('failed')}, aborted {ledger.count('aborted')}; their {unfinished} "
            "tokens begin the expected answers",
            *(f"    {count:4} {how}: {kind}" for (how, kind), count in sorted(ledger.kinds.items()) if kind),
            "  slowest: " + ", ".join(f"{e.seconds:.1f} s {e.way} {e.how} {e.kind}" for e in self._slowest),
            f"  struck: {dict(self.strikes)}",
            "  counted: "
            + ", ".join(
                f"{name} {totals.get(key, 0):.0f}"
                for name, key in (
                    ("preemptions", "preemptions_total"),
                    ("evictions", "prefix_cache_evictions_total"),
                    ("prefix hits", "prefix_cache_hits_total"),
                    ("of tokens", "prefix_cache_queries_total"),
                    ("hand-offs", "kv_transfers_received_total"),
                    ("broken off", "kv_transfers_failed_total"),
                    ("refused", "kv_transfers_refused_total"),
                    ("leases expired", "kv_leases_expired_total"),
                    ("reservations expired", "kv_reservations_expired_total"),
                    ("steps", "engine_steps_total"),
                )
            ),
            f"  all blocks free {'never' if self.quiet is None else f'{self.quiet:.2f} s'} after the last request",
            *(f"    {name} (process {self.incarnations[name]}): {audit}" for name, audit in self.audits.items()),
            "  seconds: " + ", ".join(f"{name} {seconds:.1f}" for name, seconds in self.seconds.items()),
        ]
        return "\n".join(lines)


async def trial(folder: Path, logs: Path, shape: Shape, seed: int, requests: int, strikes: int) -> Report:
    """Run one.

    Args:
        folder: The model's.
        logs: Where the processes' output goes.
        shape: Of the fleet.
        seed: Of everything that is random.
        requests: How many.
        strikes: How often an instance is killed or frozen.
    """
    rng, clock = random.Random(seed), _Clock()
    expecting = asyncio.create_task(asyncio.to_thread(_expected, folder, seed, requests))
    async with Fleet(shape, folder, logs) as fleet:
        clock.lap("start")
        expected = await expecting
        clock.lap("expectation")
        ledger = Ledger()
        storm = Storm(fleet, rng, [rng.randrange(1, requests * LAST // 100) for _ in range(strikes)])
        await _perform(expected, Client(fleet, ledger), storm)
        clock.lap("load")
        await storm.over()
        quiet = await fleet.quiet(shape.lease + GRACE)
        clock.lap("quiet")
        audits = await fleet.audits()
        await fleet.look()
    clock.lap("stop")
    return Report(
        shape=shape,
        requests=requests,
        margin=min(one.margin for one in expected),
        expected_tokens=sum(len(answer.tokens) for one in expected for answer in one.answers),
        ledger=ledger,
        moments=strikes,
        strikes=storm.counts,
        audits=audits,
        incarnations={instance.name: instance.incarnation for instance in fleet.instances},
        quiet=quiet,
        totals=fleet.totals(),
        faults=fleet.faults,
        exits=fleet.exits,
        seconds=clock.laps,
        errors=_errors(logs),
    )


def _expected(folder: Path, seed: int, requests: int) -> list[Expected]:
    return Expectation(folder).settle(Workload(seed), requests)


async def _perform(expected: list[Expected], client: Client, storm: Storm) -> None:
    """All jobs, so many at a time."""
    left = iter(enumerate(expected))

    async def work() -> None:
        for number, one in left:
            storm.tick(number)
            await client.perform(one)

    await asyncio.gather(*(work() for _ in range(AT_ONCE)))


def _errors(logs: Path) -> list[str]:
    """Lines of the processes' logs that should not be there; a killed rank's instance says so."""
    lines = [(path.name, line) for path in sorted(logs.glob("*.log")) for line in path.read_text().splitlines()]
    return [f"{name}: {line}" for name, line in lines if " ERROR " in line and "the instance cannot go on" not in line]


class _Clock:
    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.monotonic()

    def lap(self, name: str) -> None:
        now = time.monotonic()
        self.laps[name], self._last = now - self._last, now
