"""Stop strings in a stream: text goes out as soon as it can no longer be the beginning of one."""

from __future__ import annotations


class StopMatcher:
    """Watches one answer for stop strings.

    Args:
        stops: The strings; none means that all text passes through.
    """

    def __init__(self, stops: tuple[str, ...]) -> None:
        self._stops = stops
        self._held = ""
        self.stopped = False

    def push(self, text: str) -> str:
        """The text that may be sent now; once a stop string was met, `stopped` is set and nothing more comes.

        The stop string itself is never sent. Of several that match, the one that begins first ends the answer.
        """
        if self.stopped or not self._stops:
            return "" if self.stopped else text
        self._held += text
        found = [at for stop in self._stops if (at := self._held.find(stop)) >= 0]
        if found:
            self.stopped = True
            return self._release(min(found), drop_rest=True)
        return self._release(len(self._held) - self._possible_beginning())

    def flush(self) -> str:
        """What was held back, when the answer ended otherwise."""
        return self._release(len(self._held))

    def _possible_beginning(self) -> int:
        """Length of the longest end of the held text that begins a stop string."""
        longest = min(len(self._held), max(map(len, self._stops)) - 1)
        for length in range(longest, 0, -1):
            if any(stop.startswith(self._held[-length:]) for stop in self._stops):
                return length
        return 0

    def _release(self, count: int, *, drop_rest: bool = False) -> str:
        out, rest = self._held[:count], self._held[count:]
        self._held = "" if drop_rest else rest
        return out
