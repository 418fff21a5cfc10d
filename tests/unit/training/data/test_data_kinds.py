"""Rows of every kind as conversations, and which kind rows are."""

from __future__ import annotations

from typing import Any

import pytest

from tandem.errors import DataError, UsageError
from tandem.training.data.readers.blocks import Broken
from tandem.training.data.rows.conversations import conversations
from tandem.training.data.rows.kinds import HANDLERS, Kind, Stage, detect, named_kind

ALPACA = {"instruction": "Add.", "input": "1 2", "output": "3", "system": None, "history": [["q", "a"]], "text": "x"}
SHAREGPT = {"conversations": [{"from": "human", "value": "q"}, {"from": "function_call", "value": "f()"},
                              {"from": "observation", "value": "7"}, {"from": "gpt", "value": "a"}],
            "system": "s", "tools": "[{}]"}  # fmt: skip
OPENAI = {"messages": [{"role": "user", "content": [{"type": "text", "text": "q"}]},
                       {"role": "assistant", "content": "a"}]}  # fmt: skip
MOSS = {"meta_instruction": "You are", "num_turns": 2, "chat": {
    "turn_10": {"Human": "<|Human|>: q2<eoh>\n", "MOSS": "<|MOSS|>: a2<eom>\n"},
    "turn_2": {"Human": "<|Human|>: q1<eoh>\n", "Inner Thoughts": "None", "MOSS": "<|MOSS|>: a1<eom>\n"},
    "turn_11": None}}  # fmt: skip


def said(row: Any, kind: Kind) -> list[list[str]]:
    return [[f"{turn['role'][0]}:{turn['content']}" for turn in messages] for messages in conversations(row, kind)]


@pytest.mark.parametrize(
    ("row", "kind", "expected"),
    [
        (ALPACA, "alpaca", [["u:q", "a:a", "u:Add.\n1 2", "a:3"]]),
        ({"instruction": "i", "output": "o", "system": "s"}, "alpaca", [["s:s", "u:i", "a:o"]]),
        (SHAREGPT, "sharegpt",
         [["s:s\n\nYou have access to the following tools:\n[{}]", "u:q", "a:f()", "t:7", "a:a"]]),
        ({"conversations": OPENAI["messages"][1:] and [{"role": "user", "content": "q"},
                                                       {"role": "assistant", "content": "a"}]},
         "sharegpt", [["u:q", "a:a"]]),
        (OPENAI, "openai", [["u:q", "a:a"]]),
        (MOSS, "moss", [["u:q1", "a:a1", "u:q2", "a:a2"]]),
        (MOSS, "moss-turns", [["u:q1", "a:a1"], ["u:q2", "a:a2"]]),
    ],
)  # fmt: skip
def test_rows_become_conversations(row: Any, kind: Kind, expected: list[list[str]]) -> None:
    assert said(row, kind) == expected


@pytest.mark.parametrize(
    ("row", "kind", "reason"),
    [
        ("text", "alpaca", "is str and no object"),
        ({"instruction": "i"}, "alpaca", "has no text `output`"),
        ({"instruction": "i", "output": " "}, "alpaca", "no turn of the assistant"),
        ({"instruction": "", "output": "o"}, "alpaca", "no turn of a user"),
        ({"instruction": "i", "output": "o", "history": [["q"]]}, "alpaca", "history 0 is no pair"),
        ({"conversations": [{"from": "bard", "value": "x"}]}, "sharegpt", "turn 0: from 'bard' is unknown"),
        (
            {
                "conversations": [
                    {"from": "system", "value": "s"},
                    {"from": "gpt", "value": "a"},
                    {"from": "human", "value": "q"},
                ]
            },
            "sharegpt",
            "begins with the assistant",
        ),
        ({"conversations": []}, "sharegpt", "has no list `conversations`"),
        ({"messages": [{"role": "user"}]}, "openai", "turn 0: `content` is no text"),
        ({"messages": [{"role": "assistant", "tool_calls": [1]}]}, "openai", "tool calls are not supported"),
        ({"messages": OPENAI["messages"], "tools": [1]}, "openai", "has tools"),
        ({"chat": {"turn_1": {"Human": "q"}}}, "moss", "turn_1: has no texts"),
        ({"conversations": [{"from": ["gpt"], "value": "x"}]}, "sharegpt", r"turn 0: from \['gpt'\] is unknown"),
        ({"chat": {f"turn_{'9' * 5000}": {"Human": "q"}}}, "moss", "has no texts"),
        ({"chat": {}}, "moss", "has no turn"),
        ({"chat": {}}, "moss-turns", "has no turn"),
    ],
)
def test_rows_that_say_nothing_are_refused(row: Any, kind: Kind, reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        conversations(row, kind)


@pytest.mark.parametrize(
    ("row", "stage", "kind"),
    [
        (ALPACA, None, "alpaca"), (ALPACA, "sft", "alpaca"), (ALPACA, "pretrain", "text"),
        ({"text": "x"}, None, "text"),
        (SHAREGPT, None, "sharegpt"), (OPENAI, "sft", "openai"), (MOSS, None, "moss"),
    ],
)  # fmt: skip
def test_kinds_are_recognised(row: Any, stage: Stage | None, kind: Kind) -> None:
    assert detect(["broken", row], stage, "text", "here") == kind


def test_what_is_not_recognised_is_refused_with_its_keys() -> None:
    with pytest.raises(DataError, match="keys question, answer; expected"):
        detect([{"question": "q", "answer": "a"}], None, "text", "here")
    with pytest.raises(DataError, match=r"instruction and output, conversations, messages or chat; rename them$"):
        detect([{"question": "q", "answer": "a"}], "sft", "text", "here")
    with pytest.raises(DataError, match="sharegpt rows without a text under body"):
        detect([SHAREGPT], "pretrain", "body", "here")
    with pytest.raises(DataError, match="none of the first rows is an object with keys: one is no UTF-8; check"):
        detect([1, Broken("x", "is no UTF-8")], None, "text", "here")
    with pytest.raises(DataError, match=r"rows have the keys \\x1b0, .*\\x1b19; expected"):
        detect([{f"\x1b{number}": 1 for number in range(999)}], None, "text", "here")


def test_kinds_have_the_documents_names_too() -> None:
    assert [named_kind(name, None) for name in HANDLERS] == list(HANDLERS.values())
    assert named_kind("auto", "sft") is None
    with pytest.raises(UsageError, match="GeneralPretrainHandler: is for pretrain, and not for sft"):
        named_kind("GeneralPretrainHandler", "sft")
    with pytest.raises(UsageError, match="data kind alpaka: is not known; use auto, text"):
        named_kind("alpaka", None)
