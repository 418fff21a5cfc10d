"""The rows of the table: what is done to whom and when, under which load."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

from chaos.router.router_process import kill_router_process
from chaos.router.strikes import (
    Strike,
    black_hole,
    fault,
    freeze,
    half_open,
    kill,
    kill_all,
    once,
    rolling_restart,
    settings,
    several,
)

STREAMS: Final = 40
CROWD: Final = 112
"""So many that each of two decode instances has 40 at a time, even where one in eight is refused for its `n`."""
PATIENCE_S: Final = 30.0
"""What a client waits in all where the row does not say otherwise."""

SLOW_PREFILL: Final = {"prefill_s": 0.6}
"""So that there is a middle to strike at."""
SLOW_STEPS: Final = {"step_s": 0.03}
MIDWAY: Final = 60
"""Tokens that all of the victim's streams have told together when it is struck in the middle of them."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row."""

    name: str
    title: str
    before: Strike | None = None
    """Done while the router is idle, after it has served every instance's first requests."""
    midway: Strike | None = None
    """Done while the load goes on; it waits for its moment itself."""
    streams: int = STREAMS
    sequential: bool = False
    """One request at a time; else all at once."""
    every_s: float = 0.0
    """Between the beginnings of two requests."""
    limit_s: float = PATIENCE_S
    settings: dict[str, Any] = field(default_factory=dict)
    """Of all instances."""
    options: str = ""
    """Of tandem's gateway; another router must be started as the row needs it."""
    mocks_only: bool = False
    """Whether no real instance of ours does what it is about."""


ROWS: Final = (
    Row(name="undisturbed", title="nothing happens"),
    Row(
        name="final-ticket",
        title="answers of decode end with kv_transfer_params of their own",
        before=settings("decode", final_ticket=True),
        mocks_only=True,
    ),
    Row(name="prefill-500", title="one prefill returns 500", before=fault("prefill", "status", status=500)),
    Row(
        name="prefill-500-seq",
        title="one prefill returns 500, one request at a time",
        before=fault("prefill", "status", status=500),
        sequential=True,
    ),
    Row(
        name="prefill-503",
        title="one prefill returns 503 three times",
        before=fault("prefill", "status", status=503, count=3),
    ),
    Row(
        name="prefill-503-seq",
        title="one prefill returns 503 three times, one request at a time",
        before=fault("prefill", "status", status=503, count=3),
        sequential=True,
    ),
    Row(name="prefill-dead", title="one prefill dead", before=kill("prefill")),
    Row(
        name="prefill-dead-seq",
        title="one prefill dead, one request at a time",
        before=kill("prefill"),
        sequential=True,
    ),
    Row(
        name="prefill-killed",
        title="one prefill killed mid-prefill",
        midway=once("prefill", "prefilling", kill("prefill"), least=5),
        settings=SLOW_PREFILL,
    ),
    Row(name="prefill-frozen", title="one prefill frozen, 8 s client limit", before=freeze("prefill"), limit_s=8.0),
    Row(
        name="prefill-frozen-midway",
        title="one prefill frozen mid-prefill, 8 s client limit",
        midway=once("prefill", "prefilling", freeze("prefill"), least=5),
        settings=SLOW_PREFILL,
        limit_s=8.0,
    ),
    Row(name="prefill-empty", title="one prefill returns 200 and nothing", before=fault("prefill", "empty")),
    Row(name="prefill-resets", title="one prefill resets connections", before=fault("prefill", "reset")),
    Row(
        name="prefill-half-open",
        title="all connections to one prefill go dead mid-prefill",
        midway=once("prefill", "prefilling", half_open("prefill"), least=5),
        settings=SLOW_PREFILL,
    ),
    Row(name="prefill-slow", title="one prefill answers at 1 byte/s", before=fault("prefill", "slow")),
    Row(name="prefill-black-hole", title="one prefill cannot be connected to", before=black_hole("prefill")),
    Row(name="decode-500", title="one decode returns 500", before=fault("decode", "status", status=500)),
    Row(
        name="decode-500-seq",
        title="one decode returns 500, one request at a time",
        before=fault("decode", "status", status=500),
        sequential=True,
    ),
    Row(name="decode-dead", title="one decode dead", before=kill("decode")),
    Row(name="decode-dead-seq", title="one decode dead, one request at a time", before=kill("decode"), sequential=True),
    Row(name="decode-resets", title="one decode resets connections", before=fault("decode", "reset")),
    Row(
        name="decode-resets-seq",
        title="one decode resets connections, one request at a time",
        before=fault("decode", "reset"),
        sequential=True,
    ),
    Row(name="decode-empty", title="one decode returns 200 and nothing", before=fault("decode", "empty")),
    Row(
        name="decode-cut",
        title="one decode ends streams cleanly and early, without [DONE]",
        before=fault("decode", "cut cleanly", after=6),
    ),
    Row(name="decode-broken", title="one decode resets streams midway", before=fault("decode", "cut", after=6)),
    Row(
        name="decode-killed",
        title="one decode killed mid-stream with 40 streams on it",
        midway=once("decode", "decoding", kill("decode"), least=STREAMS, tokens=2 * MIDWAY),
        settings={"step_s": 0.06},
        streams=CROWD,
    ),
    Row(name="decode-frozen", title="one decode frozen", before=freeze("decode")),
    Row(
        name="decode-frozen-midway",
        title="one decode frozen mid-stream",
        midway=once("decode", "decoding", freeze("decode"), least=5, tokens=MIDWAY),
        settings=SLOW_STEPS,
    ),
    Row(
        name="decode-half-open",
        title="all connections to one decode go dead mid-stream",
        midway=once("decode", "decoding", half_open("decode"), least=5, tokens=MIDWAY),
        settings=SLOW_STEPS,
    ),
    Row(name="decode-slow", title="one decode answers at 1 byte/s", before=fault("decode", "slow")),
    Row(name="decode-black-hole", title="one decode cannot be connected to", before=black_hole("decode")),
    Row(
        name="all-prefill-dead",
        title="all prefill dead; decode may compute prompts",
        before=several(settings("decode", lone=True), kill_all("prefill")),
    ),
    Row(
        name="rolling-restart",
        title="all four restarted in turn under load",
        midway=rolling_restart,
        settings=SLOW_STEPS,
        every_s=0.4,
    ),
    Row(
        name="router-process-killed",
        title="one of two processes of the router killed mid-stream",
        midway=once("decode", "decoding", kill_router_process, least=5, tokens=MIDWAY),
        settings=SLOW_STEPS,
        options=" --workers 2",
    ),
)


def named(names: list[str] | None) -> list[Row]:
    """Rows by name; all of them by default.

    Raises:
        ValueError: There is no row of some name.
    """
    known = {row.name: row for row in ROWS}
    if unknown := [name for name in names or () if name not in known]:
        raise ValueError(f"no row is named {', '.join(unknown)}; there are {', '.join(known)}")
    return [known[name] for name in names] if names else list(ROWS)
