"""One child process with its log file, its lifeline and its process group.

The child leads a session of its own: Ctrl-C in the terminal reaches only the parent, which then stops its children in
order, and everything the child starts can be killed as one group.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from tandem.errors import ProcessError
from tandem.protocol.lifeline import Lifeline

TAIL_LINES = 20
TAIL_BYTES = 64 * 1024

OWN_ERROR = "tandem: "
"""How a tandem command begins the one line of its error."""


class ChildProcess:
    """A command that was started; made by `ChildProcess.start`."""

    def __init__(self, name: str, log_path: Path, process: subprocess.Popen[bytes], lifeline: Lifeline) -> None:
        self.name = name
        self.log_path = log_path
        self._process = process
        self._lifeline = lifeline
        self._group_ended = False

    @classmethod
    def start(
        cls, name: str, command: Sequence[str], log_path: Path, environment: Mapping[str, str], *, again: bool = False
    ) -> ChildProcess:
        """Start a command, its output going to a log file.

        Args:
            name: How errors call it.
            command: Program and arguments.
            log_path: File for stdout and stderr; its folder exists.
            environment: Added to this process's own environment.
            again: Whether the log goes on; else it is written anew.

        Raises:
            ProcessError: When the program cannot be run or the log cannot be written.
        """
        lifeline = Lifeline()
        try:
            with log_path.open("ab" if again else "wb") as log:
                process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                    pass_fds=(lifeline.descriptor,),
                    env={**os.environ, **environment, **lifeline.environment},
                )
        except OSError as error:
            lifeline.close()
            raise ProcessError(
                f"starting: {name} cannot run `{command[0]}` with log {log_path}: {error.strerror}; check both paths"
            ) from error
        except BaseException:  # Ctrl-C after the fork: the child, which nobody knows yet, ends by its lifeline
            lifeline.close()
            raise
        lifeline.handed_over()
        return cls(name, log_path, process, lifeline)

    @property
    def pid(self) -> int:
        """Process id, which is also the id of its process group."""
        return self._process.pid

    def poll(self) -> int | None:
        """The exit code, negative for a signal; None while it runs. A dead child's own children are killed."""
        code = self._process.poll()
        if code is not None:
            self._end_group()
        return code

    def terminate(self) -> None:
        """Ask it to end in order (SIGTERM)."""
        if self.poll() is None:
            self._process.terminate()

    def kill(self) -> None:
        """Kill its whole process group (SIGKILL)."""
        self._end_group()

    def wait(self, timeout: float) -> bool:
        """Wait for its end; False when it still runs after `timeout` seconds."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout)
        return self.poll() is not None

    def release(self) -> None:
        """Close the lifeline; may be called again."""
        self._lifeline.close()

    def death(self, stage: str) -> ProcessError:
        """The error for a child that has ended: stage, name, exit code, its own error or its last lines, its log."""
        tail = self.log_tail()
        if tail and tail[-1].startswith(OWN_ERROR):
            own = tail[-1].removeprefix(OWN_ERROR)
            return ProcessError(f"{stage}: {self.name} {self._how_it_ended()}: {own}; its log is {self.log_path}")
        lines = "\n".join(f"  {line}" for line in tail)
        last = f"last lines of {self.log_path}:\n{lines}" if lines else f"its log {self.log_path} is empty"
        return ProcessError(f"{stage}: {self.name} {self._how_it_ended()}; {last}")

    def log_tail(self) -> list[str]:
        """The last lines of its log."""
        try:
            with self.log_path.open("rb") as log:
                log.seek(max(0, self.log_path.stat().st_size - TAIL_BYTES))
                text = log.read().decode(errors="replace")
        except OSError as error:
            return [f"(the log cannot be read: {error.strerror})"]
        return list(deque(text.splitlines(), maxlen=TAIL_LINES))

    def _how_it_ended(self) -> str:
        code = self.poll()
        if code is None or code >= 0:
            return f"ended with exit code {code}"
        with suppress(ValueError):
            return f"was killed by {signal.Signals(-code).name} (exit code {code})"
        return f"was killed by signal {-code} (exit code {code})"

    def _end_group(self) -> None:
        # Once only: later the kernel may have given the number of an empty group to strangers.
        if not self._group_ended:
            self._group_ended = True
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)
