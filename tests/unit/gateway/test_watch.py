"""What runs in the background outlives a bug, and ends for what is none."""

from __future__ import annotations

import asyncio

import pytest

from tandem.errors import ProcessError, TandemError, UsageError
from tandem.gateway import watch


@pytest.mark.parametrize("error", [UsageError, ProcessError])
def test_a_watch_begins_again_after_a_bug_and_ends_when_it_cannot_go_on(
    error: type[TandemError], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(watch, "PAUSE_S", 0.0)
    ends = [OverflowError("a bug"), ExceptionGroup("several", [ValueError("two")]), error("enough")]

    async def fails() -> None:
        raise ends.pop(0)

    with pytest.raises(error, match="enough"):
        asyncio.run(watch.kept_up(fails))
    assert len(caplog.records) == 2
    assert "a bug" in caplog.text


def test_a_watch_that_is_done_is_done() -> None:
    asyncio.run(watch.kept_up(lambda: asyncio.sleep(0)))
