"""A second prefill beside one that is late: the first ticket counts, and the other prefill is released."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest
from fake_worker import early_ticket, never, whole_with_ticket, words
from gateway_rig import BODY, EARLY, SOON_S, Rig, rigged, trial, until

from tandem.gateway.workers import budget
from tandem.gateway.workers.breaker import FAILURES_TO_OPEN
from tandem.gateway.workers.patience import Patience

NAMED = (*EARLY, "named_ticket")
HASTY = Patience(hedge_seconds=0.05)
STREAM = BODY | {"stream": True}


async def at_once(_: Any, __: dict[str, Any]) -> Any:
    """The rest of a prefill that takes no time."""


prompt_ticket = early_ticket(at_once)


def name_of(body: dict[str, Any]) -> str:
    return str(body["kv_transfer_params"]["remote_request_id"])


async def is_released(rig: Rig, prefill: int) -> bool:
    worker = rig.prefills[prefill]
    return await asyncio.wait_for(worker.released.get(), SOON_S) == name_of(worker.bodies[0])


@trial
async def test_a_prefill_that_is_frozen_costs_its_client_a_moment_and_no_more() -> None:
    async with rigged(prefill=(never, prompt_ticket), capabilities=NAMED, patience=HASTY) as rig:
        began = time.monotonic()
        async with rig.post(STREAM) as response:
            assert (response.status, response.headers["X-Tandem-Prefill"]) == (200, "prefill-1")
            assert (await response.text()).endswith("data: [DONE]\n\n")
        assert time.monotonic() - began < Patience().suspect_seconds
        assert await is_released(rig, 0)
        await asyncio.wait_for(rig.prefill.aborted.wait(), SOON_S)
        assert await rig.metric('tandem_gateway_hedges_total{worker="prefill-0",first="other"}') == 1
        assert await rig.metric("tandem_gateway_worker_failures_total") == 0
        assert await rig.metric("tandem_gateway_retries_in_flight") == 0
        await rig.gateway._legs.finish()
        assert rig.prefills[1].released.empty()


@trial
async def test_who_answers_health_checks_and_gives_no_ticket_is_left_alone_after_a_while() -> None:
    async with rigged(prefill=(never, prompt_ticket), capabilities=NAMED, patience=HASTY) as rig:
        for _ in range(2 * FAILURES_TO_OPEN):
            async with rig.post(BODY) as response:
                assert response.headers["X-Tandem-Prefill"] == "prefill-1"
        assert len(rig.prefill.bodies) == FAILURES_TO_OPEN
        assert rig.gateway.pool.breaker_state(rig.gateway.pool.workers[0]) == "open"


@trial
async def test_who_was_late_may_still_be_first() -> None:
    go_on = asyncio.Event()

    async def late(request: Any, body: dict[str, Any]) -> Any:
        await go_on.wait()
        return await prompt_ticket(request, body)

    async with rigged(prefill=(late, never), capabilities=NAMED, patience=HASTY) as rig:
        asking = asyncio.create_task(rig.post(BODY).__aenter__())
        await asyncio.wait_for(rig.prefills[1].arrived.wait(), SOON_S)
        go_on.set()
        async with await asking as response:
            assert (response.status, response.headers["X-Tandem-Prefill"]) == (200, "prefill-0")
        assert await is_released(rig, 1)
        assert await rig.metric('tandem_gateway_hedges_total{worker="prefill-0",first="late"}') == 1


@trial
async def test_a_client_that_leaves_leaves_neither_behind() -> None:
    async with rigged(prefill=(never, never), capabilities=NAMED, patience=HASTY) as rig:
        asking = asyncio.create_task(rig.post(BODY).__aenter__())
        await asyncio.wait_for(rig.prefills[1].arrived.wait(), SOON_S)
        asking.cancel()
        assert await is_released(rig, 0)
        assert await is_released(rig, 1)

        async def nobody_tries_twice() -> bool:
            return not rig.gateway._budget.retrying

        await asyncio.wait_for(until(nobody_tries_twice), 1)


@trial
async def test_one_that_fails_meanwhile_is_counted_and_the_other_one_waited_for() -> None:
    async def dies(request: Any, _: dict[str, Any]) -> Any:
        await asyncio.wait_for(rig.prefills[1].arrived.wait(), SOON_S)
        request.transport.abort()
        raise ConnectionResetError

    async def late(request: Any, body: dict[str, Any]) -> Any:
        await asyncio.sleep(0.1)
        return await prompt_ticket(request, body)

    async with rigged(prefill=(dies, late), capabilities=NAMED, patience=HASTY) as rig:
        async with rig.post(BODY) as response:
            assert (response.status, response.headers["X-Tandem-Prefill"]) == (200, "prefill-1")
        assert await rig.metric('tandem_gateway_worker_failures_total{worker="prefill-0"}') == 1
        assert await rig.metric("tandem_gateway_retries_total") == 0


@pytest.mark.parametrize("told", [(), (0,), (1,)])
def test_nobody_is_asked_beside_another_where_either_cannot_be_told(told: tuple[int, ...]) -> None:
    @trial
    async def scenario() -> None:
        async def late(request: Any, body: dict[str, Any]) -> Any:
            await asyncio.sleep(4 * HASTY.hedge_seconds)
            return await whole_with_ticket(request, body)

        async with rigged(prefill=(late, late), decode=words, patience=HASTY) as rig:
            for place in told:
                rig.gateway.pool.learn(rig.gateway.pool.workers[place], ("release", "named_ticket"))
            async with rig.post(BODY) as response:
                assert response.headers["X-Tandem-Prefill"] == "prefill-0"
            assert rig.prefills[1].bodies == []
            assert await rig.metric("tandem_gateway_retries_in_flight") == 0

    scenario()


def test_nobody_is_asked_where_the_budget_is_used_up(monkeypatch: pytest.MonkeyPatch) -> None:
    @trial
    async def scenario() -> None:
        async def late(request: Any, body: dict[str, Any]) -> Any:
            await asyncio.sleep(0.2)
            return await prompt_ticket(request, body)

        async with rigged(prefill=(late, late), capabilities=NAMED, patience=HASTY) as rig:
            async with rig.post(BODY) as response:
                assert response.headers["X-Tandem-Prefill"] == "prefill-0"
            assert rig.prefills[1].bodies == []

    monkeypatch.setattr(budget, "AT_LEAST", 0)
    monkeypatch.setattr(budget, "SHARE", 0.0)
    scenario()


@trial
async def test_a_late_one_that_answers_no_health_check_is_down_at_once() -> None:
    patience = Patience(hedge_seconds=0.05, probe_seconds=0.05)
    async with rigged(prefill=(prompt_ticket, prompt_ticket), capabilities=NAMED, patience=patience) as rig:
        rig.prefill.frozen = True
        async with rig.post(BODY) as response:
            assert response.headers["X-Tandem-Prefill"] == "prefill-1"

        async def is_down() -> bool:
            return not rig.gateway.pool.is_up(rig.gateway.pool.workers[0])

        await until(is_down)
