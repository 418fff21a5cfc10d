"""How long rank tables of a large service take: made, written, merged, read and checked.

By default 128 hosts of 16 devices, each with two prefill instances and one decode instance: 513 files, and the merged
one. Medians over the rounds, in seconds. Writing waits for the disk once per file, since a table is whole or not there,
so it is told apart from the rest, which is arithmetic.

    python benchmarks/rank_tables.py
    python benchmarks/rank_tables.py --hosts 512 --json
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tandem.topology.rank_table import read_global_table, write_table
from tandem.topology.rank_table_check import check_files
from tandem.topology.rank_table_merge import merge
from tandem.topology.rank_table_set import RankTableSet, generate, save

DEVICES = 16


def tables_of(host: int) -> RankTableSet:
    """One host's tables."""
    quarter, half = DEVICES // 4, DEVICES // 2
    return generate(
        prefill=[list(range(quarter)), list(range(quarter, half))],
        decode=[list(range(half, DEVICES))],
        api_server=host == 0,
        local_ip=f"10.{host // 65536}.{host // 256 % 256}.{host % 256}",
    )


def measure(hosts: int, folder: Path) -> dict[str, float]:
    """Seconds of each part."""
    times: dict[str, float] = {}

    @contextmanager
    def part(name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        times[name] = time.perf_counter() - start

    merged = folder / "merged.json"
    with part("generate"):
        sets = [tables_of(host) for host in range(hosts)]
    with part("write"):
        paths = save(sets, folder)
    global_paths = [path for path in paths if path.name.startswith("global_")]
    local_paths = [path for path in paths if path.name.startswith("local_")]
    with part("merge"):
        tables = [(str(path), read_global_table(path)) for path in global_paths]
        write_table(merge(tables), merged)
    with part("check"):
        findings = check_files(merged, local_paths)
    assert not findings, findings
    return {**times, "all": sum(times.values()), "all but write": sum(times.values()) - times["write"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hosts", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rounds = []
    for _ in range(options.rounds):
        with tempfile.TemporaryDirectory() as folder:
            rounds.append(measure(options.hosts, Path(folder)))
    seconds = {name: statistics.median(one[name] for one in rounds) for name in rounds[0]}
    if options.json:
        print(
            json.dumps({"hosts": options.hosts, "devices": DEVICES, "rounds": options.rounds, "s": seconds}, indent=2)
        )
        return
    for name, value in seconds.items():
        print(f"{name:14}{value:8.3f} s")


if __name__ == "__main__":
    main()
