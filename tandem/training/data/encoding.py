"""A block of rows to token ids: what one worker process does, and nothing it does depends on other blocks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tandem.errors import DataError, RequestError, TandemError, UsageError
from tandem.text.alpaca import alpaca_template, end_of_document
from tandem.text.chat import Answers, Message, each
from tandem.text.tokenizer import Tokenizer
from tandem.training.data.readers.blocks import Block, Broken
from tandem.training.data.readers.rows import parsed
from tandem.training.data.rows.conversations import conversations
from tandem.training.data.rows.kinds import Kind
from tandem.training.data.rows.texts import text_of

MEGABYTE = 1_000_000
Template = Literal["auto", "own", "alpaca"]
"""How a conversation is worded: as the tokenizer's folder says, by the documents' instruction template, or by the
first of them that there is."""


@dataclass(frozen=True, kw_only=True)
class Encoding:
    """How rows become token ids."""

    tokenizer: Path
    kind: Kind
    text_key: str
    seq_length: int | None
    """Longest conversation, in tokens; None for any."""
    template: Template
    row_megabytes: int
    """Longest text, or conversation, in MB of UTF-8: tokenising takes memory of some 120 times its size."""


@dataclass(frozen=True, kw_only=True)
class Skipped:
    """A row that cannot be trained on, whole or one conversation of it."""

    file: str
    row: int
    reason: str
    content: Any


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """What became of a block: D documents of N tokens in all."""

    rows: int
    ids: NDArray[np.int32]
    """[N]."""
    lengths: NDArray[np.int32]
    """[D]."""
    learnt: NDArray[np.bool_] | None
    """[N]: part of an answer; None where every token is learnt, as in texts."""
    skipped: tuple[Skipped, ...]


class Encoder:
    """Turns blocks into token ids.

    Args:
        encoding: How.

    Raises:
        ModelFolderError: The tokenizer cannot be used, or names no end.
        UsageError: Its own chat template is asked for, and it has none.
    """

    def __init__(self, encoding: Encoding) -> None:
        self._encoding = encoding
        self.tokenizer = Tokenizer.from_folder(encoding.tokenizer)
        self.chat_template: str | None = None
        """The template that was taken in place of the folder's own; a model trained so needs it to chat."""
        self._observes = self.tokenizer.id_of("<|observation|>") is not None
        if encoding.kind == "text":
            self._end = end_of_document(encoding.tokenizer, self.tokenizer)
        else:
            self._choose_template()

    def encode(self, block: Block) -> Encoded:
        """Token ids of all rows that can be trained on, in order, and all others with the reason."""
        rows = [(block.first + place, row) for place, row in enumerate(map(parsed, block.rows)) if row is not None]
        skipped: list[Skipped] = []
        encode = self._texts if self._encoding.kind == "text" else self._conversations
        parts = encode(rows, block.file, skipped)
        lengths = np.fromiter((len(ids) for ids, _ in parts), np.int32, len(parts))
        masks = [mask for _, mask in parts if mask is not None]
        return Encoded(
            rows=len(rows),
            ids=np.fromiter(chain.from_iterable(ids for ids, _ in parts), np.int32, int(lengths.sum())),
            lengths=lengths,
            learnt=np.fromiter(chain.from_iterable(masks), bool, int(lengths.sum())) if masks else None,
            skipped=tuple(skipped),
        )

    def _choose_template(self) -> None:
        template, folder = self._encoding.template, self._encoding.tokenizer
        if template == "own" and self.tokenizer.chat is None:
            raise UsageError(
                f"{folder}: has no chat template; add chat_template to its tokenizer_config.json, or use "
                "--template alpaca"
            )
        if template == "alpaca" or self.tokenizer.chat is None:
            self.chat_template = alpaca_template(folder, self.tokenizer)
            self.tokenizer = self.tokenizer.with_template(folder, self.chat_template)

    def _texts(self, rows: Rows, file: str, skipped: list[Skipped]) -> list[Ids]:
        good, texts = [], []
        for number, row in rows:
            try:
                text = text_of(_whole(row), self._encoding.text_key)
                self._require_room([text])
                texts.append(text)
                good.append((number, row))
            except DataError as error:
                skipped.append(_skip(file, number, row, error))
        try:
            found = self.tokenizer.encode_many(texts)
        except RequestError:  # one of them; which one, only each alone can say
            return [ids for place in good for ids in self._text(place, file, skipped)]
        return [(self._ended(ids), None) for ids in found]

    def _text(self, place: tuple[int, Any], file: str, skipped: list[Skipped]) -> list[Ids]:
        number, row = place
        try:
            return [(self._ended(self.tokenizer.encode(text_of(row, self._encoding.text_key))), None)]
        except RequestError as error:
            skipped.append(_skip(file, number, row, error))
            return []

    def _ended(self, ids: list[int]) -> list[int]:
        if ids[-1:] != [self._end]:
            ids.append(self._end)
        return ids

    def _conversations(self, rows: Rows, file: str, skipped: list[Skipped]) -> list[Ids]:
        chat = self.tokenizer.chat
        assert chat is not None, "chosen with the template"
        read = each(self._read, (row for _, row in rows))
        said = chat.encode_answers([one for several in read if not isinstance(several, TandemError) for one in several])
        answers = iter(each(self._checked, said))
        found: list[Ids] = []
        for (number, row), several in zip(rows, read, strict=True):
            for one in [several] if isinstance(several, TandemError) else islice(answers, len(several)):
                if isinstance(one, TandemError):
                    skipped.append(_skip(file, number, row, one))
                else:
                    found.append(one)
        return found

    def _read(self, row: Any) -> list[list[Message]]:
        several = conversations(_whole(row), self._encoding.kind)
        for messages in several:
            self._require_room(message["content"] for message in messages)
        return [self._spoken(messages) for messages in several]

    def _require_room(self, texts: Iterable[str]) -> None:
        size = sum(len(text) if text.isascii() else len(text.encode(errors="surrogatepass")) for text in texts)
        if size > self._encoding.row_megabytes * MEGABYTE:
            raise DataError(
                f"{size / MEGABYTE:.1f} MB of text are more than row_megabytes {self._encoding.row_megabytes}; divide "
                "them into several rows (in a .txt by blank lines), or raise it"
            )

    def _spoken(self, messages: list[Message]) -> list[Message]:
        """What a tool answers has its own word in the models of the GLM family."""
        if not self._observes:
            return messages
        return [message | {"role": "observation"} if message["role"] == "tool" else message for message in messages]

    def _checked(self, answers: Answers | TandemError) -> Answers:
        if isinstance(answers, TandemError):
            raise answers
        ids, learnt = answers
        most = self._encoding.seq_length
        if most is not None and len(ids) > most:
            raise DataError(f"{len(ids)} tokens are more than seq_length {most}")
        if not any(learnt[1:]):
            raise DataError("no token of the assistant to learn from")
        return answers


Ids = tuple[list[int], list[bool] | None]
"""Tokens of one document, and which are learnt; None is all."""
Rows = Sequence[tuple[int, Any]]


def _whole(row: Any) -> Any:
    if isinstance(row, Broken):
        raise DataError(row.reason)
    return row


def _skip(file: str, row: int, content: Any, error: Exception) -> Skipped:
    content = content.content if isinstance(content, Broken) else content
    return Skipped(file=file, row=row, reason=str(error), content=content)
