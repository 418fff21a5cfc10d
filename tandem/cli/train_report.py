"""`tandem train report`: how a run went, from what it left in its folder."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter


def report(run: str, /, *, json: Annotated[bool, Parameter(negative="")] = False) -> None:
    """Show how a run went: steps, loss, speed, MFU, interruptions, what was skipped.

    Args:
        run: Its folder, or one stage's; or where that is on an object store, as s3://BUCKET/KEY.
        json: Print as JSON.
    """
    import os
    from dataclasses import asdict
    from json import dumps

    from rich.console import Console

    from tandem.storage.glance import glance
    from tandem.training.progress import Silence
    from tandem.training.watch.report import FILES, draw_report, summaries

    with glance(run, FILES, os.environ, Silence()) as folder:
        found = summaries(folder)
    if json:
        print(dumps([asdict(summary) for summary in found], indent=2))
        return
    console = Console()
    console.print(draw_report(found))
    for file in dict.fromkeys(str(file) for summary in found for file in summary.skipped_rows or ()):
        console.print(file, markup=False, highlight=False, soft_wrap=True)
    for formula in dict.fromkeys(summary.formula for summary in found if summary.formula):
        console.print(formula, markup=False, highlight=False, soft_wrap=True)
