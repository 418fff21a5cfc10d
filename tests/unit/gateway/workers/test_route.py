"""Who serves a request, the more of them are gone."""

from __future__ import annotations

import pytest

from tandem.gateway.request.body import ClientBody
from tandem.gateway.request.demand import Demand
from tandem.gateway.wire.worker import named
from tandem.gateway.workers.pool import Pool
from tandem.gateway.workers.route import Route

DEMAND = Demand(ClientBody.decode(b'{"prompt": "x"}'))


def pool(prefill: int, decode: int, *, down: tuple[str, ...] = ()) -> Pool:
    made = Pool(named([f"http://p{i}" for i in range(prefill)], [f"http://d{i}" for i in range(decode)]))
    for worker in made.workers:
        made.mark(worker, up=worker.name not in down)
    return made


def names(route: Route | None) -> tuple[str, str, str] | None:
    return route and (route.prefill.name, route.decode.name, route.kind)


@pytest.mark.parametrize(
    ("down", "planned"),
    [
        ((), ("prefill-0", "decode-0", "apart")),
        (("prefill-0",), ("decode-0", "decode-0", "decode-alone")),
        (("decode-0",), ("prefill-0", "prefill-0", "prefill-alone")),
        (("prefill-0", "decode-0"), None),
    ],
)
@pytest.mark.parametrize("how", ["down", "tried"])
def test_apart_while_there_are_both_else_alone(
    down: tuple[str, ...], planned: tuple[str, str, str] | None, how: str
) -> None:
    shared = pool(1, 1, down=down if how == "down" else ())
    tried = [worker for worker in shared.workers if how == "tried" and worker.name in down]
    assert names(Route.plan(shared, DEMAND, tried)) == planned


def test_one_that_does_both_is_always_alone() -> None:
    shared = pool(0, 2)
    assert names(Route.plan(shared, DEMAND)) == ("decode-0", "decode-0", "both")
    assert names(Route.plan(shared, DEMAND)) == ("decode-1", "decode-1", "both")
    assert Route.plan(shared, DEMAND, shared.workers) is None


def test_the_client_learns_names_and_no_addresses() -> None:
    route = Route.plan(pool(1, 1), DEMAND)
    assert route is not None
    assert route.headers == {
        "X-Tandem-Prefill": "prefill-0",
        "X-Tandem-Decode": "decode-0",
        "X-Tandem-Route": "apart",
    }
    assert len(route.workers) == 2


def test_a_short_prompt_is_left_to_decode() -> None:
    shared = Pool(pool(1, 1).workers, policy="prefix_aware", short_tokens=100)
    for worker in shared.workers:
        shared.mark(worker, up=True)
    long = Demand(ClientBody.decode(b'{"prompt": "%s"}' % (b"x" * 4096)))
    assert names(Route.plan(shared, DEMAND)) == ("decode-0", "decode-0", "short")
    assert names(Route.plan(shared, long)) == ("prefill-0", "decode-0", "apart")
    assert names(Route.plan(shared, long)) == ("decode-0", "decode-0", "short")  # its blocks are there now


def test_partners_that_cannot_hand_over_serve_alone() -> None:
    shared = pool(1, 1)
    for worker, digest in zip(shared.workers, ("old", "new"), strict=True):
        shared.learn(worker, (), digest)
    assert names(Route.plan(shared, DEMAND)) == ("decode-0", "decode-0", "decode-alone")
