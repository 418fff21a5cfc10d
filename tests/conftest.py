"""A small model folder that many tests serve: random weights, a real tokenizer, no network."""

from __future__ import annotations

import os
from pathlib import Path

# Tests share two cores between several processes; threads that spin for tiny matrices only get in each other's way.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from tiny import TINY, write_model


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder whose greedy answers are varied: large random weights, norms included."""
    return write_model(TINY, tmp_path_factory.mktemp("tiny"))
