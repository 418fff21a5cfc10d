"""Text to token ids and back, from the tokenizer files of a model folder.

Nothing in a folder is executed: `tokenizer.json` is data for the `tokenizers` library, and the chat template runs in a
sandbox (`text/chat.py`).
"""

from __future__ import annotations

from pathlib import Path

import tokenizers

from tandem.errors import ModelFolderError
from tandem.files import read_json_object
from tandem.text.chat import ChatTemplate

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")
"""What belongs to a tokenizer in a Hugging Face folder, and goes along when a model is exported."""


class Tokenizer:
    """One tokenizer and, where the folder has one, its chat template.

    Args:
        backend: The `tokenizers` object.
        chat: How a conversation becomes text; None where the folder has no template.
    """

    def __init__(self, backend: tokenizers.Tokenizer, chat: ChatTemplate | None) -> None:
        self._backend = backend
        self.chat = chat

    @classmethod
    def from_folder(cls, folder: Path) -> Tokenizer:
        """Read the tokenizer files of a model folder.

        Raises:
            ModelFolderError: `tokenizer.json` is missing or broken, or the chat template is.
        """
        path = folder / "tokenizer.json"
        if not path.exists():
            raise ModelFolderError(f"{folder}: has no tokenizer.json; copy the tokenizer files too")
        try:
            backend = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # noqa: BLE001 - the library raises bare Exception
            raise ModelFolderError(f"{path}: is no tokenizer ({error}); copy the file again") from None
        settings_path = folder / "tokenizer_config.json"
        settings = read_json_object(settings_path, ModelFolderError) if settings_path.exists() else {}
        return cls(backend, ChatTemplate.from_folder(folder, settings))

    @property
    def vocab_size(self) -> int:
        """Number of ids this tokenizer can produce; a model's table may be larger, never smaller."""
        return self._backend.get_vocab_size(with_added_tokens=True)

    def id_of(self, token: str) -> int | None:
        """The id of one token, if there is such a token."""
        return self._backend.token_to_id(token)

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """Token ids of `text`; `special` adds what the tokenizer puts around a prompt, such as a first `<s>`."""
        # The batch form is the one that lets other Python threads run meanwhile; a long prompt takes seconds.
        return self._backend.encode_batch_fast([text], add_special_tokens=special)[0].ids

    def encode_many(self, texts: list[str], *, special: bool = True) -> list[list[int]]:
        """Token ids of several texts, encoded in parallel."""
        return [encoding.ids for encoding in self._backend.encode_batch_fast(texts, add_special_tokens=special)]

    def encode_with_offsets(self, text: str, *, special: bool = True) -> tuple[list[int], list[tuple[int, int]]]:
        """Token ids of `text`, and for each the characters [begin, end) of `text` it stands for."""
        encoding = self._backend.encode(text, add_special_tokens=special)
        return encoding.ids, encoding.offsets

    def decode(self, ids: list[int], *, skip_special: bool = True) -> str:
        """Text of `ids`; half a character at the end comes out as U+FFFD."""
        return self._backend.decode(ids, skip_special_tokens=skip_special)


def tokenizer_files(folder: Path) -> dict[str, bytes]:
    """The tokenizer files of a folder, to be written beside exported weights."""
    return {name: (folder / name).read_bytes() for name in TOKENIZER_FILES if (folder / name).exists()}
