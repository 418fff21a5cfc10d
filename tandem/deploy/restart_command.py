"""The command with which an operator restarts one instance."""

from __future__ import annotations

import shlex
import subprocess

from tandem.errors import ProcessError, UsageError
from tandem.protocol.admin import WorkerState


class RestartCommand:
    """Words of a command line, with `{name}`, `{url}` and `{role}` for those of the instance.

    Raises:
        UsageError: It has no words, or cannot be split into words.
    """

    def __init__(self, text: str) -> None:
        try:
            self._words = shlex.split(text)
        except ValueError as error:
            raise UsageError(f"--command {text!r}: cannot be split into words ({error}); close its quotes") from None
        if not self._words:
            raise UsageError("--command: is empty; say how an instance is restarted")

    def __call__(self, worker: WorkerState) -> None:
        """Restart an instance; returns when the command has ended.

        Raises:
            ProcessError: It cannot be run, or fails.
        """
        values = {"{name}": worker.name, "{url}": worker.url, "{role}": worker.role}
        words = [filled(word, values) for word in self._words]
        hint = f"{worker.name} stays drained; when it serves again, take it back with `tandem topology undrain`"
        try:
            status = subprocess.run(words, stdin=subprocess.DEVNULL, check=False).returncode
        except OSError as error:
            raise ProcessError(f"`{words[0]}` cannot be run ({error.strerror}); {hint}") from None
        if status:
            raise ProcessError(f"`{shlex.join(words)}` ended with exit code {status}; {hint}")


def filled(word: str, values: dict[str, str]) -> str:
    """A word with its placeholders replaced."""
    for placeholder, value in values.items():
        word = word.replace(placeholder, value)
    return word
