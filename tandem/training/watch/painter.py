"""`Painter`: draws a run's picture now and then, in a process of its own, so that no step waits for it."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tandem.training.watch.picture import draw_folder

EVERY = 120.0
"""Seconds between two pictures; one takes about two of a processor that has nothing better to do."""


class Painter:
    """Draws one folder's picture.

    Args:
        folder: With `metrics.jsonl`.
        title: Of the picture.
        clock: Seconds; a fake one in tests.
    """

    def __init__(self, folder: Path, title: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._folder = folder
        self._title = title
        self._clock = clock
        self._drawn = clock()
        self._process: subprocess.Popen[bytes] | None = None

    def step(self) -> None:
        """Begin a picture, if the last one is long enough ago and done."""
        if self._clock() - self._drawn < EVERY or (self._process is not None and self._process.poll() is None):
            return
        self._drawn = self._clock()
        command = [sys.executable, "-m", "tandem.training.watch.picture", str(self._folder), self._title]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def finish(self) -> None:
        """The last picture, here and now."""
        self.stop()
        draw_folder(self._folder, self._title)

    def stop(self) -> None:
        """Leave no process behind."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
