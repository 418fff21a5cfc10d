"""The lines that a server process logs, on standard error."""

from __future__ import annotations

import logging


def log_lines(level: int | str = logging.INFO) -> None:
    """Have this process log, each line with its time, level and process."""
    logging.basicConfig(level=level, format="%(asctime)s %(levelname)s [%(process)d] %(name)s: %(message)s")
