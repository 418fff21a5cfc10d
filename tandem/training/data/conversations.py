"""Rows of conversations to token ids with a loss mask; how one becomes tokens is the chat format's affair."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tandem.errors import DataError, RequestError
from tandem.files import write_whole
from tandem.text.chat import Message
from tandem.text.tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True)
class Example:
    """One conversation as tokens."""

    ids: NDArray[np.int64]
    """[T]."""
    loss_mask: NDArray[np.bool_]
    """[T]: whether the token is part of an answer, its end token included."""


@dataclass(frozen=True, kw_only=True)
class Skipped:
    """One row that cannot be trained on, and why."""

    row: int
    """From 0, in the file's order."""
    reason: str


def read_conversations(path: Path) -> list[Any]:
    """The rows of a JSON Lines file; a line that is no JSON comes out as its text, to be skipped by name.

    Raises:
        DataError: The file cannot be read.
    """
    try:
        # Not `splitlines`: a string may hold U+2028 and other line ends that JSON Lines does not know.
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error}); write the file again") from None
    return [_row(line) for line in lines if line.strip()]


def encode_conversation(tokenizer: Tokenizer, messages: Sequence[Message]) -> Example:
    """Tokenise one conversation, and mark the tokens of its answers.

    Raises:
        DataError: The tokenizer has no chat format, or its template does not build conversations turn by turn.
        RequestError: The format refuses the conversation.
    """
    if tokenizer.chat is None:
        raise DataError("the tokenizer has no chat format; add chat_template to its tokenizer_config.json")
    ids, loss_mask = tokenizer.chat.encode_answers(messages)
    return Example(ids=np.array(ids, dtype=np.int64), loss_mask=np.array(loss_mask, dtype=np.bool_))


def encode_rows(rows: Sequence[Any], tokenizer: Tokenizer, seq_length: int) -> tuple[list[Example], list[Skipped]]:
    """Examples of all rows that can be trained on, and every other row with its reason.

    Args:
        rows: Each `{"messages": [{"role": ..., "content": ...}, ...]}`.
        tokenizer: With a chat format.
        seq_length: Longest conversation, in tokens.
    """
    examples, skipped = [], []
    for row, fields in enumerate(rows):
        try:
            example = encode_conversation(tokenizer, _messages(fields))
            _check(example, seq_length)
            examples.append(example)
        except (DataError, RequestError) as error:
            skipped.append(Skipped(row=row, reason=str(error)))
    return examples, skipped


def write_skipped(path: Path, skipped: Sequence[Skipped]) -> None:
    """One JSON line for each row that is not trained on; no file where there is none."""
    path.unlink(missing_ok=True)
    if skipped:
        write_whole(path, "".join(json.dumps(vars(row)) + "\n" for row in skipped).encode())


def _row(line: str) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        return line


def _messages(fields: Any) -> list[Message]:
    messages = fields.get("messages") if isinstance(fields, dict) else None
    if not isinstance(messages, list) or not messages:
        raise DataError("the row has no list `messages`")
    for turn, message in enumerate(messages):
        if not isinstance(message, dict) or not all(isinstance(message.get(key), str) for key in ("role", "content")):
            raise DataError(f"turn {turn}: has no text `role` and `content`")
    if not any(message["role"] == "assistant" and message["content"] for message in messages):
        raise DataError("no turn of the assistant to learn from")
    return messages


def _check(example: Example, seq_length: int) -> None:
    if len(example.ids) > seq_length:
        raise DataError(f"{len(example.ids)} tokens are more than seq_length {seq_length}")
    if not example.loss_mask[1:].any():
        raise DataError("no token of the assistant to learn from")
