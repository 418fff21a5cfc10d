"""A model comes in row by row and leaves tensor by tensor, and no bit of it depends on how many ranks hold it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import start_suite

from tandem.parallel.world import World
from tandem.training.launch.ranks import Hosts, run_ranks

FAMILIES = ("llama3.2-1b", "yi-6b", "qwen-7b", "qwen2-0.5b", "qwen2.5-7b", "glm3-6b", "glm4-9b",
            "baichuan2-13b", "mistral-7b", "mixtral-8x7b", "deepseek-v3")  # fmt: skip


def check(tmp_path: Path, ranks: int, families: tuple[str, ...]) -> None:
    start_suite.write_bases(tmp_path / "bases", families)
    command = [sys.executable, start_suite.__file__, str(tmp_path / "bases"), str(tmp_path / "out"), *families]
    run_ranks(command, Hosts(ranks=ranks), tmp_path)
    for family in families:
        assert (tmp_path / "out" / family / "model" / "config.json").is_file(), "the leader has compared it"


@pytest.mark.parametrize("family", FAMILIES)
def test_one_rank_begins_and_exports_as_the_whole(tmp_path: Path, family: str) -> None:
    start_suite.write_bases(tmp_path, (family,))
    start_suite.check(tmp_path / family, tmp_path / "out", World())


@pytest.mark.full
@pytest.mark.timeout(600)
@pytest.mark.parametrize("ranks", [2, 3, 5])
def test_ranks_begin_and_export_the_same(tmp_path: Path, ranks: int) -> None:
    check(tmp_path, ranks, FAMILIES)
