"""What runs in the background for as long as the gateway does: health, room, stalls, connections, files, the fleet.

A bug that one odd answer brings out ends neither a watch nor the gateway: it is logged, and the watch begins again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Final

from tandem.errors import ProcessError, UsageError

PAUSE_S: Final = 1.0
"""From the end of a watch by a bug until it begins again."""

log = logging.getLogger(__name__)


async def kept_up(watch: Callable[[], Awaitable[None]]) -> None:
    """Watch until that is done, whatever comes between; cancel the task to end it.

    Raises:
        UsageError: The gateway cannot go on, and not for a bug.
        ProcessError: The same.
    """
    while True:
        try:
            return await watch()
        except (UsageError, ProcessError):
            raise
        except Exception:
            log.exception("a watch failed, and begins again in %g s", PAUSE_S)
        await asyncio.sleep(PAUSE_S)
