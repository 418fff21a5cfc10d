"""The signals that ask a process to stop, and one that does not."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Callable
from typing import Any, Final

STOP_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

log = logging.getLogger(__name__)


def on_stop(stop: Callable[[], Any]) -> None:
    """Have the running event loop call this for each of them; a SIGHUP that is ignored (nohup) stays so."""
    for number in STOP_SIGNALS:
        if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
            asyncio.get_running_loop().add_signal_handler(number, stop)


def refuse_restart() -> None:
    """Have SIGUSR1, which restarts instances where it is sent to `tandem serve`, not end the running process."""
    words = (
        "SIGUSR1 does nothing here; to restart instances, use `tandem topology restart`, or send it to `tandem serve`"
    )
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, log.warning, words)
