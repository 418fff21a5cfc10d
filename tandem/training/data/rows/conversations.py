"""Rows of instruction data as conversations in OpenAI's form: system, user, assistant, tool.

Everything a row says is either in its conversation or the row is refused; two things are left out on purpose, as the
documents' own handlers do: MOSS's `meta_instruction`, and its thoughts, commands and tool responses.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from tandem.errors import DataError
from tandem.text.chat import Message
from tandem.training.data.rows.kinds import Kind

SHAREGPT_ROLES = {
    "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system",
    "observation": "tool", "tool": "tool", "function_call": "assistant",
}  # fmt: skip
"""A function's call is the assistant's turn, and its text is learnt; what came of it is not."""

MOSS_MARKS = ("<|Human|>:", "<|MOSS|>:", "<eoh>", "<eom>")


def conversations(row: Any, kind: Kind) -> list[list[Message]]:
    """The conversations of one row: one, or with `moss-turns` one for each turn.

    Raises:
        DataError: The row is not of this kind, says nothing, or has nothing of the assistant to learn from.
    """
    if not isinstance(row, dict):
        raise DataError(f"is {type(row).__name__} and no object with keys")
    found = list(_BY_KIND[kind](row))
    for messages in found:
        _check(messages)
    if not found:
        raise DataError("has no turn")
    return found


def _alpaca(row: dict[str, Any]) -> Iterator[list[Message]]:
    question = _text(row, "instruction")
    if more := _text(row, "input", required=False):
        question = f"{question}\n{more}"
    messages = _system(_text(row, "system", required=False))
    for turn, pair in enumerate(_list(row, "history", required=False)):
        if not (isinstance(pair, list | tuple) and len(pair) == 2 and all(isinstance(part, str) for part in pair)):
            raise DataError(f"history {turn} is no pair of texts")
        messages += [_message("user", pair[0]), _message("assistant", pair[1])]
    yield [*messages, _message("user", question), _message("assistant", _text(row, "output"))]


def _sharegpt(row: dict[str, Any]) -> Iterator[list[Message]]:
    turns = _list(row, "conversations")
    if all(isinstance(turn, dict) and "role" in turn for turn in turns):
        turns = [{"from": turn["role"], "value": turn.get("content")} for turn in turns]
    messages = [_sharegpt_turn(number, turn) for number, turn in enumerate(turns)]
    system, tools = _text(row, "system", required=False), _tools(row.get("tools"))
    if (system or tools) and messages and messages[0]["role"] == "system":
        system = "\n\n".join(part for part in (system, messages.pop(0)["content"]) if part)
    yield _system("\n\n".join(part for part in (system, tools) if part)) + messages


def _sharegpt_turn(number: int, turn: Any) -> Message:
    if not isinstance(turn, dict) or not isinstance(turn.get("value"), str):
        raise DataError(f"turn {number}: has no text `value`")
    speaker = turn.get("from")
    if not isinstance(speaker, str) or speaker not in SHAREGPT_ROLES:
        raise DataError(f"turn {number}: from {speaker!r} is unknown; use {', '.join(SHAREGPT_ROLES)}")
    return _message(SHAREGPT_ROLES[speaker], turn["value"])


def _tools(tools: Any) -> str:
    """Tools as words of the system message: a template's own words for them differ, and rows rarely follow them."""
    if isinstance(tools, str):
        tools = tools.strip()
        return f"You have access to the following tools:\n{tools}" if tools not in ("", "[]") else ""
    return f"You have access to the following tools:\n{json.dumps(tools, ensure_ascii=False)}" if tools else ""


def _openai(row: dict[str, Any]) -> Iterator[list[Message]]:
    if row.get("tools"):
        raise DataError("has tools, which are not supported here; put them into the system message")
    yield [_openai_turn(number, turn) for number, turn in enumerate(_list(row, "messages"))]


def _openai_turn(number: int, turn: Any) -> Message:
    if not isinstance(turn, dict) or not isinstance(turn.get("role"), str):
        raise DataError(f"turn {number}: has no text `role` and `content`")
    if turn.get("tool_calls") or turn.get("function_call"):
        raise DataError(f"turn {number}: tool calls are not supported here; write them into `content`")
    content = turn.get("content")
    if isinstance(content, list | tuple) and all(
        isinstance(part, dict) and part.get("type") == "text" for part in content
    ):
        content = "".join(str(part.get("text") or "") for part in content)
    if not isinstance(content, str):
        raise DataError(f"turn {number}: `content` is no text")
    return _message("system" if turn["role"] == "developer" else turn["role"], content)


def _moss(row: dict[str, Any]) -> Iterator[list[Message]]:
    yield [message for turn in _moss_turns(row) for message in turn]


def _moss_turns(row: dict[str, Any]) -> Iterator[list[Message]]:
    chat = row.get("chat")
    if not isinstance(chat, dict):
        raise DataError("has no object `chat`")
    # A table has every key in every row, and null where there is no such turn.
    for name, turn in sorted(((name, turn) for name, turn in chat.items() if turn), key=lambda pair: _number(pair[0])):
        if not isinstance(turn, dict) or not all(isinstance(turn.get(side), str) for side in ("Human", "MOSS")):
            raise DataError(f"{name}: has no texts `Human` and `MOSS`")
        yield [_message("user", _bare(turn["Human"])), _message("assistant", _bare(turn["MOSS"]))]


def _bare(text: str) -> str:
    for mark in MOSS_MARKS:
        text = text.replace(mark, "")
    return text.strip()


def _number(name: str) -> tuple[int, str]:
    """Orders as the number in a name does, however many digits it has."""
    digits = "".join(letter for letter in name if letter.isdecimal()).lstrip("0")
    return len(digits), digits


def _check(messages: Sequence[Message]) -> None:
    if not messages:
        raise DataError("has no turn")
    if not any(message["role"] == "assistant" and message["content"].strip() for message in messages):
        raise DataError("no turn of the assistant to learn from")
    if next(message for message in messages if message["role"] != "system")["role"] == "assistant":
        raise DataError("begins with the assistant, and there is nothing it answers; begin with a turn of the user")
    if not any(message["role"] in ("user", "tool") and message["content"].strip() for message in messages):
        raise DataError("no turn of a user to answer")


def _message(role: str, content: str) -> Message:
    return {"role": role, "content": content}


def _system(content: str) -> list[Message]:
    return [_message("system", content)] if content else []


def _text(row: dict[str, Any], key: str, *, required: bool = True) -> str:
    value = row.get(key)
    if value is None and not required:
        return ""
    if not isinstance(value, str):
        raise DataError(f"has no text `{key}`")
    return value


def _list(row: dict[str, Any], key: str, *, required: bool = True) -> list[Any]:
    value = row.get(key)
    if value is None and not required:
        return []
    if not isinstance(value, list | tuple) or (required and not value):
        raise DataError(f"has no list `{key}`")
    return list(value)


_BY_KIND = {
    "alpaca": _alpaca, "sharegpt": _sharegpt, "openai": _openai, "moss": _moss, "moss-turns": _moss_turns,
}  # fmt: skip
