"""What this host's ranks are to do: done in this process where one is enough, else given to each as a file."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel
from pydantic_core import PydanticSerializationError

from tandem.errors import UsageError
from tandem.files import write_whole
from tandem.training.launch.process_log import log_path, logged
from tandem.training.launch.ranks import Hosts, run_ranks
from tandem.training.progress import Progress
from tandem.training.settings.config import Launch

if TYPE_CHECKING:
    from tandem.parallel.device import DeviceName


def carry_out(
    work: BaseModel,
    launch: Launch,
    logs: Path,
    progress: Progress,
    device: DeviceName,
    alone: Callable[[Progress], None],
) -> None:
    """Have the work done, and return when all ranks of this host have ended well.

    Args:
        work: What to do; where there are several ranks, each reads it from a file among the logs (`part.py`).
        launch: Which ranks there are.
        logs: Folder of the ranks' logs.
        progress: Is told what happens.
        device: What to train on.
        alone: Does the work in this process and tells how it goes; called where there is only one.

    Raises:
        ProcessError: A rank failed.
        KeyboardInterrupt: They were told to stop, and did.
        UsageError: Several ranks are needed, and a path of the work is no UTF-8.
    """
    hosts = Hosts.of(launch, device)
    if not hosts.needs_processes:
        with logged(log_path(logs, hosts.count, 0), progress) as told:
            alone(told)
        return
    if hosts.count > 1:
        progress.note(f"host {hosts.rank} of {hosts.count} meets the others at {hosts.master}, port {hosts.port}")
    logs.mkdir(parents=True, exist_ok=True)
    file = logs / f"run-{hosts.rank}-{os.getpid()}.json"  # two runs may share the folder of their logs
    write_whole(file, _told(work, logs))
    try:
        run_ranks([sys.executable, "-m", "tandem", "train", "rank", str(file), "--device", device], hosts, logs)
    finally:
        file.unlink(missing_ok=True)


def _told(work: BaseModel, logs: Path) -> bytes:
    try:
        return work.model_dump_json(indent=2).encode()
    except PydanticSerializationError:
        raise UsageError(
            f"{logs}: this path, or another of the run, is no UTF-8, and several ranks cannot be told of it; rename "
            "it, or train on one rank (--ranks 1)"
        ) from None


def tell_runtime(logs: Path) -> None:
    """How torch's threads wait, and where Ascend's runtime and NCCL write their logs; before torch is imported.

    These libraries read the environment when they are loaded and can be told in no other way; ranks inherit it. What
    the user has decided stays, but for ASCEND_PROCESS_LOG_PATH, which is a setting of the run.

    Args:
        logs: Folder of the ranks' logs; created where missing.
    """
    logs.mkdir(parents=True, exist_ok=True)
    os.environ["ASCEND_PROCESS_LOG_PATH"] = str(logs.absolute())
    os.environ.setdefault("NCCL_DEBUG_FILE", f"{logs.absolute()}/nccl-%h-%p.txt")  # says nothing without NCCL_DEBUG
    # Spinning is a little faster on idle processors; beside another busy process it is several times slower.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
