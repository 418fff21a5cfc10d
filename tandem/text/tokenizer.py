"""Text to token ids and back, from the tokenizer files of a model folder.

Nothing in a folder is executed: tokenizer files are data for libraries, the chat template runs in a sandbox
(`text/template.py`), and Python files that `auto_map` names are not looked at.
"""

from __future__ import annotations

from pathlib import Path

from tandem.errors import ModelFolderError, RequestError
from tandem.files import read_bytes, there
from tandem.text.backend import Backend, Span
from tandem.text.built_in_chat import built_in_chat
from tandem.text.chat import ChatFormat
from tandem.text.detokenizer import join_text
from tandem.text.folder import TokenizerFolder, open_backend
from tandem.text.library import mapped
from tandem.text.template import ChatTemplate, TemplateFormat

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "qwen.tiktoken",
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
    "special_tokens_map.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "chat_template.json",
)
"""What belongs to a tokenizer in any family's folder, and goes along when a model is exported; never Python."""

MOST_IDS = 1 << 22
"""Several times the largest vocabulary there is."""
LIKELY_CHARACTERS = 8
"""More than a token stands for in most texts."""
CUT = 1024
"""More tokens than come of cutting a text in the middle of a word."""
PROBE = " Hello, it's 12\n\n你好🙂\t\x00"
"""What every tokenizer must be able to encode."""


class Tokenizer:
    """One tokenizer and, where the model has one, its chat format.

    Args:
        backend: The opened tokenizer file.
        chat: How a conversation becomes token ids; None where the model has no chat format.
    """

    def __init__(self, backend: Backend, chat: ChatFormat | None) -> None:
        self._backend = backend
        # All of them at once: what is wrong with one is found now, and none is looked up in the libraries again.
        self._pieces = [
            b"" if backend.is_special(token) else backend.bytes_of(token) for token in range(backend.vocab_size)
        ]
        self.chat = chat
        self.drops_first_space = backend.drops_first_space

    @classmethod
    def from_folder(cls, folder: Path) -> Tokenizer:
        """Read the tokenizer files of a model folder. Its own chat template goes before a built-in format.

        Raises:
            ModelFolderError: Tokenizer files are missing, broken or of an unknown family; or the chat template is.
        """
        files = TokenizerFolder(folder)
        with mapped(lambda reason: _unusable(folder, reason)):
            backend = open_backend(files)
            _try_out(folder, backend)
            chat, own = built_in_chat(files, backend), ChatTemplate.from_folder(files)
            if own is not None:
                # Where the family's turns end, and how they begin, stays true when the folder words them itself.
                family = (chat.end_token_ids, chat.start) if chat is not None else ()
                chat = TemplateFormat(own, backend, *family)
            return cls(backend, chat)

    def with_template(self, folder: Path, source: str) -> Tokenizer:
        """The same tokenizer with another chat template, which may name the folder's special tokens.

        Raises:
            ModelFolderError: The text is no template.
        """
        template = ChatTemplate.for_folder(TokenizerFolder(folder), source, "the chat template")
        return Tokenizer(self._backend, TemplateFormat(template, self._backend))

    @property
    def vocab_size(self) -> int:
        """One above the highest id; a model's table may be larger, never smaller."""
        return self._backend.vocab_size

    @property
    def file(self) -> str:
        """Name of the file it is read from."""
        return self._backend.path.name

    def require_room(self, folder: Path, rows: int) -> None:
        """Refuse the tokenizer of another model.

        Args:
            folder: For the message.
            rows: Of the model's table.

        Raises:
            ModelFolderError: There are more ids than rows.
        """
        if self.vocab_size > rows:
            raise ModelFolderError(
                f"{folder}: the tokenizer has {self.vocab_size} tokens and the model {rows}; "
                "copy the tokenizer that belongs to the weights"
            )

    def id_of(self, token: str) -> int | None:
        """The id of one token, if there is such a token."""
        return self._backend.id_of(token)

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """Token ids of `text`; `special` adds what the tokenizer puts around a prompt, such as a first `<s>`.

        Special tokens that `text` spells are those tokens where the family's own tokenizer does so.
        """
        return self._backend.encode(text, special=special)

    def exceeds(self, text: str, tokens: int) -> bool:
        """Whether `text` certainly comes to more than so many tokens, found out at little more than their own cost.

        Encoding takes several hundred times a text's size in memory, so what is far too long must not be encoded whole.
        Beginnings of it are, each twice as long as the one before.
        """
        length = tokens * LIKELY_CHARACTERS
        while length < len(text):
            if len(self.encode(text[:length])) > tokens + CUT:
                return True
            length *= 2
        return False

    def encode_many(self, texts: list[str], *, special: bool = True) -> list[list[int]]:
        """Token ids of several texts; in parallel where the library can."""
        return self._backend.encode_many(texts, special=special)

    def encode_with_offsets(self, text: str, *, special: bool = True) -> tuple[list[int], list[Span]]:
        """Token ids of `text`, and for each the characters [begin, end) of `text` it stands for.

        Each of several tokens that make up one character has that character's span. Spans never go back. They are empty
        for tokens added around the text and for a space put before it. Where the tokenizer normalises (NFC, NFKC), a
        span is that of the characters its own came from; of those that became one, it may name the first alone.
        """
        return self._backend.encode_with_offsets(text, special=special)

    def bytes_of(self, token: int) -> bytes:
        """The bytes a token adds to an answer; none for special tokens and for ids that are no token."""
        return self._pieces[token] if 0 <= token < len(self._pieces) else b""

    def decode(self, ids: list[int], *, skip_special: bool = True) -> str:
        """Text of `ids`; bytes that are no character come out as U+FFFD, and ids beyond the tokenizer's as nothing."""
        bytes_of = self.bytes_of if skip_special else self._backend.bytes_of
        return join_text(map(bytes_of, ids), self.drops_first_space)


def _try_out(folder: Path, backend: Backend) -> None:
    """What fails for any text fails now, and not at somebody's request."""
    if backend.vocab_size > MOST_IDS:
        raise _unusable(folder, f"it has the id {backend.vocab_size - 1}, and no model has so many tokens")
    try:
        ids, _ = backend.encode_with_offsets(PROBE, special=True)
        found = {*ids, *backend.encode(PROBE, special=True), *backend.encode_plain(PROBE)}
    except RequestError as error:
        raise _unusable(folder, str(error)) from None
    if beyond := [token for token in found if not 0 <= token < backend.vocab_size]:
        raise _unusable(folder, f"it encodes text to the id {beyond[0]}, which is none of its own")


def _unusable(folder: Path, reason: str) -> ModelFolderError:
    return ModelFolderError(f"{folder}: its tokenizer cannot be used ({reason}); copy its files again")


def tokenizer_files(folder: Path) -> dict[str, bytes]:
    """The tokenizer files of a folder, to be written beside exported weights.

    A `tokenizer_config.json` keeps its `auto_map` entry; the Python it names stays behind, and nothing here needs it.

    Raises:
        ModelFolderError: One of them cannot be read.
    """
    paths = [folder / name for name in TOKENIZER_FILES]
    return {path.name: read_bytes(path, ModelFolderError) for path in paths if there(path)}
