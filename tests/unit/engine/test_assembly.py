"""What is said while an instance is put together."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from tandem.catalogue.models import MODELS
from tandem.engine.assembly import _generation_defaults
from tandem.text.tokenizer import Tokenizer


def test_a_default_that_is_not_applied_is_one_line_of_a_log(
    tiny_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fields = {"eos_token_id": 2, "bad_words_ids": [[1, 2]] * 5000, "suppress_tokens": "two\nlines"}
    (tmp_path / "generation_config.json").write_text(json.dumps(fields))
    with caplog.at_level(logging.WARNING):
        _generation_defaults(tmp_path, Tokenizer.from_folder(tiny_model), MODELS["llama3-8b"].config)
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 2
    assert all("is not applied" in line and "\n" not in line and len(line) < 500 for line in said)
