"""What the ranks of this host are to do, given to them as a file."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel

from tandem.files import write_whole
from tandem.training.launch.ranks import Hosts, run_ranks

if TYPE_CHECKING:
    from tandem.parallel.device import DeviceName


def share(work: BaseModel, hosts: Hosts, logs: Path, device: DeviceName) -> None:
    """Have every rank of this host take part, and return when all have ended well.

    Args:
        work: What to do; each rank reads it from `<logs>/run-<host>.json` (`part.py`).
        hosts: Where this host stands.
        logs: Folder of the ranks' logs.
        device: What to train on.

    Raises:
        ProcessError: A rank failed.
        KeyboardInterrupt: They were told to stop, and did.
    """
    logs.mkdir(parents=True, exist_ok=True)
    file = logs / f"run-{hosts.rank}.json"
    write_whole(file, work.model_dump_json(indent=2).encode())
    run_ranks([sys.executable, "-m", "tandem", "train", "rank", str(file), "--device", device], hosts, logs)
