"""How long workers are silent: in one exchange, and usually.

What ends a silence is something whole: a line of a stream, or of an answer that is not streamed its head and each 4 KiB
of its body. Single bytes do not.
"""

from __future__ import annotations

import time
from typing import Final

PIECE_BYTES: Final = 4096
"""Of a body that has no lines: an instance that works sends so many in far less than a second."""
FORGET: Final = 0.98
"""What is left of a longest silence with every answer after it: some hundred answers later it counts no more."""
LEAST_WORK: Final = 1000
"""With less to do, an answer does not begin sooner: what it takes is mostly something else."""


class Silence:
    """Of one exchange; seconds, by `time.monotonic`.

    Args:
        work: What its worker has to do before its answer begins, in tokens of a prompt.
    """

    def __init__(self, work: float = 0) -> None:
        self.work = max(float(work), LEAST_WORK)
        self.begun: float | None = None
        """When the first of the answer came."""
        self.is_excused = False
        """Whether its worker waits for another one."""
        self.first_s = self.longest_s = 0.0
        """The longest before the answer began, and after that."""
        self.since = time.monotonic()
        """When its worker was last heard, or is waited for again."""
        self._is_awaited = True

    @property
    def has_begun(self) -> bool:
        """Whether anything of the answer has come."""
        return self.begun is not None

    def seconds(self, now: float) -> float:
        """How long its worker has been waited for, and not the worker for a client that reads slowly."""
        return now - self.since if self._is_awaited else 0.0

    def end(self, *, begins: bool = True) -> None:
        """Something whole came; until `begin` nobody waits for more.

        Args:
            begins: Whether it belongs to the answer. The head of a stream does not: some send it before they look at
                the request.
        """
        now = time.monotonic()
        seconds = self.seconds(now)
        if self.begun is not None:
            self.longest_s = max(self.longest_s, seconds)
        else:
            self.first_s = max(self.first_s, seconds)
            self.begun = now if begins else None
        self._is_awaited = False

    def begin(self) -> None:
        """Somebody waits for more."""
        self.since = time.monotonic()
        self._is_awaited = True

    def excuse(self) -> None:
        """Its worker waits for another one: this silence is not its own."""
        self.is_excused = True

    def end_excuse(self) -> None:
        """What it waited for has come."""
        self.is_excused = False
        if self._is_awaited and not self.has_begun:
            self.begin()


class Silences:
    """Of one worker, by stage: the longest of late, and after how much work it was."""

    def __init__(self) -> None:
        self._longest: dict[tuple[str, bool], tuple[float, float]] = {}

    def learn(self, stage: str, silence: Silence) -> None:
        """Take in those of an exchange that came to its end."""
        self._take(stage, False, silence.first_s, silence.work)
        self._take(stage, True, silence.longest_s, silence.work)

    def usual_s(self, stage: str, silence: Silence) -> float:
        """The longest of exchanges that were as far as this one; 0 where none is known."""
        return self._longest.get((stage, silence.has_begun), (0.0, 0.0))[0]

    def expected_s(self, stage: str, silence: Silence) -> float | None:
        """The same in proportion to the work where this one has more; None where none is known."""
        known = self._longest.get((stage, silence.has_begun))
        return known and known[0] * max(1.0, silence.work / known[1])

    def _take(self, stage: str, begun: bool, seconds: float, work: float) -> None:
        longest, its_work = self._longest.get((stage, begun), (0.0, work))
        longest *= FORGET
        self._longest[stage, begun] = (seconds, work) if seconds >= longest else (longest, its_work)
