"""Run one trial and print what came of it: `PYTHONPATH=tests python -m chaos --requests 1000 --seed 7`."""

from __future__ import annotations

import argparse
import asyncio
import os
from pathlib import Path
from tempfile import TemporaryDirectory

os.environ.setdefault("OMP_NUM_THREADS", "1")

from tiny import TINY, write_model

from chaos.fleet import Shape
from chaos.trial import trial

parser = argparse.ArgumentParser(prog="chaos")
parser.add_argument("--requests", type=int, default=200)
parser.add_argument("--seed", type=int, default=7)
parser.add_argument("--strikes", type=int, default=None, help="default: one for every 40 requests")
parser.add_argument("--tensor-parallel", type=int, default=1, help="ranks of every instance")
parser.add_argument("--prefill-ranks", type=int, default=None)
parser.add_argument("--decode-ranks", type=int, default=None)
parser.add_argument("--prefill", type=int, default=None, help="instances; default: 2, or 1 with several ranks")
parser.add_argument("--decode", type=int, default=None)
parser.add_argument("--transports", default="shm,tcp", help="of the decode instances, in turn")
parser.add_argument("--prefill-transports", default="auto", help="of the prefill instances, in turn")
parser.add_argument("--model", type=Path, default=None, help="default: a small random one")
given = parser.parse_args()

ranks = (given.prefill_ranks or given.tensor_parallel, given.decode_ranks or given.tensor_parallel)
several = 2 if max(ranks) == 1 else 1
shape = Shape(
    prefill=given.prefill or several,
    decode=given.decode or several,
    prefill_ranks=ranks[0],
    decode_ranks=ranks[1],
    transports=tuple(given.transports.split(",")),
    prefill_transports=tuple(given.prefill_transports.split(",")),
)
strikes = given.requests // 40 if given.strikes is None else given.strikes
with TemporaryDirectory() as folder:
    model, logs = given.model or write_model(TINY, Path(folder)), Path(folder) / "logs"
    logs.mkdir()
    report = asyncio.run(trial(model, logs, shape, given.seed, given.requests, strikes))
print(report)
report.check()
