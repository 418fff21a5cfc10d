"""Generation defaults of a model folder: which tokens end an answer, and how to sample when the request does not say.

Source: Hugging Face `generation_config.json`; `config.json` where that file is missing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tandem.errors import ModelFolderError
from tandem.files import read_json_object, there

SMALLEST = 1e-9
"""Of probability masses: with 0, no token at all would be kept."""
KNOWN = ("bos_token_id", "eos_token_id", "do_sample", "temperature", "top_p", "top_k")
"""The fields of that file that have a meaning here and are always written."""
OPTIONAL: Mapping[str, float] = {"repetition_penalty": 1.0, "min_p": 0.0}
"""The fields that have a meaning and are written where they say something, with the values that say nothing."""
LARGEST_PENALTY = 1e4

NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "encoder_repetition_penalty": (1, None),
    "no_repeat_ngram_size": (0, None),
    "typical_p": (1, None),
    "epsilon_cutoff": (0, None),
    "eta_cutoff": (0, None),
    "penalty_alpha": (0, None),
    "num_beams": (1, None),
    "bad_words_ids": (None, []),
    "suppress_tokens": (None, []),
    "begin_suppress_tokens": (None, []),
    "sequence_bias": (None, {}),
    "guidance_scale": (1, None),
}
"""Fields that would change which token is chosen and are not applied, with the values that change nothing."""


@dataclass(frozen=True, kw_only=True)
class GenerationDefaults:
    """What applies to a request that leaves the field out."""

    eos_token_ids: tuple[int, ...] = ()
    bos_token_id: int | None = None
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    """0 keeps every token."""
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    extra: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """Whatever else `generation_config.json` says, by its own names: kept, so that an export loses nothing."""

    @property
    def unapplied(self) -> dict[str, Any]:
        """Fields that ask for something else than what is done here."""
        return {name: value for name, value in self.extra.items() if value not in NEUTRAL.get(name, (value,))}

    def as_json(self) -> dict[str, Any]:
        """The content of `generation_config.json`."""
        ends = list(self.eos_token_ids)
        return {
            **self.extra,
            "bos_token_id": self.bos_token_id,
            "eos_token_id": ends if len(ends) > 1 else next(iter(ends), None),
            # A temperature of 0 is written as other readers know it, who refuse the number.
            **({"do_sample": True, "temperature": self.temperature} if self.temperature else {"do_sample": False}),
            "top_p": self.top_p,
            "top_k": self.top_k,
            **{name: value for name, nothing in OPTIONAL.items() if (value := getattr(self, name)) != nothing},
        }


def read_generation_defaults(folder: Path) -> GenerationDefaults:
    """Read the defaults of one model folder.

    Raises:
        ModelFolderError: A file is not JSON, or a value is not of its kind or range.
    """
    own = _object(folder / "generation_config.json")
    fields = _object(folder / "config.json") | own
    sampled = fields.get("do_sample", True)
    eos = fields.get("eos_token_id")
    ends = eos if isinstance(eos, list) else [] if eos is None else [eos]
    bos = fields.get("bos_token_id")
    return GenerationDefaults(
        eos_token_ids=tuple(_token(folder, "eos_token_id", end) for end in ends),
        bos_token_id=None if bos is None else _token(folder, "bos_token_id", bos),
        # `do_sample: false` is how a folder asks for greedy answers.
        temperature=_number(folder, fields, "temperature", 1.0, 0, math.inf) if sampled else 0.0,
        top_p=_number(folder, fields, "top_p", 1.0, SMALLEST, 1),
        top_k=_whole(folder, fields, "top_k", 0, 2**31),
        min_p=_number(folder, fields, "min_p", 0.0, 0, 1),
        repetition_penalty=_number(folder, fields, "repetition_penalty", 1.0, SMALLEST, LARGEST_PENALTY),
        extra={name: own[name] for name in own if _says_nothing(name, own[name], sampled)},
    )


def _says_nothing(name: str, value: Any, sampled: Any) -> bool:
    """Whether a field is nothing but something to keep."""
    if name == "temperature":
        return not sampled
    return value in (None, OPTIONAL[name]) if name in OPTIONAL else name not in KNOWN


def _object(path: Path) -> dict[str, Any]:
    return read_json_object(path, ModelFolderError) if there(path) else {}


def _token(folder: Path, name: str, value: Any) -> int:
    if type(value) is not int:
        raise ModelFolderError(f"{folder}: {name} is {value!r:.40}; write a token id into generation_config.json")
    return value


def _whole(folder: Path, fields: dict[str, Any], name: str, default: int, most: int) -> int:
    value = _number(folder, fields, name, default, 0, most)
    if value != int(value):
        raise ModelFolderError(f"{folder}: {name} is {value}; write a whole number into generation_config.json")
    return int(value)


def _number(folder: Path, fields: dict[str, Any], name: str, default: float, least: float, most: float) -> float:
    value = fields.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
        raise ModelFolderError(
            f"{folder}: {name} is {value!r:.40}; write a number from {least} to {most:g} into generation_config.json"
        )
    return value
