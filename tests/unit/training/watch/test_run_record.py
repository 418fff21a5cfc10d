"""What a run writes down, and what is told of it afterwards."""

from __future__ import annotations

import json
import os
import resource
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tandem.cli import run as run_command
from tandem.errors import DataError, UsageError
from tandem.training.data.encoding import Skipped
from tandem.training.data.output import mark_path, skipped_path
from tandem.training.data.skipped import SkippedRows
from tandem.training.guard.journal import Action, Event
from tandem.training.progress import StepReport
from tandem.training.watch.board import NAMES, Board, can_write
from tandem.training.watch.growing import GrowingFile
from tandem.training.watch.metrics import read_metrics
from tandem.training.watch.painter import EVERY, Painter
from tandem.training.watch.picture import PICTURE, draw_curves, draw_folder
from tandem.training.watch.record import Record, line_of
from tandem.training.watch.report import summaries


def report(step: int, seconds: float = 2.0) -> StepReport:
    return StepReport(step=step, loss=5.0 / step, lr=0.1, grad_norm=1.0, tokens=100 * step, tokens_per_s=200.0,
                      consumed_samples=4 * step, elapsed=seconds * step, seconds=seconds,
                      tokens_per_s_device=400 / seconds, real_tokens_per_s=300 / seconds,
                      learnt_tokens_per_s=100 / seconds, mfu=0.5 / seconds, memory_peak=2**30 + step,
                      balance=0.02, load_max=1.5)  # fmt: skip


@pytest.fixture
def stage(tmp_path: Path) -> Path:
    """Two sessions of a run: three steps, then one of them again and two more."""
    folder, data = tmp_path / "run" / "sft", tmp_path / "elsewhere" / "data"
    data.parent.mkdir()
    with SkippedRows(skipped_path(data)) as skipped:
        for row, reason in ((3, "1.5 MB of text"), (8, "has no answer"), (9, "12 MB of text")):
            skipped.add([Skipped(file="a.jsonl", row=row, reason=reason, content="{}")])
    mark_path(data).write_text("{}")
    with Record(folder, "tiny: sft", 0, "MFU = formula") as record:
        for step, seconds in ((1, 50.0), (2, 2.0), (3, 2.0)):
            record.append(report(step, seconds))
    with Record(folder, "tiny: sft", 2, "MFU = formula", data=[data]) as record:
        for step, seconds in ((3, 40.0), (4, 4.0), (5, 3.0)):
            record.append(report(step, seconds))
    return folder


def test_data_in_a_folder_whose_name_is_no_utf8(stage: Path, tmp_path: Path) -> None:
    data = (tmp_path / "elsewhere").rename(tmp_path / os.fsdecode(b"else\xffwhere")) / "data"
    with Record(stage, "tiny: sft", 5, "MFU = formula", data=[data]):
        pass
    (summary,) = summaries(stage)
    assert summary.skipped_rows is not None
    assert [file.path for file in summary.skipped_rows] == [str(skipped_path(data))]


def test_a_folder_holds_every_step_once_and_the_documents_files(stage: Path) -> None:
    assert [one.step for one in read_metrics(stage / "metrics.jsonl")] == [1, 2, 3, 4, 5]
    assert (stage / PICTURE).read_bytes().startswith(b"\x89PNG")
    assert PICTURE == "training_loss.png"
    assert (stage / "mfu.txt").read_text() == "MFU = formula\n"
    lines = (stage / "run_log-1-0.txt").read_text().splitlines()
    assert lines[1] == line_of(report(1, 50.0))
    assert "tokens/s/p 8.0" in lines[1]
    assert "MFU 1.0%" in lines[1]
    assert lines[5] == "tiny: sft: after step 2; MFU = formula"


def test_a_run_that_fails_leaves_its_picture_and_says_why(tmp_path: Path) -> None:
    record = Record(tmp_path, "tiny", 0, "MFU", nodes=2)
    record.append(report(1))
    record.go_back(0)
    record.append(report(1))
    record.__exit__(ValueError, ValueError("no more"), None)
    assert (tmp_path / PICTURE).exists()
    assert (tmp_path / "run_log-2-0.txt").read_text().endswith("ended: ValueError no more\n")
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == 1


def test_a_picture_that_fails_does_not_hide_why_the_run_failed(tmp_path: Path) -> None:
    failed, whole = (Record(tmp_path / name, "tiny", 0, "MFU") for name in ("failed", "whole"))
    for name in ("failed", "whole"):
        (tmp_path / name / "metrics.jsonl").write_text("no step\n")
    failed.__exit__(ValueError, ValueError("no more"), None)
    assert (tmp_path / "failed" / "run_log-1-0.txt").read_text().endswith("ended: ValueError no more\n")
    with pytest.raises(DataError, match="no step report"):
        whole.__exit__(None, None, None)


def test_a_report_tells_of_every_stage(stage: Path) -> None:
    (summary,) = summaries(stage.parent)
    assert (summary.stage, summary.steps, summary.interruptions) == ("sft", 5, 1)
    assert (summary.loss_first, summary.loss_last, summary.loss_lowest) == (5.0, 1.0, 1.0)
    assert summary.step_seconds == 3.0  # of 2, 4 and 3: each session's first is left out
    assert summary.mfu == pytest.approx(0.5 / 3)
    assert summary.memory_peak == 2**30 + 5
    assert summary.formula == "MFU = formula"


