"""Chat formats that place special tokens by their ids, and encode what is said as plain text between them.

A message that spells `<|im_end|>` or `<|user|>` is text here and cannot end its turn or begin another's. Which tokens
are answers follows from the pieces exactly.

Source: `qwen_generation_utils.py` of Qwen-7B-Chat; `build_chat_input` of ChatGLM3-6B and GLM-4-9B-Chat;
`generation_utils.py` of Baichuan2-13B-Chat. Theirs drop early turns that are too long; here nothing is dropped.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from tandem.errors import TandemError
from tandem.text.backend import Backend
from tandem.text.chat import Answers, Message, check_alternation, check_roles, each, refuse_turn
from tandem.text.detokenizer import Start

QWEN_SYSTEM = "You are a helpful assistant."


@dataclass(frozen=True)
class Piece:
    """Some ids of a conversation."""

    ids: list[int]
    answer: bool = False
    """Whether they are part of an answer, its end included."""


class PieceFormat(ABC):
    """A conversation as pieces, one after the other."""

    end_token_ids: tuple[int, ...]
    start = Start.ALONE

    def encode(self, messages: Sequence[Message], *, add_generation_prompt: bool = True) -> list[int]:
        """Ids of all pieces."""
        return [token for piece in self.pieces(messages, add_generation_prompt) for token in piece.ids]

    def encode_answers(self, conversations: Sequence[Sequence[Message]]) -> list[Answers | TandemError]:
        """Ids of all pieces of each finished conversation, and whether each is part of an answer."""
        return each(self._answers, conversations)

    def _answers(self, messages: Sequence[Message]) -> Answers:
        pieces = list(self.pieces(messages, opens_answer=False))
        mask = [piece.answer for piece in pieces for _ in piece.ids]
        return [token for piece in pieces for token in piece.ids], mask

    @abstractmethod
    def pieces(self, messages: Sequence[Message], opens_answer: bool) -> Iterator[Piece]:
        """The pieces of a conversation.

        Args:
            messages: The turns.
            opens_answer: Whether the assistant speaks next; otherwise the last answer is ended as training needs it.

        Raises:
            RequestError: The format cannot say this conversation; the message names the turn.
        """


class QwenChat(PieceFormat):
    """Qwen 1: ChatML, a default system message, each role and text encoded by itself."""

    def __init__(self, backend: Backend, end: int, im_start: int, im_end: int) -> None:
        self._backend = backend
        self._im_start, self._im_end = im_start, im_end
        self._newline = backend.encode_plain("\n")
        # The reference stops where the model begins a turn of its own, too.
        self.end_token_ids = (end, im_start, im_end)

    def pieces(self, messages: Sequence[Message], opens_answer: bool) -> Iterator[Piece]:
        """Turns between `<|im_start|>` and `<|im_end|>`, with a newline between two."""
        check_roles(messages, ("system", "user", "assistant"))
        check_alternation(messages, opens_answer=opens_answer)
        if messages[0]["role"] != "system":
            messages = [{"role": "system", "content": QWEN_SYSTEM}, *messages]
        for turn, message in enumerate(messages):
            yield self._opening(message["role"], after=turn > 0)
            content = [*self._backend.encode_plain(message["content"]), self._im_end]
            yield Piece(content, answer=message["role"] == "assistant")
        if opens_answer:
            yield self._opening("assistant", after=True)

    def _opening(self, role: str, after: bool) -> Piece:
        between = self._newline if after else []
        return Piece([*between, self._im_start, *self._backend.encode_plain(role), *self._newline])


class GlmChat(PieceFormat):
    """ChatGLM 3 and GLM-4: a role's token opens its turn, and the next role's token ends it.

    An answer begins with the newline that follows its role, because the model writes that itself; it is not shown.
    """

    start = Start.STRIPPED

    def __init__(self, backend: Backend, end: int, prefix: Sequence[int], roles: dict[str, int]) -> None:
        self._backend = backend
        self._end, self._prefix, self._roles = end, prefix, roles
        self._newline = backend.encode_plain("\n")
        self.end_token_ids = (end, roles["user"], roles["observation"])

    def pieces(self, messages: Sequence[Message], opens_answer: bool) -> Iterator[Piece]:
        """The two tokens every text begins with, then the turns."""
        check_roles(messages, tuple(self._roles))
        yield Piece(list(self._prefix))
        answered = False
        for message in messages:
            yield Piece([self._roles[message["role"]]], answer=answered)
            answered = message["role"] == "assistant"
            yield Piece([*self._newline, *self._backend.encode_plain(message["content"])], answer=answered)
        if opens_answer:
            yield Piece([self._roles["assistant"]])
        elif answered:
            yield Piece([self._end], answer=True)


class BaichuanChat(PieceFormat):
    """Baichuan 2: the system's text, then one reserved token before what each side says, and nothing after.

    Only the last answer is ended, by `</s>`: between turns the model never saw an end.
    """

    def __init__(self, backend: Backend, end: int, user: int, assistant: int) -> None:
        self._backend = backend
        self._end = end
        self._roles = {"user": user, "assistant": assistant}
        self._inside = _inside(backend.bytes_of(role).decode(errors="ignore") for role in (user, assistant))
        self.end_token_ids = (end,)

    def pieces(self, messages: Sequence[Message], opens_answer: bool) -> Iterator[Piece]:
        """An answer that is the last turn is gone on with rather than followed by another."""
        check_roles(messages, ("system", *self._roles))
        answered = False
        for turn, message in enumerate(messages):
            if message["role"] == "system" and turn:
                raise refuse_turn(turn, "a system message can only be the first")
            if message["role"] != "system":
                yield Piece([self._roles[message["role"]]])
            answered = message["role"] == "assistant"
            yield Piece(self._said(message["content"]), answer=answered)
        if opens_answer and not answered:
            yield Piece([self._roles["assistant"]])
        elif answered and not opens_answer:
            yield Piece([self._end], answer=True)

    def _said(self, text: str) -> list[int]:
        """The text, with the spelling of a role's token broken in two: the model file finds it in any text."""
        return [token for part in self._inside.split(text) for token in self._backend.encode_plain(part)]


def _inside(spellings: Iterable[str]) -> re.Pattern[str]:
    """Finds the place before the last character of each spelling."""
    return re.compile(
        "|".join(f"(?<={re.escape(word[:-1])})(?={re.escape(word[-1:])})" for word in spellings if word[1:])
    )
