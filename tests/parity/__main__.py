"""Print how far the decoder is from its references, and how little a changed field moves it."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from transformers.utils.logging import disable_progress_bar

from parity.cases import CASES
from parity.measure import measure
from parity.mutations import BASES, REFUSED, rows

disable_progress_bar()

print(f"{'case':36} {'prefill':>9} {'served':>9} {'std':>6}")
for case in CASES:
    with TemporaryDirectory() as folder:
        distance = measure(case, Path(folder) / "model")
    print(f"{case.name:36} {distance.whole:9.1e} {distance.served:9.1e} {distance.spread:6.2f}")

print(f"\n{'base':36} {'fields':>6} {'refused':>7} {'inert':>6} {'weakest':>9}")
for base in BASES:
    with TemporaryDirectory() as folder:
        found = list(rows(base, Path(folder) / "model"))
    refused = sum(row.movement == REFUSED for row in found)
    moved = [row for row in found if not row.inert and row.movement < REFUSED]
    weakest = min(moved, key=lambda row: row.movement)
    inert = sum(bool(row.inert) for row in found)
    counts = f"{len(found):6} {refused:7} {inert:6}"
    print(f"{base.name + ' (saved)' * base.saved:36} {counts} {weakest.movement:9.1e} {weakest.field}")
