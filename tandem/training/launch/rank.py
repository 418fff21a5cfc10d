"""What a process does that was started as one of several ranks, around its work."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from tandem.errors import ProcessError
from tandem.protocol.lifeline import hold_lifeline
from tandem.training.launch.ranks import PEER_LOST, STOPPED


@contextmanager
def one_of_several() -> Iterator[None]:
    """Work as a rank: end with whoever started it, and with a code of its own where another rank is to blame.

    Raises:
        SystemExit: In place of a `ProcessError`, which is told, and of Ctrl-C, which the command tells for all ranks.
    """
    hold_lifeline()
    try:
        yield
    except ProcessError as error:
        print(f"tandem: {error}", file=sys.stderr)
        raise SystemExit(PEER_LOST) from None
    except KeyboardInterrupt:
        raise SystemExit(STOPPED) from None
