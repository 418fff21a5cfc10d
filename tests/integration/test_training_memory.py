"""The memory plan against the peak of real processes, one for each rank, that begin and train as a run does."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).parents[2] / "benchmarks/training_memory.py"
CASES = {
    0: "llama", 1: "recompute", 2: "lora", 3: "lora-recompute", 4: "lora-bfloat16", 5: "qwen-micro-batches",
    6: "qwen-lora", 7: "baichuan-bfloat16", 8: "mixtral", 9: "wide", 10: "wide-2-ranks", 11: "wide-3-ranks",
    12: "llama-2-ranks", 13: "lora-2-ranks", 14: "lora-3-ranks",
}  # fmt: skip


@pytest.mark.full
@pytest.mark.parametrize("case", CASES, ids=CASES.values())
def test_the_plan_is_within_fifteen_percent_of_the_peak(case: int) -> None:
    command = [sys.executable, str(BENCHMARK), "--case", str(case), "--json"]
    told = json.loads(subprocess.run(command, capture_output=True, text=True, check=True, timeout=600).stdout)
    assert told["plan"]["total"] == pytest.approx(told["measured"], rel=0.15)
