"""Ranks as processes: told their place, watched, ended together, and the one to blame is named."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from pydantic import BaseModel
from recording import Recording

from tandem.errors import ProcessError, UsageError
from tandem.parallel.place import Place
from tandem.training import interruption
from tandem.training.guard.diagnosis import HUNG, Report, report_path
from tandem.training.launch import ranks
from tandem.training.launch.ranks import PEER_LOST, STOPPED, Hosts, run_ranks
from tandem.training.launch.work import carry_out
from tandem.training.settings.config import Launch


def command(program: str) -> list[str]:
    """A rank that runs `program`, with its rank as `rank`."""
    return [sys.executable, "-c", f"import os, signal, sys, time; rank = int(os.environ['TANDEM_RANK']); {program}"]


def test_every_rank_is_told_its_place(tmp_path: Path) -> None:
    program = f"open('{tmp_path}/' + str(rank), 'w').write(repr(dict(os.environ)))"
    hosts = Hosts(ranks=2, count=3, rank=1, master="10.0.0.1", port=6001)
    run_ranks(command(program), hosts, tmp_path / "logs")
    for number in (2, 3):
        told = Place.told(eval((tmp_path / str(number)).read_text()))
        assert told == Place(rank=number, ranks=6, local_rank=number - 2, meeting="tcp:10.0.0.1:6001")
    assert Place.told({}) is None


def test_ranks_of_one_host_meet_in_a_file_that_goes_with_them(tmp_path: Path) -> None:
    file = "open(os.environ['TANDEM_MEETING'].removeprefix('file:'), 'rb+')"
    wait = "[None for _ in iter(lambda: os.fstat(f.fileno()).st_size, 2)]"
    name = f"open('{tmp_path}/' + str(rank), 'w').write(os.path.realpath(f.name))"
    program = f"f = {file}; f.seek(rank); f.write(b'x'); f.flush(); {wait}; {name}"
    run_ranks(command(program), Hosts(ranks=2), tmp_path / "logs")
    met = {(tmp_path / str(rank)).read_text() for rank in range(2)}
    assert len(met) == 1, "each has a file of its own"
    assert not Path(met.pop()).exists(), "it stays behind"


def test_a_system_where_they_cannot_meet_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "memfd_create")
    with pytest.raises(UsageError, match=r"train on one rank \(--ranks 1\), or on Linux"):
        run_ranks(command("pass"), Hosts(ranks=2), tmp_path / "logs")


def test_a_path_that_ranks_cannot_be_told_of_is_refused(tmp_path: Path) -> None:
    class Work(BaseModel):
        folder: Path

    logs, work = tmp_path / os.fsdecode(b"\xff"), Work(folder=Path("x"))
    work.folder = logs
    with pytest.raises(UsageError, match="is no UTF-8, and several ranks cannot be told of it; rename it, or"):
        carry_out(work, Launch(ranks=2), logs, Recording(), "cpu", lambda progress: None)
    assert list(logs.iterdir()) == []


def test_the_rank_that_failed_by_itself_is_named_with_its_last_words(tmp_path: Path) -> None:
    program = f"print('no memory'); sys.exit({PEER_LOST} if rank == 1 else 3 if rank == 2 else 0)"
    with pytest.raises(ProcessError, match=r"rank 2 ended with code 3; the end of .*run_log-1-2\.txt:\n  no memory"):
        run_ranks(command(program), Hosts(ranks=3), tmp_path)


def test_one_that_was_killed_is_named_and_the_others_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranks, "GRACE_S", 0.3)
    program = "os.kill(os.getpid(), 9) if rank == 1 else time.sleep(600)"
    began = time.monotonic()
    with pytest.raises(ProcessError, match="rank 1 was ended by SIGKILL"):
        run_ranks(command(program), Hosts(ranks=2), tmp_path)
    assert time.monotonic() - began < 60


def test_one_that_crashes_leaves_its_stack_among_the_process_logs(tmp_path: Path) -> None:
    crash = "tandem.cli.run = lambda words: os.kill(os.getpid(), signal.SIGSEGV)"
    program = f"import tandem.cli; {crash}; rank == 1 and tandem.cli.main()"
    with pytest.raises(ProcessError, match=r"rank 1 was ended by SIGSEGV(.|\n)*Fatal Python error: Segmentation fault"):
        run_ranks(command(program), Hosts(ranks=2), tmp_path)
    assert "in main" in (tmp_path / "run_log-1-1.txt").read_text()


def test_of_a_hang_the_reports_of_all_are_told(tmp_path: Path) -> None:
    stale = report_path(tmp_path, 5)
    stale.write_text("{")
    waits = Report(rank=0, world=2, step=7, seconds=63, collective="all_gather", module="layers.3", line="x", last=None)
    stands = Report(rank=1, world=2, step=7, seconds=63, collective=None, module=None, line="sleep, a.py:3", last=None)
    texts = {report_path(tmp_path, one.rank): one.to_json().decode() for one in (waits, stands)}
    writes = [f"open({str(path)!r}, 'w').write({text!r})" for path, text in texts.items()]
    program = f"{writes[0]} if rank == 0 else {writes[1]}; time.sleep(0.3); sys.exit({HUNG})"
    with pytest.raises(ProcessError, match="rank 1 did not come to the collective") as caught:
        run_ranks(command(program), Hosts(ranks=2), tmp_path)
    assert "rank 0: step 7, for 63 s in all_gather of layers.3" in str(caught.value)
    assert f"stacks are in {tmp_path}" in str(caught.value)
    assert not stale.exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_is_passed_on_and_a_second_one_ends_at_once(
    tmp_path: Path, number: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(interruption, "TOGETHER_S", 0.0)
    program = f"signal.signal(15, lambda *_: open('{tmp_path}/' + str(rank), 'w').close()); time.sleep(600)"

    def send() -> None:
        for wanted in ("ready", "0"):
            while not (tmp_path / wanted).exists() or (not (tmp_path / "1").exists() and wanted == "0"):
                time.sleep(0.02)
            os.kill(os.getpid(), number)

    started = f"open('{tmp_path}/ready', 'w').close() if rank == 0 else None"
    handler = program.replace("; time.sleep", f"; time.sleep(0.3); {started}; time.sleep")
    threading.Thread(target=send, daemon=True).start()
    before = signal.signal(number, signal.SIG_DFL)  # it may be ignored, as behind `&`
    try:
        with pytest.raises(KeyboardInterrupt):
            run_ranks(command(handler), Hosts(ranks=2), tmp_path / "logs")
        assert {"0", "1"} <= {path.name for path in tmp_path.iterdir()}
        assert signal.getsignal(number) == signal.SIG_DFL
    finally:
        signal.signal(number, before)


def test_ranks_that_stop_because_one_of_them_was_told_to_have_not_failed(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run_ranks(command(f"sys.exit({STOPPED})"), Hosts(ranks=2), tmp_path)
    with pytest.raises(ProcessError, match="rank 1 ended with code 3"):
        run_ranks(command(f"sys.exit(3 if rank else {STOPPED})"), Hosts(ranks=2), tmp_path)


def test_a_rank_that_is_stopped_leaves_it_to_its_launcher_to_say_so() -> None:
    words = ["train", "rank", "x", "--device", "cpu"]
    program = "from tandem.cli import main; main()"
    patch = (  # in place of the room that takes part, with which torch would be imported
        "import sys, types\ndef stop(*_): raise KeyboardInterrupt\n"
        "sys.modules['tandem.training.part'] = types.SimpleNamespace(take_part=stop)\n"
    )
    done = subprocess.run([sys.executable, "-c", patch + program, *words], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (STOPPED, "", "")


def test_ranks_do_not_outlive_a_killed_launcher(tmp_path: Path) -> None:
    program = (
        "from tandem.training.launch.rank import one_of_several\n"
        "import os, time\n"
        f"with one_of_several(): open('{tmp_path}/' + str(os.getpid()), 'w').close(); time.sleep(600)"
    )
    launcher = (
        "import sys; from pathlib import Path; from tandem.training.launch.ranks import Hosts, run_ranks\n"
        f"run_ranks([sys.executable, '-c', {program!r}], Hosts(ranks=2), Path('{tmp_path}/logs'))"
    )
    (temporary := tmp_path / "tmp").mkdir()
    process = subprocess.Popen([sys.executable, "-c", launcher], env=os.environ | {"TMPDIR": str(temporary)})
    while len(pids := [path.name for path in tmp_path.iterdir() if path.name.isdecimal()]) < 2:
        time.sleep(0.05)
    process.kill()
    process.wait()
    deadline = time.monotonic() + 60
    while any(Path(f"/proc/{pid}").exists() for pid in pids):
        assert time.monotonic() < deadline, "a rank lives on without its launcher"
        time.sleep(0.05)
    assert not list(temporary.iterdir())
