"""What an instance counts; `/metrics` shows it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Literal

from tandem.engine.sequence import Status

Phase = Literal["prefill", "decode"]


@dataclass
class Stats:
    """Totals since the start."""

    prompt_tokens_computed: int = 0
    """Prompt tokens that went through this instance's model; on a decode instance only those of preempted requests."""
    tokens_generated: int = 0
    steps: int = 0
    seconds: dict[Phase, float] = field(default_factory=lambda: {"prefill": 0.0, "decode": 0.0})
    """Time in steps: `prefill` if any prompt token went through, otherwise `decode`."""
    ended: Counter[Status] = field(default_factory=Counter)
    """Sequences by how they ended."""
    kv_blocks_sent: int = 0
    kv_blocks_received: int = 0
    kv_transfers_sent: int = 0
    kv_transfers_received: int = 0
    kv_transfers_refused: int = 0
    """Pulls that were refused here before a block moved."""
    kv_transfers_failed: int = 0
    """Pulls that broke off, on either side."""