def test_the_command_prints_a_table_or_json(stage: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["train", "report", str(stage.parent)]) == 0
    text = capsys.readouterr().out
    assert "interruptions" in text
    assert "MFU = formula" in text
    assert f"3 rows are not trained on, see {stage.parents[1] / 'elsewhere' / 'data_skipped.jsonl'}: 2 times: " in text
    assert run_command(["train", "report", str(stage), "--json"]) == 0
    (fields,) = json.loads(capsys.readouterr().out)
    assert fields["tokens"] == 500
    assert fields["skipped_rows"][0]["kinds"] == {"N MB of text": 2, "has no answer": 1}
    assert run_command(["train", "report", str(stage.parent.parent / "nothing")]) == 2


def test_a_report_does_not_guess_what_was_skipped(stage: Path) -> None:
    side = stage.parents[1] / "elsewhere" / "data_skipped.jsonl"
    side.write_text("{}\n")
    with pytest.raises(DataError, match=r"data_skipped\.jsonl: holds a line that is no skipped row"):
        summaries(stage)
    side.unlink()
    assert summaries(stage)[0].skipped_rows == ()
    mark_path(side.with_name("data")).unlink()
    assert summaries(stage)[0].skipped_rows is None


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"metrics\.jsonl"):
        summaries(tmp_path)


def test_a_picture_shows_the_guard(tmp_path: Path) -> None:
    reports = [report(step) for step in range(1, 30)]
    draw_curves(reports, [], "tiny", tmp_path / "calm.png")
    event = Event(step=9, position=0, next_position=4, action=Action.SKIP, verdict="spike", loss=9.0, grad_norm=1.0,
                  why="")  # fmt: skip
    draw_curves(reports, [event, event], "tiny", tmp_path / "guarded.png")
    calm, guarded = ((tmp_path / name).read_bytes() for name in ("calm.png", "guarded.png"))
    assert calm.startswith(b"\x89PNG")
    assert calm != guarded


def test_nothing_is_drawn_of_nothing(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text("")
    draw_folder(tmp_path, "tiny")
    assert not (tmp_path / PICTURE).exists()


def test_a_picture_comes_now_and_then_from_another_process(stage: Path) -> None:
    (stage / PICTURE).unlink()
    now = [0.0]
    painter = Painter(stage, "tiny", clock=lambda: now[0])
    painter.step()
    assert painter._process is None
    now[0] += EVERY
    painter.step()
    assert painter._process is not None
    assert painter._process.wait(60) == 0
    assert (stage / PICTURE).read_bytes().startswith(b"\x89PNG")
    painter.stop()


def test_every_number_of_a_step_is_on_the_board(tmp_path: Path) -> None:
    if not can_write():
        pytest.skip("extra `tensorboard` is not installed")
    from tensorboardX.proto.event_pb2 import Event as BoardEvent

    board = Board(tmp_path, 0)
    board.append(report(1))
    board.append(report(2))
    board.close()
    (file,) = tmp_path.iterdir()
    found = {}
    for record in records(file.read_bytes()):
        event = BoardEvent.FromString(record)
        found |= {(event.step, value.tag): value.simple_value for value in event.summary.value}
    assert found[2, "train/loss"] == 2.5
    assert {tag for _, tag in found} == set(NAMES.values())


def records(content: bytes) -> list[bytes]:
    """The TFRecord format: length (u64), its checksum (u32), the bytes, their checksum (u32)."""
    out = []
    while content:
        length = int.from_bytes(content[:8], "little")
        out.append(content[12 : 12 + length])
        content = content[16 + length :]
    return out


@contextmanager
def full_disk() -> Iterator[None]:
    """Files may not grow beyond 6 bytes: to a writer the same as a disk that is full."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # so that it is an error
    resource.setrlimit(resource.RLIMIT_FSIZE, (6, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)


def test_what_a_full_disk_does_not_take_is_written_when_it_does(tmp_path: Path) -> None:
    path, notes = tmp_path / "log", list[str]()
    file = GrowingFile(path, notes.append)
    file.append(b"one\n")
    with full_disk():
        file.append(b"two\n")
        file.append(b"three\n")
        assert path.read_bytes() == b"one\ntw"
    file.append(b"four\n")
    file.close()
    assert path.read_bytes() == b"one\ntwo\nthree\nfour\n"
    assert len(notes) == 1
    assert f"{path}: cannot be written (File too large)" in notes[0]


def test_a_record_on_a_full_disk_says_what_is_lost_and_ends_well(tmp_path: Path) -> None:
    notes: list[str] = []
    with ExitStack() as disk, Record(tmp_path, "tiny: sft", 0, "MFU = formula", note=notes.append) as record:
        record.append(report(1))
        disk.enter_context(full_disk())
        for step in range(2, 40):
            record.append(report(step))
    assert [one.step for one in read_metrics(tmp_path / "metrics.jsonl")] == [1]
    assert sum("metrics.jsonl: the last" in note and "are lost" in note for note in notes) == 1
    assert f"{tmp_path / PICTURE}: is not drawn" in notes[-1]
