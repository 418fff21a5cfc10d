"""`Outbox`: sends what a run makes while it goes on, in a thread beside it, and what is left at its end.

A failure costs no step and nothing on this machine: it is said once, tried again every few seconds, and an error only
when the run has ended and its results cannot be sent.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from threading import Event, Thread
from types import TracebackType
from typing import Final

from tandem.errors import StorageError, TandemError

LOOK_S: Final = 1.0
"""Between two looks at what is new."""
LOGS_S: Final = 60.0
"""Between two times that logs are sent."""
AGAIN_S: Final = 10.0
LAST_TRIES: Final = 3


class Outbox(AbstractContextManager["Outbox"]):
    """Sends as long as the block lasts, and then what is left.

    Args:
        checkpoints: Sends one checkpoint, or says that there is none; is told whether the run has ended.
        logs: Sends what is small and changes often.
        results: Each sends something that is there when the run has ended well.
        note: Is told of failures; from the thread that sends.
        here: What is whole on this machine whatever happens, for the message.
    """

    def __init__(
        self,
        checkpoints: Callable[[Callable[[], bool]], bool],
        logs: Callable[[], None],
        results: Sequence[Callable[[], None]],
        note: Callable[[str], None],
        here: str,
    ) -> None:
        self._checkpoints, self._logs, self._results = checkpoints, logs, results
        self._note, self._here = note, here
        self._ended = Event()
        self._thread = Thread(target=self._run, name="outbox", daemon=True)
        self._failing = False

    def __enter__(self) -> Outbox:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Send what is left; where the run failed, that is what is raised.

        Raises:
            StorageError: The run ended well, and not all could be sent.
        """
        self._ended.set()
        self._thread.join()
        results, tries = ((), 1) if error else (self._results, LAST_TRIES)
        left = self._try_all([self._all_checkpoints, self._logs, *results], tries)
        if left is not None and error is None:
            raise StorageError(f"{left}; everything is whole in {self._here}: start the run again to send the rest")
        if left is not None:
            self._note(f"{left}; what was trained is whole in {self._here}, and is sent when the run is started again")

    def _run(self) -> None:
        sent = time.monotonic()
        while not self._ended.wait(LOOK_S):
            try:
                self._checkpoints(self._ended.is_set)
                if time.monotonic() - sent > LOGS_S:
                    sent = time.monotonic()
                    self._logs()
                self._failing = False
            except (TandemError, OSError) as error:
                self._say(error)
                self._ended.wait(AGAIN_S)

    def _say(self, error: Exception) -> None:
        if not self._failing:
            self._note(f"not sent yet: {error}; training goes on, and it is tried again")
        self._failing = True

    def _all_checkpoints(self) -> None:
        while self._checkpoints(self._ended.is_set):
            pass

    def _try_all(self, sends: Sequence[Callable[[], None]], tries: int) -> Exception | None:
        """Each in turn, and again where one failed; returns what failed last."""
        failed: Exception | None = None
        for left in reversed(range(tries)):
            try:
                for send in sends:
                    send()
            except (TandemError, OSError) as error:
                failed = error
                time.sleep(AGAIN_S if left else 0)
            else:
                return None
        return failed
