"""Generation defaults: what is not applied is said, nothing is lost on the way through, and faults are named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tandem.catalogue.generation import GenerationDefaults, read_generation_defaults
from tandem.errors import ModelFolderError


def put(folder: Path, name: str = "generation_config.json", **fields: Any) -> Path:
    (folder / name).write_text(json.dumps(fields))
    return folder


BAICHUAN = {
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "user_token_id": 195, "assistant_token_id": 196,
    "max_new_tokens": 2048, "temperature": 0.3, "top_k": 5, "top_p": 0.85, "repetition_penalty": 1.05,
    "do_sample": True, "transformers_version": "4.29.2",
}  # fmt: skip
QWEN = {
    "chat_format": "chatml", "eos_token_id": [151643, 151645], "bos_token_id": None, "max_window_size": 6144,
    "do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 0.8,
}  # fmt: skip
QWEN2 = {
    "eos_token_id": [5, 3],
    "pad_token_id": 3,
    "do_sample": True,
    "repetition_penalty": 1.05,
    "temperature": 0.7,
    "top_p": 0.8,
    "top_k": 20,
    "num_beams": 1,
    "transformers_version": "4.37.0",
}
NEUTRAL_ONES = QWEN | {"repetition_penalty": 1.0, "min_p": None}
GREEDY = {"bos_token_id": 1, "eos_token_id": 2, "do_sample": False, "temperature": 0.9, "top_p": 0.6, "top_k": 7}


@pytest.mark.parametrize("fields", [BAICHUAN, QWEN, GREEDY, NEUTRAL_ONES, QWEN | {"min_p": 0.05}])
def test_an_export_loses_nothing(fields: dict[str, Any], tmp_path: Path) -> None:
    defaults = read_generation_defaults(put(tmp_path, **fields))
    assert defaults.as_json() == fields
    assert read_generation_defaults(put(tmp_path, **defaults.as_json())) == defaults


def test_penalties_and_cuts_are_defaults(tmp_path: Path) -> None:
    assert read_generation_defaults(put(tmp_path, **BAICHUAN)).repetition_penalty == 1.05
    defaults = read_generation_defaults(put(tmp_path, min_p=0.05, repetition_penalty=None))
    assert (defaults.min_p, defaults.repetition_penalty) == (0.05, 1.0)


def test_what_has_no_meaning_here_is_kept_beside(tmp_path: Path) -> None:
    defaults = read_generation_defaults(put(tmp_path, **QWEN))
    assert defaults.extra == {"chat_format": "chatml", "max_window_size": 6144}
    assert defaults == GenerationDefaults(eos_token_ids=(151643, 151645), top_p=0.8, extra=defaults.extra)
    assert hash(defaults) == hash(defaults)


def test_greedy_answers_have_no_temperature(tmp_path: Path) -> None:
    assert read_generation_defaults(put(tmp_path, do_sample=False, temperature=0.7)).temperature == 0
    assert GenerationDefaults(temperature=0).as_json()["do_sample"] is False
    assert "temperature" not in GenerationDefaults(temperature=0).as_json()


def test_the_configuration_fills_in_and_leaves_no_remainder(tmp_path: Path) -> None:
    put(tmp_path, "config.json", eos_token_id=7, bos_token_id=8, hidden_size=16)
    put(tmp_path, eos_token_id=9)
    assert read_generation_defaults(tmp_path) == GenerationDefaults(eos_token_ids=(9,), bos_token_id=8)


def test_a_folder_without_defaults_has_the_usual_ones(tmp_path: Path) -> None:
    assert read_generation_defaults(tmp_path) == GenerationDefaults()
    assert GenerationDefaults().as_json()["eos_token_id"] is None


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", "0.7"),
        ("temperature", -1),
        ("top_p", 2),
        ("top_k", -3),
        ("top_k", 50.7),
        ("min_p", 1.5),
        ("repetition_penalty", 0),
        ("repetition_penalty", 1e5),
        ("eos_token_id", ["x"]),
        ("bos_token_id", 1.5),
    ],
)
def test_broken_generation_defaults_are_named(field: str, value: object, tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text(json.dumps({field: value}))
    with pytest.raises(ModelFolderError, match=f"{field} is "):
        read_generation_defaults(tmp_path)


def test_what_is_not_applied_is_named(tmp_path: Path) -> None:
    fields = QWEN2 | {"no_repeat_ngram_size": 3}
    defaults = read_generation_defaults(put(tmp_path, **fields))
    assert defaults.unapplied == {"no_repeat_ngram_size": 3}
    assert defaults.as_json() == fields | {"bos_token_id": None}


def test_neutral_fields_are_applied_by_doing_nothing(tmp_path: Path) -> None:
    neutral = QWEN2 | {"repetition_penalty": 1.0, "bad_words_ids": None, "typical_p": 1.0}
    (tmp_path / "generation_config.json").write_text(json.dumps(neutral))
    assert read_generation_defaults(tmp_path).unapplied == {}
