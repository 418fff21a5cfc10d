"""Verdicts over reports as ranks of other devices, and of broken programs, would leave them."""

from __future__ import annotations

import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

import pytest

from tandem.errors import ProcessError
from tandem.training.guard.diagnosis import Last, Report, collect, report_path
from tandem.training.guard.stacks import ROOT, Place, place


def report(rank: int, collective: str | None, number: int | None = None, module: str | None = None) -> Report:
    last = None if number is None else Last(name="all_reduce", group="0", number=number)
    return Report(rank=rank, world=3, step=7, seconds=63.2, collective=collective, module=module,
                  line="step, loop.py:9", last=last)  # fmt: skip


@pytest.mark.parametrize(
    ("reports", "culprits", "verdict"),
    [
        ([report(0, "all_reduce"), report(1, None), report(2, "all_reduce")], [1], "rank 1 did not come"),
        ([report(0, None, 9), report(1, None, 9), report(2, None, 8)], [2], "rank 2 began fewer collectives"),
        ([report(0, None, 9), report(1, None, 9), report(2, None, 9)], [], "no rank is in a collective"),
        ([report(0, "all_reduce"), report(1, "all_gather", module="norm"), report(2, "all_reduce")], [1],
         "ranks wait in different collectives: all_reduce, all_gather of norm; they do not run the same program"),
        ([report(0, "barrier"), report(1, "barrier"), report(2, "barrier")], [], "all ranks wait in the same barrier"),
        ([report(0, "barrier"), report(2, "barrier")], [1], "rank 1 left no report"),
        ([report(2, None)], [0, 1], "ranks 0, 1 left no report"),
    ],
)  # fmt: skip
def test_who_is_to_blame(reports: Sequence[Report], culprits: list[int], verdict: str, tmp_path: Path) -> None:
    for each in reports:
        report_path(tmp_path, each.rank).write_bytes(each.to_json())
    found = collect(tmp_path)
    assert found is not None
    assert (found.reports, found.culprits) == (reports, culprits)
    assert found.verdict.startswith(verdict)


def test_a_report_is_one_line() -> None:
    assert str(report(1, "all_gather", 4, "layers.3")) == "rank 1: step 7, for 63 s in all_gather of layers.3"
    assert str(report(0, None, 4)) == (
        "rank 0: step 7, for 63 s not in any collective: in step, loop.py:9; its last was all_reduce number 4"
    )


def test_a_broken_report_is_named(tmp_path: Path) -> None:
    report_path(tmp_path, 0).write_text('{"rank": 0}')
    with pytest.raises(ProcessError, match=r"rank_00000\.hang\.json: holds no report of a hang"):
        collect(tmp_path)


class FSDPParamGroup:
    """Has what the real one has, and calls back."""

    def __init__(self, name: str | None) -> None:
        self._module_fqn = name

    def wait_for_unshard(self) -> FrameType:
        return sys._getframe()


@pytest.mark.parametrize(("name", "module"), [("layers.3", "layers.3"), (None, ROOT)])
def test_what_was_begun_earlier_is_waited_for_by_name(name: str | None, module: str) -> None:
    found = place(FSDPParamGroup(name).wait_for_unshard())
    assert (found.collective, found.module) == ("all_gather", module)


def test_a_line_names_our_own_caller(tmp_path: Path) -> None:
    names = {"__name__": "tandem.training.data.somewhere"}
    code = "import threading\ndef read(event):\n    event.wait()\n"
    exec(compile(code, "somewhere.py", "exec"), names)  # a module of ours that waits in a foreign one
    event = threading.Event()
    thread = threading.Thread(target=names["read"], args=(event,), daemon=True)  # type: ignore[arg-type]
    thread.start()
    try:
        found = Place(collective=None, module=None, line="")
        while "read, somewhere.py:3" not in found.line:
            found = place(sys._current_frames()[thread.ident or 0])
        assert found.line.startswith("wait, ")
        assert found.line.endswith(", called from read, somewhere.py:3")
        assert found.collective is None
    finally:
        event.set()
        thread.join()
