"""Who is up, by their health checks."""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import Any, cast

import pytest

from tandem.gateway.wire.peer import Peers
from tandem.gateway.wire.worker import named
from tandem.gateway.workers.health import HealthWatch
from tandem.gateway.workers.pool import Pool


class Answers:
    """Everybody is well; one brings out a bug."""

    async def ask(self, url: str, *_: Any, **__: Any) -> tuple[int, bytes]:
        if url == "http://odd":
            raise OverflowError("too large")
        return HTTPStatus.OK, b"{}"


def test_an_answer_that_brings_out_a_bug_leaves_the_others_checked(caplog: pytest.LogCaptureFixture) -> None:
    pool = Pool(named([], ["http://odd", "http://d"]))
    asyncio.run(HealthWatch(pool, cast("Peers", Answers()), 1.0).check())
    assert [pool.is_up(worker) for worker in pool.workers] == [False, True]
    assert "decode-0 could not be checked" in caplog.text
