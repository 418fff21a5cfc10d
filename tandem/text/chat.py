"""A conversation as the token ids a model was trained on: what every chat format offers, and the checks they share."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Protocol, TypeVar

from tandem.errors import RequestError, TandemError
from tandem.text.detokenizer import Start

Message = dict[str, str]
"""One turn: `role` and `content`."""
Answers = tuple[list[int], list[bool]]
"""Ids of a finished conversation, and for each whether it is part of an answer, its end token included."""
Said = TypeVar("Said")
Made = TypeVar("Made")


class ChatFormat(Protocol):
    """How one model is spoken to. Nothing here changes it, and several threads may call it at once."""

    @property
    def end_token_ids(self) -> tuple[int, ...]:
        """Tokens that end the assistant's turn, beside those the folder's `eos_token_id` names."""

    @property
    def start(self) -> Start:
        """What becomes of blanks at the beginning of an answer."""

    def encode(self, messages: Sequence[Message], *, add_generation_prompt: bool = True) -> list[int]:
        """Ids of a conversation, complete: nothing is to be added around them.

        Args:
            messages: The turns, at least one.
            add_generation_prompt: Whether to open the assistant's next turn.

        Raises:
            RequestError: The format cannot say this conversation; the message names the turn.
        """

    def encode_answers(self, conversations: Sequence[Sequence[Message]]) -> list[Answers | TandemError]:
        """Several finished conversations, to be learnt from.

        In place of one that the format cannot say is the error that tells why: a `DataError` where it does not build
        conversations turn by turn, else a `RequestError` that names the turn.
        """


def each(encode: Callable[[Said], Made], several: Iterable[Said]) -> list[Made | TandemError]:
    """What `encode` makes of each; where it raises an error of ours, that error."""
    return [_one(encode, one) for one in several]


def _one(encode: Callable[[Said], Made], one: Said) -> Made | TandemError:
    try:
        return encode(one)
    except TandemError as error:
        return error


def refuse_turn(turn: int, reason: str) -> RequestError:
    """The error for a conversation that a format cannot say."""
    return RequestError(f"messages: turn {turn}: {reason}", param="messages")


def check_roles(messages: Sequence[Message], roles: Collection[str]) -> None:
    """Refuse a conversation without turns, and a role the format has no words for.

    Raises:
        RequestError: Naming the turn.
    """
    if not messages:
        raise refuse_turn(0, "there is none; send at least one")
    for turn, message in enumerate(messages):
        if message["role"] not in roles:
            raise refuse_turn(turn, f"role {message['role']} is unknown; use {', '.join(roles)}")


def check_alternation(messages: Sequence[Message], *, opens_answer: bool) -> None:
    """Refuse a conversation that is not an optional system message, then user and assistant in turns.

    Args:
        messages: The turns.
        opens_answer: Whether the assistant speaks next, so that the last turn must be the user's.

    Raises:
        RequestError: Naming the turn.
    """
    begin = 1 if messages and messages[0]["role"] == "system" else 0
    for turn, message in enumerate(messages[begin:], begin):
        expected = "assistant" if (turn - begin) % 2 else "user"
        if message["role"] != expected:
            raise refuse_turn(
                turn, f"role {message['role']} where {expected} must be; let user and assistant alternate"
            )
    if opens_answer and (len(messages) - begin) % 2 == 0:
        raise refuse_turn(len(messages), "the assistant answers a user; end with a turn of the user")
