"""What prepared data was made from: content by SHA-256, which is not computed again for a file that lies untouched."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

from tandem.errors import DataError, ModelFolderError
from tandem.files import read_json_object
from tandem.text.tokenizer import tokenizer_files
from tandem.training.data.output import mark_path


class Fingerprints:
    """Digests of files.

    Args:
        known: Of an earlier run: path to size, time of change in ns, and digest.
    """

    def __init__(self, known: dict[str, list[Any]]) -> None:
        self._before = known
        self.known: dict[str, list[Any]] = {}
        """The same for the files that were asked for here."""

    def of(self, path: Path) -> str:
        """SHA-256 of a file's content.

        Raises:
            DataError: It cannot be read.
        """
        name = os.path.realpath(path)
        try:
            state = path.stat()
            now = [state.st_size, state.st_mtime_ns]
            before = self._before.get(name, [])
            self.known[name] = before if before[:2] == now else [*now, _digest(path)]
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror}); let this user read it") from None
        return str(self.known[name][2])

    def changed(self, path: Path) -> bool:
        """Whether a file that was asked for holds something else by now.

        Raises:
            DataError: It cannot be read any more.
        """
        return Fingerprints(self.known).of(path) != str(self.known[os.path.realpath(path)][2])


def tokenizer_digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file that says how a folder's tokenizer works, the model's own settings included.

    Raises:
        ModelFolderError: One of them cannot be read.
    """
    contents = tokenizer_files(folder)
    for name in ("config.json", "generation_config.json"):
        if (folder / name).exists():
            contents[name] = repr(_of_tokenizers(read_json_object(folder / name, ModelFolderError))).encode()
    return {name: hashlib.sha256(content).hexdigest() for name, content in sorted(contents.items())}


def read_mark(prefix: Path) -> dict[str, Any]:
    """What the last finished run wrote; empty where there is none, or it was written by another version."""
    path = mark_path(prefix)
    if not path.exists():
        return {}
    mark = read_json_object(path, DataError)
    return mark if all(isinstance(mark.get(part), dict) for part in ("inputs", "result", "files")) else {}


def _of_tokenizers(fields: dict[str, Any]) -> list[Any]:
    """The fields of a model's settings that decide how text is tokenised."""
    names = ("model_type", "eos_token_id", "user_token_id", "assistant_token_id")
    return [fields.get(name) for name in names]


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
