"""Random folders are written only where disk and memory have room for them."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from tandem.catalogue.arithmetic import weight_bytes
from tandem.catalogue.config import MoE
from tandem.catalogue.models import MODELS
from tandem.catalogue.shrink import shrink
from tandem.errors import UsageError
from tandem.model.random_folder import write_random_folder


@pytest.mark.parametrize("short", [0, 1])
def test_the_largest_parameter_of_a_mixture_is_its_stacked_experts(
    short: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = shrink(MODELS["mixtral-8x7b"].config)
    assert isinstance(config.feed_forward, MoE)
    config = replace(config, feed_forward=replace(config.feed_forward, size=256))
    experts = 8 * 256 * config.hidden_size
    assert experts > config.vocab_size * config.hidden_size
    available = weight_bytes(config, "bfloat16") + 4 * experts - short
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=available))
    if short:
        with pytest.raises(UsageError, match=r"the memory has .* use --tiny or --shape"):
            write_random_folder(config, "mistral", tmp_path / "out", dtype="bfloat16", seed=0)
    else:
        write_random_folder(config, "mistral", tmp_path / "out", dtype="bfloat16", seed=0)
    assert (tmp_path / "out").exists() == (not short)


def test_the_disk_must_have_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = shrink(MODELS["mixtral-8x7b"].config)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=weight_bytes(config, "bfloat16") - 1))
    with pytest.raises(UsageError, match=r"the disk of .* use --tiny or --shape"):
        write_random_folder(config, "mistral", tmp_path / "out", dtype="bfloat16", seed=0)
