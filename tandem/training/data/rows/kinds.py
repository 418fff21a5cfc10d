"""What a row says and under which keys: named by the user, by the documents' `DATA_TYPE`, or found in the first rows.

    text        {"text": ...}
    alpaca      {"instruction": ..., "input": ..., "output": ..., "system": ..., "history": [[question, answer], ...]}
    sharegpt    {"conversations": [{"from": "human", "value": ...}, ...], "system": ..., "tools": ...}
    openai      {"messages": [{"role": "user", "content": ...}, ...]}
    moss        {"chat": {"turn_1": {"Human": ..., "MOSS": ...}, ...}}; `moss-turns`: each turn by itself

Source: the data formats of ModelLink (MindSpeed-LLM) and LLaMA-Factory, and of MOSS's `SFT_data`.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import Any, Literal

from tandem.errors import DataError, UsageError, printable
from tandem.training.data.readers.blocks import Broken

Kind = Literal["text", "alpaca", "sharegpt", "openai", "moss", "moss-turns"]
Stage = Literal["pretrain", "sft"]

KINDS: tuple[Kind, ...] = ("text", "alpaca", "sharegpt", "openai", "moss", "moss-turns")

HANDLERS: dict[str, Kind] = {
    "GeneralPretrainHandler": "text",
    "GeneralInstructionHandler": "alpaca",
    "AlpacaStyleInstructionHandler": "alpaca",
    "SharegptStyleInstructionHandler": "sharegpt",
    "MOSSInstructionHandler": "moss-turns",
    "MOSSMultiTurnHandler": "moss",
}
"""The documents' `DATA_TYPE`."""

AUTO = "auto"
SHOWN_KEYS = 20
"""Of a row that is not recognised, in the error."""


def named_kind(name: str, stage: Stage | None) -> Kind | None:
    """The kind a user names; None for `auto`.

    Args:
        name: A kind, a handler of the documents, or `auto`.
        stage: What it is for, where that is known.

    Raises:
        UsageError: There is no such kind, or it is for the other stage.
    """
    kind = next((kind for kind in KINDS if kind == name), HANDLERS.get(name))
    if kind is None and name != AUTO:
        raise UsageError(f"data kind {name}: is not known; use {', '.join((AUTO, *KINDS, *HANDLERS))}")
    if kind is not None and stage is not None and stage_of(kind) != stage:
        raise UsageError(f"data kind {name}: is for {stage_of(kind)}, and not for {stage}; use {AUTO} or another kind")
    return kind


def stage_of(kind: Kind) -> Stage:
    """What data of a kind is for."""
    return "pretrain" if kind == "text" else "sft"


def detect(rows: Iterable[Any], stage: Stage | None, text_key: str, where: str) -> Kind:
    """The kind of the first row that is an object.

    A row may hold a text beside its instruction, as Stanford's Alpaca does: it is text for pretraining, and an
    instruction otherwise.

    Raises:
        DataError: No row is an object, or its keys belong to no kind that the stage can use; the keys are named.
    """
    looked_at = list(rows)
    first = next((row for row in looked_at if isinstance(row, dict)), None)
    if first is None:
        broken = next((f": one {row.reason}" for row in looked_at if isinstance(row, Broken)), "")
        what = f"none of the first rows is an object with keys{broken}" if looked_at else "holds no row"
        raise DataError(f"{where}: {what}; check that it is the right file")
    instruction, text = _instruction(first), text_key in first
    if instruction is not None and stage != "pretrain":
        return instruction
    if text and stage != "sft":
        return "text"
    if instruction is not None:
        raise DataError(
            f"{where}: holds {instruction} rows without a text under {text_key}; name its key with --text-key, or "
            "fine-tune on them"
        )
    keys = printable(", ".join(map(str, islice(first, SHOWN_KEYS)))) or "none"
    wanted = "instruction and output, conversations, messages or chat"
    expected, fix = {
        "pretrain": (text_key, "name the text's key with --text-key (data.text_key)"),
        "sft": (wanted, "rename them"),
        None: (f"{text_key}, {wanted}", "rename them, or name a text's key with --text-key"),
    }[stage]
    raise DataError(f"{where}: rows have the keys {keys}; expected {expected}; {fix}")


def _instruction(row: dict[str, Any]) -> Kind | None:
    if "messages" in row:
        return "openai"
    if "conversations" in row:
        return "sharegpt"
    if isinstance(row.get("chat"), dict):
        return "moss"
    return "alpaca" if {"instruction", "output"} <= row.keys() else None
