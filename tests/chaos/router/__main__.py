"""Attack a router and print the table: `PYTHONPATH=tests python -m chaos.router --dialect vllm --rows prefill-dead`."""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import sys
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import uvloop

from chaos.router import table
from chaos.router.cluster import Ports, Real
from chaos.router.command import TANDEM, command
from chaos.router.rows import ROWS, Row, named
from chaos.router.trial import Result, Setting, play, stage
from tandem.catalogue.config import GQA
from tandem.catalogue.position import Rope


def arguments() -> argparse.Namespace:
    """What was asked for; exits with 2 when it makes no sense."""
    parser = argparse.ArgumentParser(prog="chaos.router", description=__doc__)
    parser.add_argument("--dialect", choices=("vllm", "native"), default="vllm", help="what the mock instances speak")
    parser.add_argument("--engine", choices=("tandem", "vllm"), help="real instances of it in place of mocks")
    parser.add_argument("--model", type=Path, help="their model's folder; default: a small random one")
    parser.add_argument("--rows", nargs="+", metavar="NAME", help="default: all")
    parser.add_argument("--list", action="store_true", help="name the rows")
    parser.add_argument("--json", action="store_true", help="one JSON document on standard output")
    parser.add_argument("--router", default=TANDEM, help="COMMAND with {prefill} {decode} {port}; default: tandem's")
    parser.add_argument("--limit", type=float, help="seconds a client waits at most, where a row's own limit is longer")
    parser.add_argument("--lease", type=float, default=30.0, help="seconds a ticket waits to be pulled")
    parser.add_argument("--strict", action="store_true", help="stranded tickets fail a row in the vllm dialect, too")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--ports", default="26000-26999", help="range to listen on")
    parser.add_argument("--logs", type=Path, help="folder to keep the processes' output in")
    given = parser.parse_args()
    try:
        given.rows = named(given.rows)
        if given.engine:
            given.rows = [row for row in given.rows if not row.mocks_only]
        command(given.router, ["http://h:1"], ["http://h:2"], 3, 4)
        low, _, high = given.ports.partition("-")
        given.ports = Ports(range(int(low), int(high) + 1))
    except ValueError as error:
        parser.error(str(error))
    return given


def random_model(folder: Path) -> Path:
    """A small one that both engines take: vLLM's attention on a CPU wants heads of 32 numbers and more."""
    from tiny import TINY, write_model

    sizes = {"hidden_size": 128, "attention": GQA(heads=4, kv_heads=2, head_dim=32)}
    return write_model(replace(TINY, **sizes, position=Rope(theta=1e4, dims=32)), folder)


async def run(rows: list[Row], setting: Setting, *, quiet: bool) -> list[Result]:
    """Play the rows, one after the other, and print each."""
    results = []
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)  # so that no process stays behind
    if not quiet:
        print(table.heading(), flush=True)
    async with stage(setting) as there:
        for row in rows:
            results.append(await play(row, setting, there))
            if not quiet:
                print(table.line(results[-1]), flush=True)
    return results


def main() -> int:
    """0 when every row passed, 1 when one did not."""
    given = arguments()
    if given.list:
        print("\n".join(f"{row.name:22} {row.title}" for row in ROWS))
        return 0
    with TemporaryDirectory() as folder:
        setting = Setting(
            router=given.router,
            dialect={"tandem": "native", "vllm": "vllm"}.get(given.engine, given.dialect),
            real=given.engine and Real(given.engine, given.model or random_model(Path(folder))),
            logs=given.logs or Path(folder),
            ports=given.ports,
            seed=given.seed,
            lease_s=given.lease,
            patience_s=given.limit,
            strict=given.strict,
        )
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            results = runner.run(run(given.rows, setting, quiet=given.json))
    if given.json:
        json.dump(table.as_json(results), sys.stdout, indent=1)
    else:
        said = [f"- {result.row}: {remark}" for result in results for remark in table.remarks(result)]
        print("", *said, "", table.footing(results), sep="\n")
    return 0 if all(result.passed for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
