"""How full workers are, by their metrics."""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import Any, cast

import pytest

from tandem.gateway.admission.capacity_watch import CapacityWatch
from tandem.gateway.wire.peer import Peers
from tandem.gateway.wire.worker import named
from tandem.gateway.workers.pool import Pool

PAGE = b"tandem_kv_blocks_total 10\ntandem_kv_blocks_free 10\ntandem_kv_block_tokens 16\n"


class Answers:
    """Everybody tells; one brings out a bug."""

    async def ask(self, url: str, *_: Any, **__: Any) -> tuple[int, bytes]:
        if url == "http://odd":
            raise OverflowError("too large")
        return HTTPStatus.OK, PAGE


def test_an_answer_that_brings_out_a_bug_leaves_the_others_read(caplog: pytest.LogCaptureFixture) -> None:
    pool = Pool(named([], ["http://odd", "http://d"]))
    for worker in pool.workers:
        pool.mark(worker, up=True)
    asyncio.run(CapacityWatch(pool, cast("Peers", Answers()), 1.0).look())
    assert pool.vitals(pool.workers[1]).capacity.total == 160
    assert "decode-0 could not be asked for its room" in caplog.text
