"""Generation defaults: what is not applied is said, and nothing is lost on the way through."""

from __future__ import annotations

import json
from pathlib import Path

from tandem.catalogue.generation import read_generation_defaults

QWEN = {
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


def test_what_is_not_applied_is_named(tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text(json.dumps(QWEN))
    defaults = read_generation_defaults(tmp_path)
    assert defaults.unapplied == {"repetition_penalty": 1.05}
    assert defaults.as_json() == QWEN | {"bos_token_id": None}


def test_neutral_fields_are_applied_by_doing_nothing(tmp_path: Path) -> None:
    neutral = QWEN | {"repetition_penalty": 1.0, "bad_words_ids": None, "typical_p": 1.0}
    (tmp_path / "generation_config.json").write_text(json.dumps(neutral))
    assert read_generation_defaults(tmp_path).unapplied == {}
